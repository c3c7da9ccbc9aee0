"""Boxes that a detector found, true boxes, and the patches that its backbone computed."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset
from transformers import PreTrainedModel
from transformers.image_processing_utils import BaseImageProcessor

from ..data.images import prepare_images
from ..figures import FAINT_INK, MARGIN, Cell, Sheet, format_size, house_style
from ..model.modeling_adaptive_vit import AdaptiveViTBackbone
from ..model.sizes import to_pair
from .drawing import OBJECT, draw_boxes, panel_axes
from .explanation import kept_picture
from .model_view import shrink, to_picture


# Differs from the color of true boxes, and is rare in photos.
FOUND = "#ffd400"
# Inches.
SIDE, TITLE, GAP, LEGEND = 4.6, 0.3, 0.3, 0.45
COLUMNS = 2


@dataclass
class DetectedImage:
    """One image and its boxes. Attributes that `Explanation` has too go by its names.

    Attributes:
        picture: `(h, w, 3)` uint8, at most 1024 pixels a side.
        picture_size: (H, W) of the image; boxes are in its pixels.
        patch_span: height and width in patches, with fractions.
        kept: `(R, S)` bool, True for patches that the backbone computed.
        boxes: `(T, 4)` true boxes: left, top, right, bottom.
        found: `(F, 4)` detected boxes with a score of at least the threshold.
    """

    picture: np.ndarray
    picture_size: tuple[int, int]
    patch_span: tuple[float, float]
    kept: np.ndarray
    boxes: np.ndarray
    found: np.ndarray


@torch.no_grad()
def detect(
    model: PreTrainedModel, processor: BaseImageProcessor, example: dict[str, Any], threshold: float
) -> DetectedImage:
    """Runs a detector on one of `BoxExamples`, and records its patches in the same pass."""
    image = example["image"]
    inputs = prepare_images(processor, [image])
    inputs = {name: values.to(model.device) for name, values in inputs.items()}
    backbone, seen = backbone_of(model), []
    handle = backbone.register_forward_hook(lambda module, args, outputs: seen.append(outputs))
    was_training = model.training
    try:
        outputs = model.eval()(**inputs)
    finally:
        handle.remove()
        model.train(was_training)
    height, width = inputs["pixel_values"].shape[-2:]
    patch_height, patch_width = to_pair(backbone.config.patch_size)
    rows, columns = height // patch_height, width // patch_width
    kept = np.ones(rows * columns, bool)
    if backbone.config.patch_selector is not None:
        kept[:] = False
        kept[seen[0].selected_patches[0].cpu().numpy()] = True
    (found,) = processor.post_process_object_detection(
        outputs, threshold=threshold, target_sizes=torch.tensor([image.size[::-1]])
    )
    picture = to_picture(image, inputs["pixel_values"][0].cpu(), processor) if image.mode != "RGB" else image
    return DetectedImage(
        shrink(picture, 1024),
        image.size[::-1],
        (height / patch_height, width / patch_width),
        kept.reshape(rows, columns),
        example["boxes"],
        found["boxes"].cpu().numpy(),
    )


def draw_detections(
    model: PreTrainedModel,
    processor: BaseImageProcessor,
    examples: Dataset,
    number: int = 4,
    threshold: float = 0.3,
) -> Any:
    """Draws images side by side with their true and detected boxes; skipped patches are pale gray.

    Args:
        model: a detector over an adaptive ViT.
        processor: its image processor.
        examples: `BoxExamples` to draw from.
        number: images to draw, evenly spaced.
        threshold: lowest score of a box that is drawn.

    Returns:
        A matplotlib figure.
    """
    chosen = np.unique(np.linspace(0, len(examples) - 1, min(number, len(examples))).round().astype(int))
    return draw_detected([detect(model, processor, examples[int(i)], threshold) for i in chosen], threshold)


def draw_detected(images: Sequence[DetectedImage], threshold: float) -> Any:
    """Draws detections; see `draw_detections`."""
    columns = min(COLUMNS, len(images))
    shapes = [_fitted(image.picture_size) for image in images]
    rows = [shapes[start : start + columns] for start in range(0, len(shapes), columns)]
    heights = [max(height for height, _ in row) + TITLE + GAP for row in rows]
    width = columns * SIDE + (columns - 1) * GAP
    with house_style():
        sheet = Sheet(width + 2 * MARGIN, sum(heights) + LEGEND + 2 * MARGIN - GAP)
        for index, (image, (high, wide)) in enumerate(zip(images, shapes, strict=True)):
            row, column = divmod(index, columns)
            cell = Cell(MARGIN + column * (SIDE + GAP), MARGIN + sum(heights[:row]) + TITLE, wide, high)
            title = f"{len(image.found)} found, {len(image.boxes)} there"
            if not image.kept.all():
                title += f"  ·  {image.kept.mean():.0%} of {format_size(*image.kept.shape)} patches"
            axes = panel_axes(image, sheet, cell, title, kept_picture(image))
            draw_boxes(axes, image, image.boxes, width=1.6, color=OBJECT)
            draw_boxes(axes, image, image.found, width=1.0, color=FOUND)
        below = MARGIN + sum(heights) - GAP + 0.15
        entries = ((OBJECT, "there"), (FOUND, f"found, with a score of at least {threshold:g}"))
        for index, (color, text) in enumerate(entries):
            sheet.write("■", MARGIN + 1.1 * index, below, size=11, color=color)
            sheet.write(text, MARGIN + 0.2 + 1.1 * index, below + 0.02, size=9, color=FAINT_INK)
        if not all(image.kept.all() for image in images):
            sheet.write(
                "Pale gray: patches whose pixels were embedded but not computed on.",
                MARGIN,
                below + 0.22,
                size=9,
                color=FAINT_INK,
            )
    return sheet.figure


def _fitted(size: tuple[int, int]) -> tuple[float, float]:
    """Returns height and width of a picture, in inches."""
    longest = max(size)
    return SIDE * size[0] / longest, SIDE * size[1] / longest


def backbone_of(model: PreTrainedModel) -> AdaptiveViTBackbone:
    """Returns the adaptive ViT of a detector."""
    return model.model.backbone.model
