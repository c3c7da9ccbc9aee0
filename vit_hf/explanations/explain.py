"""Explanations of predictions: the patches that a model kept, their scores, and attention to them.

Shapes: R, S rows and columns of the full grid of patches; K patches kept; J objects.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import PIL.Image
import PIL.ImageDraw
import torch
from transformers.image_processing_utils import BaseImageProcessor
from transformers.utils import logging

from ..arguments import IMAGE_PICTURES, PICTURES
from ..data.images import unique_names
from ..model.configuration_adaptive_vit import AdaptiveViTConfig
from ..model.elastic import active_subnetwork
from ..model.image_loading import flatten_images
from ..model.image_processing_adaptive_vit import score_patches
from ..model.modeling_adaptive_swin import AdaptiveSwinForImageClassification
from ..model.modeling_adaptive_vit import (
    AdaptiveViTForImageClassification,
    AdaptiveViTForVideoClassification,
    AdaptiveViTImageClassifierOutput,
)
from ..model.options import type_of
from ..model.patches import ImagePatches, raster_indices
from ..model.selectors import PolicySelector
from ..model.sizes import has_frames, patch_sides, to_pair
from .attention_maps import run_with_attention_maps
from .explanation import Explanation, Prediction
from .model_view import load_upright, process, shrink, to_picture, to_picture_boxes
from .object_statistics import Boxes, check_boxes, write_statistics
from .position_maps import position_similarity
from .stages import Stage, record_reductions, to_stages, window_stages


if TYPE_CHECKING:
    from matplotlib.figure import Figure

logger = logging.get_logger(__name__)


# Pixels of the longer side of a picture: screens show no more, and files stay small.
PICTURE_SIZE = 1024

# Number of most probable classes to list.
NUM_TOP = 5

Label = int | float | str | Sequence[int | float | str]


def explain(
    model: AdaptiveViTForImageClassification | AdaptiveSwinForImageClassification,
    image_processor: BaseImageProcessor,
    images: Any,
    output: str | os.PathLike | None = None,
    pictures: Sequence[str] = ("overview", "windows", "positions"),
    labels: Label | Sequence[Label] | None = None,
    names: Sequence[str] | None = None,
    max_rollout_tokens: int = 8192,
    boxes: Sequence[Boxes | None] | None = None,
) -> list[Explanation]:
    """Shows which patches of images a model kept, their scores, and its attention to them.

    Args:
        model: a classifier, on any device and with any attention implementation.
        image_processor: the model's own.
        images: a path, URL, Pillow image, array or tensor; or a list of these.
        output: folder for the pictures, `<name>_<picture>.png`; None draws nothing, see `Explanation.figure`.
        pictures: which of `PICTURES` to draw. Those that do not apply, such as scores without a selector, are
            left out. "positions" is one file for the model, `positions.png`.
        labels: true class of each image, by name or number; a list of them for multi-label models.
        names: one for each image; by default the names of the files.
        max_rollout_tokens: no rollout for longer sequences, and none at all for 0. Its time grows with the
            square of the length (at 4096 patches of a ViT-B, it takes as long as the forward pass), its
            memory only with the length.
        boxes: for each image the list of its objects, [x0, y0, x1, y1] in pixels of the input image; None
            where they are unknown. They are drawn, and counted in `Explanation.statistics`.

    Returns:
        One `Explanation` for each image.

    Raises:
        TypeError: if `model` is of another class.
        ValueError: if an image cannot be read; if labels, names, pictures or boxes do not fit; or if boxes
            cannot be mapped through the image processor.
        ImportError: if `output` is given and matplotlib is not installed.
    """
    is_swin = isinstance(model, AdaptiveSwinForImageClassification)
    if not is_swin and not isinstance(model, AdaptiveViTForImageClassification):
        raise TypeError(
            f"model is of type {type(model).__name__}: give an AdaptiveViTForImageClassification or "
            "AdaptiveSwinForImageClassification, whose from_pretrained loads stock checkpoints as well."
        )
    if getattr(model.config, "num_frames", None) is not None:
        raise ValueError(
            "explain draws images, and this model is for videos or volumes "
            f"(num_frames={model.config.num_frames}): draw its kept patches with vit_hf.explain_video."
        )
    model = active_subnetwork(model)
    images = _as_list(images)
    labels = _check_labels(labels, len(images), model.config)
    names = _check_names(names, images)
    boxes = check_boxes(boxes, len(images))
    pictures = [pictures] if isinstance(pictures, str) else list(pictures)
    for name in pictures:
        if name not in PICTURES:
            raise ValueError(f"pictures={name!r} is unknown. Choose from {', '.join(map(repr, PICTURES))}.")

    explanations = []
    was_training = model.training
    model.eval()
    try:
        for image, label, name, found in zip(images, labels, names, boxes, strict=True):
            explanations.append(
                _explain_one(model, image_processor, image, label, name, max_rollout_tokens, found)
            )
            if output is not None:
                _draw(explanations[-1], Path(output), pictures)
        # Swin has positions per window and block instead.
        if output is not None and "positions" in pictures and not is_swin:
            path = _save(position_similarity(model).figure(), Path(output) / "positions.png")
            for explanation in explanations:
                explanation.files["positions"] = path
    finally:
        model.train(was_training)
    return explanations


def _explain_one(
    model: AdaptiveViTForImageClassification | AdaptiveSwinForImageClassification,
    image_processor: BaseImageProcessor,
    image: Any,
    truths: list[str] | None,
    name: str,
    max_rollout_tokens: int,
    boxes: np.ndarray | None,
) -> Explanation:
    config = model.config
    image = load_upright(image, as_rgb=config.num_channels == 3)
    inputs, processed = process(image_processor, image)
    inputs = {key: value.to(model.device) for key, value in inputs.items()}
    reductions, maps, windows = {}, None, []
    if isinstance(model, AdaptiveSwinForImageClassification):
        with torch.no_grad():
            outputs = model(**inputs)
        windows = window_stages(config, outputs)
    else:
        with record_reductions(model.vit) as reductions:
            outputs, maps = run_with_attention_maps(model, inputs, max_rollout_tokens)
    if maps is not None and maps.rollout is None and max_rollout_tokens > 0:
        logger.warning(
            f"No attention rollout for {name}: its sequence has more than "
            f"max_rollout_tokens={max_rollout_tokens} tokens. Raise it, or keep fewer patches."
        )

    grid = tuple(outputs.spatial_shapes[0].tolist())
    kept = outputs.selected_patches[0]
    if isinstance(model, AdaptiveSwinForImageClassification):
        kept = kept[kept >= 0].sort().values  # window by window, and padded
    scores = _score_grid(outputs, inputs, grid)
    if scores is None and getattr(image_processor, "patch_selector", None) is not None:
        scores = _processor_scores(image_processor, processed, len(kept))
    picture = to_picture(image, processed, image_processor)
    picture_size = (picture.height, picture.width)
    if boxes is not None:
        boxes = to_picture_boxes(boxes, image, processed, image_processor, picture_size)
    input_size = tuple(processed.shape[-2:])
    patch_size = to_pair(config.patch_size)
    return Explanation(
        name=name,
        picture=shrink(picture, PICTURE_SIZE),
        picture_size=picture_size,
        input_size=input_size,
        patch_span=(input_size[0] / patch_size[0], input_size[1] / patch_size[1]),
        grid=grid,
        kept_patches=kept.cpu().numpy(),
        stages=to_stages(reductions, kept.cpu().numpy(), grid),
        prediction=_read_logits(outputs.logits[0].float().cpu(), config, truths),
        patch_scores=scores,
        selection_probabilities=(
            _first_draw(scores) if isinstance(model.base_model.selector, PolicySelector) else None
        ),
        attention=None if maps is None else _to_grid(maps.last_block, kept, grid),
        rollout=None if maps is None or maps.rollout is None else _to_grid(maps.rollout, kept, grid),
        attention_block=None if maps is None else maps.block,
        settings={
            "selector": type_of(config.patch_selector or getattr(image_processor, "patch_selector", None))
            or "none",
            "reducer": type_of(config.token_reducer) or "none",
            "position_encoding": type_of(config.position_encoding),
            "pooling": getattr(config, "pooling", "mean"),
            "num_blocks": config.num_hidden_layers,
        },
        boxes=boxes,
        windows=windows,
    )


def _score_grid(
    outputs: AdaptiveViTImageClassifierOutput, inputs: dict[str, torch.Tensor], grid: tuple[int, int]
) -> np.ndarray | None:
    """Returns the selector's scores `(R, S)`; NaN for patches that the image processor dropped."""
    if outputs.patch_scores is None:
        return None
    scores = outputs.patch_scores[0].float()
    indices = torch.arange(scores.shape[0], device=scores.device)
    if "patch_coordinates" in inputs:
        indices = raster_indices(inputs["patch_coordinates"], inputs["spatial_shapes"])[0]
    return _to_grid(scores, indices, grid)


