"""Why a model answered what it did: the patches it kept, their scores, and where its attention went.

Shapes: H, W pixels; R, S rows and columns of the full grid of patches; K patches kept.
"""

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import PIL.Image
import torch
from transformers.image_processing_utils import BaseImageProcessor
from transformers.utils import logging

from .explanations.attention_maps import run_with_attention_maps
from .explanations.position_maps import position_similarity
from .explanations.seen_images import load_upright, process, shrink, to_picture
from .model.configuration_adaptive_vit import AdaptiveViTConfig
from .model.image_loading import flatten_images
from .model.modeling_adaptive_vit import AdaptiveViTForImageClassification
from .model.outputs import AdaptiveViTImageClassifierOutput
from .model.patches import to_pair
from .model.tokens import raster_indices


if TYPE_CHECKING:
    from matplotlib.figure import Figure


logger = logging.get_logger(__name__)

# Pictures of one image; "positions" is about the model and is drawn once for all of them.
IMAGE_PICTURES = ("overview", "patches", "scores", "attention", "rollout")
PICTURES = (*IMAGE_PICTURES, "positions")

# Pixels of the longer side of what is drawn on: screens show no more, and files stay small.
PICTURE_SIZE = 1024

# Most probable classes that are listed.
NUM_TOP = 5

Label = int | float | str | Sequence[int | float | str]


@dataclass
class Prediction:
    """What the model answered about one image.

    Attributes:
        logits: `(num_labels,)` float32.
        probabilities: `(num_labels,)` float32; None for regression.
        answers: name of the most probable class; of several labels, those of at least 50 %; none for regression.
        truths: the true class, or classes, or number as text, if they were given.
        top: up to five (name, probability, or number for regression), highest first.
    """

    logits: np.ndarray
    probabilities: np.ndarray | None
    answers: list[str]
    truths: list[str] | None
    top: list[tuple[str, float]]

    @property
    def correct(self) -> bool | None:
        """Whether all answers, and no others, are true; None if the truth is not known, and for regression."""
        if self.truths is None or self.probabilities is None:
            return None
        return sorted(self.answers) == sorted(self.truths)


@dataclass
class Explanation:
    """Numbers behind an answer, and the pictures drawn of them.

    Grids are NaN where a number does not exist, which is not the same as zero: a patch that was dropped before the
    encoder was not found unimportant by its attention, it was never seen by it.

    Attributes:
        name: of the image, and first part of the names of its files.
        picture: `(h, w, 3)` uint8, at most 1024 pixels a side. It shows the image as it was given; or, if the image
            processor crops or pads, what it made of the image, since the grid lies on that.
        picture_size: (H, W) of the picture before it was shrunk for drawing.
        input_size: (H, W) of what the model got.
        patch_span: how many patches the picture is high and wide, with fractions: what is beyond whole patches is
            not seen by the model.
        grid: (R, S).
        kept_patches: `(K,)` int64 raster indices, ascending.
        prediction: see `Prediction`.
        patch_scores: `(R, S)` float32 of the selector; None without one, or if the data loader selected.
        attention: `(R, S)` float32, how much attention the classifier's token (the mean over patches for
            `pooling="mean"`) pays to each patch in the last block, mean over heads.
        rollout: `(R, S)` float32, the same traced back through all blocks (Abnar & Zuidema, 2020); None if the
            sequence was longer than `max_rollout_tokens`.
        attention_block: number, from 1, of the block of `attention`.
        settings: of the model, as the pictures mention them.
        files: name of a picture to where it was written.
    """

    name: str
    picture: np.ndarray
    picture_size: tuple[int, int]
    input_size: tuple[int, int]
    patch_span: tuple[float, float]
    grid: tuple[int, int]
    kept_patches: np.ndarray
    prediction: Prediction
    patch_scores: np.ndarray | None
    attention: np.ndarray | None
    rollout: np.ndarray | None
    attention_block: int | None
    settings: dict[str, Any]
    files: dict[str, Path] = field(default_factory=dict)

    @property
    def kept(self) -> np.ndarray:
        """`(R, S)` bool, True for patches that were kept."""
        mask = np.zeros(self.grid[0] * self.grid[1], dtype=bool)
        mask[self.kept_patches] = True
        return mask.reshape(self.grid)

    @property
    def kept_boxes(self) -> np.ndarray:
        """`(K, 4)` float [x0, y0, x1, y1] of the kept patches in pixels of a picture of `picture_size`."""
        rows, columns = np.divmod(self.kept_patches, self.grid[1])
        height, width = (size / span for size, span in zip(self.picture_size, self.patch_span, strict=True))
        return np.stack((columns * width, rows * height, (columns + 1) * width, (rows + 1) * height), axis=1)

    def figure(self, picture: str = "overview") -> "Figure":
        """Draws one of `IMAGE_PICTURES`.

        Raises:
            ValueError: if there is no such picture, or nothing to show on it.
        """
        from .explanations.drawing import draw_explanation

        return draw_explanation(self, picture)

    @property
    def pictures(self) -> tuple[str, ...]:
        """The pictures that can be drawn of this image."""
        maps = {"scores": self.patch_scores, "attention": self.attention, "rollout": self.rollout}
        return tuple(name for name in IMAGE_PICTURES if maps.get(name, self.picture) is not None)


