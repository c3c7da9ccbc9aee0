"""Data classes that stages of the model exchange: `ImagePatches` (input), `PatchTokens`, `TokenSequence`.

Shapes, here and in the sibling files:
    B  images in the batch             H, W  height and width in pixels
    N  patches of an image             P     patch height = width (a pair is legal)
    K  patches kept, K <= N            C     color channels
    R, S  rows and columns of a grid   D     hidden size
    A  axes: 2 of images; 3 of videos and volumes, whose frames or slices come first. What is said of (R, S)
    holds for
       (T', R, S) there, and what is said of (H, W) for (T, H, W); `(B, 2)` of images is `(B, 3)`.

Patches of an image stay a strided view of it until they are gathered: scoring 4096 patches and keeping 196
copies 196.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import nn

from .sizes import native_sides, patch_sides


PREPARE = (
    "Prepare images with the image processor: inputs = "
    "AdaptiveViTImageProcessor.from_pretrained(...)(images, "
    'return_tensors="pt"); model(**inputs)'
)


def check_pixel_values(pixel_values: Any) -> None:
    """Refuses images that no image processor has prepared.

    Raises:
        TypeError: for anything but a tensor of floating-point numbers.
    """
    if isinstance(pixel_values, Mapping):
        raise TypeError(
            f"pixel_values is the {type(pixel_values).__name__} of an image processor: unpack it, "
            "model(**inputs)."
        )
    if not isinstance(pixel_values, torch.Tensor):
        raise TypeError(f"pixel_values must be a tensor, got {_describe(pixel_values)}. {PREPARE}.")
    if not pixel_values.is_floating_point():
        raise TypeError(
            f"pixel_values of dtype {pixel_values.dtype} are not normalized; floating-point "
            f"numbers are needed. {PREPARE}."
        )


def check_tensors(**values: Any) -> None:
    """Refuses arguments that are neither tensors nor None, such as lists.

    Raises:
        TypeError: naming the argument.
    """
    for name, value in values.items():
        if value is not None and not isinstance(value, torch.Tensor):
            raise TypeError(f"{name} must be a tensor, got {_describe(value)}. Use torch.tensor({name}).")


def _describe(value: Any) -> str:
    kind = type(value)
    name = kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__name__}"
    if isinstance(value, list | tuple) and value:
        return f"a {name} of {type(value[0]).__name__}"
    return f"a {name}"


@dataclass
class PatchTokens:
    """Patches, or tokens that stand for them, together with where they are.

    Attributes:
        features: `(B, N, D)`, pixels before the embedding and hidden states after it.
        coordinates: `(B, N, A)` float, (row, column) or (time, row, column) in units of patches of the
            full-resolution grid, at patch centres minus one half: patch (r, c) has coordinate exactly (r, c),
            and a patch of a thumbnail a fractional one.
        grid: `(B, A)` int64, rows and columns of each image's full grid.
        mask: `(B, N)` bool, False where an image has fewer patches than the batch is wide; None if all count.
        sizes: `(B, N)` float, how many patches a token stands for, where that is not one for all: more than
            one after merging, 0 for one that is to be ignored. None if all stand for one.
        full_grid: (R, S) if every image has this grid and the tokens are all of it in raster order; None if
            that is not known without looking. Encodings may then skip what they would compute.
    """

    features: torch.Tensor
    coordinates: torch.Tensor
    grid: torch.Tensor
    mask: torch.Tensor | None = None
    sizes: torch.Tensor | None = None
    full_grid: tuple[int, ...] | None = None

    def gather(self, indices: torch.Tensor) -> "PatchTokens":
        """Gathers the tokens at `indices` `(B, K)`, with all their fields."""
        return PatchTokens(
            features=gather_tokens(self.features, indices),
            coordinates=gather_tokens(self.coordinates, indices),
            grid=self.grid,
            mask=None if self.mask is None else self.mask.gather(1, indices),
            sizes=None if self.sizes is None else self.sizes.gather(1, indices),
        )

    def with_features(self, features: torch.Tensor) -> "PatchTokens":
        """Returns the tokens with other features at the same places."""
        return replace(self, features=features)

    def to(self, device: torch.device, non_blocking: bool = False) -> "PatchTokens":
        """Moves all tensors; accelerate calls this where a model is spread over several devices."""
        return move_fields(self, device, non_blocking)

    def raster_indices(self) -> torch.Tensor:
        """`(B, N)` int64 row * columns + column of each token in its image's full grid; see
        `raster_indices`."""
        return raster_indices(self.coordinates, self.grid)


@dataclass
class TokenSequence:
    """Tokens of a batch in the encoder: CLS, registers, thumbnail, and those that stand for patches.

    Attributes:
        hidden_states: `(B, T, D)`, whose last M tokens stand for patches.
        patches: where these M are, which of them count, and for how many patches each stands.
        context: coordinates of the thumbnail's tokens before them, `(B, C, A)`; None without a thumbnail.
        context_grid: rows and columns of the thumbnail's own grid.
    """

    hidden_states: torch.Tensor
    patches: PatchTokens
    context: torch.Tensor | None = None
    context_grid: tuple[int, ...] | None = None

    def tokens_with_coordinates(self) -> PatchTokens:
        """Returns the tokens that have coordinates: the thumbnail's, and those of patches."""
        coordinates, full_grid = self.patches.coordinates, self.patches.full_grid
        if self.context is not None:
            coordinates = torch.cat((self.context.to(coordinates.device), coordinates), dim=1)
            full_grid = None
        num_prefix = self.hidden_states.shape[1] - coordinates.shape[1]
        return PatchTokens(
            self.hidden_states[:, num_prefix:], coordinates, self.patches.grid, full_grid=full_grid
        )