def _processor_scores(
    image_processor: BaseImageProcessor, processed: torch.Tensor, num_selected: int
) -> np.ndarray:
    """Returns the scores `(R, S)` by which the image processor selected from the image `(C, H, W)`."""
    pixels = processed[None].float().contiguous()
    patches = ImagePatches.from_images(pixels, image_processor.patch_size)
    scores = score_patches(patches, image_processor.patch_selector, num_selected)
    return scores.reshape(patches.full_grid).cpu().numpy()


def _first_draw(scores: np.ndarray | None) -> np.ndarray | None:
    """Computes the softmax of `scores` `(R, S)` over all finite ones."""
    if scores is None:
        return None
    powers = np.exp(scores - np.nanmax(scores))
    return powers / np.nansum(powers)


def _to_grid(values: torch.Tensor, indices: torch.Tensor, grid: tuple[int, int]) -> np.ndarray:
    """Puts `values` `(K,)` at raster indices `indices` `(K,)` of a grid `(R, S)`, NaN elsewhere."""
    full = torch.full((grid[0] * grid[1],), torch.nan)
    full[indices.cpu()] = values.float().cpu()
    return full.reshape(grid).numpy()


def _read_logits(logits: torch.Tensor, config: AdaptiveViTConfig, truths: list[str] | None) -> Prediction:
    """Interprets logits `(num_labels,)` by the configuration's problem type."""
    names = [config.id2label.get(index, str(index)) for index in range(len(logits))]
    if _is_regression(config):
        top = list(zip(names, logits.tolist(), strict=True))[:NUM_TOP]
        return Prediction(logits.numpy(), None, [], truths, top)
    several = config.problem_type == "multi_label_classification"
    probabilities = logits.sigmoid() if several else logits.softmax(dim=-1)
    order = probabilities.argsort(descending=True, stable=True).tolist()
    ranked = [(names[index], probabilities[index].item()) for index in order]
    answers = [name for name, probability in ranked if probability >= 0.5] if several else [ranked[0][0]]
    return Prediction(logits.numpy(), probabilities.numpy(), answers, truths, ranked[:NUM_TOP])


