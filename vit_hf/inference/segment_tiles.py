"""Class masks of images of any size, by any segmentation model, tile by tile."""

import mmap
import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel
from transformers.image_processing_utils import BaseImageProcessor

from ..readers.georeference import Georeference, read_georeference
from ..readers.opening import ImageSource
from .dense_tiles import DenseRun, TileSelector, Window, WindowGrid, class_names, cut_to_window, num_labels_of
from .mask_files import MapWriter, MemoryMap, check_map_file, read_bands, read_map
from .tiles import AnyImage, as_source, evaluating


# A band of blended logits that takes more than 32 MiB is kept in a file.
MAX_BAND_BYTES = 2**25
# Logits that become classes at once: 4 MiB.
STEP_BYTES = 2**22
# Names of the class that pixels have where nothing was computed.
BACKGROUND_NAMES = ("background", "nothing", "none", "unlabeled")


@dataclass
class TiledSegmentation:
    """The class of each pixel of an image.

    Attributes:
        image_size: height and width in pixels.
        id2label: names of the classes.
        background: value of pixels that no tile was computed of, or that are no data: the class of that name,
            or the largest number of the mask's type where the model has none.
        num_tiles: how many cover the image, at all scales.
        num_computed: how many of them were computed, now or before the run was interrupted.
        counts: pixels of each value, `(256,)` or `(65536,)` int64.
        path: file of the mask, or None.
        logits_path: file of the blended logits `(H, W, L)`, or None.
        georeference: place of the image on the map, or None.
    """

    image_size: tuple[int, int]
    id2label: dict[int, str]
    background: int
    num_tiles: int
    num_computed: int
    counts: np.ndarray
    path: Path | None = None
    logits_path: Path | None = None
    georeference: Georeference | None = None
    _mask: np.ndarray | None = None
    _logits: np.ndarray | None = None

    @property
    def mask(self) -> np.ndarray:
        """`(H, W)` uint8, or uint16 of more than 255 classes: read from the file, if there is one, a `.npy`
        by memory map."""
        return read_map(self.path) if self._mask is None else self._mask

    @property
    def logits(self) -> np.ndarray | None:
        """`(H, W, L)` float32 blended logits; None where they were not asked for."""
        return self._logits if self.logits_path is None else read_map(self.logits_path)

    @property
    def fractions(self) -> dict[str, float]:
        """Part of the pixels that each class has, the largest first; those that appear."""
        total = int(self.counts.sum())
        found = {
            self.name_of(int(value)): int(self.counts[value]) / total for value in self.counts.nonzero()[0]
        }
        return dict(sorted(found.items(), key=lambda item: -item[1]))

    @property
    def skipped_fraction(self) -> float:
        """Part of the tiles that were not computed."""
        return 1 - self.num_computed / self.num_tiles

    def name_of(self, value: int) -> str:
        return self.id2label.get(value, "no class" if value == self.background else str(value))

    def bands(self) -> Iterator[tuple[int, np.ndarray]]:
        """The first row of each band of the mask, and its values `(n, W)`."""
        return read_bands(self.path if self._mask is None else self._mask)


