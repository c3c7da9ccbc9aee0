"""A batch of images that do not fit into memory, as a model takes it."""

import copy
from collections.abc import Callable, Iterator
from functools import partial
from itertools import starmap

import torch

from ..model.budget import Budget
from ..model.patches import ImagePatches, PatchTokens, gather_tokens, grid_coordinates, raster_indices
from ..model.selection import keep_top
from .streamed_image import StreamedImage


class StreamedPatches(ImagePatches):
    """All patches of images that are never whole in memory: `pixel_values` of a model, in training as well.

    Pixels are read when they are taken: those of patches that were selected, once more with every forward. Selectors
    that look at one patch at a time are given a band of rows after the other, without gradient, and of each image
    the patches with the K highest scores so far are remembered; the others see thumbnails.

    What needs every patch reads every patch, and then memory does grow with the image: a dense pass, which training
    `"distilled"` makes (unless its `loss_weight` is 0), and `restore=True` without a thumbnail. What
    `"perturbed"` mixes while training are up to `num_samples` times K patches, and K weights for each of N;
    `"policy"` draws from all N, which takes some hundred bytes for each.

    Args:
        images: of the batch, of any sizes.
        device: of coordinates, and of pixels that are taken.
        num_selected: what the model will keep.
    """

    def __init__(
        self,
        images: list[StreamedImage],
        device: torch.device | str = "cpu",
        num_selected: int | float | None = None,
    ):
        grids = [image.grid for image in images]
        numbers = torch.tensor([rows * columns for rows, columns in grids])
        # An image of fewer than K patches keeps all it has, and a mask says so, whatever else is in the batch.
        is_short = (
            num_selected is not None and Budget(num_selected).capped(int(numbers.min())).value != num_selected
        )
        same = len(set(grids)) == 1 and not is_short
        shape = grids[0] if same else (int(numbers.max()),)
        # Of one large image they are most of what grows with it: views where a copy can be had without.
        if len(set(grids)) == 1:
            coordinates = grid_coordinates(*grids[0]).expand(len(grids), -1, -1)
        else:
            coordinates = torch.nn.utils.rnn.pad_sequence(
                [grid_coordinates(*grid) for grid in grids], batch_first=True
            )
        super().__init__(
            # Whoever looks at pixels after all fails at once: there are none.
            pixels=torch.empty(len(images), *shape, 3, *images[0].patch_size, device="meta"),
            coordinates=coordinates.to(device),
            grid=torch.tensor(grids, device=device),
            mask=None if same else (torch.arange(shape[0]) < numbers[:, None]).to(device),
            is_whole=same,
        )
        self.images = images

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "StreamedPatches":
        """The same on another device; what accelerate calls in `Trainer`."""
        return self._changed(lambda value: value.to(device, non_blocking=non_blocking))

    def numel(self) -> int:
        """Numbers that make up the images; what `Trainer` estimates its FLOPs by."""
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
        # One piece of memory: small ones that stay would keep the system from using again what lies between them.
        scores = self.coordinates.new_zeros(self.coordinates.shape[:2])
        for image, row in zip(self.images, scores, strict=True):
            first, best = 0, None
            for band in self._bands(image, "patches"):
                of_band = score(band)
                row[first : first + of_band.shape[1]] = of_band[0]
                first += of_band.shape[1]
                places = raster_indices(band.coordinates, band.grid)
                some = _best(num_selected, of_band, places, band.pixels)
                # Earlier ones first, so that ties go to them as they would in the whole image.
                if best is not None:
                    joined = (torch.cat(pair, dim=1) for pair in zip(best, some, strict=True))
                    some = _best(num_selected, *joined)
                best = some
            _, places, pixels = best
            image.remember(places[0], pixels[0])
        return scores

    def _bands(self, image: StreamedImage, purpose: str) -> Iterator[ImagePatches]:
        """Patches of one image as they would arrive cut, `(1, n, C, P, P)`, a band of rows at a time."""
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
        places = raster_indices(coordinates, self.grid).tolist()
        pixels = [image.patches(row) for image, row in zip(self.images, places, strict=True)]
        pixels = torch.stack(pixels).to(coordinates.device)
        return PatchTokens(pixels.flatten(2), coordinates, self.grid, mask)

    def weighted_mean(self, weights: torch.Tensor) -> PatchTokens:
        with torch.autocast(weights.device.type, enabled=False):
            coordinates = weights @ self.coordinates
        mixed = []
        for image, of_image in zip(self.images, weights, strict=True):
            # The others count for nothing, and their weights have no gradient.
            used = (of_image != 0).any(dim=0).nonzero()[:, 0]
            pixels = image.patches(used.tolist()).flatten(1).to(weights.device)
            mixed.append(of_image[:, used].to(pixels.dtype) @ pixels)
        return PatchTokens(torch.stack(mixed), coordinates, self.grid)

    def find_indices(self, selected: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        # All patches are here in raster order; what is compared elsewhere would be K x N.
        wrong = selected >= self.grid.prod(dim=1, keepdim=True)
        if wrong.any():
            raise ValueError(
                f"selected_patches has {selected[wrong][0].item()}, which is no patch of its image (grids of "
                f"{self.grid.tolist()} rows and columns): give row * columns + column, or -1 for none."
            )
        present = selected >= 0
        return selected.clamp(min=0), None if present.all() else present

    def thumbnails(self, size: tuple[int, int]) -> torch.Tensor:
        return torch.cat([image.thumbnail(size) for image in self.images]).to(self.coordinates.device)

    def to_images(self) -> list[torch.Tensor]:
        raise ValueError("This needs whole images, and these are read a band at a time: give them in memory.")


def _best(number: int, scores: torch.Tensor, *values: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Of scores `(1, n)` and values `(1, n, ...)` those with the highest scores."""
    keep, _ = keep_top(scores, min(number, scores.shape[1]))
    return tuple(gather_tokens(value, keep) for value in (scores, *values))
