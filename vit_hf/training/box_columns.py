"""Boxes in a column of a data set, as detection data sets of the Hub have them."""

from typing import Any, NamedTuple

import datasets
import numpy as np

from .box_arithmetic import from_coco


BOX_KEYS = ("bbox", "bboxes", "boxes")
CLASS_KEYS = ("category", "categories", "category_id", "label", "labels", "class")
OBJECT_COLUMNS = ("objects", "annotations", "object")


class FoundBoxes(NamedTuple):
    """Boxes of all images of a split.

    Attributes:
        boxes: of each image `(T, 4)` float64: left, top, right, bottom in pixels.
        names: of each image, the classes of its boxes.
        classes: all names in their order, where the data set knows it.
    """

    boxes: list[np.ndarray]
    names: list[list[str]]
    classes: list[str] | None


def find_object_column(rows: datasets.Dataset, wanted: str | None) -> str:
    """The column of boxes: the one named, or one of `OBJECT_COLUMNS`.

    Raises:
        ValueError: if there is none.
    """
    found = [wanted] if wanted is not None else [n for n in OBJECT_COLUMNS if n in rows.column_names]
    if not found or found[0] not in rows.column_names:
        raise ValueError(
            f"there is no column of boxes{f' {wanted!r}' if wanted else ''}; the data have "
            f"{', '.join(rows.column_names)}. Name it with label_column: it holds, for each image, "
            "{bbox: [[left, top, width, height], ...], category: [...]}; or put a Pascal VOC file (.xml) beside each image"
        )
    return found[0]


def read_objects(rows: datasets.Dataset, column: str, places: list[str] | None = None) -> FoundBoxes:
    """Read `{bbox, category}` of lists, or a list of `{bbox, category}`; boxes in COCO form.

    Args:
        rows: of one split.
        column: which of them holds the boxes.
        places: what to call each row in errors; by default "image" and its number.

    Raises:
        ValueError: if the column is neither, an image has not as many categories as boxes, or a category is missing or
            not among the classes of the column.
    """
    feature = rows.features[column]
    inner = feature if isinstance(feature, dict) else getattr(feature, "feature", None)
    if not isinstance(inner, dict):
        raise ValueError(
            f"the column {column} must hold, for each image, bbox and category of its objects, not {feature}"
        )
    keys = [next((key for key in wanted if key in inner), None) for wanted in (BOX_KEYS, CLASS_KEYS)]
    if None in keys:
        raise ValueError(
            f"the objects of the column {column} must have one of {', '.join(BOX_KEYS)} and one of "
            f"{', '.join(CLASS_KEYS)}; they have {', '.join(inner)}"
        )
    leaf = inner[keys[1]]
    leaf = getattr(leaf, "feature", leaf) if inner is feature else leaf
    classes = leaf.names if isinstance(leaf, datasets.ClassLabel) else None
    boxes, names = [], []
    for index, objects in enumerate(rows.select_columns(column)[:][column]):
        place = places[index] if places else f"image {index}"
        found, categories = _lists(objects, *keys)
        if len(found) != len(categories):
            raise ValueError(
                f"{place} has {len(found)} boxes and {len(categories)} categories in the column {column}"
            )
        try:
            array = np.array(found, np.float64).reshape(-1, 4)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"{place}: a box is [left, top, width, height] in pixels, and the column {column} has {found}"
            ) from error
        boxes.append(from_coco(array))
        names.append([_name(category, classes, place, column) for category in categories])
    return FoundBoxes(boxes, names, classes)


def _lists(objects: Any, box_key: str, class_key: str) -> tuple[list, list]:
    """Boxes and categories of one image."""
    if isinstance(objects, list):
        return [one[box_key] for one in objects], [one[class_key] for one in objects]
    objects = objects or {}
    return objects.get(box_key) or [], objects.get(class_key) or []


def _name(category: int | str | None, classes: list[str] | None, place: str, column: str) -> str:
    if category is None or (classes is not None and not 0 <= category < len(classes)):
        legal = "" if classes is None else f"; there are {len(classes)}, from 0"
        raise ValueError(f"{place} has the category {category} in the column {column}{legal}")
    return str(category) if classes is None else classes[category]
