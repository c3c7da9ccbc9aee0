"""Pictures that sum up what was found in a large image, with Pillow alone."""

import colorsys

import numpy as np
import PIL.Image
import PIL.ImageDraw

from .detect_tiles import TiledDetection
from .segment_tiles import TiledSegmentation
from .tiles import AnyImage, as_source


# Pixels of the longer side.
PICTURE_SIZE = 1024
LEGEND_WIDTH, LINE = 240, 18
# Classes in the legend; boxes that are drawn.
MAX_CLASSES, MAX_BOXES = 30, 5000


def class_colors(number: int = 256, background: int | None = None) -> np.ndarray:
    """`(number, 3)` uint8 colors of classes, far apart for those that follow each other; the background is
    black."""
    hues = (0.08 + np.arange(number) * 0.61803398875) % 1  # steps of the golden ratio
    colors = [colorsys.hsv_to_rgb(hue, 0.75 + 0.2 * (index % 2), 0.95) for index, hue in enumerate(hues)]
    colors = np.round(255 * np.array(colors)).astype(np.uint8)
    if background is not None and background < number:
        colors[background] = 0
    return colors


def picture_of(result: TiledDetection | TiledSegmentation, image: AnyImage) -> PIL.Image.Image:
    """A thumbnail of the image with its objects or classes in color, and their names with numbers or
    fractions.

    Args:
        image: the one that the result is of.

    Raises:
        ValueError: if the image has another size.
    """
    with as_source(image) as source:
        size = (source.height, source.width)
        if size != result.image_size:
            raise ValueError(
                f"{source.name} has {size[0]}x{size[1]} pixels, and the result is of an image of "
                f"{result.image_size[0]}x{result.image_size[1]}: give that one."
            )
        scale = min(1.0, PICTURE_SIZE / max(size))
        shown = tuple(max(1, round(side * scale)) for side in size)
        picture = source.thumbnail(*shown)
    if isinstance(result, TiledSegmentation):
        drawn, legend = _segmented(result, picture)
    else:
        drawn, legend = _detected(result, picture)
    return _with_legend(drawn, legend)


def _segmented(result: TiledSegmentation, picture: np.ndarray) -> tuple[PIL.Image.Image, list]:
    rows, columns = (
        np.minimum(((np.arange(count) + 0.5) / count * side).astype(int), side - 1)
        for count, side in zip(picture.shape[:2], result.image_size, strict=True)
    )
    shown = np.zeros(picture.shape[:2], np.int64)
    for first, band in result.bands():
        inside = (rows >= first) & (rows < first + len(band))
        shown[inside] = band[rows[inside] - first][:, columns]
    colors = class_colors(len(result.counts), result.background)
    mixed = (picture * 0.45 + colors[shown] * 0.55).astype(np.uint8)
    mixed = np.where((shown == result.background)[..., None], picture, mixed)
    values = {result.name_of(int(value)): int(value) for value in result.counts.nonzero()[0]}
    legend = [(colors[values[name]], f"{name} {part:.1%}") for name, part in result.fractions.items()]
    return PIL.Image.fromarray(mixed), [*legend, *_tiles(result)]


def _detected(result: TiledDetection, picture: np.ndarray) -> tuple[PIL.Image.Image, list]:
    image = PIL.Image.fromarray(np.ascontiguousarray(picture))
    draw = PIL.ImageDraw.Draw(image)
    labels = result.labels.numpy()
    colors = class_colors(int(labels.max(initial=0)) + 1)
    scale = np.array([picture.shape[1], picture.shape[0]] * 2) / np.array(result.image_size[::-1] * 2)
    boxes = result.boxes.numpy()[:MAX_BOXES] * scale
    for box, label in zip(boxes.tolist(), labels.tolist(), strict=False):
        draw.rectangle(box, outline=tuple(colors[label].tolist()), width=2)
    numbers, counts = np.unique(labels, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    legend = [(colors[numbers[i]], f"{result.name_of(int(numbers[i]))} {counts[i]}") for i in order]
    if len(result) > MAX_BOXES:
        legend.append((None, f"the best {MAX_BOXES} are drawn"))
    return image, [*(legend or [(None, "nothing found")]), *_tiles(result)]


def _tiles(result: TiledDetection | TiledSegmentation) -> list:
    return [(None, f"{result.num_computed} of {result.num_tiles} tiles computed")]


def _with_legend(picture: PIL.Image.Image, legend: list) -> PIL.Image.Image:
    if len(legend) > MAX_CLASSES + 1:
        more = len(legend) - MAX_CLASSES - 1
        legend = [*legend[:MAX_CLASSES], (None, f"and {more} more classes"), legend[-1]]
    height = max(picture.height, LINE * (len(legend) + 1))
    sheet = PIL.Image.new("RGB", (picture.width + LEGEND_WIDTH, height), "white")
    sheet.paste(picture, (0, 0))
    draw = PIL.ImageDraw.Draw(sheet)
    for index, (color, text) in enumerate(legend):
        left, top = picture.width + 10, 8 + LINE * index
        if color is not None:
            draw.rectangle((left, top, left + 11, top + 11), fill=tuple(int(part) for part in color))
        draw.text((left + 18, top), text[:34].encode("latin-1", "replace").decode("latin-1"), fill="black")
    return sheet
