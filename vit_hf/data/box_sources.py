"""Finding images with boxes: folders of Pascal VOC files, columns of data sets, the embedded digits."""

import re
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import numpy as np
import PIL.Image
from tqdm.auto import tqdm

from ..arguments import MEGAPIXEL_DIGITS, DataArguments
from .boxes import BoxedImages, find_object_column, read_objects
from .digits import RECIPE_PREFIX, CanvasRecipe
from .image_folders import NO_ANNOTATION, SPLIT_NAMES, UNKNOWN, ImageFolder, check_name, scan_folder, show
from .images import upright_size
from .loading import check_validation_fraction, hold_out
from .sources import find_image_column, load_splits


SIDES = ("xmin", "ymin", "xmax", "ymax")


class VocAnnotation(NamedTuple):
    """The contents of one Pascal VOC file.

    Attributes:
        image: the file that it annotates, in the same folder.
        boxes: `(T, 4)` float64: left, top, right, bottom in pixels.
        names: classes of the boxes; None where missing.
    """

    image: Path
    boxes: np.ndarray
    names: list[str | None]


def read_voc(path: Path) -> VocAnnotation:
    """Reads one file; an image without objects is background.

    Raises:
        FileNotFoundError: if the image that it names is not in its folder.
        ValueError: if it is not valid XML, no annotation, or an object lacks a side of its box.
    """
    try:
        root = ElementTree.parse(path).getroot()
    # An encoding that is named and unknown is a LookupError.
    except (ElementTree.ParseError, LookupError, ValueError) as error:
        raise ValueError(
            f"{path} is not valid XML: {error}. Fix it; text that is not UTF-8 needs its encoding in the "
            'first line, as in <?xml version="1.0" encoding="latin1"?>'
        ) from error
    name = root.findtext("filename")
    if not name:
        raise ValueError(f"{path} is not a Pascal VOC annotation: it names no image in <filename>")
    image = path.parent / Path(name).name
    if not image.is_file():
        raise FileNotFoundError(f"{path} annotates {image.name}, which is not in {path.parent}")
    boxes, names = [], []
    for number, found in enumerate(root.iter("object")):
        try:
            boxes.append([float(found.findtext(f"bndbox/{side}", "")) for side in SIDES])
        except ValueError:
            raise ValueError(
                f"{path}: object {number} lacks a number for one of {', '.join(SIDES)} in <bndbox>"
            ) from None
        names.append((found.findtext("name") or "").strip() or None)
    return VocAnnotation(image, np.array(boxes, np.float64).reshape(-1, 4), names)


# Tolerated overhang of a box beyond its image, in pixels: tools round, and some count from 1.
TOLERANCE = 1.0
ONE_CLASS = "object"


@dataclass
class BoxData:
    """Splits of images with boxes, and the class names.

    Attributes:
        splits: by name, some of "train", "validation" and "test".
        names: class names.
        notes: lines for the user about unused or changed data.
    """

    splits: dict[str, BoxedImages]
    names: list[str]
    notes: list[str]


@dataclass
class FoundSplit:
    """One split as stored: rows, and for each image its size (width, height), name in errors, boxes and their
    classes."""

    rows: datasets.Dataset
    image_column: str
    sizes: list[tuple[int, int]]
    row_names: list[str]
    boxes: list[np.ndarray]
    names: list[list[str | None]]

    def numbered(self, classes: list[str], clip_boxes: bool) -> tuple[BoxedImages, int]:
        """Clips boxes to their images and numbers the classes; also counts the boxes that had to change.

        Raises:
            ValueError: as `load_boxed_images`.
        """
        numbers = {name: number for number, name in enumerate(classes)}
        all_boxes, all_labels, num_changed = [], [], 0
        for place, size, boxes, names in zip(self.row_names, self.sizes, self.boxes, self.names, strict=True):
            if None in names:
                raise ValueError(f"{place} has an object without a class: name it, or set single_class")
            if unknown := sorted(set(names) - numbers.keys()):
                raise ValueError(
                    f"{place} has an object of the class {unknown[0]!r}; the classes are {', '.join(classes)}"
                )
            cut, wrong = fit_boxes(boxes, size)
            if wrong.any() and not clip_boxes:
                raise ValueError(
                    f"{place}: the box {boxes[wrong][0].round(2).tolist()} (left, top, right, bottom) is "
                    f"empty or reaches beyond the image of {size[0]}x{size[1]} pixels. Fix it, or set "
                    "clip_boxes"
                )
            num_changed += int(wrong.sum())
            kept = (cut[:, :2] < cut[:, 2:]).all(axis=1)
            all_boxes.append(cut[kept])
            all_labels.append(np.array([numbers[name] for name in names], np.int64)[kept])
        return BoxedImages(self.rows, self.image_column, all_boxes, all_labels, self.sizes), num_changed


