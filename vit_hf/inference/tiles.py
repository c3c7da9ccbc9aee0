"""Prediction of images of any size with any image classifier, tile by tile."""

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import PIL.Image
import torch
from torch import nn
from transformers import AutoImageProcessor, PreTrainedModel
from transformers.image_processing_utils import BaseImageProcessor
from transformers.image_utils import SizeDict

from ..arguments import check_overlap, check_tile
from ..data.images import is_timm_processor
from ..model.elastic import active_subnetwork
from ..model.image_processing_adaptive_vit import AdaptiveViTImageProcessorPil
from ..notebooks import notebook_png
from ..progress import progress_bar
from ..readers.opening import ImageSource, open_image
from .aggregation import (
    AggregationOptions,
    aggregate_tiles,
    check_aggregation,
    probabilities_of,
    problem_type_of,
    votes_of,
)
from .feature_maps import BlendedFeatures, blend_values, run_with_patch_states
from .tile_grid import TileGrid


if TYPE_CHECKING:
    from matplotlib.figure import Figure

AnyImage = ImageSource | str | os.PathLike | PIL.Image.Image | np.ndarray | torch.Tensor


def as_source(image: AnyImage) -> AbstractContextManager[ImageSource]:
    """Opens an image, and closes it afterwards if it was not open before."""
    return nullcontext(image) if isinstance(image, ImageSource) else open_image(image)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Puts each module in evaluation mode, and restores its mode afterwards."""
    trained = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in trained:
            module.training = True


class TilePreparation:
    """Prepares batches of tiles of one size.

    Each is resized to the model's input size, ignoring the aspect: to `crop_size` if the processor would crop
    to that, and to a square of the shortest edge if it would keep the aspect. Nothing is cropped, so that no
    part of the image is missing; an object therefore appears somewhat larger or smaller than in a cropped
    picture. A processor that does not resize, caps the longest edge or fits to
    `max_num_patches` does so here as well.

    Args:
        image_processor: the model's.
        num_channels: 3, or 1 for gray (ITU-R 601, as Pillow computes it).

    Raises:
        TypeError: if its cropping cannot be turned off.
    """

    def __init__(self, image_processor: BaseImageProcessor, num_channels: int = 3):
        image_processor = with_options(image_processor)
        if not hasattr(image_processor, "do_resize"):
            raise TypeError(
                f"image_processor is a {type(image_processor).__name__}, whose cropping cannot be turned "
                "off, so borders of tiles would be lost. Give one of transformers or vit_hf with the same "
                "size, mean and std."
            )
        self.image_processor = image_processor
        self.num_channels = num_channels
        self.options: dict[str, Any] = {}
        self.size = self._fixed_size()
        if getattr(image_processor, "do_center_crop", None):
            self.options["do_center_crop"] = False
        # Processors with crop_pct, of ConvNeXt and PoolFormer, crop or magnify as part of resizing.
        self.resizes_first = self.size is not None and hasattr(image_processor, "crop_pct")
        if self.resizes_first:
            self.options["do_resize"] = False
        elif self.size is not None:
            self.options["size"] = {"height": self.size[0], "width": self.size[1]}

    def __call__(self, tiles: list[np.ndarray]) -> dict[str, torch.Tensor]:
        """Prepares tiles `(h, w, 3)` uint8 as the model's inputs."""
        # Sources may give read-only memory, of which torch warns.
        tiles = [np.require(tile, requirements=["C", "W"]) for tile in tiles]
        if self.resizes_first:
            tiles = [self._resize(tile) for tile in tiles]
        if self.num_channels == 1:
            tiles = [np.array(PIL.Image.fromarray(tile).convert("L"))[..., None] for tile in tiles]
        inputs = self.image_processor(
            images=tiles, return_tensors="pt", input_data_format="channels_last", **self.options
        )
        return dict(inputs)

    def _fixed_size(self) -> tuple[int, int] | None:
        """Height and width of all prepared tiles; None if the processor decides."""
        processor = self.image_processor
        if not processor.do_resize or getattr(processor, "max_num_patches", None) is not None:
            return None
        if getattr(processor, "do_center_crop", None):
            crop = SizeDict(**dict(processor.crop_size))
            return crop.height, crop.width
        size = SizeDict(**dict(processor.size))
        # ConvNeXt's resizes without cropping from 384 on.
        if hasattr(processor, "crop_pct") and (size.shortest_edge or 0) >= 384:
            return None
        if size.height and size.width:
            return size.height, size.width
        if size.shortest_edge:
            return size.shortest_edge, size.shortest_edge
        return None

    def _resize(self, tile: np.ndarray) -> np.ndarray:
        image = PIL.Image.fromarray(tile)
        return np.array(image.resize(self.size[::-1], self.image_processor.resample))


