"""Images to patches, and patches to embeddings; videos and volumes as well. Shape legend: `tokens.py`.

Patches of an image stay a strided view of it until somebody takes some: scoring 4096 patches and keeping 196
copies 196.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from .tokens import PatchTokens, grid_coordinates, raster_indices


@dataclass
class ImagePatches:
    """All patches of the images of a batch, or of its videos or volumes, not yet copied.

    Attributes:
        pixels: `(B, R, S, C, P, P)` view of whole images, or `(B, N, C, P, P)` for patches that arrived cut; of videos
            `(B, T', R, S, C, t, P, P)` and `(B, N, C, t, P, P)`.
        coordinates: `(B, N, A)` float, see `PatchTokens`.
        grid: `(B, A)` int64 rows and columns of each image.
        mask: `(B, N)` bool, False for padding; None if all count.
        image: `(B, C, R*P, S*P)`, of videos `(B, C, T'*t, R*P, S*P)`, the images without what is beyond whole patches, None for patches that arrived cut.
        is_whole: whether these are all patches of images of one size, in raster order.
        features: `(B, N, F)` what a CNN made of the patches, which is then taken instead of pixels; None if none did.
    """

    pixels: torch.Tensor
    coordinates: torch.Tensor
    grid: torch.Tensor
    mask: torch.Tensor | None = None
    image: torch.Tensor | None = None
    is_whole: bool = False
    features: torch.Tensor | None = None

    @property
    def num_patches(self) -> int:
        """N, the patches in the widest image of the batch."""
        return self.coordinates.shape[1]

    @property
    def num_axes(self) -> int:
        """A, 2 of images and 3 of videos and volumes."""
        return self.coordinates.shape[2]

    @property
    def patch_size(self) -> tuple[int, ...]:
        """(P, P), or (t, P, P)."""
        return tuple(self.pixels.shape[-self.num_axes :])

    @property
    def full_grid(self) -> tuple[int, ...] | None:
        """(R, S) if these are all patches of images of one size, None otherwise."""
        return self.view_grid if self.is_whole else None

    @property
    def view_grid(self) -> tuple[int, ...]:
        """(R, S) of `pixels` that are a view of whole images."""
        return tuple(self.pixels.shape[1 : 1 + self.num_axes])

    @classmethod
    def from_images(cls, pixel_values: torch.Tensor, patch_size: int | tuple[int, ...]) -> "ImagePatches":
        """Cuts `pixel_values` `(B, C, H, W)`; what remains beyond whole patches is dropped, as by a convolution.

        With three sides in `patch_size`, videos `(B, C, T, H, W)`.

        Raises:
            ValueError: if the images are smaller than one patch.
        """
        patch = (patch_size, patch_size) if isinstance(patch_size, int) else tuple(patch_size)
        batch_size, _, *sides = pixel_values.shape
        cells = tuple(side // of_patch for side, of_patch in zip(sides, patch, strict=True))
        if 0 in cells:
            things = "Images of {} pixels" if len(patch) == 2 else "Videos of {} (frames, rows, columns)"
            raise ValueError(
                f"{things.format(by(sides))} are smaller than one patch of {by(patch)}. "
                "Resize them to at least one patch, or drop them."
            )
        image, axes = pixel_values, range(len(cells))
        for axis in axes:
            image = image.narrow(2 + axis, 0, cells[axis] * patch[axis])
        pixels = image
        for axis in reversed(axes):
            pixels = pixels.unflatten(2 + axis, (cells[axis], patch[axis]))
        first, second = ([2 + 2 * axis + part for axis in axes] for part in (0, 1))
        coordinates = grid_coordinates(*cells, device=pixel_values.device)
        grid = torch.tensor(cells, device=pixel_values.device)
        return cls(
            pixels=pixels.permute(0, *first, 1, *second),  # (B, R, S, C, P, P)
            coordinates=coordinates.expand(batch_size, -1, -1),
            grid=grid.expand(batch_size, -1),
            image=image,
            is_whole=True,
        )

    @classmethod
    def from_flat(
        cls,
        pixel_values: torch.Tensor,
        patch_coordinates: torch.Tensor,
        spatial_shapes: torch.Tensor,
        mask: torch.Tensor | None,
        patch_size: tuple[int, ...],
        num_channels: int,
    ) -> "ImagePatches":
        """Takes patches that arrived cut, `(B, N, P*P*C)` with the channel last in each patch.

        With three sides in `patch_size`, those of videos, `(B, N, t*P*P*C)`.

        Raises:
            ValueError: if a shape does not fit.
        """
        expected, num_axes = math.prod(patch_size) * num_channels, len(patch_size)
        if pixel_values.shape[-1] != expected:
            raise ValueError(
                f"Cut patches must have {expected} values each (patch_size {by(patch_size)} times "
                f"num_channels {num_channels}), got pixel_values of shape {tuple(pixel_values.shape)}. Give the image "
                f"processor patch_size={patch_size}."
            )
        batch_size, num_patches = pixel_values.shape[:2]
        shapes = {
            "patch_coordinates": (patch_coordinates, (batch_size, num_patches, num_axes)),
            "spatial_shapes": (spatial_shapes, (batch_size, num_axes)),
            "pixel_attention_mask": (mask, (batch_size, num_patches)),
        }
        for name, (value, shape) in shapes.items():
            if value is not None and tuple(value.shape) != shape:
                raise ValueError(
                    f"{name} has the shape {tuple(value.shape)} and must have {shape}, for pixel_values of shape "
                    f"{tuple(pixel_values.shape)}."
                )
        return cls(
            pixels=pixel_values.unflatten(2, (*patch_size, num_channels)).movedim(-1, 2),  # (B, N, C, P, P)
            coordinates=patch_coordinates.float(),
            grid=spatial_shapes,
            mask=None if mask is None else mask.bool(),
        )

    def take(self, indices: torch.Tensor | None = None) -> PatchTokens:
        """Copies the pixels of the patches at `indices` `(B, K)` into the batch (None: all), as `(B, K, C*P*P)`; or
        their features `(B, K, F)`.
        """
        source = self.pixels if self.features is None else self.features
        is_view = source.ndim == 2 + 2 * self.num_axes
        if indices is None:
            pixels = source.flatten(1, self.num_axes) if is_view else source
            coordinates, mask = self.coordinates, self.mask
        else:
            image = torch.arange(indices.shape[0], device=indices.device)[:, None]
            if is_view:
                first, places = indices, []
                for side in reversed(self.view_grid[1:]):
                    first, place = first // side, first % side
                    places.insert(0, place)
                pixels = source[(image, first, *places)]
            else:
                pixels = source[image, indices]
            coordinates = self.coordinates[image, indices]
            mask = None if self.mask is None else self.mask[image, indices]
        return PatchTokens(pixels.flatten(2), coordinates, self.grid, mask)

    def score_apart(self, score: Callable[["ImagePatches"], torch.Tensor], num_selected: int) -> torch.Tensor:
        """Scores `(B, N)` by a function that looks at one patch at a time, so that it may be given some of them.

        Args:
            score: of patches, `(B, n)`.
            num_selected: K; who reads patches one after the other may remember the best of each image.
        """
        return score(self)

    def first(self, number: int) -> "ImagePatches":
        """Those of the first images of the batch."""
        values = (self.pixels, self.coordinates, self.grid, self.mask, self.image)
        return ImagePatches(
            *(None if value is None else value[:number] for value in values),
            self.is_whole,
            None if self.features is None else self.features[:number],
        )

    def places_of(self, selected: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Where patches of raster indices `selected` `(B, K)` are among the N, and which exist, `(B, K)`.

        Args:
            selected: int64, -1 for none; there is no mask if there is no such.

        Raises:
            ValueError: if an image has no patch of that index.
        """
        if (
            self.is_whole
            and not torch.compiler.is_compiling()
            and ((selected >= 0) & (selected < self.num_patches)).all()
        ):
            return selected, None  # whole images have their patches in that order
        raster = raster_indices(self.coordinates, self.grid)  # (B, N)
        if self.mask is not None:
            raster = raster.masked_fill(~self.mask, -1)
        found = (selected.unsqueeze(-1) == raster.unsqueeze(1)) & (selected >= 0).unsqueeze(-1)  # (B, K, N)
        present = found.any(dim=-1)
        if torch.compiler.is_compiling():
            return found.int().argmax(dim=-1), present
        wrong = (selected >= 0) & ~present
        if wrong.any():
            raise ValueError(
                f"selected_patches has {selected[wrong][0].item()}, which is no patch of its image (grids of "
                f"{self.grid.tolist()} rows and columns): give row * columns + column, or -1 for none."
            )
        return found.int().argmax(dim=-1), None if present.all() else present

    def mix(self, weights: torch.Tensor) -> PatchTokens:
        """Weighted means of patches, `(B, K, C*P*P)`, or of their features, at the means of their coordinates.

        Args:
            weights: `(B, K, N)` float, rows that add up to 1 (to 0 where there is no patch).
        """
        pixels = self.take().features
        with torch.autocast(weights.device.type, enabled=False):  # half a patch is too coarse for a place
            coordinates = weights @ self.coordinates
        return PatchTokens(weights.to(pixels.dtype) @ pixels, coordinates, self.grid)

    def thumbnails(self, size: tuple[int, ...]) -> torch.Tensor:
        """The images resized to `size` (height, width), float32 `(B, C, height, width)`; videos to (T, height, width).

        Raises:
            ValueError: if some patches of an image are missing.
        """
        if self.image is not None:
            return _resize(self.image, size)
        return torch.cat([_resize(image[None], size) for image in self.to_images()])

    def thumbnail_patches(self, size: tuple[int, ...]) -> "ImagePatches":
        """Patches of the thumbnails, of the same size in pixels, at fractional coordinates of the full grid.

        What `size` has beyond whole patches it does without, so that they show all of an image.
        """
        patch_size = self.patch_size
        size = tuple(side - side % patch for side, patch in zip(size, patch_size, strict=True))
        patches = ImagePatches.from_images(self.thumbnails(size), patch_size)
        # A cell of the thumbnail's grid is `scale` patches of the full one wide.
        scale = self.grid.unsqueeze(1) / patches.grid.unsqueeze(1)  # (B, 1, A)
        coordinates = (patches.coordinates + 0.5) * scale - 0.5
        return ImagePatches(patches.pixels, coordinates, self.grid, image=patches.image)

    def to_images(self) -> list[torch.Tensor]:
        """One `(C, R*P, S*P)` tensor an image, a video `(C, T'*t, R*P, S*P)`, without what was beyond whole patches.

        Raises:
            ValueError: if some patches of an image are missing: what is absent cannot be looked at.
        """
        if self.image is not None:
            return list(self.image)
        images, axes = [], range(self.num_axes)
        for index, cells in enumerate(self.grid.tolist()):
            present = slice(None) if self.mask is None else self.mask[index]
            pixels, coordinates = self.pixels[index][present], self.coordinates[index][present]
            if len(pixels) != math.prod(cells):
                raise ValueError(
                    f"This needs every patch of an image, but image {index} of the batch came with {len(pixels)} of "
                    f"its {by(cells)} patches. Give whole images, or all of their patches."
                )
            order = raster_indices(coordinates[None], self.grid[index][None])[0].argsort()
            pixels = pixels[order].unflatten(0, cells).movedim(self.num_axes, 0)  # (C, R, S, P, P)
            pixels = pixels.permute(0, *(1 + axis + part for axis in axes for part in (0, self.num_axes)))
            for axis in reversed(axes):
                pixels = pixels.flatten(1 + 2 * axis, 2 + 2 * axis)
            images.append(pixels)
        return images


def by(sides: Sequence[int]) -> str:
    """Such as 16x16."""
    return "x".join(map(str, sides))


def _resize(images: torch.Tensor, size: tuple[int, ...]) -> torch.Tensor:
    # In float32, since half precision has no such kernel on a CPU; the embedding casts back.
    images = images.float()
    if images.shape[2:] == size:
        return images
    if len(size) == 2:
        return nn.functional.interpolate(images, size, mode="bilinear", antialias=True)
    num_frames, *of_frame = size
    frames = _resize(images.flatten(1, 2), tuple(of_frame)).unflatten(1, images.shape[1:3])
    # Along time alone, as torch antialiases two axes at most.
    return _resize(frames.flatten(3), (num_frames, math.prod(of_frame))).unflatten(3, of_frame)


def flatten_channels_last(features: torch.Tensor, patch_size: int | tuple[int, ...]) -> torch.Tensor:
    """Reorders taken patches `(B, K, C*P*P)` into the public layout `(B, K, P*P*C)` of cut patches."""
    patch_size = (patch_size, patch_size) if isinstance(patch_size, int) else tuple(patch_size)
    return features.unflatten(2, (-1, *patch_size)).movedim(2, -1).flatten(2)