def load_boxed_images(
    data: DataArguments,
    class_names: list[str] | None = None,
    known_names: list[str] | None = None,
    single_class: bool = False,
    clip_boxes: bool = False,
) -> BoxData:
    """Loads images and their boxes, checks each box, and holds out a validation split if there is none.

    A folder with Pascal VOC files (`*.xml`, each next to its image; optionally under `train`, `validation`
    and `test`) has the images that these name. Other data have a column `objects`, see `read_objects`.
    "megapixel_digits" has its digits.

    Args:
        data: the data to load; `label_column` is the column of boxes.
        class_names: all classes, in order; by default those of the data.
        known_names: classes of a model, which are taken instead of those of the data if they include them.
        single_class: take all classes for one.
        clip_boxes: cut boxes at the border of their image and drop empty ones, instead of failing.

    Raises:
        FileNotFoundError: if there is nothing at that path, or an annotated image is missing.
        ValueError: naming the image, for a damaged one, a box that is empty or beyond it, and a class that is
            not among `class_names`; and if there is no box at all.
    """
    check_validation_fraction(data.validation_fraction)
    notes: list[str] = []
    found, known = _find(data, notes)
    if single_class:
        known = [ONE_CLASS]
        for split in found.values():
            split.names = [[ONE_CLASS] * len(names) for names in split.names]
    present = {name for split in found.values() for names in split.names for name in names}
    if not present:
        raise ValueError(f"no image of {data.dataset} has a box: nothing to detect")
    if known_names is not None and present <= {*known_names}:
        known = known_names
    classes = class_names or known or sorted(present - {None}, key=_in_order)
    splits, num_changed = {}, 0
    for name, split in found.items():
        splits[name], changed = split.numbered(classes, clip_boxes)
        num_changed += changed
    if num_changed:
        notes.append(f"{num_changed} boxes were cut at the border of their image, or dropped as empty")
    if "train" in splits and "validation" not in splits and data.validation_fraction:
        kept, held_out = hold_out(
            np.zeros(len(splits["train"]), np.int64), data.validation_fraction, data.validation_seed
        )
        splits |= {"validation": splits["train"].select(held_out), "train": splits["train"].select(kept)}
    return BoxData({name: splits[name] for name in SPLIT_NAMES if name in splits}, classes, notes)


