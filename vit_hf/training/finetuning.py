"""A fine-tuning run from its arguments to a saved model."""

import contextlib
from dataclasses import asdict, dataclass
from pathlib import Path

from transformers import PreTrainedModel, TrainerCallback, set_seed
from transformers.image_processing_utils import BaseImageProcessor
from transformers.integrations import get_reporting_integration_callbacks
from transformers.trainer_utils import IntervalStrategy
from transformers.utils import SAFE_WEIGHTS_NAME

from ..model.budget import Budget
from ..model.configuration_adaptive_swin import AdaptiveSwinConfig
from ..model.configuration_adaptive_vit import AdaptiveViTConfig
from ..model.elastic_space import is_elastic, read_elastic_options
from ..model.options import options_of, type_of
from ..remote_code import NoSourceFileError, files_to_save
from .arguments import DataArguments, MethodArguments, ModelArguments, RunArguments
from .augmentation import (
    AugmentationArguments,
    EvaluationExamples,
    ReproducibleTraining,
    TrainingExamples,
    make_augmentation,
)
from .collation import ImageCollator
from .ema import UNAVERAGED_WEIGHTS_NAME, EmaCallback
from .execution import check_batch, describe_beginning, execute_run, open_output_dir
from .freezing import FreezeBackbone, part_of
from .hub_trainer import HubTrainer
from .layer_decay import layerwise_parameter_groups
from .loading import ImageDataset
from .metrics import BEST_MODEL_METRIC, compute_metrics_for
from .models import make_image_processor, make_model
from .monitoring import LogSelectionLoss, NonFiniteGuard
from .runs import (
    check_output_dir,
    check_same_model,
    check_same_rates,
    describe_run,
    find_last_checkpoint,
)
from .schedule import KeepRateSchedule


@dataclass
class FinetuningRun:
    """A run about which nothing is left to be found wrong.

    Attributes:
        trainer: holds the model, the data and the arguments.
        data: all splits.
        checkpoint: where the run goes on from; None at the beginning.
    """

    trainer: HubTrainer
    data: ImageDataset
    checkpoint: Path | None

    def execute(self) -> dict[str, float]:
        """Train (or go on), evaluate, and save model, image processor and metrics to `output_dir`.

        Returns:
            Metrics of training (`train_`), validation (`eval_`) and test (`test_`), as far as there are any.
        """
        held_out = {
            split: EvaluationExamples(images)
            for split, images in self.data.splits.items()
            if split != "train"
        }
        return execute_run(self.trainer, held_out, self.checkpoint)

    def describe(self) -> str:
        """What is going to happen, in a few lines."""
        sizes = ", ".join(f"{len(images)} {split}" for split, images in self.data.splits.items())
        outputs = f"{self.data.num_labels} classes" if self.data.id2label else "regression"
        model = self.trainer.model
        return "\n".join(
            [
                f"Data:   {sizes} images; {outputs}",
                *(f"        {note}" for note in self.data.describe_left_out()),
                f"Model:  {model.num_parameters() / 1e6:.1f} M parameters; {describe_selection(model.config)}",
                describe_beginning(self.checkpoint),
            ]
        )


def describe_selection(config: AdaptiveViTConfig | AdaptiveSwinConfig) -> str:
    """What a model computes on."""
    is_swin = isinstance(config, AdaptiveSwinConfig)
    parts = "windows" if is_swin else "patches"
    text = f"all {parts}"
    if config.patch_selector is not None:
        number = config.num_selected_windows if is_swin else config.num_selected_patches
        is_fraction = Budget(number).is_fraction
        share = f"{number:.1%} of the" if is_fraction else number
        where = "an image's first stage" if is_swin and not is_fraction else "an image"
        text = f"{share} {parts} of {where} by {type_of(config.patch_selector)}"
    if config.token_reducer is not None:
        amount = f"keeps {config.keep_rate:.1%} of the tokens"
        if (merged := options_of(config.token_reducer).get("r")) is not None:
            amount = f"takes away {merged} tokens"
        layers = ", ".join(map(str, sorted(config.reduction_layers)))
        text += f"; {type_of(config.token_reducer)} {amount} in each of the blocks {layers}"
    return text


def prepare_run(
    model_arguments: ModelArguments,
    data_arguments: DataArguments,
    augmentation: AugmentationArguments,
    method: MethodArguments,
    training: RunArguments,
) -> FinetuningRun:
    """Everything up to the first step of a new run, or of one to go on with in `training.output_dir`.

    All that can be wrong with the arguments or the data is found here, before anything is written.

    Raises:
        OSError, TypeError, ValueError: for what is wrong.
    """
    check_output_dir(training.output_dir)
    # As they were given, because some are about to be changed.
    arguments = training.to_dict()
    for group in (model_arguments, data_arguments, augmentation, method):
        arguments |= asdict(group)
    # One process after the other, because the first fills a cache that the others read.
    with training.main_process_first():
        data = data_arguments.load()
    if "train" not in data.splits:
        raise ValueError(f"the data have no train split, only {', '.join(data.splits)}")
    if "validation" not in data.splits and training.eval_strategy != IntervalStrategy.NO:
        raise ValueError(
            "there is no validation split: give one, set validation_share above 0, or set eval_strategy to 'no'"
        )

    set_seed(training.seed)
    model = make_model(model_arguments, data)
    with contextlib.suppress(NoSourceFileError):  # of which there was a warning
        files_to_save(model)
    processor = make_image_processor(model_arguments, model.config, select=not method.keep_rate_schedule)
    averaged = method.ema_decay is not None
    checkpoint = None if method.start_anew else find_resumable(training.output_dir, model, averaged)
    if checkpoint is not None:
        check_same_rates(training.output_dir, arguments)
    trainer = make_trainer(model, processor, data, augmentation, method, training)
    trainer.card = describe_run(arguments) | {
        "license": training.hub_license,
        "examples": training.hub_examples or [],
    }
    check_batch(trainer)

    open_output_dir(training, arguments, checkpoint, method.start_anew)
    return FinetuningRun(trainer, data, checkpoint)


