"""A fine-tuning run for semantic segmentation from its arguments to a saved model."""

from dataclasses import asdict, dataclass, field
from typing import Literal

import torch
from torch import nn
from transformers import EvalPrediction, set_seed
from transformers.image_processing_utils import BaseImageProcessor
from transformers.integrations import get_reporting_integration_callbacks
from transformers.trainer_utils import IntervalStrategy

from ..model.modeling_adaptive_vit import AdaptiveViTForSemanticSegmentation
from .arguments import DataArguments, ModelArguments, RunArguments
from .augmentation import ReproducibleTraining
from .execution import PreparedRun, check_batch, open_output_dir
from .finetuning import describe_selection, find_resumable
from .hub_trainer import HubTrainer
from .layer_decay import layerwise_parameter_groups
from .masks import IGNORED, MaskCollator, MaskedImages, load_masked_images
from .models import load_or_build, make_image_processor
from .monitoring import LogSelectionLoss, NonFiniteGuard
from .runs import check_output_dir, check_same_rates, describe_run
from .schedule import KeepRateSchedule


@dataclass
class SegmentationArguments:
    """How to fine-tune for masks, beyond what Trainer does by itself."""

    _argument_group_name = "segmentation"

    segmentation_decoder: Literal["linear", "convolutional"] = field(
        default="convolutional",
        metadata={
            "help": "a classifier on each patch, or transposed convolutions to 4 times as many places a side"
        },
    )
    binary: bool = field(default=False, metadata={"help": "take all classes but 0 for one"})
    ignore_label: str = field(
        default="auto",
        metadata={
            "help": "value of mask pixels that do not count, or none; default: 255, and none where masks "
            "are black and white "
            "(0 and 255) and binary"
        },
    )
    horizontal_flip: float = field(default=0.0, metadata={"help": "probability of mirroring left and right"})
    keep_rate_schedule: bool = field(
        default=False,
        metadata={
            "help": "begin with all patches and tokens and come to num_selected_patches, keep_rate gradually"
        },
    )
    layer_decay: float = field(
        default=1.0,
        metadata={"help": "factor of the learning rate from a layer to the one below; .65 to .8 is usual"},
    )
    backbone_lr_factor: float = field(
        default=1.0,
        metadata={"help": "factor of the learning rate for all but decoder, selector and reducer"},
    )
    start_anew: bool = field(
        default=False,
        metadata={
            "help": "do not resume the run in output_dir: rename it to <output_dir>-previous-1 and begin again"
        },
    )

    def __post_init__(self):
        self.ignore_label = str(self.ignore_label).lower()
        if self.ignore_label not in ("auto", "none", *map(str, range(256))):
            raise ValueError(
                f"ignore_label is {self.ignore_label!r}; give a value from 0 to 255, none or auto"
            )
        if not 0 <= self.horizontal_flip <= 1:
            raise ValueError(f"horizontal_flip is {self.horizontal_flip}; it is a probability, from 0 to 1")


class MeanIoU:
    """Intersection over union, summed up over the batches of an evaluation (`batch_eval_metrics`).

    Returns `mean_iou` over the classes that appear in masks or answers, `overall_accuracy` of pixels, and the IoU of
    each class, `iou_<name>`, as `evaluate`'s mean_iou has them.

    Args:
        names: of the classes.
        ignored: label of pixels that do not count.
    """

    def __init__(self, names: list[str], ignored: int):
        self.names = names
        self.ignored = ignored
        self.confusion = torch.zeros(len(names), len(names), dtype=torch.int64)

    def __call__(self, prediction: EvalPrediction, compute_result: bool = True) -> dict[str, float]:
        labels = torch.as_tensor(prediction.label_ids).cpu()
        logits = torch.as_tensor(prediction.predictions).cpu().float()
        logits = nn.functional.interpolate(
            logits, size=labels.shape[-2:], mode="bilinear", align_corners=False
        )
        counting, number = labels != self.ignored, len(self.names)
        pairs = labels[counting] * number + logits.argmax(dim=1)[counting]
        self.confusion += torch.bincount(pairs, minlength=number**2).view(number, number)
        if not compute_result:
            return {}
        confusion, self.confusion = self.confusion.double(), torch.zeros_like(self.confusion)
        right = confusion.diagonal()
        union = confusion.sum(dim=0) + confusion.sum(dim=1) - right
        iou = right / union  # NaN for a class that is nowhere
        return {
            "mean_iou": iou.nanmean().item(),
            "overall_accuracy": (right.sum() / confusion.sum()).item(),
            **{f"iou_{name}": value for name, value in zip(self.names, iou.tolist(), strict=True)},
        }