def fit_boxes(boxes: np.ndarray, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Clips `boxes` `(T, 4)` to an image of `size` (width, height); also returns which were invalid
    `(T,)`."""
    cut = boxes.clip(0, [*size, *size])
    beyond = (np.abs(cut - boxes) > TOLERANCE).any(axis=1)
    return cut, beyond | ~(cut[:, :2] < cut[:, 2:]).all(axis=1)


def _find(data: DataArguments, notes: list[str]) -> tuple[dict[str, FoundSplit], list[str] | None]:
    """Returns the splits, and the class names if the data define them."""
    folder = Path(data.dataset).expanduser()
    if folder.is_dir():
        scan = scan_folder(folder)
        if scan.annotations and not scan.metadata:
            return _find_voc(scan, notes), None
    # Folders below mean nothing for boxes.
    loaded = load_splits(data.dataset, data.dataset_options, has_classes=None)
    notes += loaded.notes
    first = next(iter(loaded.splits.values()))
    image_column = find_image_column(first, data.image_column)
    splits, classes = {}, None
    for name, rows in loaded.splits.items():
        if data.dataset == MEGAPIXEL_DIGITS:
            classes = rows.features["digits"].feature.names
            boxes = [np.array(found, np.float64) for found in rows.select_columns("boxes")[:]["boxes"]]
            digits = rows.select_columns("digits")[:]["digits"]
            labels = [[classes[digit] for digit in found] for found in digits]
        else:
            column = find_object_column(rows, data.label_column)
            boxes, labels, classes = read_objects(rows, column, loaded.row_names.get(name))
        splits[name] = _open_rows(rows, image_column, name, boxes, labels)
    return splits, classes


def _find_voc(folder: ImageFolder, notes: list[str]) -> dict[str, FoundSplit]:
    splits, used = {}, set()
    annotated: dict[Path, Path] = {}
    for split, files in folder.splits(folder.annotations, None).items():
        annotations = []
        for file in files:
            found = read_voc(file.path)
            check_name(found.image)
            if found.image in annotated:
                raise ValueError(
                    f"{show(file.path)} annotates {found.image.name}, as {show(annotated[found.image])} "
                    "does: keep one"
                )
            annotated[found.image] = file.path
            annotations.append(found)
        rows = datasets.Dataset.from_dict({"image": [str(found.image) for found in annotations]})
        splits[split] = _open_rows(
            rows.cast_column("image", datasets.Image()),
            "image",
            split,
            [found.boxes for found in annotations],
            [found.names for found in annotations],
        )
        used |= {found.image for found in annotations}
    if without := [split for split in folder.splits(folder.images, None) if split not in splits]:
        raise ValueError(f"the {without[0]} split of {show(folder.path)} has no Pascal VOC file (*.xml)")
    for image in folder.images:
        if image not in used:
            folder.left_out.add(NO_ANNOTATION, image)
    for file in folder.tables:
        folder.left_out.add(UNKNOWN, file)
    folder.note_empty([*folder.images, *annotated.values()])
    notes += folder.left_out.notes()
    return splits


def _open_rows(
    rows: datasets.Dataset, image_column: str, split: str, boxes: list[np.ndarray], names: list[list[str]]
) -> FoundSplit:
    """Reads the header of every image."""
    rows = rows.select_columns(image_column)
    feature = rows.features[image_column]
    stored = rows
    if isinstance(feature, datasets.Image):
        stored = rows.cast_column(image_column, type(feature)(decode=False))
        # Subclasses draw their images.
        rows = stored if type(feature) is datasets.Image else rows
    sizes, row_names = [], []
    with tqdm(total=len(rows), desc=f"Looking at images ({split})", leave=False, delay=1) as bar:
        for batch in stored.iter(16):
            for source in batch[image_column]:
                path = source["path"] if isinstance(source, dict) else None
                row_names.append(path or f"image {len(row_names)} of {split}")
                sizes.append(_upright_size(source, row_names[-1]))
            bar.update(len(batch[image_column]))
    return FoundSplit(rows, image_column, sizes, row_names, boxes, names)


def _upright_size(source: dict[str, Any] | PIL.Image.Image, place: str) -> tuple[int, int]:
    if isinstance(source, dict) and (source["bytes"] or b"").startswith(RECIPE_PREFIX):
        recipe = CanvasRecipe.from_bytes(source["bytes"])  # of a canvas that is not drawn yet
        return recipe.width, recipe.height
    return upright_size(source, place)


def _in_order(name: str) -> tuple:
    """Sort key that puts 10 after 9."""
    return (0, int(name), "") if re.fullmatch(r"\d+", name) else (1, 0, name)
