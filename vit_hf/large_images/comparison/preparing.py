"""From what was asked for to data and a setting, with whatever can be wrong found first."""

import numpy as np
from transformers import AutoConfig

from ...model.pixel_scorers import PIXEL_SCORERS
from ...model.selectors import PATCH_SELECTORS
from ...training.evaluation import SPLITS
from ...training.loading import ImageDataset, LabelledImages
from .arguments import ComparedDataArguments, ComparisonArguments
from .checkpoints import Checkpoint
from .strategies import Setting


# Selectors without weights of their own.
UNTRAINED = (*PIXEL_SCORERS, "attention")


def load_data(
    checkpoint: Checkpoint, data_arguments: ComparedDataArguments, adapt: int
) -> tuple[ImageDataset, bool]:
    """The data with their labels as the model numbers them; or, if it has others and is to be adapted, as they are.

    Returns:
        The data, and whether the model needs a new head.

    Raises:
        ValueError: for other labels than the model's and nothing to adapt it; and for a regression.
    """
    config = AutoConfig.from_pretrained(checkpoint.path)
    new_head = False
    try:
        data = data_arguments.load(label2id=config.label2id)
    except ValueError as error:
        data, new_head = data_arguments.load(), True  # fails, too, if classes are not what is wrong
        if not adapt:
            raise ValueError(
                f"{error} To fine-tune it for the classes of these data, give --adapt STEPS."
            ) from error
    if data.problem_type == "regression":
        raise ValueError("the data are a regression, and strategies are compared by accuracy")
    return data, new_head or data.num_labels != config.num_labels


def check_same_classes(checkpoint: Checkpoint, hybrid: Checkpoint) -> None:
    """
    Raises:
        ValueError: if their outputs do not mean the same.
    """
    one, other = (AutoConfig.from_pretrained(model.path).label2id for model in (checkpoint, hybrid))
    if one != other:
        raise ValueError(
            f"the hybrid {hybrid.path} has other classes than the model, or in another order: give --adapt STEPS to "
            "fine-tune both for the classes of these data"
        )


def choose_images(data: ImageDataset, arguments: ComparisonArguments) -> LabelledImages:
    """What is measured on.

    Raises:
        ValueError: if there is no such split, or nothing to adapt on.
    """
    split = arguments.split or next(name for name in SPLITS if name in data.splits)
    if split not in data.splits:
        raise ValueError(f"the data have no {split} split, only {', '.join(data.splits)}")
    if arguments.adapt and (split == "train" or "train" not in data.splits):
        raise ValueError("adapt learns from the train split: give another one to measure on")
    images = data.splits[split]
    if not arguments.limit or arguments.limit >= len(images):
        return images
    drawn = np.random.default_rng(arguments.seed).choice(len(images), arguments.limit, replace=False)
    return images.select(np.sort(drawn))


def make_setting(
    arguments: ComparisonArguments,
    checkpoint: Checkpoint,
    hybrid: Checkpoint | None,
    area: int,
    new_head: bool,
) -> Setting:
    """What was asked for, with defaults that fit the checkpoint and the images.

    Raises:
        ValueError: for a selector that does not exist.
    """
    own, patches = checkpoint.num_tokens, area // checkpoint.patch_size**2
    budgets = arguments.tokens or [max(1, own // 2), own, 2 * own]
    selectors = arguments.selectors
    if selectors is None:
        learned = [name for name in PATCH_SELECTORS if name not in UNTRAINED]
        selectors = [*UNTRAINED, *(learned if arguments.adapt else [])]
        if checkpoint.selector is not None and checkpoint.selector not in selectors:
            selectors.append(checkpoint.selector)
    unknown = [name for name in selectors if name not in PATCH_SELECTORS and "." not in name]
    if unknown:
        raise ValueError(f"selectors has {unknown[0]!r}; choose from {', '.join(PATCH_SELECTORS)}")
    return Setting(
        checkpoint=checkpoint,
        hybrid=hybrid,
        budgets=tuple(sorted({budget for budget in budgets if budget < patches} or {max(1, patches // 4)})),
        selectors=tuple(dict.fromkeys(selectors)),
        token_reducers=tuple(arguments.token_reducers),
        keep_rates=tuple(arguments.keep_rates),
        aggregations=tuple(arguments.aggregations),
        tile=arguments.tile or checkpoint.side,
        overlap=arguments.overlap,
        side=int(area**0.5),
        new_head=new_head,
    )