def check_finite(values: torch.Tensor, source: str) -> None:
    """Refuses NaN and infinity where they enter, rather than in the loss; traced graphs go without."""
    if not torch.compiler.is_compiling() and not torch.isfinite(values).all():
        raise ValueError(
            f"{source} hold NaN or infinite values, or values too large for {values.dtype}. Check "
            "the image files "
            "and the normalization."
        )


def move_fields(value, device: torch.device, non_blocking: bool = False):
    """A dataclass with its tensors, and tuples of tensors, on a device."""

    def move(item):
        if torch.is_tensor(item):
            return item.to(device, non_blocking=non_blocking)
        is_tensors = isinstance(item, tuple) and all(map(torch.is_tensor, item))
        return tuple(map(move, item)) if is_tensors else item

    return replace(value, **{field.name: move(getattr(value, field.name)) for field in fields(value)})


def gather_tokens(values: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
    """`values` `(B, N, ...)` at `indices` `(B, K)`, as `(B, K, ...)`."""
    shape = indices.shape + values.shape[2:]
    return values.gather(1, indices.reshape(indices.shape + (1,) * (values.ndim - 2)).expand(shape))


def split_tokens(hidden_states: torch.Tensor, patches: PatchTokens) -> tuple[torch.Tensor, torch.Tensor]:
    """Splits `(B, T, D)` into the tokens before those of `patches` and these, `(B, T - M, D)` and `(B, M,
    D)`."""
    num_tokens = patches.coordinates.shape[1]
    return hidden_states[:, :-num_tokens], hidden_states[:, -num_tokens:]


def scatter_tokens(values: torch.Tensor, indices: torch.Tensor, length: int) -> torch.Tensor:
    """`(B, length, D)`: `values` `(B, K, D)` at `indices` `(B, K)`, added up where they meet, zero
    elsewhere."""
    batch_size, _, dim = values.shape
    return values.new_zeros(batch_size, length, dim).scatter_add_(
        1, indices.unsqueeze(-1).expand(values.shape), values
    )


def scatter_into(
    base: torch.Tensor, indices: torch.Tensor, values: torch.Tensor, mask: torch.Tensor | None = None
) -> torch.Tensor:
    """`base` `(B, N, D)` with `values` `(B, K, D)` at `indices` `(B, K)`, but for those with a False
    `mask` `(B, K)`."""
    length = base.shape[1]
    if mask is not None:
        base = torch.cat((base, base[:, :1]), dim=1)  # a row that is cut off again
        indices = indices.masked_fill(~mask, length)
    return base.scatter(1, indices.unsqueeze(-1).expand(values.shape), values.to(base.dtype))[:, :length]


def raster_indices(coordinates: torch.Tensor, grid: torch.Tensor) -> torch.Tensor:
    """Raster index `(B, N)` int64 of whole-numbered coordinates `(B, N, A)` in grids `(B, A)`."""
    return flatten_coordinates(coordinates.round().long(), grid)


def flatten_coordinates(coordinates: torch.Tensor, grid: torch.Tensor) -> torch.Tensor:
    """row * columns + column, or (time * rows + row) * columns + column, `(B, N)`, of any coordinates `(B,
    N, A)`."""
    place, *others = coordinates.unbind(-1)
    for axis, other in enumerate(others, start=1):
        place = place * grid[:, axis : axis + 1] + other
    return place


def grid_coordinates(*sides: int, device: torch.device | None = None) -> torch.Tensor:
    """`(N, A)` float coordinates of a full grid with A `sides`, in raster order."""
    axes = [torch.arange(side, device=device, dtype=torch.float32) for side in sides]
    return torch.stack([axis.flatten() for axis in torch.meshgrid(*axes, indexing="ij")], dim=-1)


@dataclass
class ImagePatches:
    """All patches of the images of a batch, or of its videos or volumes, not yet copied.

    Attributes:
        pixels: `(B, R, S, C, P, P)` view of whole images, or `(B, N, C, P, P)` for patches that arrived cut;
            of videos `(B, T', R, S, C, t, P, P)` and `(B, N, C, t, P, P)`.
        coordinates: `(B, N, A)` float, see `PatchTokens`.
        grid: `(B, A)` int64 rows and columns of each image.
        mask: `(B, N)` bool, False for padding; None if all count.
        image: `(B, C, R*P, S*P)`, of videos `(B, C, T'*t, R*P, S*P)`, the images without what is beyond whole
            patches, None for patches that arrived cut.
        is_whole: whether these are all patches of images of one size, in raster order.
        features: `(B, N, F)` what a CNN made of the patches, which is then taken instead of pixels; None if
            none did.
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
    def from_inputs(
        cls,
        config,
        pixel_values: "torch.Tensor | ImagePatches",
        patch_coordinates: torch.Tensor | None = None,
        spatial_shapes: torch.Tensor | None = None,
        pixel_attention_mask: torch.Tensor | None = None,
        interpolate_pos_encoding: bool | None = None,
    ) -> "ImagePatches":
        """Patches of the inputs of a model; see `AdaptiveViTModel.forward`. Patches are returned unchanged.

        Raises:
            TypeError: if images were not prepared by an image processor.
            ValueError: if the input has the wrong shape, or is smaller than one patch.
        """
        if isinstance(pixel_values, ImagePatches):
            return pixel_values
        check_pixel_values(pixel_values)
        check_tensors(
            patch_coordinates=patch_coordinates,
            spatial_shapes=spatial_shapes,
            pixel_attention_mask=pixel_attention_mask,
        )
        sides = patch_sides(config)
        frames = len(sides) == 3
        if pixel_values.ndim == 3:
            if patch_coordinates is None or spatial_shapes is None:
                raise ValueError(
                    f"pixel_values of shape {tuple(pixel_values.shape)} are cut patches and need "
                    f"patch_coordinates (B, N, {len(sides)}) and spatial_shapes (B, "
                    f"{len(sides)}). One whole image "
                    "needs a batch dimension: (1, C, H, W)."
                )
            return cls.from_flat(
                pixel_values,
                patch_coordinates,
                spatial_shapes,
                pixel_attention_mask,
                sides,
                config.num_channels,
            )
        if pixel_values.ndim != 2 + len(sides):
            expected = (
                "videos (B, T, C, H, W) or cut patches (B, N, t*P*P*C)"
                if frames
                else "images (B, C, H, W) or cut patches (B, N, P*P*C)"
            )
            also = ", as num_frames is set" if frames else ""
            if pixel_values.ndim == 5 and not frames:
                also = ". For videos and volumes build the model with num_frames"
            raise ValueError(f"pixel_values must be {expected}{also}, got shape {tuple(pixel_values.shape)}.")
        if frames:
            pixel_values = pixel_values.transpose(1, 2)  # (B, C, T, H, W), as convolutions need it
        if pixel_values.shape[1] != config.num_channels:
            expected = "(B, T, C, H, W)" if frames else "(B, C, H, W)"
            raise ValueError(
                f"pixel_values have {pixel_values.shape[1]} channels, the model was built for "
                f"num_channels={config.num_channels}. Expected {expected}."
            )
        if interpolate_pos_encoding is False and tuple(pixel_values.shape[2:]) != native_sides(config):
            native = f"image_size={config.image_size}" + (
                f" and num_frames={config.num_frames}" if frames else ""
            )
            raise ValueError(
                f"Images of {format_size(pixel_values.shape[2:])} pixels do not match "
                f"{native}, and interpolate_pos_encoding=False forbids other sizes."
            )
        return cls.from_images(pixel_values, sides)

    @classmethod
    def from_images(cls, pixel_values: torch.Tensor, patch_size: int | tuple[int, ...]) -> "ImagePatches":
        """Cuts `pixel_values` `(B, C, H, W)`; what remains beyond whole patches is dropped, as by a
        convolution.

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
                f"{things.format(format_size(sides))} are smaller than one patch of {format_size(patch)}. "
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
                f"Cut patches must have {expected} values each (patch_size {format_size(patch_size)} times "
                f"num_channels {num_channels}), got pixel_values of shape "
                f"{tuple(pixel_values.shape)}. Give the image "
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
                    f"{name} has the shape {tuple(value.shape)} and must have {shape}, for "
                    "pixel_values of shape "
                    f"{tuple(pixel_values.shape)}."
                )
        return cls(
            pixels=pixel_values.unflatten(2, (*patch_size, num_channels)).movedim(-1, 2),  # (B, N, C, P, P)
            coordinates=patch_coordinates.float(),
            grid=spatial_shapes,
            mask=None if mask is None else mask.bool(),
        )

    def gather(self, indices: torch.Tensor | None = None) -> PatchTokens:
        """Copies the pixels of the patches at `indices` `(B, K)` into the batch (None: all), as `(B, K,
        C*P*P)`; or their features `(B, K, F)`.
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

    def score_chunked(
        self, score: Callable[["ImagePatches"], torch.Tensor], num_selected: int
    ) -> torch.Tensor:
        """Scores `(B, N)` by a function that looks at one patch at a time, so that it may be given some of
        them.

        Args:
            score: of patches, `(B, n)`.
            num_selected: K; who reads patches one after the other may remember the best of each image.
        """
        return score(self)

    def first_images(self, number: int) -> "ImagePatches":
        """Patches of the first images of the batch."""
        values = (self.pixels, self.coordinates, self.grid, self.mask, self.image)
        return ImagePatches(
            *(None if value is None else value[:number] for value in values),
            self.is_whole,
            None if self.features is None else self.features[:number],
        )

    def find_indices(self, selected: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Finds patches of raster indices `selected` `(B, K)` among the N, and which of them exist, `(B, K)`.

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

    def raster_indices(
        self, indices: torch.Tensor | None = None, mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Raster indices `(B, K)` int64 of the patches at `indices` `(B, K)`, None for all; -1 where
        `mask` is False."""
        coordinates = self.coordinates if indices is None else gather_tokens(self.coordinates, indices)
        raster = raster_indices(coordinates, self.grid)
        return raster if mask is None else raster.masked_fill(~mask, -1)

    def weighted_mean(self, weights: torch.Tensor) -> PatchTokens:
        """Weighted means of patches, `(B, K, C*P*P)`, or of their features, at the means of their
        coordinates.

        Args:
            weights: `(B, K, N)` float, rows that add up to 1 (to 0 where there is no patch).
        """
        pixels = self.gather().features
        with torch.autocast(weights.device.type, enabled=False):  # half a patch is too coarse for a place
            coordinates = weights @ self.coordinates
        return PatchTokens(weights.to(pixels.dtype) @ pixels, coordinates, self.grid)

    def thumbnails(self, size: tuple[int, ...]) -> torch.Tensor:
        """The images resized to `size` (height, width), float32 `(B, C, height, width)`; videos to (T,
        height, width).

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
        """One `(C, R*P, S*P)` tensor an image, a video `(C, T'*t, R*P, S*P)`, without what was beyond whole
        patches.

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
                    f"This needs every patch of an image, but image {index} of the batch came "
                    f"with {len(pixels)} of "
                    f"its {format_size(cells)} patches. Give whole images, or all of their patches."
                )
            order = raster_indices(coordinates[None], self.grid[index][None])[0].argsort()
            pixels = pixels[order].unflatten(0, cells).movedim(self.num_axes, 0)  # (C, R, S, P, P)
            pixels = pixels.permute(0, *(1 + axis + part for axis in axes for part in (0, self.num_axes)))
            for axis in reversed(axes):
                pixels = pixels.flatten(1 + 2 * axis, 2 + 2 * axis)
            images.append(pixels)
        return images


def format_size(sides: Sequence[int]) -> str:
    """Formats sides, such as 16x16."""
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
