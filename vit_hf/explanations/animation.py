"""Animated GIFs of which patches are kept, written with Pillow alone.

Every frame uses the same palette and the same two versions of the picture, in colour and pale, so that nothing but
the patches that come and go changes from frame to frame: no flicker, and small files.
"""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont

from .shading import pale, spread


# Colours of a GIF: those of the picture, then greys for the text. Pillow needs one more for "as before".
NUM_COLOURS, NUM_GREYS = 223, 32
# Pixels.
GAP, FONT_SIZE, STRIP = 4, 15, 28
# Milliseconds that an animation takes at least per frame, at most, and altogether; and that its last frame stays.
SHORTEST, LONGEST, ALTOGETHER, LAST = 100, 500, 8000, 2500


@dataclass
class Tile:
    """An image of an animation: `picture` `(h, w, 3)` uint8, and how many patches it is high and wide."""

    picture: np.ndarray
    patch_span: tuple[float, float]


def tile_side(num_tiles: int, side: int) -> int:
    """Pixels a side that each of several pictures may have for all together to have `side`."""
    columns = math.ceil(math.sqrt(num_tiles))
    return (side - (columns - 1) * GAP) // columns


def write_animation(
    path: str | os.PathLike,
    tiles: Sequence[Tile],
    masks: Sequence[Sequence[np.ndarray]],
    captions: Sequence[str],
) -> None:
    """Writes a GIF of pictures side by side in which patches that were dropped are pale.

    Args:
        path: where to; what is there is replaced when the new file is complete.
        tiles: the pictures.
        masks: for each frame and picture, `(R, S)` bool, True for patches that were kept.
        captions: for each frame, one line below the pictures.
    """
    corners, height, width = _layout(tiles)
    font = PIL.ImageFont.load_default(FONT_SIZE)
    width = max(width, *(math.ceil(font.getlength(caption)) + 2 * GAP for caption in captions))
    coloured, faint = _background(tiles, corners, height, width)
    palette = _palette(coloured, faint)
    coloured, faint = (_to_indices(picture, palette) for picture in (coloured, faint))
    frames = []
    for frame_masks, caption in zip(masks, captions, strict=True):
        indices = np.full((height + STRIP, width), NUM_COLOURS + NUM_GREYS - 1, dtype=np.uint8)
        indices[:height] = faint
        for tile, (top, left), mask in zip(tiles, corners, frame_masks, strict=True):
            size = tile.picture.shape[:2]
            place = slice(top, top + size[0]), slice(left, left + size[1])
            kept = spread(mask, size, tile.patch_span)
            indices[place] = np.where(kept, coloured[place], faint[place])
        indices[height:] = _strip(caption, font, width)
        frame = PIL.Image.fromarray(indices, "P")
        frame.putpalette(palette.getpalette())
        frames.append(frame)
    duration = int(np.clip(ALTOGETHER / len(frames), SHORTEST, LONGEST))
    durations = [duration] * (len(frames) - 1) + [LAST]
    part = Path(path).with_suffix(".part")
    frames[0].save(part, "GIF", save_all=True, append_images=frames[1:], duration=durations, loop=0)
    os.replace(part, path)


def _layout(tiles: Sequence[Tile]) -> tuple[list[tuple[int, int]], int, int]:
    """(top, left) of each picture, and height and width of all."""
    columns = math.ceil(math.sqrt(len(tiles)))
    rows = [tiles[first : first + columns] for first in range(0, len(tiles), columns)]
    lefts = np.cumsum(
        [0]
        + [max(tile.picture.shape[1] for tile in tiles[column::columns]) + GAP for column in range(columns)]
    )
    tops = np.cumsum([0] + [max(tile.picture.shape[0] for tile in row) + GAP for row in rows])
    corners = [(int(tops[index // columns]), int(lefts[index % columns])) for index in range(len(tiles))]
    return corners, int(tops[-1]) - GAP, int(lefts[-1]) - GAP


def _background(
    tiles: Sequence[Tile], corners: Sequence[tuple[int, int]], height: int, width: int
) -> tuple[np.ndarray, np.ndarray]:
    """All pictures on white `(height, width, 3)`, in colour and pale."""
    coloured = np.full((height, width, 3), 255, dtype=np.uint8)
    faint = coloured.copy()
    for tile, (top, left) in zip(tiles, corners, strict=True):
        place = slice(top, top + tile.picture.shape[0]), slice(left, left + tile.picture.shape[1])
        coloured[place], faint[place] = tile.picture, pale(tile.picture)
    return coloured, faint


def _palette(coloured: np.ndarray, faint: np.ndarray) -> PIL.Image.Image:
    """An image with a palette of the pictures' colours, padded to `NUM_COLOURS`, and then of greys up to white."""
    both = PIL.Image.fromarray(np.concatenate((coloured, faint)))
    colours = both.quantize(NUM_COLOURS, PIL.Image.Quantize.MEDIANCUT).getpalette()[: 3 * NUM_COLOURS]
    colours += colours[:3] * (NUM_COLOURS - len(colours) // 3)
    greys = np.linspace(0, 255, NUM_GREYS).round().astype(int).repeat(3).tolist()
    image = PIL.Image.new("P", (1, 1))
    image.putpalette(colours + greys)
    return image


def _to_indices(picture: np.ndarray, palette: PIL.Image.Image) -> np.ndarray:
    return np.asarray(PIL.Image.fromarray(picture).quantize(palette=palette))


def _strip(caption: str, font: PIL.ImageFont.ImageFont, width: int) -> np.ndarray:
    """The caption black on white, `(STRIP, width)`, in places of the palette."""
    strip = PIL.Image.new("L", (width, STRIP), 255)
    PIL.ImageDraw.Draw(strip).text((GAP, STRIP / 2), caption, fill=0, font=font, anchor="lm")
    greys = np.asarray(strip).astype(np.float32) * (NUM_GREYS - 1) / 255
    return (greys.round() + NUM_COLOURS).astype(np.uint8)
