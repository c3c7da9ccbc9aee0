"""Training one of transformers' detectors over an adaptive ViT, and its average precision."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, final

import numpy as np
import torch
from torch.utils.data import Dataset
from torchvision.ops import box_convert
from transformers import EvalPrediction, PreTrainedModel
from transformers.image_processing_utils import BaseImageProcessor
from transformers.trainer_utils import IntervalStrategy

from ..arguments import (
    PICTURE_NAME,
    TASKS,
    DetectionArguments,
)
from ..data.box_sources import BoxData, load_boxed_images
from ..data.boxes import BoxExamples, to_coco
from ..data.images import prepare_images
from ..explanations.detections import backbone_of
from ..inference.detect_tiles import detect_tiled
from .arguments import RunArguments
from .detectors import make_detector, make_image_processor, parameter_groups, saved_detector
from .hub_trainer import HubTrainer
from .task import Task, describe_selection, refuse_classification_options


# Label of padding: a batch has equally many boxes for each image. Trainer pads with it between processes.
PADDING = -100
# Least score of boxes of merged tiles: below, there are too many to merge, and they add little.
LEAST_SCORE = 0.05


class AveragePrecision:
    """Computes COCO's average precision over the batches of an evaluation (`batch_eval_metrics`).

    Uses torchmetrics and pycocotools. Returns `map` (mean over classes and over the thresholds of
    intersection over union .5, .55, ... .95), `map_50`, `map_75`, `mar_100` (mean recall over the same
    thresholds with at most 100 boxes in an image), and with several classes the first for each, `map_<name>`;
    absent classes are left out.

    Args:
        image_processor: image processor of the detector, which decodes its outputs.
        names: names of the classes.

    Raises:
        ImportError: if torchmetrics or pycocotools are not installed.
    """

    def __init__(self, image_processor: BaseImageProcessor, names: list[str]):
        try:
            import pycocotools  # noqa: F401
            from torchmetrics.detection import MeanAveragePrecision
        except ImportError as error:
            raise ImportError(
                f"Average precision needs torchmetrics and pycocotools ({error}): pip install "
                "vit_hf[detection]"
            ) from error
        self.image_processor = image_processor
        self.names = names
        self.metric = MeanAveragePrecision(backend="pycocotools", class_metrics=len(names) > 1)
        # Images may have many small objects.
        self.metric.warn_on_many_detections = False

    def __call__(self, prediction: EvalPrediction, compute_result: bool = True) -> dict[str, float]:
        logits, boxes = (torch.as_tensor(values).float().cpu() for values in prediction.predictions)
        classes, true_boxes, sizes = (torch.as_tensor(values).cpu() for values in prediction.label_ids)
        outputs = SimpleNamespace(logits=logits, pred_boxes=boxes)
        found = self.image_processor.post_process_object_detection(outputs, threshold=0.0, target_sizes=sizes)
        targets = []
        for labels, centers, (height, width) in zip(classes, true_boxes, sizes.tolist(), strict=True):
            present = labels != PADDING
            corners = box_convert(centers[present].float(), "cxcywh", "xyxy")
            corners = corners * torch.tensor([width, height, width, height])
            targets.append({"labels": labels[present], "boxes": corners})
        self.metric.update(found, targets)
        return self.compute() if compute_result else {}

    def compute(self) -> dict[str, float]:
        """Returns the metrics of all images so far, and begins anew."""
        result = self.metric.compute()
        self.metric.reset()
        metrics = {name: result[name].item() for name in ("map", "map_50", "map_75", "mar_100")}
        if len(self.names) > 1:
            per_class = zip(
                *(result[name].reshape(-1).tolist() for name in ("classes", "map_per_class")), strict=True
            )
            metrics |= {f"map_{self.names[number]}": value for number, value in per_class if value >= 0}
        return metrics


def stack_labels(labels: list[dict[str, torch.Tensor]]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Stacks the labels of a batch into tensors, which processes can exchange.

    Returns:
        Classes `(B, M)` int64 and boxes `(B, M, 4)`, padded with `PADDING` to the most boxes of an image; and
        sizes `(B, 2)` int64, height and width of the images before preparation.
    """
    most = max(1, *(len(label["class_labels"]) for label in labels))
    device = labels[0]["boxes"].device
    classes = torch.full((len(labels), most), PADDING, device=device)
    boxes = torch.full((len(labels), most, 4), float(PADDING), device=device)
    for row, label in enumerate(labels):
        number = len(label["class_labels"])
        classes[row, :number], boxes[row, :number] = label["class_labels"], label["boxes"]
    return classes, boxes, torch.stack([label["orig_size"] for label in labels])


