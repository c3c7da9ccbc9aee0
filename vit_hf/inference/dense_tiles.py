"""Windows of an image for models that predict masks or boxes, and runs of a model on them.

A window is what a model sees. Its core is the part that counts: the window without a halo at each side that
is not the image's own border. Cores cover the image.
"""

import json
import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import PIL.Image
import torch
from torch.nn import functional
from tqdm.auto import tqdm
from transformers import PreTrainedModel
from transformers.image_processing_utils import BaseImageProcessor

from ..measure import return_free_memory
from ..model.configuration_adaptive_vit import AdaptiveViTConfig
from ..model.elastic import active_subnetwork
from ..model.patches import ImagePatches
from ..model.pixel_scorers import PIXEL_SCORERS
from ..model.sizes import to_pair
from ..readers.opening import ImageSource
from .tile_grid import check_overlap, check_tile
from .tiles import TilePreparation, find_image_processor


# Where the image processor does not say what size a model takes.
DEFAULT_TILE = 512
# Pixels of the longer side of the thumbnail that windows are scored by, and of the patches in it.
SCORED_SIDE, SCORED_PATCH = 2048, 8
# A map of how much each place of an image matters, of any size; or what makes one: the name of a pixel
# scorer, or a function of a thumbnail `(h, w, 3)` uint8.
TileSelector = str | np.ndarray | torch.Tensor | Callable[[np.ndarray], Any]


@dataclass(frozen=True)
class Window:
    """A part of an image that a model sees at once; all numbers are pixels of the image.

    Attributes:
        top, left, height, width: what `ImageSource.read` takes.
        core: top, left, bottom and right of the part that counts.
        grid: number of the grid that it is of.
    """

    top: int
    left: int
    height: int
    width: int
    core: tuple[int, int, int, int]
    grid: int = 0

    @property
    def bottom(self) -> int:
        return self.top + self.height

    @property
    def right(self) -> int:
        return self.left + self.width


@dataclass(frozen=True)
class WindowAxis:
    """Windows along one axis of an image.

    Attributes:
        length: of the axis.
        tile: length of a window; more than the axis has where the image is less than a window.
        halo: pixels that are thrown away at each inner side.
        starts: where windows begin.
    """

    length: int
    tile: int
    halo: int
    starts: tuple[int, ...]

    @classmethod
    def cover(cls, length: int, tile: int, halo: int, overlap: float) -> "WindowAxis":
        core = tile - 2 * halo
        step, last = max(1, core - round(core * overlap)), max(0, length - tile)
        return cls(length, tile, halo, (*range(0, last, step), last))

    @property
    def size(self) -> int:
        """Length of a window, no more than that of the axis."""
        return min(self.tile, self.length)

    def core(self, index: int) -> tuple[int, int]:
        start = self.starts[index]
        stop = start + self.size
        return start + self.halo * (start > 0), stop - self.halo * (stop < self.length)

    def share(self, index: int) -> np.ndarray:
        """Weights float32 of the core's pixels, which sum to one over the windows: raised cosines."""
        first, last = self.core(index)
        return (self._window(first, last) / self._total[first:last]).astype(np.float32)

    @cached_property
    def _total(self) -> np.ndarray:
        total = np.zeros(self.length)
        for first, last in map(self.core, range(len(self.starts))):
            total[first:last] += self._window(first, last)
        return total

    @staticmethod
    def _window(first: int, last: int) -> np.ndarray:
        # At its border a window counts only where no other does better.
        places = (np.arange(first, last) + 0.5 - first) / (last - first)
        return np.maximum(np.sin(np.pi * places) ** 2, 1e-6)


