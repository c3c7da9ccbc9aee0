"""Pascal VOC annotations: an XML file for each image, with boxes in pixels and names."""

import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import NamedTuple

import numpy as np


SIDES = ("xmin", "ymin", "xmax", "ymax")


class VocAnnotation(NamedTuple):
    """What one XML file says.

    Attributes:
        image: the file that it annotates, in the same folder.
        boxes: `(T, 4)` float64: left, top, right, bottom in pixels.
        names: of the classes of the boxes; None where there is none.
    """

    image: Path
    boxes: np.ndarray
    names: list[str | None]


def read_voc(path: Path) -> VocAnnotation:
    """Read one file; an image without objects is an image of background.

    Raises:
        FileNotFoundError: if the image that it names is not beside it.
        ValueError: if it is no XML, no annotation, or an object lacks a side of its box.
    """
    try:
        root = ElementTree.parse(path).getroot()
    # An encoding that is named and unknown is a LookupError.
    except (ElementTree.ParseError, LookupError, ValueError) as error:
        raise ValueError(
            f"{path} is no XML: {error}. Mend it; text that is not UTF-8 needs its encoding in the first "
            "line, as in "
            '<?xml version="1.0" encoding="latin1"?>'
        ) from error
    name = root.findtext("filename")
    if not name:
        raise ValueError(f"{path} is no Pascal VOC annotation: it names no image in <filename>")
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