def explain(
    model: AdaptiveViTForImageClassification,
    image_processor: BaseImageProcessor,
    images: Any,
    output: str | os.PathLike | None = None,
    pictures: Sequence[str] = ("overview", "positions"),
    labels: Label | Sequence[Label] | None = None,
    names: Sequence[str] | None = None,
    max_rollout_tokens: int = 8192,
) -> list[Explanation]:
    """Shows which patches of images a model kept, why, and where it looked.

    Args:
        model: a classifier, on any device and with any attention implementation.
        image_processor: the model's own.
        images: a path, URL, Pillow image, array or tensor; or a list of these.
        output: folder for the pictures, `<name>_<picture>.png`; None draws nothing, see `Explanation.figure`.
        pictures: which of `PICTURES` to draw. Those that do not apply, such as scores without a selector, are left
            out. "positions" is one file for the model, `positions.png`.
        labels: true class of each image, by name or number; of several labels, a list of them.
        names: one for each image, by default the names of the files.
        max_rollout_tokens: no rollout for longer sequences, as its time grows with the square of the length (at 4096
            patches, a ViT-B takes as long for it as for the answer). Memory grows with the length alone.

    Returns:
        One `Explanation` for each image.

    Raises:
        TypeError: if `model` is of another class.
        ValueError: if an image cannot be read, or labels, names or pictures do not fit.
        ImportError: if pictures are asked for and matplotlib is not installed.
    """
    if not isinstance(model, AdaptiveViTForImageClassification):
        raise TypeError(
            f"model is of type {type(model).__name__}: give an AdaptiveViTForImageClassification, whose from_pretrained "
            "loads ViT checkpoints as well."
        )
    images = _as_list(images)
    labels = _check_labels(labels, len(images), model.config)
    names = _check_names(names, images)
    pictures = [pictures] if isinstance(pictures, str) else list(pictures)
    for name in pictures:
        if name not in PICTURES:
            raise ValueError(f"pictures={name!r} is unknown. Choose from {', '.join(map(repr, PICTURES))}.")

    explanations = []
    was_training = model.training
    model.eval()
    try:
        for image, label, name in zip(images, labels, names, strict=True):
            explanations.append(_explain_one(model, image_processor, image, label, name, max_rollout_tokens))
            if output is not None:
                _draw(explanations[-1], Path(output), pictures)
        if output is not None and "positions" in pictures:
            path = _save(position_similarity(model).figure(), Path(output) / "positions.png")
            for explanation in explanations:
                explanation.files["positions"] = path
    finally:
        model.train(was_training)
    return explanations


def unique_names(sources: Iterable[Any]) -> list[str]:
    """Names for images: those of their files, numbered where two are the same."""
    names: list[str] = []
    for index, source in enumerate(sources):
        path = source if isinstance(source, str | os.PathLike) else getattr(source, "filename", "")
        stem = Path(str(path).partition("?")[0]).stem if len(str(path)) < 1000 else ""
        stem = name = re.sub(r"[^\w.-]+", "_", stem)[:80] or f"image_{index}"
        number = 2
        while name in names:
            name, number = f"{stem}_{number}", number + 1
        names.append(name)
    return names