class BlendedBand:
    """Running means of what tiles say of the pixels of an image, for the rows that may still change.

    A mean is moved toward each new value by that value's part of the weights so far, so that values that
    agree stay exactly what they are.

    Args:
        rows: that are held at most.
        width: of the image.
        num_channels: values of a pixel.
        folder: for a file, where they take much memory.
    """

    def __init__(self, rows: int, width: int, num_channels: int, folder: str | None = None):
        self.first = 0
        self.rows = rows
        self._file = self._map = None
        shape = (rows, width, num_channels + 1)
        if 4 * int(np.prod(shape, dtype=np.int64)) > MAX_BAND_BYTES:
            self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 (closed by `close`)
            self._map = np.memmap(self._file, np.float32, "w+", shape=shape)
            self._values = self._map
        else:
            # The last channel has the weights.
            self._values = np.zeros(shape, np.float32)

    def add(self, top: int, left: int, values: np.ndarray, weights: np.ndarray) -> None:
        """
        Args:
            values: `(h, w, C)`.
            weights: `(h, w)`; where they are 0, values do not count.
        """
        right = left + values.shape[1]
        for rows, part in self._slices(top, top + values.shape[0]):
            held = self._values[rows, left:right]
            weight = weights[part]
            total = held[..., -1] + weight
            share = np.divide(weight, total, out=np.zeros_like(weight), where=total > 0)
            held[..., :-1] += share[..., None] * (values[part] - held[..., :-1])
            held[..., -1] = total
        self.release()

    def take(self, last: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Rows from the first that is held to `last`, a part at a time, which are then forgotten.

        Yields:
            Values `(n, W, C)` and weights `(n, W)`.
        """
        step = max(1, STEP_BYTES // (4 * self._values[0].size))
        while self.first < last:
            stop = min(last, self.first + step)
            for rows, _ in self._slices(self.first, stop):
                held = self._values[rows]
                yield held[..., :-1], held[..., -1]
                held[:] = 0
                self.release()
            self.first = stop
        self.release()

    def release(self) -> None:
        """Takes what is held in a file, if there is one, out of the memory of this process."""
        if self._map is not None and hasattr(mmap, "MADV_DONTNEED"):
            # The map is shared: pages that were written stay in the file.
            self._map._mmap.madvise(mmap.MADV_DONTNEED)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    def _slices(self, first: int, last: int) -> Iterator[tuple[slice, slice]]:
        """Places in the ring of rows, and which of the rows are there."""
        row = first
        while row < last:
            place = row % self.rows
            count = min(last - row, self.rows - place)
            yield slice(place, place + count), slice(row - first, row - first + count)
            row += count


def segment_tiled(
    model: PreTrainedModel,
    image: AnyImage,
    image_processor: BaseImageProcessor | None = None,
    *,
    tile: int | tuple[int, int] | None = None,
    overlap: float = 0.25,
    halo: int = 0,
    scales: Sequence[float] = (1,),
    batch_size: int = 8,
    output: str | os.PathLike | None = None,
    logits_output: str | os.PathLike | None = None,
    keep_logits: bool = False,
    tile_selector: TileSelector | None = None,
    num_selected_tiles: int | float | None = None,
    min_tile_score: float | None = None,
    background: int | None = None,
    nodata: int | Sequence[int] | None = None,
    resume: bool = True,
    progress: bool | None = None,
) -> TiledSegmentation:
    """Assigns a class to each pixel of an image of any size, at full resolution, tile by tile.

    Logits are brought to the size of the image and blended where tiles overlap, by raised cosines. A band of
    rows is complete when no later tile reaches it, and is then written, so memory does not grow with the
    image where there is an `output`. A run that was interrupted goes on with the rows that are missing when
    it is started again with the same arguments.

    Args:
        model: any of `AutoModelForSemanticSegmentation`, or of `AutoModelForUniversalSegmentation` and
            `AutoModelForInstanceSegmentation` (Mask2Former, MaskFormer, EoMT, DETR), whose masks are summed
            by class. A model of one class says yes (1) or no (0).
        image: what `open_image` takes: a file, a Pillow image, an array, a tensor, or an `ImageSource`, which
            is left open.
        image_processor: the model's; None loads that of its checkpoint.
        tile: side in pixels of what the model sees, or height and width; None for what the image processor
            resizes to, or else 512. Other tiles are resized to that.
        overlap: fraction in [0, 1) of a tile, without its halo, that the next one covers again.
        halo: pixels at each inner side of a tile that are computed and thrown away. With a halo of the
            model's receptive field or more, and tiles that are not resized, the mask is that of the whole
            image.
        scales: by which the image is resized, all blended: at 0.5 tiles cover twice the side.
        batch_size: tiles at a time.
        output: file of the mask, `.npy`, `.zarr`, `.tif`; None for memory. A TIFF has a color table, and the
            place on the map that the image has.
        logits_output: file of the blended logits `(H, W, L)`, in one of the formats.
        keep_logits: whether to hold them in memory.
        tile_selector: what says which tiles matter; all others are not computed, and are background. A map
            `(rows, columns)` over the image, of any size, such as a mask; a function from a thumbnail
            `(h, w, 3)` uint8 to such a map; or the name of a pixel scorer (`PIXEL_SCORERS`). A tile has the
            largest score of any place in it.
        num_selected_tiles: how many tiles are computed at most, or a fraction of them such as 0.25.
        min_tile_score: least score of a tile that is computed. A map without either marks tiles by being
            above 0.
        background: value where nothing was computed or there are no data; None for the class named
            "background", or else the largest number of the mask's type.
        nodata: color of pixels without data, a number or three in 0..255 as images are read: they are
            background, and tiles that have no others are not computed.
        resume: False begins anew.
        progress: whether to show a bar; None for on a terminal.

    Raises:
        TypeError: for a model without masks, or an image processor that cannot be told not to crop.
        ValueError: for an image that cannot be read, an argument outside what is said above, or logits that
            are not finite.
        ImportError: if the package that writes the file is missing.
    """
    run = DenseRun(
        model,
        image_processor,
        tile,
        overlap,
        halo,
        scales,
        batch_size,
        tile_selector,
        num_selected_tiles,
        min_tile_score,
        nodata,
        progress,
    )
    output, logits_output = check_map_file("output", output), check_map_file("logits_output", logits_output)
    if output is not None and output == logits_output:
        raise ValueError(f"output and logits_output are both {str(output)!r}: give two files.")
    with as_source(image) as source, evaluating(run.model):
        segmenter = _Segmenter(run, source, output, logits_output, keep_logits, background, resume)
        return segmenter.run_all()


class _Segmenter:
    """One image that is segmented."""

    def __init__(
        self,
        run: DenseRun,
        source: ImageSource,
        output: Path | None,
        logits_output: Path | None,
        keep_logits: bool,
        background: int | None,
        resume: bool,
    ):
        self.run, self.source = run, source
        self.output, self.logits_output, self.keep_logits = output, logits_output, keep_logits
        self.given_background, self.resume = background, resume
        self.size = (source.height, source.width)
        self.georeference = read_georeference(source)
        self.grids, self.choice = run.choose(source)
        self.band: BlendedBand | None = None
        self.num_labels = _num_labels(run)
        num_values = max(2, self.num_labels)
        self.id2label = class_names(run.model, self.num_labels)
        if self.num_labels == 1:
            self.id2label = {0: f"not {self.id2label[0]}", 1: self.id2label[0]}
        self.dtype = np.dtype(np.uint8 if num_values <= 255 else np.uint16)
        self.background = self._background(num_values)
        self.num_computed = 0

    def run_all(self) -> TiledSegmentation:
        settings = {
            **self.run.settings(self.source),
            "background": self.background,
            "windows": self._chosen(),
        }
        writers = self._open_writers(settings)
        done = min(writer.rows for writer in writers)
        for writer in writers:
            writer.rows = done
        self.mask, self.logits = writers[0], writers[1] if len(writers) > 1 else None
        counts = np.zeros(np.iinfo(self.dtype).max + 1, np.int64)
        for first in range(0, done, 256):
            rows = writers[0].read_rows(first, min(done, first + 256))
            counts += np.bincount(rows.ravel(), minlength=len(counts))
        self.counts = counts
        # Rows below those that are there, so also tiles that reach from above into them.
        windows = [window for window in self.choice.windows if window.core[2] > done]
        before = len(self.choice.windows) - len(windows)
        self.num_computed = before
        rows_held = max(last - first for grid in self.grids for first, last in _cores(grid))
        folder = None if self.output is None else str(self.output.parent)
        self.band = BlendedBand(rows_held, self.size[1], self.num_labels, folder)
        self.done = done
        self.band.first = min((window.core[0] for window in windows), default=self.size[0])
        self._fill(min(self.band.first, self.size[0]))
        try:
            for window, valid, values in self.run.results(
                self.source, self.grids, windows, self._decode, before
            ):
                if window.core[0] > self.band.first:
                    self._flush(window.core[0])
                if values is not None:
                    self.num_computed += 1
                    self._add(window, valid, values)
            self._flush(self.size[0])
        except BaseException:
            for writer in writers:
                writer.abandon()
            raise
        finally:
            self.band.close()
        return self._finish()

    def _chosen(self) -> list[int]:
        """A fingerprint of which windows are computed."""
        places = [
            (window.top * 31 + window.left * 17 + window.grid) % 65521 for window in self.choice.windows
        ]
        return [len(places), sum(place * (index % 97 + 1) for index, place in enumerate(places))]

    def _open_writers(self, settings: dict[str, Any]) -> list[MapWriter | MemoryMap]:
        def writer(path, shape, dtype):
            if path is None:
                return MemoryMap(shape, dtype)
            return MapWriter(path, shape, dtype, settings, self.resume)

        writers = [writer(self.output, self.size, self.dtype)]
        if self.logits_output is not None or self.keep_logits:
            writers.append(writer(self.logits_output, (*self.size, self.num_labels), np.dtype(np.float32)))
        return writers

    def _background(self, num_values: int) -> int:
        given, most = self.given_background, int(np.iinfo(self.dtype).max)
        if given is None:
            if self.num_labels == 1:
                return 0
            names = {name.lower(): index for index, name in self.id2label.items()}
            return next((names[name] for name in BACKGROUND_NAMES if name in names), most)
        if type(given) is not int or not 0 <= given <= most:
            raise ValueError(
                f"background={given!r} must be a class (0..{num_values - 1}) or another number up to {most}."
            )
        return given

    def _decode(self, outputs: Any, windows: list[tuple[Window, tuple[int, int]]]) -> Iterator[np.ndarray]:
        """Logits `(h, w, L)` of the core of each window."""
        scores = semantic_logits(self.run.model, outputs)
        if scores.shape[1] != self.num_labels:
            raise ValueError(
                f"The model gives {scores.shape[1]} classes, and its configuration has num_labels="
                f"{self.num_labels}: mend the configuration."
            )
        if not torch.isfinite(scores).all():
            raise ValueError(
                "The model's logits are not finite: try torch.float32 or torch.bfloat16, or check its "
                "weights."
            )
        # One at a time, as at the size of the image they take much memory.
        return (self._core_values(*item) for item in zip(scores, windows, strict=True))

    def _core_values(self, maps: torch.Tensor, place: tuple[Window, tuple[int, int]]) -> np.ndarray:
        window, covered = place
        maps = cut_to_window(maps.float(), covered, window)
        top, left, bottom, right = window.core
        maps = maps[:, top - window.top : bottom - window.top, left - window.left : right - window.left]
        return maps.permute(1, 2, 0).cpu().numpy()

    def _add(self, window: Window, valid: np.ndarray | None, values: np.ndarray) -> None:
        top, left, bottom, right = window.core
        down, across = self.grids[window.grid].weights(window)
        weights = np.outer(down, across)
        if valid is not None:
            weights *= valid[top - window.top : bottom - window.top, left - window.left : right - window.left]
        # Rows that are written already, when a run goes on, and need not be computed again.
        above = max(0, self.band.first - top)
        self.band.add(top + above, left, values[above:], weights[above:])

    def _flush(self, last: int) -> None:
        """Writes the rows that are complete; those below stay."""
        for values, weights in self.band.take(min(last, self.size[0])):
            first = self._place
            self._place += len(values)
            skip = max(0, self.done - first)
            if skip < len(values):
                self._write(values[skip:], weights[skip:])
        self.band.release()
        if self._place > self.done:
            for writer in (self.mask, self.logits):
                if writer is not None:
                    writer.commit()

    def _fill(self, last: int) -> None:
        """Writes background down to where the first window begins."""
        self._place = last
        step = max(1, STEP_BYTES // (4 * self.size[1] * self.num_labels))
        for first in range(self.done, last, step):
            rows = min(step, last - first)
            values = np.zeros((rows, self.size[1], self.num_labels), np.float32)
            self._write(values, values[..., 0])

    def _write(self, values: np.ndarray, weights: np.ndarray) -> None:
        if self.num_labels == 1:
            classes = (values[..., 0] > 0).astype(self.dtype)
        else:
            classes = torch.from_numpy(np.ascontiguousarray(values)).argmax(-1).numpy().astype(self.dtype)
        classes[weights <= 0] = self.background
        self.counts += np.bincount(classes.ravel(), minlength=len(self.counts))
        self.mask.write(classes)
        if self.logits is not None:
            self.logits.write(values)

    def _finish(self) -> TiledSegmentation:
        from .dense_pictures import class_colors

        # Nodata of GDAL hides pixels, which a class should not be.
        fill = None if self.background in self.id2label else self.background
        colors = class_colors(256, self.background)
        self.mask.finish(colors=colors, fill=fill, georeference=self.georeference)
        if self.logits is not None:
            self.logits.finish(georeference=self.georeference)
        return TiledSegmentation(
            image_size=self.size,
            id2label=self.id2label,
            background=self.background,
            num_tiles=self.choice.num_all,
            num_computed=self.num_computed,
            counts=self.counts,
            path=self.output,
            logits_path=self.logits_output,
            georeference=self.georeference,
            _mask=self.mask.values if self.output is None else None,
            _logits=self.logits.values if self.logits is not None and self.logits_output is None else None,
        )


def _cores(grid: WindowGrid) -> Iterator[tuple[int, int]]:
    return (grid.rows.core(row) for row in range(len(grid.rows.starts)))


def _num_labels(run: DenseRun) -> int:
    """Classes of the model; of one whose configuration does not say, those of a blank tile."""
    number = num_labels_of(run.model)
    if number is None:
        blank = np.zeros((*(run.prepare.size or run.tile), 3), np.uint8)
        number = semantic_logits(run.model, run.compute([blank])).shape[1]
    return number


def semantic_logits(model: PreTrainedModel, outputs: Any) -> torch.Tensor:
    """`(B, L, h, w)` of the outputs of a segmentation model.

    Logits of `AutoModelForSemanticSegmentation`; of models that predict masks by queries, the masks'
    probabilities summed by those of their classes, as in MaskFormer (Cheng et al., 2021).

    Raises:
        TypeError: for the outputs of another model.
    """
    logits, masks = query_outputs(outputs)
    if masks is not None:
        classes = query_scores(logits, num_labels_of(model))
        return torch.einsum("bql,bqhw->blhw", classes, masks.float().sigmoid())
    logits = getattr(outputs, "logits", None)
    if not isinstance(logits, torch.Tensor) or logits.ndim != 4:
        found = (
            "no logits" if not isinstance(logits, torch.Tensor) else f"logits of shape {tuple(logits.shape)}"
        )
        raise TypeError(
            f"{type(model).__name__} gives {found}, where a segmentation model gives (batch, num_labels, "
            "rows, columns): load it with AutoModelForSemanticSegmentation or "
            "AutoModelForUniversalSegmentation. For boxes there is detect_tiled, for classes of images "
            "predict_tiled."
        )
    return logits


def query_outputs(outputs: Any) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Logits of classes `(B, Q, L + 1)` and of masks `(B, Q, h, w)` of models that predict masks by
    queries."""
    masks = getattr(outputs, "masks_queries_logits", None)
    if masks is not None:
        return outputs.class_queries_logits, masks
    masks = getattr(outputs, "pred_masks", None)
    if masks is None or getattr(outputs, "logits", None) is None:
        return None, None
    # DETR's has a dimension of one.
    return outputs.logits, masks.squeeze(2) if masks.ndim == 5 else masks


def query_scores(logits: torch.Tensor, num_labels: int | None) -> torch.Tensor:
    """Probabilities `(..., Q, L)` of the classes of queries; there is one more for "no object", last, unless
    each class is a yes or a no by itself."""
    if logits.shape[-1] == num_labels:
        return logits.float().sigmoid()
    return logits.float().softmax(dim=-1)[..., :-1]
