"""Images to patches, and patches to embeddings. Shape legend: `tokens.py`.

Patches of an image stay a strided view of it until somebody takes some: scoring 4096 patches and keeping 196
copies 196.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from .tokens import PatchTokens, grid_coordinates, raster_indices


def to_pair(value: int | list[int] | tuple[int, int]) -> tuple[int, int]:
    """(height, width) of a size that a configuration may give as one number."""
    return (value, value) if isinstance(value, int) else (int(value[0]), int(value[1]))


@dataclass
class ImagePatches:
    """All patches of the images of a batch, not yet copied.

    Attributes:
        pixels: `(B, R, S, C, P, P)` view of whole images, or `(B, N, C, P, P)` for patches that arrived cut.
        coordinates: `(B, N, 2)` float, see `PatchTokens`.
        grid: `(B, 2)` int64 rows and columns of each image.
        mask: `(B, N)` bool, False for padding; None if all count.
        image: `(B, C, R*P, S*P)` the images without what is beyond whole patches, None for patches that arrived cut.
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
    def full_grid(self) -> tuple[int, int] | None:
        """(R, S) if these are all patches of images of one size, None otherwise."""
        return tuple(self.pixels.shape[1:3]) if self.is_whole else None

    @classmethod
    def from_images(cls, pixel_values: torch.Tensor, patch_size: int | tuple[int, int]) -> "ImagePatches":
        """Cuts `pixel_values` `(B, C, H, W)`; what remains beyond whole patches is dropped, as by a convolution.

        Raises:
            ValueError: if the images are smaller than one patch.
        """
        patch_height, patch_width = to_pair(patch_size)
        batch_size, _, height, width = pixel_values.shape
        rows, columns = height // patch_height, width // patch_width
        if rows == 0 or columns == 0:
            raise ValueError(
                f"Images of {height}x{width} pixels are smaller than one patch of {patch_height}x{patch_width}. "
                "Resize them to at least one patch, or drop them."
            )
        image = pixel_values[:, :, : rows * patch_height, : columns * patch_width]
        pixels = image.unflatten(3, (columns, patch_width)).unflatten(2, (rows, patch_height))
        coordinates = grid_coordinates(rows, columns, pixel_values.device)
        grid = torch.tensor([rows, columns], device=pixel_values.device)
        return cls(
            pixels=pixels.permute(0, 2, 4, 1, 3, 5),  # (B, R, S, C, P, P)
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
        patch_size: int | tuple[int, int],
        num_channels: int,
    ) -> "ImagePatches":
        """Takes patches that arrived cut, `(B, N, P*P*C)` with the channel last in each patch.

        Raises:
            ValueError: if a shape does not fit.
        """
        patch_height, patch_width = to_pair(patch_size)
        expected = patch_height * patch_width * num_channels
        if pixel_values.shape[-1] != expected:
            raise ValueError(
                f"Cut patches must have {expected} values each (patch_size {patch_height}x{patch_width} times "
                f"num_channels {num_channels}), got pixel_values of shape {tuple(pixel_values.shape)}. Give the image "
                f"processor patch_size={patch_size}."
            )
        batch_size, num_patches = pixel_values.shape[:2]
        shapes = {
            "patch_coordinates": (patch_coordinates, (batch_size, num_patches, 2)),
            "spatial_shapes": (spatial_shapes, (batch_size, 2)),
            "pixel_attention_mask": (mask, (batch_size, num_patches)),
        }
        for name, (value, shape) in shapes.items():
            if value is not None and tuple(value.shape) != shape:
                raise ValueError(
                    f"{name} has the shape {tuple(value.shape)} and must have {shape}, for pixel_values of shape "
                    f"{tuple(pixel_values.shape)}."
                )
        pixels = pixel_values.unflatten(2, (patch_height, patch_width, num_channels))
        return cls(
            pixels=pixels.permute(0, 1, 4, 2, 3),  # (B, N, C, P, P)
            coordinates=patch_coordinates.float(),
            grid=spatial_shapes,
            mask=None if mask is None else mask.bool(),
        )

    def take(self, indices: torch.Tensor | None = None) -> PatchTokens:
        """Copies the pixels of the patches at `indices` `(B, K)` into the batch (None: all), as `(B, K, C*P*P)`; or
        their features `(B, K, F)`.
        """
        source = self.pixels if self.features is None else self.features
        if indices is None:
            pixels = source.flatten(1, 2) if source.ndim == 6 else source
            coordinates, mask = self.coordinates, self.mask
        else:
            image = torch.arange(indices.shape[0], device=indices.device)[:, None]
            if source.ndim == 6:
                columns = source.shape[2]
                pixels = source[image, indices // columns, indices % columns]
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

    def thumbnails(self, size: tuple[int, int]) -> torch.Tensor:
        """The images resized to `size` (height, width), float32 `(B, C, height, width)`.

        Raises:
            ValueError: if some patches of an image are missing.
        """
        if self.image is not None:
            return _resize(self.image, size)
        return torch.cat([_resize(image[None], size) for image in self.to_images()])

    def thumbnail_patches(self, size: tuple[int, int]) -> "ImagePatches":
        """Patches of the thumbnails, of the same size in pixels, at fractional coordinates of the full grid.

        What `size` has beyond whole patches it does without, so that they show all of an image.
        """
        patch_size = tuple(self.pixels.shape[-2:])
        size = tuple(side - side % patch for side, patch in zip(size, patch_size, strict=True))
        patches = ImagePatches.from_images(self.thumbnails(size), patch_size)
        # A cell of the thumbnail's grid is `scale` patches of the full one wide.
        scale = self.grid.unsqueeze(1) / patches.grid.unsqueeze(1)  # (B, 1, 2)
        coordinates = (patches.coordinates + 0.5) * scale - 0.5
        return ImagePatches(patches.pixels, coordinates, self.grid, image=patches.image)

    def to_images(self) -> list[torch.Tensor]:
        """One `(C, R*P, S*P)` tensor an image, without what was beyond whole patches.

        Raises:
            ValueError: if some patches of an image are missing: what is absent cannot be looked at.
        """
        if self.image is not None:
            return list(self.image)
        images = []
        for index, (rows, columns) in enumerate(self.grid.tolist()):
            present = slice(None) if self.mask is None else self.mask[index]
            pixels, coordinates = self.pixels[index][present], self.coordinates[index][present]
            if len(pixels) != rows * columns:
                raise ValueError(
                    f"This needs every patch of an image, but image {index} of the batch came with {len(pixels)} of "
                    f"its {rows}x{columns} patches. Give whole images, or all of their patches."
                )
            order = raster_indices(coordinates[None], self.grid[index][None])[0].argsort()
            pixels = pixels[order].unflatten(0, (rows, columns))  # (R, S, C, P, P)
            images.append(pixels.permute(2, 0, 3, 1, 4).flatten(3, 4).flatten(1, 2))
        return images


def _resize(images: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    # In float32, since half precision has no such kernel on a CPU; the embedding casts back.
    images = images.float()
    if images.shape[-2:] == size:
        return images
    return nn.functional.interpolate(images, size, mode="bilinear", antialias=True)


def cut_patches(
    config,
    pixel_values: torch.Tensor | ImagePatches,
    patch_coordinates: torch.Tensor | None,
    spatial_shapes: torch.Tensor | None,
    pixel_attention_mask: torch.Tensor | None,
    interpolate_pos_encoding: bool | None,
) -> ImagePatches:
    """Patches of what a model was given; see `AdaptiveViTModel.forward`. Whoever reads images himself gives patches.

    Raises:
        ValueError: if the input has the wrong shape, or is smaller than one patch.
    """
    if isinstance(pixel_values, ImagePatches):
        return pixel_values
    if pixel_values.ndim == 3:
        if patch_coordinates is None or spatial_shapes is None:
            raise ValueError(
                f"pixel_values of shape {tuple(pixel_values.shape)} are cut patches and need patch_coordinates "
                "(B, N, 2) and spatial_shapes (B, 2). One whole image needs a batch dimension: (1, C, H, W)."
            )
        return ImagePatches.from_flat(
            pixel_values,
            patch_coordinates,
            spatial_shapes,
            pixel_attention_mask,
            config.patch_size,
            config.num_channels,
        )
    if pixel_values.ndim != 4:
        raise ValueError(
            f"pixel_values must be images (B, C, H, W) or cut patches (B, N, P*P*C), got shape "
            f"{tuple(pixel_values.shape)}."
        )
    if pixel_values.shape[1] != config.num_channels:
        raise ValueError(
            f"pixel_values have {pixel_values.shape[1]} channels, the model was built for "
            f"num_channels={config.num_channels}. Shape got: {tuple(pixel_values.shape)}, expected (B, C, H, W)."
        )
    if interpolate_pos_encoding is False and pixel_values.shape[-2:] != to_pair(config.image_size):
        raise ValueError(
            f"Images of {pixel_values.shape[-2]}x{pixel_values.shape[-1]} pixels do not match "
            f"image_size={config.image_size}, and interpolate_pos_encoding=False forbids other sizes."
        )
    return ImagePatches.from_images(pixel_values, config.patch_size)


def flatten_channels_last(features: torch.Tensor, patch_size: int | tuple[int, int]) -> torch.Tensor:
    """Reorders taken patches `(B, K, C*P*P)` into the public layout `(B, K, P*P*C)` of cut patches."""
    patch_height, patch_width = to_pair(patch_size)
    return features.unflatten(2, (-1, patch_height, patch_width)).permute(0, 1, 3, 4, 2).flatten(2)


class PatchProjection(nn.Conv2d):
    """Linear embedding of patches, from whole images or from patches that were taken out.

    The weight is that of transformers' ViT, a convolution with stride P, so stock checkpoints fit. Patches taken
    out go through the same weight as a matrix product: a convolution over many tiny images is several times slower.
    """

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """`(B, N, D)` of images `(B, C, H, W)` or of patches `(B, N, C*P*P)`."""
        if pixels.ndim == 3:
            return nn.functional.linear(pixels, self.weight.flatten(1), self.bias)
        return super().forward(pixels).flatten(2).transpose(1, 2)


class PatchEmbeddings(nn.Module):
    """Projects patches to the hidden size."""

    def __init__(self, config):
        super().__init__()
        patch_size = to_pair(config.patch_size)
        self.patch_size = patch_size
        self.projection = PatchProjection(
            config.num_channels,
            config.hidden_size,
            kernel_size=patch_size,
            stride=patch_size,
            bias=config.patch_bias,
        )

    def forward(
        self,
        patches: ImagePatches,
        indices: torch.Tensor | None = None,
        weights: torch.Tensor | None = None,
    ) -> PatchTokens:
        """Embeds the patches at `indices` `(B, K)`, or means of patches by `weights` `(B, K, N)`, or all of them."""
        dtype = self.projection.weight.dtype
        if indices is None and weights is None and patches.image is not None:
            features = self.projection(patches.image.to(dtype))
            return PatchTokens(features, patches.coordinates, patches.grid, full_grid=patches.full_grid)
        tokens = patches.take(indices) if weights is None else patches.mix(weights)
        return tokens.with_features(self.projection(tokens.features.to(dtype)))