def with_options(image_processor: BaseImageProcessor) -> BaseImageProcessor:
    """Returns the processor; for timm's transforms, one with their size, mean, std and resampling, without
    cropping."""
    if not is_timm_processor(image_processor):
        return image_processor
    config = image_processor.data_config
    channels, height, width = config["input_size"]
    resample = PIL.Image.Resampling.__members__.get(str(config["interpolation"]).upper())
    return AdaptiveViTImageProcessorPil(
        size={"height": height, "width": width},
        image_mean=list(config["mean"]),
        image_std=list(config["std"]),
        # "random" is for training.
        resample=PIL.Image.Resampling.BICUBIC if resample is None else resample,
        do_convert_rgb=channels == 3,
    )


def find_image_processor(
    model: PreTrainedModel, image_processor: BaseImageProcessor | None
) -> BaseImageProcessor:
    """Returns the given image processor, or that of the model's checkpoint.

    Raises:
        ValueError: if there is neither.
    """
    if image_processor is not None:
        return image_processor
    path = model.config.name_or_path
    try:
        return AutoImageProcessor.from_pretrained(path)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"No image processor is saved with the model, whose checkpoint is {path!r}: give image_processor."
        ) from error


@dataclass(repr=False)
class TiledPrediction:
    """The prediction for an image and each of its tiles. All tensors are on the CPU.

    Attributes:
        logits: `(L,)` float32 of the image, by the aggregation; of a regression, its numbers.
        tile_logits: `(T, L)` float32, row by row of tiles.
        tile_coordinates: `(T, 4)` int64 top, left, height and width of each tile in pixels.
        label: name of the best class; of several labels an image, a list of those with a probability of at
            least 0.5; of a regression None.
        grid: positions of the `len(grid)` tiles.
        id2label: names of the classes.
        problem_type: "single_label_classification", "multi_label_classification" or "regression".
        feature_map: `(D, R, S)` float32 states of patches, with `feature_maps`.
        name: name of the image's file; "image" for one that has none.
    """

    logits: torch.Tensor
    tile_logits: torch.Tensor
    tile_coordinates: torch.Tensor
    label: str | list[str] | None
    grid: TileGrid
    id2label: dict[int, str]
    problem_type: str
    feature_map: torch.Tensor | None = None
    name: str = "image"

    def __repr__(self) -> str:
        height, width = self.grid.image_size
        number = len(self.grid)
        return (
            f"TiledPrediction({self.name!r}: {self._answer()}; {number} tile{'s' * (number > 1)} of "
            f"{width}x{height} pixels)"
        )

    def _repr_png_(self) -> bytes | None:
        """Shows the heat map of the best label in a notebook."""
        return notebook_png(self.figure)

    def _answer(self) -> str:
        if self.problem_type == "regression":
            return ", ".join(f"{value:.4g}" for value in self.logits.tolist())
        if self._several:
            return ", ".join(self.label) or "none of the classes"
        return f"{self.label} ({self.probabilities.max():.1%})"

    @property
    def probabilities(self) -> torch.Tensor | None:
        """Returns `(L,)` float32; None for a regression."""
        return None if self.problem_type == "regression" else probabilities_of(self.logits, self._several)

    @property
    def votes(self) -> torch.Tensor | None:
        """Counts the tiles that predict each label, `(L,)` int64; None for a regression."""
        return None if self.problem_type == "regression" else votes_of(self.tile_logits, self._several)

    def aggregate(
        self, aggregate: str, num_top_tiles: int = 5, attention_temperature: float = 1.0
    ) -> torch.Tensor:
        """Returns `(L,)` logits by another aggregation, without running the model again; see
        `predict_tiled`."""
        options = AggregationOptions(self.problem_type, num_top_tiles, attention_temperature)
        return aggregate_tiles(self.tile_logits, aggregate, options)

    def heat_map(
        self, label: int | str | None = None, resolution: int | tuple[int, int] = 512
    ) -> torch.Tensor:
        """Maps the evidence for a label over the image, `(R, S)` float32, blended without seams where tiles
        overlap.

        Args:
            label: number or name; by default the best one.
            resolution: R and S, or the larger of them, the other being as the image is.

        Returns:
            Probabilities of the label in [0, 1]; of a regression, its numbers.

        Raises:
            ValueError: if there is no such label, or the resolution is no positive number.
        """
        index = self._label_index(label)
        values = self.tile_logits
        if self.problem_type != "regression":
            values = probabilities_of(values.double(), self._several)
        return blend_values(values[:, index], self.grid, self._map_size(resolution))

    def figure(
        self, image: AnyImage | None = None, label: int | str | None = None, name: str | None = None
    ) -> "Figure":
        """Draws the heat map next to the image: `.savefig("map.png")`, or the last line of a notebook cell.

        Args:
            image: the one that this is of; None draws the heat map alone.
            label: number or name; by default the best one.
            name: name of the image; by default that of its file.

        Raises:
            ImportError: if matplotlib is not installed.
            ValueError: if the image has another size, or there is no such label.
        """
        from .heat_maps import PICTURE_SIZE, draw_heat_map

        index = self._label_index(label)
        what = self.id2label.get(index, str(index))
        heat_map = self.heat_map(index).numpy()
        name = self.name if name is None else name
        if image is None:
            return draw_heat_map(self, None, heat_map, what, name)
        with as_source(image) as source:
            if (source.height, source.width) != self.grid.image_size:
                raise ValueError(
                    f"{source.name} has {source.height}x{source.width} pixels, and the image that was "
                    f"predicted has {self.grid.image_size[0]}x{self.grid.image_size[1]}: give that one."
                )
            shrunk = min(PICTURE_SIZE, max(self.grid.image_size))
            picture = source.thumbnail(*self._map_size(shrunk))
        return draw_heat_map(self, picture, heat_map, what, name)

    @property
    def _several(self) -> bool:
        return self.problem_type == "multi_label_classification"

    def _label_index(self, label: int | str | None) -> int:
        if label is None:
            return int(self.logits.argmax())
        numbers = {name: index for index, name in self.id2label.items()}
        index = numbers.get(label, label)
        if type(index) is not int or not 0 <= index < len(self.logits):
            raise ValueError(
                f"label={label!r} is not a class of the model. Choose a number in 0..{len(self.logits) - 1}, "
                "or one of "
                f"{', '.join(map(repr, list(self.id2label.values())[:10]))}{', ...' if len(numbers) > 10 else ''}."  # noqa: E501
            )
        return index

    def _map_size(self, resolution: int | tuple[int, int]) -> tuple[int, int]:
        sides = resolution if isinstance(resolution, list | tuple) else (resolution,)
        if len(sides) > 2 or not all(type(side) is int and side >= 1 for side in sides):
            raise ValueError(
                f"resolution={resolution!r} must be a whole number of at least 1, or a pair (rows, columns) "
                "of them."
            )
        if len(sides) == 2:
            return tuple(sides)
        scale = sides[0] / max(self.grid.image_size)
        return tuple(max(1, round(side * scale)) for side in self.grid.image_size)