class BoxCollator:
    """Prepares and stacks images by a detector's image processor, which pads a batch to one size.

    Returns `pixel_values`, `pixel_mask` if it pads, and `labels`: for each image `class_labels` and `boxes`
    (center, width and height, as fractions of the prepared image), as transformers' detectors take them.
    """

    def __init__(self, image_processor: BaseImageProcessor):
        self.image_processor = image_processor

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        annotations = [
            {"image_id": example["image_id"], "annotations": _to_coco(example["boxes"], example["classes"])}
            for example in examples
        ]
        batch = prepare_images(
            self.image_processor, [example["image"] for example in examples], annotations=annotations
        )
        return batch | {"labels": [dict(label) for label in batch["labels"]]}


def _to_coco(boxes: np.ndarray, classes: np.ndarray) -> list[dict[str, Any]]:
    return [
        {"bbox": box, "area": box[2] * box[3], "category_id": number, "iscrowd": 0}
        for box, number in zip(to_coco(boxes).tolist(), classes.tolist(), strict=True)
    ]


class DetectionTrainer(HubTrainer):
    """`Trainer` that evaluates boxes.

    transformers' detectors take labels as a list, and return many outputs that metrics do not need.
    """

    def prediction_step(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, ...] | None, tuple[torch.Tensor, ...] | None]:
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            outputs = model(**inputs)
        loss = outputs.loss.detach().mean()
        if prediction_loss_only:
            return loss, None, None
        return loss, (outputs.logits, outputs.pred_boxes), stack_labels(inputs["labels"])