@dataclass(frozen=True)
class WindowGrid:
    """Windows of one size, in rows and columns.

    Attributes:
        scale: by which an image is resized before the model sees it.
        rows, columns: windows down and across.
        number: of the grid, where there are several.
    """

    scale: float
    rows: WindowAxis
    columns: WindowAxis
    number: int = 0

    def __len__(self) -> int:
        return len(self.rows.starts) * len(self.columns.starts)

    def window(self, row: int, column: int) -> Window:
        (top, bottom), (left, right) = self.rows.core(row), self.columns.core(column)
        return Window(
            self.rows.starts[row],
            self.columns.starts[column],
            self.rows.size,
            self.columns.size,
            (top, left, bottom, right),
            self.number,
        )

    def weights(self, window: Window) -> tuple[np.ndarray, np.ndarray]:
        """Weights of the rows and of the columns of a window's core."""
        row, column = self.rows.starts.index(window.top), self.columns.starts.index(window.left)
        return self.rows.share(row), self.columns.share(column)


def check_pixels(name: str, value: Any) -> None:
    """
    Raises:
        ValueError: if it is no whole number of at least 0.
    """
    if type(value) is not int or value < 0:
        raise ValueError(f"{name}={value!r} must be a whole number of pixels, 0 or more.")


def check_scales(scales: Any) -> tuple[float, ...]:
    """
    Raises:
        ValueError: if they are no numbers above 0, or some are the same.
    """
    scales = tuple(scales) if isinstance(scales, list | tuple) else (scales,)
    right = all(isinstance(scale, int | float) and not isinstance(scale, bool) for scale in scales)
    if (
        not scales
        or not right
        or not all(0 < scale <= 16 for scale in scales)
        or len(set(scales)) < len(scales)
    ):
        raise ValueError(
            f"scales={scales!r} must be different numbers above 0 and up to 16, such as (1, 0.5): at 0.5 the "
            "model sees windows of twice the side, at half the resolution."
        )
    return scales


def cover_windows(
    image_size: tuple[int, int],
    tile: int | tuple[int, int],
    overlap: float = 0.25,
    halo: int = 0,
    scales: Sequence[float] = (1,),
) -> list[WindowGrid]:
    """Covers an image with as few windows as possible, for each scale.

    Args:
        image_size: height and width in pixels.
        tile: side of what the model sees in pixels, or height and width, halo and all.
        overlap: fraction in [0, 1) of a core that the next one covers again.
        halo: pixels at each inner side of a tile that are computed and thrown away.
        scales: by which the image is resized. At a scale of 0.5 windows and halos are twice as large.

    Raises:
        ValueError: for an argument outside what is said here.
    """
    tile = check_tile(tile)
    check_overlap(overlap)
    check_pixels("halo", halo)
    if 2 * halo >= min(tile):
        raise ValueError(
            f"halo={halo} leaves nothing of a tile of {tile[0]}x{tile[1]} pixels: give less than half of its "
            "side."
        )
    grids = []
    for number, scale in enumerate(check_scales(scales)):
        rows, columns = (
            WindowAxis.cover(length, max(1, round(side / scale)), int(halo / scale), overlap)
            for length, side in zip(image_size, tile, strict=True)
        )
        grids.append(WindowGrid(scale, rows, columns, number))
    return grids


def windows_in_order(grids: Sequence[WindowGrid]) -> Iterator[Window]:
    """Yields all windows, row by row, ordered by the tops of their cores: the rows above are complete."""
    rows = [
        (grid.rows.core(row)[0], grid.number, row) for grid in grids for row in range(len(grid.rows.starts))
    ]
    for _, number, row in sorted(rows):
        for column in range(len(grids[number].columns.starts)):
            yield grids[number].window(row, column)


