"""Model inputs from images that do not fit into memory: bands of patches, single patches, thumbnails."""

import copy
from collections.abc import Callable, Iterator
from functools import partial
from itertools import starmap
from typing import Literal

import numpy as np
import PIL.Image
import torch
from torch import nn
from transformers.image_processing_utils import BaseImageProcessor

from ..model.budget import Budget
from ..model.patches import ImagePatches, PatchTokens, gather_tokens, grid_coordinates, raster_indices
from ..model.selection import keep_top
from ..progress import progress_bar
from ..readers.opening import ImageSource


# Pixels of a band that are in memory at once, about 3 MB as floats, which stay in the processor's cache.
BAND_PIXELS = 2**18


class StreamedImage:
    """A source in the form a model takes: normalized, read by band of patches or as a thumbnail.

    Args:
        source: the image.
        patch_size: height and width of a patch.
        image_processor: how pixels are rescaled and normalized; nothing is resized.
        thumbnails: "exact" computes them from every pixel, with the weights that a whole image would get;
            "source" asks the source, which may have smaller versions.
        progress: whether to show a bar for each pass through the image; None shows it in a terminal.

    Raises:
        ValueError: if the image is smaller than one patch, or `thumbnails` unknown.
    """

    def __init__(
        self,
        source: ImageSource,
        patch_size: tuple[int, int],
        image_processor: BaseImageProcessor,
        thumbnails: Literal["exact", "source"] = "exact",
        progress: bool | None = None,
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
        # Last requested patches by raster index: a policy's greedy patches are mostly those that it drew.
        self._patches: dict[int, torch.Tensor] = {}

    def prepare(self, pixels: np.ndarray) -> torch.Tensor:
        """Converts uint8 `(height, width, 3)` to `(1, 3, height, width)` float32."""
        options = {"do_resize": False, "do_center_crop": False, "return_tensors": "pt"}
        if hasattr(self.image_processor, "return_patches"):
            options["return_patches"] = False
        return self.image_processor(PIL.Image.fromarray(np.ascontiguousarray(pixels)), **options)[
            "pixel_values"
        ]

    def bands(self, purpose: str) -> Iterator[tuple[int, torch.Tensor]]:
        """Yields the first patch row of each band, and the band `(1, C, rows * P, S * P)`, cropped to whole
        patches."""
        height, width = self.patch_size
        rows, columns = self.grid
        step = max(1, BAND_PIXELS // (height * width * columns))
        starts = progress_bar(range(0, rows, step), self.progress, desc=purpose, unit="band", leave=None)
        for start in starts:
            number = min(step, rows - start)
            yield start, self.prepare(self.source.read(start * height, 0, number * height, columns * width))

    # Cached pixels must serve training even if they were read in inference mode.
    @torch.inference_mode(False)
    def patches(self, indices: list[int]) -> torch.Tensor:
        """Returns the pixels `(K, C, P, P)` float32 of the patches with these raster indices."""
        missing = sorted(set(indices) - self._patches.keys())
        self._patches = {index: self._patches[index] for index in indices if index in self._patches}
        height, width = self.patch_size
        step = max(1, BAND_PIXELS // (height * width))
        for start in range(0, len(missing), step):
            some = missing[start : start + step]
            # Stacked vertically, so that they are prepared at once.
            pixels = np.concatenate([self._read(index) for index in some])
            prepared = self.prepare(pixels)[0].unflatten(1, (len(some), height)).transpose(0, 1)
            self._patches.update(zip(some, prepared, strict=True))
        return torch.stack([self._patches[index] for index in indices])

    def _read(self, index: int) -> np.ndarray:
        height, width = self.patch_size
        row, column = divmod(index, self.grid[1])
        return self.source.read(row * height, column * width, height, width)

    @torch.inference_mode(False)
    def remember(self, indices: torch.Tensor, pixels: torch.Tensor) -> None:
        """Caches `(K, C, P, P)` pixels of raster indices `(K,)` for `patches`."""
        self._patches = dict(zip(indices.tolist(), pixels.cpu().clone(), strict=True))

    @torch.inference_mode(False)
    def thumbnail(self, size: tuple[int, int]) -> torch.Tensor:
        """Resizes the image, cropped to whole patches, to `(1, C, h, w)` float32."""
        if size not in self._thumbnails:
            make = self._exact if self.thumbnails == "exact" else self._from_source
            self._thumbnails[size] = make(size)
        return self._thumbnails[size]

    def _from_source(self, size: tuple[int, int]) -> torch.Tensor:
        # The source shows the border as well, which the grid leaves out: less than a patch of the whole.
        return self.prepare(self.source.thumbnail(*size))

    def _exact(self, size: tuple[int, int]) -> torch.Tensor:
        """Equals antialiased `torch.nn.functional.interpolate`: one matrix per axis, so that bands can be
        summed."""
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
            first, last, row_weights = weights.for_band(top, top + band.shape[2])
            result[:, :, first:last] += row_weights @ band
        return result


class RowWeights:
    """Weights with which `interpolate(mode="bilinear", antialias=True)` makes `new` rows of `old` ones.

    Each new row has a triangle of weights around its center, as wide as a row of the coarser image.
    """

    def __init__(self, old: int, new: int):
        scale = old / new
        self.reach = max(scale, 1.0)
        self.centers = (torch.arange(new, dtype=torch.float64) + 0.5) * scale
        self.total = torch.stack([self._triangle(row, 0, old).sum() for row in self.centers])

    def _triangle(self, centers: torch.Tensor, first: int, last: int) -> torch.Tensor:
        rows = torch.arange(first, last, dtype=torch.float64) + 0.5
        return (1 - (rows - centers.unsqueeze(-1)).abs() / self.reach).clamp(min=0)

    def for_band(self, top: int, bottom: int) -> tuple[int, int, torch.Tensor]:
        """Returns the first and last new row that old rows `top` to `bottom` affect, and weights `(last -
        first, rows)`."""
        touched = (self.centers > top - self.reach) & (self.centers < bottom + self.reach)
        first, last = int(touched.int().argmax()), int(touched.sum() + touched.int().argmax())
        weights = self._triangle(self.centers[first:last], top, bottom) / self.total[first:last, None]
        return first, last, weights.float()


class StreamedPatches(ImagePatches):
    """All patches of images that are never whole in memory: a model's `pixel_values`, in training as well.

    Pixels are read when they are taken: those of patches that were selected, once more with every forward.
    Pointwise selectors score one band of rows at a time, without gradient, and the patches of
    each image with the K highest scores so far are cached; other selectors score thumbnails.

    What needs every patch reads every patch, and then memory does grow with the image: a dense pass, which
    training `"distilled"` makes (unless its `loss_weight` is 0), and `restore=True` without a thumbnail. What
    `"perturbed"` mixes while training are up to `num_samples` times K patches, and K weights for each of N;
    `"policy"` draws from all N, which takes some hundred bytes for each.

    Args:
        images: images of the batch, of any sizes.
        device: device of coordinates and gathered pixels.
        num_selected: number of patches that the model selects.
    """

    def __init__(
        self,
        images: list[StreamedImage],
        device: torch.device | str = "cpu",
        num_selected: int | float | None = None,
    ):
        grids = [image.grid for image in images]
        numbers = torch.tensor([rows * columns for rows, columns in grids])
        # An image of fewer than K patches keeps all it has, and a mask says so, whatever else is in the
        # batch.
        is_short = (
            num_selected is not None and Budget(num_selected).capped(int(numbers.min())).value != num_selected
        )
        same = len(set(grids)) == 1 and not is_short
        shape = grids[0] if same else (int(numbers.max()),)
        # These grow most with a large image: views instead of copies where possible.
        if len(set(grids)) == 1:
            coordinates = grid_coordinates(*grids[0]).expand(len(grids), -1, -1)
        else:
            coordinates = torch.nn.utils.rnn.pad_sequence(
                [grid_coordinates(*grid) for grid in grids], batch_first=True
            )
        super().__init__(
            # Access to pixels fails at once: there are none.
            pixels=torch.empty(len(images), *shape, 3, *images[0].patch_size, device="meta"),
            coordinates=coordinates.to(device),
            grid=torch.tensor(grids, device=device),
            mask=None if same else (torch.arange(shape[0]) < numbers[:, None]).to(device),
            is_whole=same,
        )
        self.images = images

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "StreamedPatches":
        """Moves the patches to another device; accelerate calls it in `Trainer`."""
        return self._changed(lambda value: value.to(device, non_blocking=non_blocking))

    def numel(self) -> int:
        """Number of values in the images; `Trainer` estimates its FLOPs by it."""
        return self.pixels.numel()

    def first_images(self, number: int) -> "StreamedPatches":
        patches = self._changed(lambda value: value[:number])
        patches.pixels, patches.images = self.pixels[:number], self.images[:number]
        return patches

    def _changed(self, change: Callable[[torch.Tensor], torch.Tensor]) -> "StreamedPatches":
        patches = copy.copy(self)
        patches.coordinates, patches.grid = change(self.coordinates), change(self.grid)
        patches.mask = None if self.mask is None else change(self.mask)
        return patches

    @torch.no_grad()
    def score_chunked(self, score: Callable[[ImagePatches], torch.Tensor], num_selected: int) -> torch.Tensor:
        # One allocation: small ones that stay would fragment the memory between them.
        scores = self.coordinates.new_zeros(self.coordinates.shape[:2])
        for image, row in zip(self.images, scores, strict=True):
            first, best = 0, None
            for band in self._bands(image, "patches"):
                for_band = score(band)
                row[first : first + for_band.shape[1]] = for_band[0]
                first += for_band.shape[1]
                indices = raster_indices(band.coordinates, band.grid)
                some = _best(num_selected, for_band, indices, band.pixels)
                # Earlier ones first, so that ties go to them as they would in the whole image.
                if best is not None:
                    joined = (torch.cat(pair, dim=1) for pair in zip(best, some, strict=True))
                    some = _best(num_selected, *joined)
                best = some
            _, indices, pixels = best
            image.remember(indices[0], pixels[0])
        return scores

    def _bands(self, image: StreamedImage, purpose: str) -> Iterator[ImagePatches]:
        """Yields patches of one image, `(1, n, C, P, P)`, a band of rows at a time."""
        # Not a generator, which would hold on to the pixels of one band while the next is read.
        return starmap(partial(self._cut, image), image.bands(purpose))

    def _cut(self, image: StreamedImage, start: int, pixels: torch.Tensor) -> ImagePatches:
        device = self.coordinates.device
        band = ImagePatches.from_images(pixels.to(device), image.patch_size)
        return ImagePatches(
            band.pixels.flatten(1, 2),
            band.coordinates + torch.tensor([start, 0], device=device),
            torch.tensor([image.grid], device=device),
        )

    def gather(self, indices: torch.Tensor | None = None) -> PatchTokens:
        if indices is None:
            rows = [
                torch.cat([band.pixels[0] for band in self._bands(image, "all patches")])
                for image in self.images
            ]
            pixels = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
            return PatchTokens(pixels.flatten(2), self.coordinates, self.grid, self.mask)
        coordinates = gather_tokens(self.coordinates, indices)
        mask = None if self.mask is None else self.mask.gather(1, indices)
        rasters = raster_indices(coordinates, self.grid).tolist()
        pixels = [image.patches(row) for image, row in zip(self.images, rasters, strict=True)]
        pixels = torch.stack(pixels).to(coordinates.device)
        return PatchTokens(pixels.flatten(2), coordinates, self.grid, mask)

    def weighted_mean(self, weights: torch.Tensor) -> PatchTokens:
        with torch.autocast(weights.device.type, enabled=False):
            coordinates = weights @ self.coordinates
        mixed = []
        for image, of_image in zip(self.images, weights, strict=True):
            # Zero weights contribute nothing and have no gradient.
            used = (of_image != 0).any(dim=0).nonzero()[:, 0]
            pixels = image.patches(used.tolist()).flatten(1).to(weights.device)
            mixed.append(of_image[:, used].to(pixels.dtype) @ pixels)
        return PatchTokens(torch.stack(mixed), coordinates, self.grid)

    def find_indices(self, selected: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        # All patches are here in raster order; what is compared elsewhere would be K x N.
        wrong = selected >= self.grid.prod(dim=1, keepdim=True)
        if wrong.any():
            raise ValueError(
                f"selected_patches has {selected[wrong][0].item()}, which is not a patch of its image (grids "
                f"of {self.grid.tolist()} rows and columns): give row * columns + column, or -1 for none."
            )
        present = selected >= 0
        return selected.clamp(min=0), None if present.all() else present

    def thumbnails(self, size: tuple[int, int]) -> torch.Tensor:
        return torch.cat([image.thumbnail(size) for image in self.images]).to(self.coordinates.device)

    def to_images(self) -> list[torch.Tensor]:
        raise ValueError("This needs whole images, and these are read a band at a time: give them in memory.")


def _best(number: int, scores: torch.Tensor, *values: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Keeps the `number` highest of scores `(1, n)`, with their values `(1, n, ...)`."""
    keep, _ = keep_top(scores, min(number, scores.shape[1]))
    return tuple(gather_tokens(value, keep) for value in (scores, *values))
