"""Positions of the tiles of an image."""

from dataclasses import dataclass

import torch

from ..arguments import check_overlap, check_tile


@dataclass(frozen=True)
class TileGrid:
    """Tiles of one size that cover an image, in rows and columns.

    Attributes:
        image_size: height and width in pixels.
        tile_size: height and width in pixels; no more than the image has.
        tops, lefts: first pixels of the rows and columns of tiles.
    """

    image_size: tuple[int, int]
    tile_size: tuple[int, int]
    tops: tuple[int, ...]
    lefts: tuple[int, ...]

    @classmethod
    def cover(
        cls, image_size: tuple[int, int], tile: int | tuple[int, int] = 224, overlap: float = 0.25
    ) -> "TileGrid":
        """Covers an image with the fewest tiles; each overlaps the one before by a fraction of its side.

        The last row and column are shifted to end with the image, so they may overlap more. An image that is
        less high or wide than a tile has tiles of its own height or width.

        Args:
            image_size: height and width in pixels.
            tile: side in pixels, or height and width.
            overlap: fraction in [0, 1), rounded to whole pixels; tiles are at least one pixel apart.

        Raises:
            ValueError: for a tile of less than one pixel, or an overlap outside [0, 1).
        """
        tile = check_tile(tile)
        check_overlap(overlap)
        starts = [_starts(*lengths, overlap) for lengths in zip(image_size, tile, strict=True)]
        tile_size = tuple(map(min, image_size, tile))
        return cls(tuple(image_size), tile_size, *starts)

    def __len__(self) -> int:
        return len(self.tops) * len(self.lefts)

    @property
    def coordinates(self) -> torch.Tensor:
        """Returns `(T, 4)` int64 top, left, height and width in pixels of each tile, row by row, as for
        `ImageSource.read`."""
        tops, lefts = torch.tensor(self.tops), torch.tensor(self.lefts)
        corners = torch.cartesian_prod(tops, lefts)
        return torch.cat((corners, torch.tensor([self.tile_size]).expand(len(self), 2)), dim=1)


def _starts(length: int, tile: int, overlap: float) -> tuple[int, ...]:
    step = max(1, tile - round(tile * overlap))
    last = max(0, length - tile)
    return (*range(0, last, step), last)