def prepare_segmentation(
    model_arguments: ModelArguments,
    data_arguments: DataArguments,
    method: SegmentationArguments,
    training: RunArguments,
) -> PreparedRun:
    """Everything up to the first step of a new run, or of one to go on with in `training.output_dir`.

    All that can be wrong with the arguments or the data is found here, before anything is written.

    Raises:
        OSError, TypeError, ValueError: for what is wrong.
    """
    if data_arguments.skip_corrupt:
        raise ValueError("skip_corrupt is for classification: mend or remove damaged images, or their masks")
    if training.label_smoothing_factor:
        raise ValueError("label_smoothing_factor is for classification: set it to 0")
    check_output_dir(training.output_dir)
    arguments = training.to_dict()
    for group in (model_arguments, data_arguments, method):
        arguments |= asdict(group)
    # One process after the other, because the first fills a cache that the others read.
    with training.main_process_first():
        data = load_masked_images(data_arguments, method.binary, method.ignore_label)
    splits, names = data.splits, data.names
    if "train" not in splits:
        raise ValueError(f"the data have no train split, only {', '.join(splits)}")
    if "validation" not in splits and training.eval_strategy != IntervalStrategy.NO:
        raise ValueError(
            "there is no validation split: give one, set validation_share above 0, or set eval_strategy to 'no'"
        )
    splits["train"].horizontal_flip, splits["train"].seed = method.horizontal_flip, training.seed

    set_seed(training.seed)
    fields = model_arguments.config_fields() | {
        "segmentation_decoder": method.segmentation_decoder,
        "id2label": dict(enumerate(names)),
        "label2id": {name: number for number, name in enumerate(names)},
    }
    model = load_or_build(AdaptiveViTForSemanticSegmentation, model_arguments, fields)
    if model.ignore_index != IGNORED:
        raise ValueError(
            f"ignore_index of the model's segmentation_decoder is {model.ignore_index}, and pixels that do not "
            f"count are {IGNORED} in training: leave it out, and give their value in your masks as ignore_label"
        )
    processor = make_image_processor(model_arguments, model.config, select=not method.keep_rate_schedule)
    checkpoint = None if method.start_anew else find_resumable(training.output_dir, model)
    if checkpoint is not None:
        check_same_rates(training.output_dir, arguments)
    trainer = make_segmenter(model, processor, splits, names, method, training)
    trainer.card = describe_run(arguments) | {
        "license": training.hub_license,
        "examples": training.hub_examples or [],
    }
    check_batch(trainer)
    open_output_dir(training, arguments, checkpoint, method.start_anew)
    sizes = ", ".join(f"{len(images)} {split}" for split, images in splits.items())
    description = [
        f"Data:   {sizes} images; {len(names)} classes",
        *(f"        {note}" for note in data.notes),
        f"Model:  {model.num_parameters() / 1e6:.1f} M parameters; {describe_selection(model.config)}; "
        f"{method.segmentation_decoder} decoder",
    ]
    held_out = {name: images for name, images in splits.items() if name != "train"}
    return PreparedRun(trainer, held_out, checkpoint, description)


def make_segmenter(
    model: AdaptiveViTForSemanticSegmentation,
    processor: BaseImageProcessor,
    splits: dict[str, MaskedImages],
    names: list[str],
    method: SegmentationArguments,
    training: RunArguments,
) -> HubTrainer:
    """A `Trainer` with all that was asked for. Changes what in `training` it does itself."""
    if training.metric_for_best_model == "auto":
        training.metric_for_best_model, training.greater_is_better = "mean_iou", True
    # Otherwise the masks of all images would be kept until the end.
    training.batch_eval_metrics = True
    callbacks = [ReproducibleTraining(), NonFiniteGuard(), LogSelectionLoss()]
    if method.keep_rate_schedule:
        if model.config.patch_selector is None and model.config.token_reducer is None:
            raise ValueError(
                "keep_rate_schedule has nothing to lead to: name a patch_selector or a token_reducer"
            )
        callbacks.append(KeepRateSchedule())
    callbacks += [callback() for callback in get_reporting_integration_callbacks(training.report_to)]
    training.report_to = []
    optimizer, options = HubTrainer.get_optimizer_cls_and_kwargs(training, model)
    groups = layerwise_parameter_groups(
        model, training.learning_rate, training.weight_decay, method.layer_decay, method.backbone_lr_factor
    )
    return HubTrainer(
        model=model,
        args=training,
        data_collator=MaskCollator(processor),
        train_dataset=splits["train"],
        eval_dataset=splits.get("validation"),
        processing_class=processor,
        compute_metrics=MeanIoU(names, model.ignore_index),
        callbacks=callbacks,
        optimizer_cls_and_kwargs=(optimizer, options | {"params": groups}),
    )