def _explain_one(
    model: AdaptiveViTForImageClassification,
    image_processor: BaseImageProcessor,
    image: Any,
    truths: list[str] | None,
    name: str,
    max_rollout_tokens: int,
) -> Explanation:
    config = model.config
    image = load_upright(image, as_rgb=config.num_channels == 3)
    inputs, processed = process(image_processor, image)
    inputs = {key: value.to(model.device) for key, value in inputs.items()}
    outputs, maps = run_with_attention_maps(model, inputs, max_rollout_tokens)
    if maps is not None and maps.rollout is None:
        logger.warning(
            f"No attention rollout for {name}: its sequence of more than max_rollout_tokens={max_rollout_tokens} "
            "tokens would take long. Raise max_rollout_tokens, or keep fewer patches."
        )

    grid = tuple(outputs.spatial_shapes[0].tolist())
    kept = outputs.selected_patches[0]
    picture = to_picture(image, processed, image_processor)
    input_size = tuple(processed.shape[-2:])
    patch_size = to_pair(config.patch_size)
    return Explanation(
        name=name,
        picture=shrink(picture, PICTURE_SIZE),
        picture_size=(picture.height, picture.width),
        input_size=input_size,
        patch_span=(input_size[0] / patch_size[0], input_size[1] / patch_size[1]),
        grid=grid,
        kept_patches=kept.cpu().numpy(),
        prediction=_read_logits(outputs.logits[0].float().cpu(), config, truths),
        patch_scores=_score_grid(outputs, inputs, grid),
        attention=None if maps is None else _to_grid(maps.last_block, kept, grid),
        rollout=None if maps is None or maps.rollout is None else _to_grid(maps.rollout, kept, grid),
        attention_block=None if maps is None else maps.block,
        settings={
            "selector": config.patch_selector or getattr(image_processor, "patch_selector", None) or "none",
            "position_encoding": config.position_encoding,
            "pooling": config.pooling,
            "num_blocks": config.num_hidden_layers,
        },
    )


def _score_grid(
    outputs: AdaptiveViTImageClassifierOutput, inputs: dict[str, torch.Tensor], grid: tuple[int, int]
) -> np.ndarray | None:
    """The selector's scores `(R, S)`, in which patches that the data loader left out are NaN."""
    if outputs.patch_scores is None:
        return None
    scores = outputs.patch_scores[0].float()
    places = torch.arange(scores.shape[0], device=scores.device)
    if "patch_coordinates" in inputs:
        places = raster_indices(inputs["patch_coordinates"], inputs["spatial_shapes"])[0]
    return _to_grid(scores, places, grid)


def _to_grid(values: torch.Tensor, places: torch.Tensor, grid: tuple[int, int]) -> np.ndarray:
    """Puts `values` `(K,)` at raster indices `places` `(K,)` of a grid `(R, S)`, NaN elsewhere."""
    full = torch.full((grid[0] * grid[1],), torch.nan)
    full[places.cpu()] = values.float().cpu()
    return full.reshape(grid).numpy()


def _read_logits(logits: torch.Tensor, config: AdaptiveViTConfig, truths: list[str] | None) -> Prediction:
    """What logits `(num_labels,)` say, by the configuration's problem type."""
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
        raise ValueError(f"names={names!r} must be {len(images)} different ones, one for each image.")
    return list(names)


def _check_labels(
    labels: Label | Sequence[Label] | None, num_images: int, config: AdaptiveViTConfig
) -> list[list[str] | None]:
    """The names of the true classes of each image."""
    if labels is None:
        return [None] * num_images
    labels = [labels] if isinstance(labels, str | int | float) else list(labels)
    if len(labels) != num_images:
        raise ValueError(
            f"There are {len(labels)} labels for {num_images} images: give one for each, in a list of its own where "
            "an image has several."
        )
    return [
        [_label_name(item, config) for item in (label if isinstance(label, list | tuple) else [label])]
        for label in labels
    ]


def _label_name(label: int | float | str, config: AdaptiveViTConfig) -> str:
    if isinstance(label, str):
        if label not in config.id2label.values() and not _is_regression(config):
            raise ValueError(
                f"Label {label!r} is no class of the model. Its classes: {', '.join(config.id2label.values())}."
            )
        return label
    if _is_regression(config):
        return f"{label:.4g}"
    if not 0 <= label < config.num_labels:
        raise ValueError(f"Label {label} is outside 0..{config.num_labels - 1}, the classes of the model.")
    return config.id2label[int(label)]
