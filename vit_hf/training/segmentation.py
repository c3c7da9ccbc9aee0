"""Training for semantic segmentation."""

from collections.abc import Callable
from typing import Any, final

import torch
from torch import nn
from torch.utils.data import Dataset
from transformers import EvalPrediction, PreTrainedModel
from transformers.image_processing_utils import BaseImageProcessor

from ..arguments import TASKS, SegmentationArguments
from ..data.masks import IGNORED, MaskCollator, MaskData, load_masked_images
from ..model.modeling_adaptive_vit import AdaptiveViTForSemanticSegmentation
from .arguments import RunArguments
from .model_loading import load_or_build
from .task import Task, describe_selection, describe_sizes, refuse_classification_options


class MeanIoU:
    """Computes intersection over union over the batches of an evaluation (`batch_eval_metrics`).

    Returns `mean_iou` over the classes that appear in masks or predictions, `overall_accuracy` of pixels, and
    the IoU of each class, `iou_<name>`, as `evaluate`'s mean_iou defines them.

    Args:
        names: names of the classes.
        ignored: label of ignored pixels.
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
        iou = right / union  # NaN for an absent class
        return {
            "mean_iou": iou.nanmean().item(),
            "overall_accuracy": (right.sum() / confusion.sum()).item(),
            **{f"iou_{name}": value for name, value in zip(self.names, iou.tolist(), strict=True)},
        }


@final
class Segmentation(Task):
    """Assigns a class to each pixel.

    Attributes:
        data: set by `load_data`.
    """

    argument_groups = TASKS["segment"]
    data: MaskData
    method: SegmentationArguments

    def check(self, training: RunArguments) -> None:
        refuse_classification_options(self, training)

    def load_data(self) -> dict[str, Any]:
        self.data = load_masked_images(self.data_arguments, self.method.binary, self.method.ignore_label)
        return self.data.splits

    def make_model(self) -> PreTrainedModel:
        fields = self.model_arguments.config_fields() | {
            "segmentation_decoder": self.method.segmentation_decoder,
            "id2label": dict(enumerate(self.data.names)),
            "label2id": {name: number for number, name in enumerate(self.data.names)},
        }
        model = load_or_build(AdaptiveViTForSemanticSegmentation, self.model_arguments, fields)
        if model.ignore_index != IGNORED:
            raise ValueError(
                f"ignore_index of the model's segmentation_decoder is {model.ignore_index}, but training "
                f"marks ignored pixels by {IGNORED}: leave it out, and give their value in your masks as "
                "ignore_label"
            )
        return model

    def examples(
        self, model: PreTrainedModel, processor: BaseImageProcessor, training: RunArguments
    ) -> dict[str, Dataset]:
        train = self.splits["train"]
        train.horizontal_flip, train.seed = self.method.horizontal_flip, training.seed
        return self.splits

    def collator(self, processor: BaseImageProcessor, training: RunArguments) -> MaskCollator:
        return MaskCollator(processor)

    def metrics(self, model: PreTrainedModel, processor: BaseImageProcessor) -> Callable:
        return MeanIoU(self.data.names, model.ignore_index)

    def best_metric(self) -> tuple[str, bool]:
        return "mean_iou", True

    def adjust(self, model: PreTrainedModel, training: RunArguments) -> None:
        # Otherwise the masks of all images would be kept until the end of an evaluation.
        training.batch_eval_metrics = True

    def describe(self, model: PreTrainedModel, examples: dict[str, Dataset]) -> tuple[str, list[str], str]:
        return (
            f"{describe_sizes(examples)}; {len(self.data.names)} classes",
            self.data.notes,
            f"{model.num_parameters() / 1e6:.1f} M parameters; {describe_selection(model.config)}; "
            f"{self.method.segmentation_decoder} decoder",
        )
