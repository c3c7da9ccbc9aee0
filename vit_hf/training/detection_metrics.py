"""Average precision of detected boxes, and the batches that it is computed from."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torchvision.ops import box_convert
from transformers import EvalPrediction
from transformers.image_processing_utils import BaseImageProcessor

from ..data.boxes import to_coco
from ..data.images import prepare_images


# Of a box that is none: batches have as many for each image. The number with which Trainer pads between
# processes.
NONE = -100


class AveragePrecision:
    """COCO's average precision over the batches of an evaluation (`batch_eval_metrics`), by torchmetrics and
    pycocotools.

    Returns `map` (mean over classes and over the thresholds of intersection over union .5, .55, ... .95),
    `map_50`, `map_75`, `mar_100` (mean recall over the same thresholds with at most 100 boxes for an image),
    and with several classes the first of each, `map_<name>`; classes that are nowhere are left out.

    Args:
        image_processor: of the detector, which knows what its outputs mean.
        names: of the classes.

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
        # With many small objects in an image, that is all there is to say.
        self.metric.warn_on_many_detections = False

    def __call__(self, prediction: EvalPrediction, compute_result: bool = True) -> dict[str, float]:
        logits, boxes = (torch.as_tensor(values).float().cpu() for values in prediction.predictions)
        classes, true_boxes, sizes = (torch.as_tensor(values).cpu() for values in prediction.label_ids)
        outputs = SimpleNamespace(logits=logits, pred_boxes=boxes)
        found = self.image_processor.post_process_object_detection(outputs, threshold=0.0, target_sizes=sizes)
        targets = []
        for labels, centres, (height, width) in zip(classes, true_boxes, sizes.tolist(), strict=True):
            there = labels != NONE
            corners = box_convert(centres[there].float(), "cxcywh", "xyxy")
            corners = corners * torch.tensor([width, height, width, height])
            targets.append({"labels": labels[there], "boxes": corners})
        self.metric.update(found, targets)
        if not compute_result:
            return {}
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
    """Labels of a batch in tensors, which processes can exchange.

    Returns:
        Classes `(B, M)` int64 and boxes `(B, M, 4)`, as many as the image with most has, `NONE` for the rest;
        and sizes `(B, 2)` int64, height and width of what the image processor got.
    """
    most = max(1, *(len(label["class_labels"]) for label in labels))
    device = labels[0]["boxes"].device
    classes = torch.full((len(labels), most), NONE, device=device)
    boxes = torch.full((len(labels), most, 4), float(NONE), device=device)
    for row, label in enumerate(labels):
        number = len(label["class_labels"])
        classes[row, :number], boxes[row, :number] = label["class_labels"], label["boxes"]
    return classes, boxes, torch.stack([label["orig_size"] for label in labels])


class BoxCollator:
    """Prepares and stacks images by a detector's image processor, which pads those of a batch to one size.

    Returns `pixel_values`, `pixel_mask` where it pads, and `labels`: for each image `class_labels` and
    `boxes` (centre, width and height, in 0..1 of what the model gets), as transformers' detectors take them.
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
