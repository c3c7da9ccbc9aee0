"""An image that does not fit into memory, as the model wants it: bands of patches, single ones, and thumbnails.

Shapes: K patches kept, P their side, S columns of patches; h, w rows and columns of pixels of a thumbnail.
"""

from collections.abc import Iterator
from typing import Literal

import numpy as np
import PIL.Image
import torch
from torch import nn
from transformers.image_processing_utils import BaseImageProcessor
from transformers.utils.logging import tqdm

from .sources import ImageSource


# Pixels of a band that are in memory at once, about 3 MB as floats, which stay in the processor's cache.
BAND_PIXELS = 2**18


class StreamedImage:
    """A source as the model wants it: normalised, a band of patches or a thumbnail at a time.

    Args:
        source: the image.
        patch_size: height and width of a patch.
        image_processor: how pixels are rescaled and normalised; nothing is resized.
        thumbnails: "exact" computes them from every pixel, with the weights that a whole image would get; "source"
            asks the source, which may have smaller versions.
        progress: whether to show how far a pass through the image has come.

    Raises:
        ValueError: if the image is smaller than one patch, or `thumbnails` unknown.
    """

    def __init__(
        self,
        source: ImageSource,
        patch_size: tuple[int, int],
        image_processor: BaseImageProcessor,
        thumbnails: Literal["exact", "source"] = "exact",
        progress: bool = False,
    ):
        self.source, self.patch_size, self.image_processor = source, patch_size, image_processor
        self.grid = (source.height // patch_size[0], source.width // patch_size[1])
        if 0 in self.grid:
            raise ValueError(
                f"{source.name} has {source.height}x{source.width} pixels and is smaller than one patch of "
                f"{patch_size[0]}x{patch_size[1]}."
            )
        if thumbnails not in ("exact", "source"):
            raise ValueError(f"thumbnails={thumbnails!r} is unknown. Choose 'exact' or 'source'.")
        self.thumbnails, self.progress = thumbnails, progress
        self._thumbnails: dict[tuple[int, int], torch.Tensor] = {}
        # By raster index, what was last asked for: a policy's greedy are mostly those that it drew.
        self._patches: dict[int, torch.Tensor] = {}

    def prepare(self, pixels: np.ndarray) -> torch.Tensor:
        """`(1, 3, height, width)` float32 of uint8 `(height, width, 3)`."""
        options = {"do_resize": False, "do_center_crop": False, "return_tensors": "pt"}
        if hasattr(self.image_processor, "return_patches"):
            options["return_patches"] = False
        return self.image_processor(PIL.Image.fromarray(np.ascontiguousarray(pixels)), **options)[
            "pixel_values"
        ]

    def bands(self, purpose: str) -> Iterator[tuple[int, torch.Tensor]]:
        """The first row of patches in each band, and the band `(1, C, rows * P, S * P)`; nothing beyond whole patches."""
        height, width = self.patch_size
        rows, columns = self.grid
        step = max(1, BAND_PIXELS // (height * width * columns))
        starts = tqdm(range(0, rows, step), desc=purpose, disable=not self.progress)
        for start in starts:
            number = min(step, rows - start)
            yield start, self.prepare(self.source.read(start * height, 0, number * height, columns * width))

    # What is remembered must serve training, though it was read while predicting.
    @torch.inference_mode(False)
    def patches(self, places: list[int]) -> torch.Tensor:
        """The pixels `(K, C, P, P)` float32 of the patches with these raster indices."""
        missing = sorted(set(places) - self._patches.keys())
        self._patches = {place: self._patches[place] for place in places if place in self._patches}
        height, width = self.patch_size
        step = max(1, BAND_PIXELS // (height * width))
        for start in range(0, len(missing), step):
            some = missing[start : start + step]
            # One above the other, so that they are prepared at once.
            pixels = np.concatenate([self._read(place) for place in some])
            prepared = self.prepare(pixels)[0].unflatten(1, (len(some), height)).transpose(0, 1)
            self._patches.update(zip(some, prepared, strict=True))
        return torch.stack([self._patches[place] for place in places])

    def _read(self, place: int) -> np.ndarray:
        height, width = self.patch_size
        row, column = divmod(place, self.grid[1])
        return self.source.read(row * height, column * width, height, width)

    @torch.inference_mode(False)
    def remember(self, places: torch.Tensor, pixels: torch.Tensor) -> None:
        """So that `patches` need not read them: raster indices `(K,)` and `(K, C, P, P)`."""
        self._patches = dict(zip(places.tolist(), pixels.cpu().clone(), strict=True))

    @torch.inference_mode(False)
    def thumbnail(self, size: tuple[int, int]) -> torch.Tensor:
        """The image, without what is beyond whole patches, at another size, `(1, C, h, w)` float32."""
        if size not in self._thumbnails:
            make = self._exact if self.thumbnails == "exact" else self._from_source
            self._thumbnails[size] = make(size)
        return self._thumbnails[size]

    def _from_source(self, size: tuple[int, int]) -> torch.Tensor:
        # The source shows the border as well, which the grid leaves out: less than a patch of the whole.
        return self.prepare(self.source.thumbnail(*size))

    def _exact(self, size: tuple[int, int]) -> torch.Tensor:
        """As `torch.nn.functional.interpolate` with antialiasing: a matrix for each axis, so bands can be added up."""
        columns = self.grid[1] * self.patch_size[1]
        weights = RowWeights(self.grid[0] * self.patch_size[0], size[0])
        result = None
        for start, band in self.bands("thumbnail"):
            top = start * self.patch_size[0]
            if size[1] != columns:
                narrow = (band.shape[2], size[1])
                band = nn.functional.interpolate(band, narrow, mode="bilinear", antialias=True)
            if result is None:
                result = band.new_zeros(*band.shape[:2], *size)
            first, last, share = weights.of_band(top, top + band.shape[2])
            result[:, :, first:last] += share @ band
        return result


class RowWeights:
    """With which weights `interpolate(mode="bilinear", antialias=True)` makes `new` rows of `old` ones.

    Each new row has a triangle of weights around its centre, as wide as a row of the coarser image.
    """

    def __init__(self, old: int, new: int):
        scale = old / new
        self.reach = max(scale, 1.0)
        self.centres = (torch.arange(new, dtype=torch.float64) + 0.5) * scale
        self.total = torch.stack([self._triangle(row, 0, old).sum() for row in self.centres])

    def _triangle(self, centres: torch.Tensor, first: int, last: int) -> torch.Tensor:
        rows = torch.arange(first, last, dtype=torch.float64) + 0.5
        return (1 - (rows - centres.unsqueeze(-1)).abs() / self.reach).clamp(min=0)

    def of_band(self, top: int, bottom: int) -> tuple[int, int, torch.Tensor]:
        """First and last new row that old rows from `top` to `bottom` count for, and how much, `(last - first, rows)`."""
        touched = (self.centres > top - self.reach) & (self.centres < bottom + self.reach)
        first, last = int(touched.int().argmax()), int(touched.sum() + touched.int().argmax())
        weights = self._triangle(self.centres[first:last], top, bottom) / self.total[first:last, None]
        return first, last, weights.float()
