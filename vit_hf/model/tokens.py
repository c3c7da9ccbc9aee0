"""The value that flows through the model.

Shapes, here and in the sibling files:
    B  images in the batch             H, W  height and width in pixels
    N  patches of an image             P     patch height = width (a pair is legal)
    K  patches kept, K <= N            C     colour channels
    R, S  rows and columns of a grid   D     hidden size
    A  axes: 2 of images; 3 of videos and volumes, whose frames or slices come first. What is said of (R, S) holds for
       (T', R, S) there, and what is said of (H, W) for (T, H, W); `(B, 2)` of images is `(B, 3)`.
"""

from dataclasses import dataclass, fields, replace

import torch


@dataclass
class PatchTokens:
    """Patches, or tokens that stand for them, together with where they are.

    Attributes:
        features: `(B, N, D)`, pixels before the embedding and hidden states after it.
        coordinates: `(B, N, A)` float, (row, column) or (time, row, column) in units of patches of the full-resolution grid, at
            patch centres minus one half: patch (r, c) has coordinate exactly (r, c), and a patch of a
            thumbnail a fractional one.
        grid: `(B, A)` int64, rows and columns of each image's full grid.
        mask: `(B, N)` bool, False where an image has fewer patches than the batch is wide; None if all count.
        sizes: `(B, N)` float, how many patches a token stands for, where that is not one for all: more than one
            after merging, 0 for one that is to be ignored. None if all stand for one.
        full_grid: (R, S) if every image has this grid and the tokens are all of it in raster order; None if that
            is not known without looking. Encodings may then skip what they would compute.
    """

    features: torch.Tensor
    coordinates: torch.Tensor
    grid: torch.Tensor
    mask: torch.Tensor | None = None
    sizes: torch.Tensor | None = None
    full_grid: tuple[int, ...] | None = None

    def gather(self, indices: torch.Tensor) -> "PatchTokens":
        """The tokens at `indices` `(B, K)`, with everything that belongs to them."""
        return PatchTokens(
            features=gather_tokens(self.features, indices),
            coordinates=gather_tokens(self.coordinates, indices),
            grid=self.grid,
            mask=None if self.mask is None else self.mask.gather(1, indices),
            sizes=None if self.sizes is None else self.sizes.gather(1, indices),
        )

    def with_features(self, features: torch.Tensor) -> "PatchTokens":
        return replace(self, features=features)

    def to(self, device: torch.device, non_blocking: bool = False) -> "PatchTokens":
        """The same on another device; what accelerate calls where a model is spread over several."""
        return move_fields(self, device, non_blocking)

    def raster_indices(self) -> torch.Tensor:
        """`(B, N)` int64 row * columns + column of each token in its image's full grid; see `raster_indices`."""
        return raster_indices(self.coordinates, self.grid)


@dataclass
class TokenSequence:
    """The tokens of a batch in the encoder: CLS, registers, thumbnail, and those that stand for patches.

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

    def placed(self) -> PatchTokens:
        """The tokens that have coordinates: the thumbnail's, and those of patches."""
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
            f"{source} hold NaN or infinite values, or values too large for {values.dtype}. Check the image files "
            "and the normalisation."
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
    """Splits `(B, T, D)` into the tokens before those of `patches` and these, `(B, T - M, D)` and `(B, M, D)`."""
    num_tokens = patches.coordinates.shape[1]
    return hidden_states[:, :-num_tokens], hidden_states[:, -num_tokens:]


def scatter_tokens(values: torch.Tensor, indices: torch.Tensor, length: int) -> torch.Tensor:
    """`(B, length, D)`: `values` `(B, K, D)` at `indices` `(B, K)`, added up where they meet, zero elsewhere."""
    batch_size, _, dim = values.shape
    return values.new_zeros(batch_size, length, dim).scatter_add_(
        1, indices.unsqueeze(-1).expand(values.shape), values
    )


def put_tokens(
    base: torch.Tensor, indices: torch.Tensor, values: torch.Tensor, mask: torch.Tensor | None = None
) -> torch.Tensor:
    """`base` `(B, N, D)` with `values` `(B, K, D)` at `indices` `(B, K)`, but for those with a False `mask` `(B, K)`."""
    length = base.shape[1]
    if mask is not None:
        base = torch.cat((base, base[:, :1]), dim=1)  # a row that is cut off again
        indices = indices.masked_fill(~mask, length)
    return base.scatter(1, indices.unsqueeze(-1).expand(values.shape), values.to(base.dtype))[:, :length]


def raster_indices(coordinates: torch.Tensor, grid: torch.Tensor) -> torch.Tensor:
    """Raster index `(B, N)` int64 of whole-numbered coordinates `(B, N, A)` in grids `(B, A)`."""
    return raster_places(coordinates.round().long(), grid)


def raster_places(coordinates: torch.Tensor, grid: torch.Tensor) -> torch.Tensor:
    """row * columns + column, or (time * rows + row) * columns + column, `(B, N)`, of any coordinates `(B, N, A)`."""
    place, *others = coordinates.unbind(-1)
    for axis, other in enumerate(others, start=1):
        place = place * grid[:, axis : axis + 1] + other
    return place


def grid_coordinates(*sides: int, device: torch.device | None = None) -> torch.Tensor:
    """`(N, A)` float coordinates of a full grid with A `sides`, in raster order."""
    axes = [torch.arange(side, device=device, dtype=torch.float32) for side in sides]
    return torch.stack([axis.flatten() for axis in torch.meshgrid(*axes, indexing="ij")], dim=-1)