def _is_regression(config: AdaptiveViTConfig) -> bool:
    # As transformers' loss decides when the configuration does not say.
    return config.problem_type == "regression" or (config.problem_type is None and config.num_labels == 1)


def _draw(explanation: Explanation, folder: Path, pictures: Sequence[str]) -> None:
    for picture in pictures:
        if picture in explanation.pictures:
            path = folder / f"{explanation.name}_{picture}.png"
            explanation.files[picture] = _save(explanation.figure(picture), path)


def _save(figure: "Figure", path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    return path


def _as_list(images: Any) -> list[Any]:
    single = str | os.PathLike | PIL.Image.Image | np.ndarray | torch.Tensor
    if not isinstance(images, single):
        images = list(images)  # a column of a data set, a generator
    images = flatten_images(images)
    if not images:
        raise ValueError("There are no images to explain: give at least one.")
    return images


def _check_names(names: Sequence[str] | None, images: list[Any]) -> list[str]:
    if names is None:
        return unique_names(images)
    if len(names) != len(images) or len(set(names)) != len(names):
        raise ValueError(f"names={names!r} must be {len(images)} distinct names, one for each image.")
    return list(names)


def _check_labels(
    labels: Label | Sequence[Label] | None, num_images: int, config: AdaptiveViTConfig
) -> list[list[str] | None]:
    """Returns the names of the true classes of each image."""
    if labels is None:
        return [None] * num_images
    labels = [labels] if isinstance(labels, str | int | float) else list(labels)
    if len(labels) != num_images:
        raise ValueError(
            f"There are {len(labels)} labels for {num_images} images: give one for each, or a "
            "list of labels where an image has several."
        )
    return [
        [_label_name(item, config) for item in (label if isinstance(label, list | tuple) else [label])]
        for label in labels
    ]


def _label_name(label: int | float | str, config: AdaptiveViTConfig) -> str:
    if isinstance(label, str):
        if label not in config.id2label.values() and not _is_regression(config):
            raise ValueError(
                f"Label {label!r} is not a class of the model. Its classes: "
                f"{', '.join(config.id2label.values())}."
            )
        return label
    if _is_regression(config):
        return f"{label:.4g}"
    if not 0 <= label < config.num_labels:
        raise ValueError(f"Label {label} is outside 0..{config.num_labels - 1}, the classes of the model.")
    return config.id2label[int(label)]


__all__ = [
    "IMAGE_PICTURES",
    "PICTURES",
    "Explanation",
    "Prediction",
    "Stage",
    "explain",
    "unique_names",
    "write_statistics",
]


# Least side of a frame in pixels, so that outlines show, and the gap between frames.
FRAME_SIZE, GAP = 192, 6
# Brightness factor of dropped patches, and color of outlines (Okabe & Ito, 2008).
DIM, OUTLINE = 0.35, (230, 159, 0)


@torch.no_grad()
def explain_video(
    model: AdaptiveViTForVideoClassification, pixel_values: torch.Tensor, columns: int = 8
) -> PIL.Image.Image:
    """Draws the first frame (or slice) of each tubelet: kept patches outlined, the others dimmed.

    Args:
        model: a video classifier, or its backbone or encoder; volumes work too.
        pixel_values: `(T, C, H, W)` one preprocessed video. Its lowest value is drawn black, its highest
            white.
        columns: frames in a row of the strip.

    Raises:
        ValueError: for a model for images, or pixels of another shape.
    """
    if not has_frames(model.config):
        raise ValueError("The model is for images (num_frames=None): use vit_hf.explain.")
    if pixel_values.ndim != 4 or columns < 1:
        raise ValueError(
            f"pixel_values has shape {tuple(pixel_values.shape)} and columns={columns}: give one video "
            "(T, C, H, W) and at least 1 column."
        )
    was_training = model.training
    try:
        outputs = model.eval()(pixel_values[None].to(model.device))
    finally:
        model.train(was_training)
    tubelet, height, width = patch_sides(model.config)
    cells = [
        side // patch for side, patch in zip(pixel_values[:, 0].shape, (tubelet, height, width), strict=True)
    ]
    kept = np.zeros(int(np.prod(cells)), bool)
    chosen = outputs.selected_patches[0]
    kept[chosen[chosen >= 0].cpu().numpy()] = True
    frames = pixel_values[: cells[0] * tubelet : tubelet, :, : cells[1] * height, : cells[2] * width]
    pictures = [
        _draw_frame(frame, of_frame, (height, width))
        for frame, of_frame in zip(_to_bytes(frames), kept.reshape(cells), strict=True)
    ]
    side = pictures[0].width + GAP, pictures[0].height + GAP
    columns = min(columns, len(pictures))
    rows = -(-len(pictures) // columns)
    strip = PIL.Image.new("RGB", (columns * side[0] - GAP, rows * side[1] - GAP), "white")
    for index, picture in enumerate(pictures):
        strip.paste(picture, (index % columns * side[0], index // columns * side[1]))
    return strip


def _to_bytes(frames: torch.Tensor) -> np.ndarray:
    """Converts frames `(T', C, H, W)` of any range to `(T', H, W, 3)` uint8; gray unless C is 3."""
    frames = frames.float().cpu()
    if frames.shape[1] != 3:
        frames = frames.mean(1, keepdim=True).expand(-1, 3, -1, -1)
    low, high = frames.aminmax()
    return ((frames - low) / (high - low).clamp(min=1e-6) * 255).round().byte().permute(0, 2, 3, 1).numpy()


def _draw_frame(frame: np.ndarray, kept: np.ndarray, patch_size: tuple[int, int]) -> PIL.Image.Image:
    """Draws one frame `(H, W, 3)` with its kept patches `(R, S)`."""
    shown = np.kron(kept, np.ones(patch_size, bool))[..., None]
    zoom = max(1, -(-FRAME_SIZE // min(frame.shape[:2])))
    picture = PIL.Image.fromarray(np.where(shown, frame, frame * DIM).astype(np.uint8))
    picture = picture.resize((picture.width * zoom, picture.height * zoom), PIL.Image.Resampling.NEAREST)
    draw = PIL.ImageDraw.Draw(picture)
    height, width = (zoom * side for side in patch_size)
    for row, column in np.argwhere(kept).tolist():
        corner = (column * width, row * height)
        draw.rectangle((*corner, corner[0] + width - 1, corner[1] + height - 1), outline=OUTLINE, width=2)
    return picture