def predict_tiled(
    model: PreTrainedModel,
    image: AnyImage,
    tile: int | tuple[int, int] = 224,
    overlap: float = 0.25,
    aggregate: str = "mean",
    batch_size: int = 8,
    image_processor: BaseImageProcessor | None = None,
    num_top_tiles: int = 5,
    attention_temperature: float = 1.0,
    feature_maps: bool = False,
    feature_map_file: str | os.PathLike | None = None,
    progress: bool | None = None,
) -> TiledPrediction:
    """Classifies an image of any size by its tiles, at full resolution, with a model made for small ones.

    Tiles are read row by row, `batch_size` at a time, so memory does not grow with the image; each is resized
    whole to what the model takes (see `TilePreparation`), which magnifies if `tile` is less. An image smaller
    than a tile is one tile, and treated as the image processor treats images, but for a crop.

    Args:
        model: any of `AutoModelForImageClassification`, on any device and in any dtype, with three channels
            or one, for which tiles become gray.
        image: input of `open_image`: a file, a Pillow image, an array, a tensor, or an `ImageSource`, which
            is left open.
        tile: side of a tile in pixels of the image, or height and width.
        overlap: fraction of a tile in [0, 1) that the next one overlaps.
        aggregate: aggregation of tile predictions, a key of `TILE_AGGREGATIONS`. "mean", "max" and
            "topk-mean" pool the logits of each label: over all tiles, the best one, or the best
            `num_top_tiles` (MI-Zero, Lu et al., 2023; all if there are fewer). "attention" is the mean of
            logits with weights exp(-entropy / attention_temperature), normalized, so that certain tiles count
            more (the weights of EATA, Niu et al., 2022). "vote" counts the tiles' predictions; its logits are
            such that probabilities are fractions of votes, and ties go to the mean probability. In
            multi-label problems each label is treated by itself. A regression has no "attention" and no
            "vote", which use probabilities.
        batch_size: tiles at a time.
        image_processor: the model's; None loads that of its checkpoint.
        num_top_tiles: number of tiles of "topk-mean".
        attention_temperature: temperature of "attention"; above 0.
        feature_maps: also put the states of patches together to `feature_map`; see `feature_map_tiled`.
        feature_map_file: a `.npy` file that holds it, `(R, S, D)`; it is overwritten.
        progress: whether to show a bar; None shows it in a terminal.

    Raises:
        TypeError: for a model without logits for images, one without patch states if `feature_maps`, or an
            image processor whose cropping cannot be turned off.
        ValueError: for an image that cannot be read, or an argument outside what is said above.
    """
    problem_type = problem_type_of(model.config)
    check_aggregation(aggregate, problem_type)
    options = AggregationOptions(problem_type, num_top_tiles, attention_temperature)
    if feature_map_file is not None and not feature_maps:
        raise ValueError(f"feature_map_file={str(feature_map_file)!r} goes with feature_maps=True.")
    model = active_subnetwork(model)
    run = _TiledRun(model, tile, overlap, batch_size, image_processor, progress)
    tile_logits, blended = [], None
    with as_source(image) as source, evaluating(model):
        grid = run.cover(source)
        # Of pixels in memory there is no file.
        name = Path(getattr(source, "path", "image")).name
        for first, outputs, states in run.batches(source, grid, feature_maps):
            tile_logits.append(_logits(model, outputs).float().cpu())
            blended = _blend(blended, grid, first, states, feature_map_file)
    tile_logits = torch.cat(tile_logits)
    logits = aggregate_tiles(tile_logits, aggregate, options)
    return TiledPrediction(
        logits=logits,
        tile_logits=tile_logits,
        tile_coordinates=grid.coordinates,
        label=_label(logits, model.config.id2label, problem_type),
        grid=grid,
        id2label=model.config.id2label,
        problem_type=problem_type,
        feature_map=None if blended is None else blended.feature_map,
        name=name,
    )