def make_trainer(
    model: PreTrainedModel,
    processor: BaseImageProcessor,
    data: ImageDataset,
    augmentation: AugmentationArguments,
    method: MethodArguments,
    training: RunArguments,
) -> HubTrainer:
    """A `Trainer` with all that was asked for; see `prepare_run`. Changes what in `training` it does itself."""
    is_single_label = data.problem_type == "single_label_classification"
    collator = ImageCollator(
        processor,
        num_labels=data.num_labels if is_single_label else None,
        mixup_alpha=augmentation.mixup_alpha,
        cutmix_alpha=augmentation.cutmix_alpha,
        label_smoothing=training.label_smoothing_factor,
    )
    # The collator did it; see there.
    training.label_smoothing_factor = 0.0
    if training.metric_for_best_model == "auto":
        training.metric_for_best_model, training.greater_is_better = BEST_MODEL_METRIC[data.problem_type]

    size = processor.size if processor.do_resize else {}
    image_size = (size["height"], size["width"]) if "height" in size else None
    augment = make_augmentation(augmentation, image_size)

    callbacks: list[TrainerCallback] = [ReproducibleTraining(), NonFiniteGuard(), LogSelectionLoss()]
    if method.keep_rate_schedule:
        if model.config.patch_selector is None and model.config.token_reducer is None:
            raise ValueError(
                "keep_rate_schedule has nothing to lead to: name a patch_selector or a token_reducer"
            )
        callbacks.append(
            KeepRateSchedule(
                warmup_ratio=method.keep_rate_warmup,
                final_ratio=method.keep_rate_final,
                initial=method.keep_rate_initial,
            )
        )
    freeze = FreezeBackbone(method.freeze_backbone, method.freeze_head)
    if freeze.share > 0:
        freeze.parameters_of(model)
        callbacks.append(freeze)
    if method.ema_decay is not None:
        callbacks.append(EmaCallback(method.ema_decay))
    # Behind ours, and not before as Trainer would put them, so that they report what ours log.
    callbacks += [callback() for callback in get_reporting_integration_callbacks(training.report_to)]
    training.report_to = []

    if training.ddp_find_unused_parameters is None:
        # Of the model only predictors, what is frozen, and what an elastic one leaves out can be without a gradient, and
        # torch warns of looking in vain.
        names = [name for name, _ in model.named_parameters()]
        has_predictors = any(part_of(model, name) == "predictor" for name in names)
        draws_one = is_elastic(model.config) and not read_elastic_options(model.config).distillation
        training.ddp_find_unused_parameters = has_predictors or freeze.share > 0 or draws_one

    optimizer, options = HubTrainer.get_optimizer_cls_and_kwargs(training, model)
    groups = layerwise_parameter_groups(
        model,
        training.learning_rate,
        training.weight_decay,
        method.layer_decay,
        method.backbone_lr_factor,
    )
    return HubTrainer(
        model=model,
        args=training,
        data_collator=collator,
        train_dataset=TrainingExamples(
            data.splits["train"], augment, training.seed, processor.do_convert_rgb
        ),
        eval_dataset=EvaluationExamples(data.splits["validation"]) if "validation" in data.splits else None,
        processing_class=processor,
        compute_metrics=compute_metrics_for(data.problem_type, data.num_labels),
        callbacks=callbacks,
        optimizer_cls_and_kwargs=(optimizer, options | {"params": groups}),
    )


def find_resumable(output_dir: str, model: PreTrainedModel, averaged: bool = False) -> Path | None:
    """The checkpoint in `output_dir` to go on from, or None if there is none.

    Args:
        output_dir: of the run.
        model: with which it is to go on.
        averaged: whether the run keeps a moving average of the weights.

    Raises:
        ValueError: if the checkpoint is one of another model, or was made with a moving average and there is to
            be none now.
        FileExistsError: if there is a finished model but no checkpoint.
    """
    also = [UNAVERAGED_WEIGHTS_NAME] if averaged else []
    checkpoint = find_last_checkpoint(output_dir, also)
    if checkpoint is None:
        if (Path(output_dir) / SAFE_WEIGHTS_NAME).is_file():
            raise FileExistsError(
                f"output_dir {output_dir} holds a finished model and no checkpoint to resume: name another folder, or "
                "set start_anew"
            )
        return None
    check_same_model(checkpoint, model)
    if not averaged and (checkpoint / UNAVERAGED_WEIGHTS_NAME).is_file():
        raise ValueError(f"{checkpoint} belongs to a run with ema_decay; give it again, or set start_anew")
    return checkpoint
