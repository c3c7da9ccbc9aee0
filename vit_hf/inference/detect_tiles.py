"""Objects in images of any size, by any detector or instance segmentation model, tile by tile."""

import base64
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel
from transformers.image_processing_utils import BaseImageProcessor

from ..readers.georeference import Georeference, read_georeference
from .box_merging import BOX_MERGERS, Candidates, MergeOptions, areas, check_merging
from .dense_tiles import (
    DenseRun,
    TileSelector,
    Window,
    check_pixels,
    class_names,
    cut_to_window,
    num_labels_of,
)
from .segment_tiles import query_outputs, query_scores
from .tiles import AnyImage, as_source, evaluating


@dataclass(frozen=True)
class ObjectMask:
    """The pixels of one object, in a part of the image.

    Attributes:
        top, left: of the part.
        shape: its rows and columns.
        bits: its pixels row by row, eight a byte.
    """

    top: int
    left: int
    shape: tuple[int, int]
    bits: bytes

    @classmethod
    def of(cls, pixels: np.ndarray, top: int = 0, left: int = 0) -> "ObjectMask":
        """Makes one of `(h, w)` bool, whose upper left pixel is at `top` and `left`; crops empty borders."""
        rows, columns = (np.flatnonzero(pixels.any(axis=axis)) for axis in (1, 0))
        if not len(rows):
            return cls(top, left, (0, 0), b"")
        part = pixels[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        bits = np.packbits(part).tobytes()
        return cls(top + int(rows[0]), left + int(columns[0]), part.shape, bits)

    @property
    def pixels(self) -> np.ndarray:
        """`(h, w)` bool."""
        count = self.shape[0] * self.shape[1]
        return np.unpackbits(np.frombuffer(self.bits, np.uint8), count=count).reshape(self.shape).astype(bool)

    @property
    def area(self) -> int:
        return int(self.pixels.sum())

    @property
    def box(self) -> np.ndarray:
        """`(4,)` float64 left, top, right, bottom."""
        return np.array(
            [self.left, self.top, self.left + self.shape[1], self.top + self.shape[0]], np.float64
        )

    def union(self, others: Sequence["ObjectMask"]) -> "ObjectMask":
        masks = [mask for mask in (self, *others) if mask.bits]
        if not masks:
            return self
        top, left = min(mask.top for mask in masks), min(mask.left for mask in masks)
        bottom = max(mask.top + mask.shape[0] for mask in masks)
        right = max(mask.left + mask.shape[1] for mask in masks)
        joined = np.zeros((bottom - top, right - left), bool)
        for mask in masks:
            row, column = mask.top - top, mask.left - left
            joined[row : row + mask.shape[0], column : column + mask.shape[1]] |= mask.pixels
        return ObjectMask.of(joined, top, left)


@dataclass
class TiledDetection:
    """The objects of an image, the best first.

    Attributes:
        image_size: height and width in pixels.
        boxes: `(M, 4)` float32 left, top, right, bottom in pixels of the image.
        scores: `(M,)` float32.
        labels: `(M,)` int64.
        id2label: names of the classes.
        num_tiles: how many cover the image, at all scales.
        num_computed: how many of them were computed, now or before the run was interrupted.
        num_candidates: how many objects the tiles found, before they were merged.
        masks: of each object, if the model makes masks; else None.
        georeference: place of the image on the map, or None.
    """

    image_size: tuple[int, int]
    boxes: torch.Tensor
    scores: torch.Tensor
    labels: torch.Tensor
    id2label: dict[int, str]
    num_tiles: int
    num_computed: int
    num_candidates: int
    masks: list[ObjectMask] | None = None
    georeference: Georeference | None = None

    def __len__(self) -> int:
        return len(self.boxes)

    @property
    def skipped_fraction(self) -> float:
        """Part of the tiles that were not computed."""
        return 1 - self.num_computed / self.num_tiles

    def name_of(self, label: int) -> str:
        return self.id2label.get(label, str(label))


@dataclass
class _Found:
    """Objects of one window, in pixels of the image."""

    boxes: np.ndarray = field(default_factory=lambda: np.zeros((0, 4)))
    scores: np.ndarray = field(default_factory=lambda: np.zeros(0))
    labels: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    masks: list[ObjectMask] | None = None

    def __getitem__(self, kept: np.ndarray) -> "_Found":
        masks = self.masks and [mask for mask, keep in zip(self.masks, kept, strict=True) if keep]
        return _Found(self.boxes[kept], self.scores[kept], self.labels[kept], masks)

    def to_json(self) -> dict[str, Any]:
        result = {
            "boxes": self.boxes.tolist(),
            "scores": self.scores.tolist(),
            "labels": self.labels.tolist(),
        }
        if self.masks is not None:
            result["masks"] = [
                [mask.top, mask.left, *mask.shape, base64.b64encode(mask.bits).decode()]
                for mask in self.masks
            ]
        return result

    @classmethod
    def from_json(cls, line: dict[str, Any]) -> "_Found":
        masks = None
        if "masks" in line:
            masks = [
                ObjectMask(top, left, (height, width), base64.b64decode(bits))
                for top, left, height, width, bits in line["masks"]
            ]
        return cls(
            np.array(line["boxes"], np.float64).reshape(-1, 4),
            np.array(line["scores"], np.float64),
            np.array(line["labels"], np.int64),
            masks,
        )


def detect_tiled(
    model: PreTrainedModel,
    image: AnyImage,
    image_processor: BaseImageProcessor | None = None,
    *,
    tile: int | tuple[int, int] | None = None,
    overlap: float = 0.25,
    halo: int = 0,
    scales: Sequence[float] = (1,),
    batch_size: int = 8,
    threshold: float = 0.5,
    merging: str = "match",
    merge_threshold: float | None = None,
    class_wise: bool = True,
    border: int = 4,
    tile_selector: TileSelector | None = None,
    num_selected_tiles: int | float | None = None,
    min_tile_score: float | None = None,
    nodata: int | Sequence[int] | None = None,
    journal: str | os.PathLike | None = None,
    resume: bool = True,
    progress: bool | None = None,
) -> TiledDetection:
    """Finds the objects in an image of any size, at full resolution, tile by tile.

    Tiles are read row by row, and what they find is merged at the end, so memory depends on the number of
    objects alone.

    Args:
        model: any of `AutoModelForObjectDetection`; or of `AutoModelForInstanceSegmentation` and
            `AutoModelForUniversalSegmentation` (Mask2Former, MaskFormer, EoMT, DETR), which make masks as
            well.
        image, image_processor, tile, overlap, batch_size: see `segment_tiled`. Objects that are smaller than
            the overlap are whole in some tile; larger ones are put together of pieces.
        halo: pixels at each inner side of a tile in which objects do not count if their center lies there:
            the neighbor sees more of them.
        scales: by which the image is resized, all at once: at 0.5 tiles cover twice the side, for large
            objects.
        threshold: least score of an object.
        merging: how objects that several tiles found become one; only tiles that meet are compared.
            "match": those on which two tiles agree in the part that both see, each with one of the other tile
            at most; a whole box is preferred to those that a border cuts, and pieces alone become the box
            around them. "nms": of boxes whose IoU is above the threshold the best stays. "greedy": the best
            takes in all whose intersection over the smaller area is above the threshold, and becomes the box
            around them.
        merge_threshold: of the above; None for 0.3 of "match", 0.5 of the others.
        class_wise: whether only objects of one class are merged.
        border: an object that comes as many pixels near an inner border of its tile counts as cut by it.
        tile_selector, num_selected_tiles, min_tile_score: which tiles are computed; see `segment_tiled`.
            There are no objects in the others.
        nodata: color of pixels without data; tiles that have no others are not computed.
        journal: file of JSON lines for what each tile finds. An interrupted run that is started again with
            the same arguments goes on with the tiles that are not in it. It is yours to remove.
        resume: False begins anew.
        progress: whether to show a bar; None for on a terminal.

    Raises:
        TypeError: for a model without objects, or an image processor that does not know how to read them, or
            cannot be told not to crop.
        ValueError: for an image that cannot be read, or an argument outside what is said above.
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
    options = check_merging(merging, merge_threshold, class_wise)
    check_pixels("border", border)
    if not isinstance(threshold, int | float) or not 0 <= threshold <= 1:
        raise ValueError(f"threshold={threshold!r} must be the least score of an object, in [0, 1].")
    with as_source(image) as source, evaluating(run.model):
        grids, choice = run.choose(source)
        settings = {**run.settings(source), "threshold": threshold}
        record = _Journal(journal, settings, resume)
        todo = [window for window in choice.windows if _key(window) not in record.found]
        decoder = _Decoder(run, threshold)
        for window, valid, found in run.results(
            source, grids, todo, decoder, len(choice.windows) - len(todo)
        ):
            if found is None:
                record.skip(window)
                continue
            if valid is not None and len(found.boxes):
                found = found[_on_data(found.boxes, window, valid)]
            record.add(window, _inside_core(found, window))
        georeference = read_georeference(source)
        size = (source.height, source.width)
    names = class_names(model, num_labels_of(model) or 0)
    parts = [record.found.get(_key(window), _Found()) for window in choice.windows]
    candidates, masks = _join(parts, choice.windows, size, border)
    boxes, scores, labels, merged_masks = _merge(candidates, masks, choice.windows, grids, merging, options)
    return TiledDetection(
        image_size=size,
        boxes=torch.from_numpy(boxes).float(),
        scores=torch.from_numpy(scores).float(),
        labels=torch.from_numpy(labels),
        id2label=names,
        num_tiles=choice.num_all,
        num_computed=sum(_key(window) not in record.skipped for window in choice.windows),
        num_candidates=len(candidates),
        masks=merged_masks,
        georeference=georeference,
    )


def _key(window: Window) -> tuple[int, int, int]:
    return window.grid, window.top, window.left


class _Journal:
    """Objects of all windows, in memory, and in a file if there is one."""

    def __init__(self, path: str | os.PathLike | None, settings: dict[str, Any], resume: bool):
        self.path = None if path is None else Path(path)
        self.found: dict[tuple[int, int, int], _Found] = {}
        self.skipped: set[tuple[int, int, int]] = set()
        if self.path is None:
            return
        if not self.path.parent.is_dir():
            raise ValueError(
                f"journal={str(path)!r}: there is no folder {str(self.path.parent)!r}. Make it first."
            )
        settings = json.loads(json.dumps(settings))
        lines = self._read(settings, resume)
        # Without a line that was cut short; the earlier file stays until the new one is whole.
        whole = self.path.with_name(f"{self.path.name}.partial")
        whole.write_text("".join(f"{json.dumps(line)}\n" for line in [settings, *lines]), encoding="utf-8")
        os.replace(whole, self.path)
        for line in lines:
            key = tuple(line["window"])
            self.found[key] = _Found.from_json(line)
            if line.get("skipped"):
                self.skipped.add(key)

    def _read(self, settings: dict[str, Any], resume: bool) -> list[dict[str, Any]]:
        lines: list[dict[str, Any]] = []
        text = self.path.read_text(encoding="utf-8", errors="replace") if self.path.exists() else ""
        for line in text.splitlines():
            try:
                lines.append(json.loads(line))
            except ValueError:
                break
        if text and not (lines and isinstance(lines[0], dict) and settings.keys() <= lines[0].keys()):
            raise ValueError(
                f"journal={str(self.path)!r} is a file of another kind: give one that does not exist yet."
            )
        return lines[1:] if resume and lines and lines[0] == settings else []

    def add(self, window: Window, found: _Found) -> None:
        if len(found.boxes):
            self.found[_key(window)] = found
        self._note({"window": _key(window), **found.to_json()})

    def skip(self, window: Window) -> None:
        self.skipped.add(_key(window))
        self._note({"window": _key(window), "skipped": True, **_Found().to_json()})

    def _note(self, line: dict[str, Any]) -> None:
        if self.path is not None:
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(f"{json.dumps(line)}\n")


class _Decoder:
    """Reads what a model found in a batch of windows."""

    def __init__(self, run: DenseRun, threshold: float):
        self.model, self.processor = run.model, run.prepare.image_processor
        self.threshold = threshold

    def __call__(self, outputs: Any, windows: list[tuple[Window, tuple[int, int]]]) -> list[_Found]:
        logits, masks = query_outputs(outputs)
        scores = logits if logits is not None else getattr(outputs, "logits", None)
        # No comparison with a threshold holds for NaN: it would read as no object.
        if scores is not None and not torch.isfinite(scores).all():
            raise ValueError(
                "The model's logits are not finite: try torch.float32 or torch.bfloat16, or check its "
                "weights."
            )
        if masks is not None:
            return [
                self._instances(logits[index].float(), masks[index].float(), *place)
                for index, place in enumerate(windows)
            ]
        return self._objects(outputs, windows)

    def _objects(self, outputs: Any, windows: list[tuple[Window, tuple[int, int]]]) -> list[_Found]:
        read: Callable | None = getattr(self.processor, "post_process_object_detection", None)
        if getattr(outputs, "pred_boxes", None) is None or read is None:
            found = "no pred_boxes" if read is not None else "boxes"
            raise TypeError(
                f"{type(self.model).__name__} with {type(self.processor).__name__} gives {found}, and "
                "objects need a model of AutoModelForObjectDetection, AutoModelForInstanceSegmentation or "
                "AutoModelForUniversalSegmentation, and an image processor with "
                "post_process_object_detection. For masks of classes there is segment_tiled."
            )
        sizes = torch.tensor([covered for _, covered in windows])
        results = read(outputs, threshold=self.threshold, target_sizes=sizes)
        decoded = []
        for result, (window, _) in zip(results, windows, strict=True):
            boxes = result["boxes"].detach().double().cpu().numpy().reshape(-1, 4)
            limit = np.array([window.width, window.height] * 2)
            boxes = np.clip(boxes, 0, limit) + np.array([window.left, window.top] * 2)
            found = _Found(
                boxes, result["scores"].detach().double().cpu().numpy(), result["labels"].long().cpu().numpy()
            )
            decoded.append(found[(boxes[:, 2:] > boxes[:, :2]).all(axis=1)])
        return decoded

    def _instances(
        self, logits: torch.Tensor, masks: torch.Tensor, window: Window, covered: tuple[int, int]
    ) -> _Found:
        """Scores queries as MaskFormer does: by class, times the mean probability inside the mask."""
        scores, labels = query_scores(logits, num_labels_of(self.model)).max(dim=-1)
        found = _Found(masks=[])
        boxes, kept_scores, kept_labels = [], [], []
        for query in (scores >= self.threshold).nonzero().flatten().tolist():
            values = cut_to_window(masks[query], covered, window).sigmoid()
            inside = values > 0.5
            score = float(scores[query] * values[inside].mean()) if inside.any() else 0.0
            if score >= self.threshold and score > 0:
                mask = ObjectMask.of(inside.cpu().numpy(), window.top, window.left)
                found.masks.append(mask)
                boxes.append(mask.box)
                kept_scores.append(score)
                kept_labels.append(int(labels[query]))
        found.boxes = np.array(boxes, np.float64).reshape(-1, 4)
        found.scores, found.labels = np.array(kept_scores), np.array(kept_labels, np.int64)
        return found


def _inside_core(found: _Found, window: Window) -> _Found:
    """Drops objects whose center lies in the halo."""
    top, left, bottom, right = window.core
    across = (found.boxes[:, 0] + found.boxes[:, 2]) / 2
    down = (found.boxes[:, 1] + found.boxes[:, 3]) / 2
    return found[(left <= across) & (across <= right) & (top <= down) & (down <= bottom)]


def _on_data(boxes: np.ndarray, window: Window, valid: np.ndarray) -> np.ndarray:
    """Selects boxes in which there are data, `(N,)` bool."""
    kept = np.zeros(len(boxes), bool)
    for index, (left, top, right, bottom) in enumerate(boxes - np.array([window.left, window.top] * 2)):
        part = valid[int(top) : int(np.ceil(bottom)), int(left) : int(np.ceil(right))]
        kept[index] = part.any()
    return kept


def _join(
    parts: Sequence[_Found], windows: Sequence[Window], size: tuple[int, int], border: int
) -> tuple[Candidates, list[ObjectMask] | None]:
    numbers = np.repeat(np.arange(len(parts)), [len(part.boxes) for part in parts])
    boxes = np.concatenate([part.boxes for part in parts] or [np.zeros((0, 4))])
    inner = np.array(
        [
            (
                window.left if window.left > 0 else -np.inf,
                window.top if window.top > 0 else -np.inf,
                window.right if window.right < size[1] else np.inf,
                window.bottom if window.bottom < size[0] else np.inf,
            )
            for window in windows
        ]
    ).reshape(-1, 4)[numbers]
    cut = (boxes[:, :2] <= inner[:, :2] + border).any(axis=1) | (boxes[:, 2:] >= inner[:, 2:] - border).any(
        axis=1
    )
    candidates = Candidates(
        boxes,
        np.concatenate([part.scores for part in parts] or [np.zeros(0)]),
        np.concatenate([part.labels for part in parts] or [np.zeros(0, np.int64)]),
        numbers,
        cut,
    )
    has_masks = any(part.masks is not None for part in parts)
    return candidates, [mask for part in parts for mask in part.masks or ()] if has_masks else None


def _merge(
    candidates: Candidates,
    masks: list[ObjectMask] | None,
    windows: Sequence[Window],
    grids: Sequence[Any],
    merging: str,
    options: MergeOptions,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[ObjectMask] | None]:
    """Boxes, scores, labels and masks of the objects, the best first."""
    merged = BOX_MERGERS[merging](candidates, windows, grids, options)
    first = np.array([members[0] for members in merged.members], np.int64)
    scores, labels = candidates.scores[first], candidates.labels[first]
    order = np.argsort(-scores, kind="stable")
    boxes = merged.boxes[order]
    joined = None
    if masks is not None:
        joined = []
        for index in order.tolist():
            members, box = merged.members[index], merged.boxes[index]
            mask = masks[members[0]]
            # A whole object has its own mask; one of pieces has those of all.
            if (box != candidates.boxes[members[0]]).any():
                mask = mask.union([masks[member] for member in members[1:]])
            joined.append(mask)
        boxes = np.array([mask.box for mask in joined]).reshape(-1, 4)
    return boxes, scores[order], labels[order], joined


def object_areas(result: TiledDetection) -> list[float]:
    """Pixels of each object: of its mask, or of its box."""
    if result.masks is not None:
        return [float(mask.area) for mask in result.masks]
    return areas(result.boxes.double().numpy()).tolist()