@final
class Detection(Task):
    """Finds objects and their boxes.

    Attributes:
        data: set by `load_data`.
    """

    argument_groups = TASKS["detect"]
    trainer_class = DetectionTrainer
    parameter_groups = staticmethod(parameter_groups)
    data: BoxData
    method: DetectionArguments

    def check(self, training: RunArguments) -> None:
        method = self.method
        refuse_classification_options(self, training)
        if training.push_to_hub:
            raise ValueError(
                "push_to_hub publishes models with their code, and a detector is a model of "
                "transformers: upload the folder when it is done (hf upload <repository> <output_dir>), "
                "from where it loads after import vit_hf"
            )
        if method.evaluate_only and self.model_arguments.model_name_or_path is None:
            raise ValueError("evaluate_only measures a saved detector: name it with model_name_or_path")
        for name in ("evaluate_whole_images", "evaluate_merged"):
            if getattr(method, name) and method.crop_size is None:
                raise ValueError(f"{name} is for crop_size, without which all images are whole")

    def load_data(self) -> dict[str, Any]:
        saved = saved_detector(self.model_arguments.model_name_or_path)
        self.data = load_boxed_images(
            self.data_arguments,
            class_names=self.method.class_names,
            known_names=None
            if saved is None
            else [saved.id2label[number] for number in sorted(saved.id2label)],
            single_class=self.method.single_class,
            clip_boxes=self.method.clip_boxes,
        )
        if not self.method.evaluate_only:
            for name, images in self.data.splits.items():
                if name != "test" and not images.num_boxes:
                    raise ValueError(f"there is no box on any image of the {name} split")
        return self.data.splits

    def make_model(self) -> PreTrainedModel:
        method = self.method
        return make_detector(
            self.model_arguments,
            method.detector,
            method.detector_overrides,
            self.data.names,
            method.crop_size,
        )

    def make_processor(self, model: PreTrainedModel) -> BaseImageProcessor:
        return make_image_processor(self.model_arguments, model.config, self.method.crop_size)

    def examples(
        self, model: PreTrainedModel, processor: BaseImageProcessor, training: RunArguments
    ) -> dict[str, Dataset]:
        """Returns random pieces of training images, tiles of the others; or all of them whole."""
        method, splits = self.method, self.splits
        check_sizes(self.data, model, processor, method, training)
        tile = None if method.evaluate_whole_images else method.crop_size
        held_out = {
            name: BoxExamples(images, tile, method.min_box_fraction)
            for name, images in splits.items()
            if name != "train"
        }
        if method.evaluate_only:
            return held_out or {"validation": BoxExamples(splits["train"], tile, method.min_box_fraction)}
        flips = (method.horizontal_flip, method.vertical_flip)
        train = BoxExamples(
            splits["train"], method.crop_size, method.min_box_fraction, True, *flips, training.seed
        )
        return {"train": train} | held_out

    def collator(self, processor: BaseImageProcessor, training: RunArguments) -> BoxCollator:
        return BoxCollator(processor)

    def metrics(self, model: PreTrainedModel, processor: BaseImageProcessor) -> Callable:
        return AveragePrecision(processor, self.data.names)

    def best_metric(self) -> tuple[str, bool]:
        return "map", True

    def adjust(self, model: PreTrainedModel, training: RunArguments) -> None:
        # Otherwise the boxes of all images would be kept until the end of an evaluation.
        training.batch_eval_metrics = True
        if self.evaluate_only:
            # Concerns evaluation in training, which needs a validation split.
            training.eval_strategy = IntervalStrategy.NO

    def describe(self, model: PreTrainedModel, examples: dict[str, Dataset]) -> tuple[str, list[str], str]:
        sizes = ", ".join(
            f"{len(pieces.images)} {name} with {pieces.images.num_boxes} boxes"
            + (f" in {len(pieces)} pieces" if pieces.crop_size else "")
            for name, pieces in examples.items()
        )
        number, backbone = len(self.data.names), backbone_of(model)
        return (
            f"{sizes}; {number} {'class' if number == 1 else 'classes'}",
            self.data.notes,
            f"{model.config.model_type}, {model.num_parameters() / 1e6:.1f} M parameters, "
            f"{backbone.num_parameters() / 1e6:.1f} M of them the backbone's; "
            f"{describe_selection(backbone.config)}",
        )

    def finish(self, trainer: HubTrainer, examples: dict[str, Dataset]) -> None:
        """Measures held-out images by merged tiles if `evaluate_merged` says so, and draws predictions."""
        if self.method.evaluate_merged and trainer.is_world_process_zero():
            for name, pieces in examples.items():
                if name != "train":
                    metrics = self._merged_precision(trainer, pieces)
                    trainer.log_metrics(f"{name}_merged", metrics)
                    trainer.save_metrics(f"{name}_merged", metrics)
        pictured = examples.get("validation") or examples.get("test")
        if self.method.num_pictured and pictured is not None and trainer.is_world_process_zero():
            from ..explanations.detections import draw_detections

            model = trainer.accelerator.unwrap_model(trainer.model)
            figure = draw_detections(model, trainer.processing_class, pictured, self.method.num_pictured)
            figure.savefig(Path(trainer.args.output_dir, PICTURE_NAME))

    def _merged_precision(self, trainer: HubTrainer, pieces: BoxExamples) -> dict[str, float]:
        model = trainer.accelerator.unwrap_model(trainer.model)
        precision = AveragePrecision(trainer.processing_class, self.data.names)
        for example in BoxExamples(pieces.images):
            found = detect_tiled(
                model,
                example["image"],
                trainer.processing_class,
                tile=self.method.crop_size,
                threshold=LEAST_SCORE,
                batch_size=trainer.args.per_device_eval_batch_size,
            )
            truth = {"boxes": torch.as_tensor(example["boxes"]).float().reshape(-1, 4)}
            truth["labels"] = torch.as_tensor(example["classes"]).long()
            precision.metric.update(
                [{name: getattr(found, name) for name in ("boxes", "scores", "labels")}], [truth]
            )
        return precision.compute()


def check_sizes(
    data: BoxData,
    model: PreTrainedModel,
    processor: BaseImageProcessor,
    method: DetectionArguments,
    training: RunArguments,
) -> None:
    """Refuses batches of mixed sizes if patches are selected.

    Detectors do not pass the padding mask to their backbone: a fraction of the patches would refer to the
    padded size, and so depend on the other images of the batch.

    Raises:
        ValueError: if there could be such a batch.
    """
    if backbone_of(model).config.patch_selector is None or "height" in (
        processor.size if processor.do_resize else {}
    ):
        return
    for name, images in data.splits.items():
        is_train = name == "train"
        in_pieces = method.crop_size is not None and (is_train or not method.evaluate_whole_images)
        batch = training.per_device_train_batch_size if is_train else training.per_device_eval_batch_size
        if not in_pieces and batch > 1 and len(set(images.sizes)) > 1:
            raise ValueError(
                f"images of the {name} split have several sizes, and a batch would be padded to the largest, "
                "which a patch_selector would take for part of the image: set crop_size, image_size, or "
                f"per_device_{'train' if is_train else 'eval'}_batch_size 1"
            )