def feature_map_tiled(
    model: PreTrainedModel,
    image: AnyImage,
    tile: int | tuple[int, int] = 224,
    overlap: float = 0.25,
    batch_size: int = 8,
    image_processor: BaseImageProcessor | None = None,
    file: str | os.PathLike | None = None,
    progress: bool | None = None,
) -> torch.Tensor:
    """Computes patch states of an image of any size, `(D, R, S)` float32, blended without seams where tiles
    overlap.

    The map has as many cells to a pixel as the model has for a tile, rounded to whole rows and columns; it
    covers all of the image. Where the patches of tiles do not fall on its cells, they are interpolated
    linearly.

    Args:
        model: a backbone of `AutoBackbone`, whose last feature map is taken; an AdaptiveViT, which has states
            for all patches whatever it selects; or another model with `last_hidden_state`, with or without a
            head.
        file: a `.npy` file to hold the map, `(R, S, D)`, where memory does not; it is overwritten.
        image, tile, overlap, batch_size, image_processor, progress: see `predict_tiled`.

    Raises:
        TypeError, ValueError: as `predict_tiled`.
    """
    model = active_subnetwork(model)
    run = _TiledRun(model, tile, overlap, batch_size, image_processor, progress)
    blended = None
    with as_source(image) as source, evaluating(model):
        grid = run.cover(source)
        for first, _, states in run.batches(source, grid, feature_maps=True):
            blended = _blend(blended, grid, first, states, file)
    return blended.feature_map