class WindowPreparation(TilePreparation):
    """Prepares windows for a model.

    A window is resized by its scale. One that is less than a tile, as the image is, is filled up to it in the
    mean color, right and below, so that objects keep their size. Then, where the image processor resizes,
    tiles get the size that it makes; nothing is cropped, padded or split.

    Args:
        model: that takes them.
        image_processor: of the model.
        num_channels: 3, or 1 for gray.
    """

    def __init__(self, model: PreTrainedModel, image_processor: BaseImageProcessor, num_channels: int = 3):
        super().__init__(image_processor, num_channels)
        for name in ("do_pad", "do_split_image"):
            if hasattr(self.image_processor, name):
                self.options[name] = False
        if self.size is not None:
            self.options.pop("size", None)
            self.options["do_resize"] = self.resizes_first = False
        # An adaptive ViT leaves out what is beyond whole patches.
        is_adaptive = model.config.model_type == AdaptiveViTConfig.model_type
        self.multiple = to_pair(model.config.patch_size) if is_adaptive else (1, 1)
        mean = getattr(self.image_processor, "image_mean", None) or [0.5]
        mean = [mean] * 3 if isinstance(mean, float) else list(mean) * (3 if len(mean) == 1 else 1)
        self.fill = np.array([min(255, max(0, round(255 * value))) for value in mean[:3]], np.uint8)

    def resized(self, pixels: np.ndarray, grid: WindowGrid) -> tuple[np.ndarray, tuple[int, int]]:
        """Resizes a window for the model; returns it, and the size, in pixels of the image, that it covers
        with its border."""
        height, width = pixels.shape[:2]
        scaled = (max(1, round(height * grid.scale)), max(1, round(width * grid.scale)))
        if scaled != (height, width):
            image = PIL.Image.fromarray(np.ascontiguousarray(pixels))
            pixels = np.asarray(image.resize(scaled[::-1], PIL.Image.Resampling.BILINEAR, reducing_gap=3))
        if self.size is not None:
            target = tuple(max(1, round(axis.tile * grid.scale)) for axis in (grid.rows, grid.columns))
        else:
            target = tuple(-(-side // step) * step for side, step in zip(scaled, self.multiple, strict=True))
        if target != scaled:
            padded = np.empty((*target, 3), np.uint8)
            padded[:] = self.fill
            padded[: scaled[0], : scaled[1]] = pixels
            pixels = padded
        covered = tuple(
            round(side * whole / part)
            for side, whole, part in zip((height, width), target, scaled, strict=True)
        )
        if self.size is not None and target != self.size:
            resample = getattr(self.image_processor, "resample", None)
            image = PIL.Image.fromarray(np.ascontiguousarray(pixels))
            resample = (
                PIL.Image.Resampling.BILINEAR if resample is None else PIL.Image.Resampling(int(resample))
            )
            pixels = np.asarray(image.resize(self.size[::-1], resample))
        return pixels, covered


def cut_to_window(maps: torch.Tensor, covered: tuple[int, int], window: Window) -> torch.Tensor:
    """Resizes maps `(..., h, w)` that cover a window and a border to a value for each pixel of the window."""
    if maps.shape[-2:] != covered:
        flat = maps.reshape(-1, 1, *maps.shape[-2:]).float()
        flat = functional.interpolate(flat, size=covered, mode="bilinear", align_corners=False)
        maps = flat.reshape(*maps.shape[:-2], *covered)
    return maps[..., : window.height, : window.width]


@dataclass
class WindowChoice:
    """The windows to compute.

    Attributes:
        windows: in order.
        num_all: how many cover the image.
    """

    windows: list[Window]
    num_all: int


class DenseRun:
    """A run of a model on the windows of an image; wrong arguments are errors before anything is read.

    Args:
        tile: None for what the image processor resizes to, or else 512 pixels.
        tile_selector, num_selected_tiles, min_tile_score: see `segment_tiled`.
        nodata: see `segment_tiled`.
        progress: whether to show a bar; None for on a terminal.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        image_processor: BaseImageProcessor | None,
        tile: int | tuple[int, int] | None,
        overlap: float,
        halo: int,
        scales: Sequence[float],
        batch_size: int,
        tile_selector: TileSelector | None,
        num_selected_tiles: int | float | None,
        min_tile_score: float | None,
        nodata: int | Sequence[int] | None,
        progress: bool | None,
    ):
        if type(batch_size) is not int or batch_size < 1:
            raise ValueError(f"batch_size={batch_size!r} must be a whole number of at least 1 tile.")
        num_channels = getattr(model.config, "num_channels", 3)
        if getattr(model.config, "num_frames", None) is not None or num_channels not in (1, 3):
            raise ValueError(
                f"{type(model).__name__} takes no single images of three channels or one, which tiles are."
            )
        if model.config.model_type == "oneformer":
            raise TypeError(
                f"{type(model).__name__} takes a task as text with each image, which tiles do not have. Use "
                "Mask2Former, MaskFormer or EoMT."
            )
        self.model = active_subnetwork(model)
        self.prepare = WindowPreparation(model, find_image_processor(model, image_processor), num_channels)
        self.tile = check_tile(tile if tile is not None else self.prepare.size or DEFAULT_TILE)
        self.overlap, self.halo, self.scales = overlap, halo, check_scales(scales)
        # Errors of the rest come here too.
        cover_windows((1, 1), self.tile, overlap, halo, scales)
        self.batch_size, self.progress = batch_size, progress
        self.tile_selector, self.min_tile_score = tile_selector, min_tile_score
        self.num_selected_tiles = num_selected_tiles
        check_tile_selector(tile_selector, num_selected_tiles, min_tile_score)
        self.nodata = check_nodata(nodata)

    def settings(self, source: ImageSource) -> dict[str, Any]:
        """Settings and fingerprints that an interrupted run must share with the one that goes on."""
        path = getattr(source, "path", None)
        if path is not None:
            status = os.stat(path)
            pixels = [os.path.abspath(path), status.st_size, status.st_mtime_ns]
        else:
            sample = source.thumbnail(min(32, source.height), min(32, source.width))
            pixels = [zlib.crc32(np.ascontiguousarray(sample))]
        return {
            "image": [source.height, source.width, *pixels],
            "model": model_fingerprint(self.model),
            "image_processor": zlib.crc32(repr(self.prepare.image_processor).encode()),
            "tile": list(self.tile),
            "overlap": self.overlap,
            "halo": self.halo,
            "scales": list(self.scales),
            "nodata": None if self.nodata is None else self.nodata.tolist(),
        }

    def choose(self, source: ImageSource) -> tuple[list[WindowGrid], WindowChoice]:
        """The grids that cover an image, and the windows to compute."""
        grids = cover_windows((source.height, source.width), self.tile, self.overlap, self.halo, self.scales)
        windows = list(windows_in_order(grids))
        if self.tile_selector is None:
            return grids, WindowChoice(windows, len(windows))
        scores = score_windows(source, windows, self.tile_selector)
        kept = _select(scores, self.num_selected_tiles, self.min_tile_score)
        return grids, WindowChoice(
            [window for window, keep in zip(windows, kept, strict=True) if keep], len(windows)
        )

    def results(
        self,
        source: ImageSource,
        grids: Sequence[WindowGrid],
        windows: Sequence[Window],
        decode: Callable[[Any, list[tuple[Window, tuple[int, int]]]], Iterable[Any]],
        num_done: int = 0,
    ) -> Iterator[tuple[Window, np.ndarray | None, Any]]:
        """Yields each window in order, where its pixels are data (None for everywhere), and its part of what
        `decode` returns.

        A window without data is not computed; what is decoded of it is None.

        Args:
            decode: takes the outputs of a batch, and the windows with the sizes that the outputs cover;
                returns an object for each window.
            num_done: windows that were computed before, for the bar.
        """
        batch: list[tuple[Window, np.ndarray | None, np.ndarray | None, tuple[int, int]]] = []
        with tqdm(
            total=num_done + len(windows),
            initial=num_done,
            unit="tile",
            disable=None if self.progress is None else not self.progress,
        ) as bar:
            for window in windows:
                pixels = source.read(window.top, window.left, window.height, window.width)
                valid = None if self.nodata is None else (pixels != self.nodata).any(axis=2)
                valid = None if valid is not None and valid.all() else valid
                if valid is not None and not valid.any():
                    item = (window, valid, None, (0, 0))
                else:
                    item = (window, valid, *self.prepare.resized(pixels, grids[window.grid]))
                shapes = {seen.shape for _, _, seen, _ in batch if seen is not None}
                full = len(batch) >= self.batch_size
                if full or (item[2] is not None and shapes and item[2].shape not in shapes):
                    yield from self._run(batch, decode)
                    bar.update(len(batch))
                    batch = []
                    # glibc does not use aligned blocks, as torch's are, again for others of their size.
                    return_free_memory()
                batch.append(item)
            yield from self._run(batch, decode)
            bar.update(len(batch))

    @torch.inference_mode()
    def compute(self, tiles: list[np.ndarray]) -> Any:
        """The model's outputs for tiles `(h, w, 3)` uint8 of one size."""
        model = self.model
        inputs = {
            name: values.to(model.device, model.dtype if values.is_floating_point() else None)
            for name, values in self.prepare(tiles).items()
            if isinstance(values, torch.Tensor)
        }
        return model(**inputs)

    def _run(self, batch: list, decode: Callable) -> Iterator[tuple[Window, np.ndarray | None, Any]]:
        computed = [item for item in batch if item[2] is not None]
        decoded = iter(())
        if computed:
            outputs = self.compute([seen for _, _, seen, _ in computed])
            with torch.inference_mode():
                decoded = iter(decode(outputs, [(window, covered) for window, _, _, covered in computed]))
        for window, valid, seen, _ in batch:
            yield window, valid, None if seen is None else next(decoded)


def model_fingerprint(model: PreTrainedModel) -> list[Any]:
    """Class, configuration and some weights of a model, by which two runs are known to be of one model."""
    # A sample is enough: training changes all weights.
    weights = [parameter.detach().flatten()[:8].float().cpu() for parameter in model.parameters()]
    checksum = float(torch.cat(weights).double().abs().sum()) if weights else 0.0
    config = {name: value for name, value in model.config.to_dict().items() if not name.startswith("_")}
    return [
        type(model).__name__,
        zlib.crc32(json.dumps(config, default=str, sort_keys=True).encode()),
        checksum,
    ]


def check_nodata(nodata: Any) -> np.ndarray | None:
    """
    Raises:
        ValueError: if it is no color.
    """
    if nodata is None:
        return None
    color = np.atleast_1d(np.asarray(nodata))
    if (
        color.shape not in ((1,), (3,))
        or color.dtype.kind not in "iu"
        or not ((color >= 0) & (color <= 255)).all()
    ):
        raise ValueError(
            f"nodata={nodata!r} must be the color of pixels without data: a number in 0..255, or three, "
            "as images are read (uint8 RGB)."
        )
    return np.broadcast_to(color.astype(np.uint8), (3,))


def check_tile_selector(
    selector: Any, num_selected_tiles: int | float | None, min_tile_score: float | None
) -> None:
    """
    Raises:
        ValueError: for one that is unknown, or a budget that is none.
        TypeError: for one of another kind.
    """
    if selector is None:
        if num_selected_tiles is not None or min_tile_score is not None:
            raise ValueError(
                "num_selected_tiles and min_tile_score go with a tile_selector, such as 'variance' or a mask."
            )
        return
    if isinstance(selector, str):
        if selector not in PIXEL_SCORERS:
            raise ValueError(
                f"tile_selector={selector!r} is unknown. Choose from {', '.join(map(repr, PIXEL_SCORERS))}, "
                "or give a map of scores or a function that makes one."
            )
        if selector == "uniform":
            raise ValueError(
                "tile_selector='uniform' spreads patches, and scores no tile above another: choose a name "
                "that reads pixels, such as 'variance', or 'random'."
            )
    elif not callable(selector) and not isinstance(selector, np.ndarray | torch.Tensor):
        raise TypeError(
            f"tile_selector is a {type(selector).__name__}; give a name, a map (rows, columns), or "
            "a function."
        )
    number = num_selected_tiles
    fraction = isinstance(number, float) and 0 < number <= 1
    if number is not None and not fraction and not (type(number) is int and number >= 1):
        raise ValueError(
            f"num_selected_tiles={number!r} must be a number of tiles, or a fraction of them in (0, 1]."
        )
    is_mask = isinstance(selector, np.ndarray | torch.Tensor)
    if number is None and min_tile_score is None and not is_mask:
        raise ValueError("A tile_selector needs num_selected_tiles or min_tile_score.")


def score_windows(source: ImageSource, windows: Sequence[Window], selector: TileSelector) -> np.ndarray:
    """The largest score `(N,)` float64 of any place in each window."""
    if isinstance(selector, str):
        scores = _pixel_scores(_thumbnail(source), selector)
    elif callable(selector):
        scores = _to_array(selector(_thumbnail(source)))
    else:
        scores = _to_array(selector)
    if scores.ndim != 2 or 0 in scores.shape:
        raise ValueError(
            f"The tile_selector has the shape {scores.shape}; give a map (rows, columns) of the image."
        )
    if np.isnan(scores).any():
        raise ValueError("The tile_selector has scores that are NaN: give numbers.")
    down, across = scores.shape[0] / source.height, scores.shape[1] / source.width
    return np.array(
        [
            scores[
                _touched(window.top, window.bottom, down, scores.shape[0]),
                _touched(window.left, window.right, across, scores.shape[1]),
            ].max()
            for window in windows
        ]
    )


def _touched(first: int, last: int, step: float, length: int) -> slice:
    start = min(length - 1, int(first * step + 1e-9))
    return slice(start, max(start + 1, min(length, int(np.ceil(last * step - 1e-9)))))


def _to_array(scores: Any) -> np.ndarray:
    if isinstance(scores, torch.Tensor):
        scores = scores.detach().float().cpu().numpy()
    return np.asarray(scores, np.float64)


def _thumbnail(source: ImageSource) -> np.ndarray:
    shrunk = min(1.0, SCORED_SIDE / max(source.height, source.width))
    return source.thumbnail(max(1, round(source.height * shrunk)), max(1, round(source.width * shrunk)))


def _pixel_scores(picture: np.ndarray, name: str) -> np.ndarray:
    height, width = picture.shape[:2]
    rows, columns = max(1, height // SCORED_PATCH), max(1, width // SCORED_PATCH)
    image = PIL.Image.fromarray(picture).resize(
        (columns * SCORED_PATCH, rows * SCORED_PATCH), PIL.Image.Resampling.BILINEAR
    )
    values = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None] / 127.5 - 1
    patches = ImagePatches.from_images(values, SCORED_PATCH)
    return PIXEL_SCORERS[name](patches, rows * columns, 0)[0].double().reshape(rows, columns).numpy()


def _select(scores: np.ndarray, number: int | float | None, least: float | None) -> np.ndarray:
    """Selects windows by their scores, `(N,)` bool."""
    # Of a mask, what is marked.
    kept = scores > 0 if number is None and least is None else np.ones(len(scores), bool)
    if least is not None:
        kept &= scores >= least
    if number is not None:
        number = max(1, round(number * len(scores))) if isinstance(number, float) else number
        first = np.zeros(len(scores), bool)
        first[np.argsort(-scores, kind="stable")[:number]] = True
        kept &= first
    return kept


def num_labels_of(model: PreTrainedModel) -> int | None:
    """Classes of a model; None where its configuration has no names of them."""
    number = getattr(model.config, "num_labels", None)
    return number if type(number) is int and number > 0 else None


def class_names(model: PreTrainedModel, number: int) -> dict[int, str]:
    """Names of classes; numbers where the configuration has none."""
    names = getattr(model.config, "id2label", None) or {}
    return {index: str(names.get(index, index)) for index in range(number)}