class _TiledRun:
    """Cuts tiles and runs the model on them; invalid arguments raise before any tile is read."""

    def __init__(
        self,
        model: PreTrainedModel,
        tile: int | tuple[int, int],
        overlap: float,
        batch_size: int,
        image_processor: BaseImageProcessor | None,
        progress: bool | None,
    ):
        self.tile = check_tile(tile)
        check_overlap(overlap)
        if type(batch_size) is not int or batch_size < 1:
            raise ValueError(f"batch_size={batch_size!r} must be a whole number of at least 1 tile.")
        if getattr(model.config, "num_frames", None) is not None:
            raise ValueError(
                "Tiles are images, and the model is for videos or volumes "
                f"(num_frames={model.config.num_frames}): give it whole ones, (B, T, C, H, W)."
            )
        num_channels = getattr(model.config, "num_channels", 3)
        if num_channels not in (1, 3):
            raise ValueError(
                f"The model takes images of {num_channels} channels, and tiles are RGB or gray: give one "
                "with num_channels of 3 or 1."
            )
        self.model, self.overlap, self.batch_size, self.progress = model, overlap, batch_size, progress
        self.prepare = TilePreparation(find_image_processor(model, image_processor), num_channels)

    def cover(self, source: ImageSource) -> TileGrid:
        return TileGrid.cover((source.height, source.width), self.tile, self.overlap)

    def batches(
        self, source: ImageSource, grid: TileGrid, feature_maps: bool
    ) -> Iterator[tuple[int, Any, torch.Tensor | None]]:
        """Yields the index of the first tile of each batch, the outputs, and on request states `(B, D, r,
        s)`."""
        coordinates = grid.coordinates.tolist()
        model = self.model
        with progress_bar(progress=self.progress, total=len(grid), unit="tile", leave=None) as bar:
            for first in range(0, len(grid), self.batch_size):
                tiles = [source.read(*place) for place in coordinates[first : first + self.batch_size]]
                inputs = {
                    name: values.to(model.device, model.dtype if values.is_floating_point() else None)
                    for name, values in self.prepare(tiles).items()
                }
                with torch.inference_mode():
                    if feature_maps:
                        outputs, states = run_with_patch_states(model, inputs)
                    else:
                        outputs, states = model(**inputs), None
                yield first, outputs, states
                bar.update(len(tiles))


def _logits(model: PreTrainedModel, outputs: Any) -> torch.Tensor:
    logits = getattr(outputs, "logits", None)
    if not isinstance(logits, torch.Tensor) or logits.ndim != 2:
        found = "no logits" if logits is None else f"logits of shape {tuple(logits.shape)}"
        raise TypeError(
            f"{type(model).__name__} gives {found}, where an image classifier gives (batch, num_labels): "
            "load it with AutoModelForImageClassification. For feature maps alone there is "
            "feature_map_tiled."
        )
    return logits


def _blend(
    blended: BlendedFeatures | None,
    grid: TileGrid,
    first: int,
    states: torch.Tensor | None,
    file: str | os.PathLike | None,
) -> BlendedFeatures | None:
    """Adds the states of a batch to the map, which the first batch creates."""
    if states is None:
        return None
    if blended is None:
        blended = BlendedFeatures(grid, states.shape[1:], file)
    for index, state in enumerate(states, start=first):
        blended.add(index, state)
    return blended


def _label(logits: torch.Tensor, id2label: dict[int, str], problem_type: str) -> str | list[str] | None:
    if problem_type == "regression":
        return None
    if problem_type == "multi_label_classification":
        return [id2label[index] for index in (logits >= 0).nonzero().flatten().tolist()]
    return id2label[int(logits.argmax())]
