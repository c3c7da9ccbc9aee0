"""Where a patch is, told to the encoder. Shape legend: `tokens.py`.

Every encoding is evaluated at coordinates, so any resolution and any subset of patches works. Encodings without
parameters are computed and never stored: a buffer could go stale when a checkpoint is loaded.
"""

import math

import torch
from torch import nn
from transformers import initialization as init

from .patches import to_pair
from .tokens import PatchTokens, grid_coordinates


def interpolation_weights(
    coordinates: torch.Tensor, grid: torch.Tensor, source: tuple[int, int], kernel: str
) -> torch.Tensor:
    """How much each cell of a `source` grid counts at `coordinates` of an image's `grid`, `(B, N, rows * columns)`.

    A matrix product with these weights equals `torch.nn.functional.interpolate(..., align_corners=False)` of the
    source to the full grid, read at the coordinates; but no full grid is ever made, and each image of a batch may
    have its own.

    Args:
        coordinates: `(B, N, 2)`, see `PatchTokens`.
        grid: `(B, 2)` rows and columns.
        source: rows and columns of what is interpolated.
        kernel: "cubic" (A = -0.75, torch's bicubic) or "linear".
    """
    scale = torch.tensor(source, device=coordinates.device) / grid  # (B, 2)
    position = (coordinates.float() + 0.5) * scale[:, None] - 0.5  # (B, N, 2) in cells of the source
    rows = _axis_weights(position[..., 0], source[0], kernel)
    columns = _axis_weights(position[..., 1], source[1], kernel)
    return (rows.unsqueeze(-1) * columns.unsqueeze(-2)).flatten(-2)


def _axis_weights(position: torch.Tensor, length: int, kernel: str) -> torch.Tensor:
    """Weights `(B, N, length)` of the cells along one axis; taps beyond the border count for the border cell."""
    first = position.floor()
    offset = position - first
    if kernel == "linear":
        taps = {0: 1 - offset, 1: offset}
    else:
        taps = {tap: _cubic((tap - offset).abs()) for tap in (-1, 0, 1, 2)}
    cells = torch.arange(length, device=position.device)
    weights = 0
    for tap, weight in taps.items():
        cell = (first + tap).clamp(0, length - 1)
        weights = weights + weight.unsqueeze(-1) * (cell.unsqueeze(-1) == cells)
    return weights


def _cubic(distance: torch.Tensor, a: float = -0.75) -> torch.Tensor:
    """Cubic convolution (Keys, 1981) with torch's parameter."""
    near = ((a + 2) * distance - (a + 3)) * distance * distance + 1
    far = ((a * distance - 5 * a) * distance + 8 * a) * distance - 4 * a
    return torch.where(distance <= 1, near, far)


def sinusoid_1d(positions: torch.Tensor, dim: int) -> torch.Tensor:
    """Sinusoid `(..., dim)` at real `positions` `(...)`: sine and cosine in turn.

    "Attention Is All You Need" (Vaswani et al., 2017), section 3.5.
    """
    angles = positions.float().unsqueeze(-1) * _frequencies(dim // 2, 10000.0, positions.device)
    return torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(-2)


def sinusoid_2d(coordinates: torch.Tensor, dim: int) -> torch.Tensor:
    """Sinusoid `(..., dim)` at `coordinates` `(..., 2)`: half for the row, half for the column.

    [sin(row), cos(row), sin(column), cos(column)], a quarter each, as MoCo v3 (Chen et al., 2021) and
    transformers' ViTMAE; MAE's own code has columns first.
    """
    frequencies = _frequencies(dim // 4, 10000.0, coordinates.device)
    row, column = (axis.unsqueeze(-1) * frequencies for axis in coordinates.float().unbind(-1))
    return torch.cat((row.sin(), row.cos(), column.sin(), column.cos()), dim=-1)


def _frequencies(count: int, base: float, device: torch.device) -> torch.Tensor:
    return torch.exp(-math.log(base) / count * torch.arange(count, device=device))


def rotate_half_pairs(states: torch.Tensor, rotation: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Rotates the last tokens of `states` `(B, heads, T, d)` by cosines and sines `(B, 1, N, d)`, N <= T.

    Tokens before them (CLS, registers) have no place in the image and stay as they are.
    """
    cosine, sine = rotation
    prefix = states.shape[2] - cosine.shape[2]
    first, second = states[:, :, prefix:].chunk(2, dim=-1)
    rotated = states[:, :, prefix:] * cosine + torch.cat((-second, first), dim=-1) * sine
    return torch.cat((states[:, :, :prefix], rotated), dim=2) if prefix else rotated


class PositionEncoding(nn.Module):
    """What the model may ask of an encoding; each answer is "nothing" unless a class has one."""

    def __init__(self, config):
        super().__init__()

    def add(self, tokens: PatchTokens) -> PatchTokens:
        """Patch embeddings with what is to be added at their coordinates."""
        return tokens

    def add_to_cls(self, cls_token: torch.Tensor) -> torch.Tensor:
        """CLS token `(1, 1, D)` with what is to be added to it."""
        return cls_token

    def rotation(self, tokens: PatchTokens) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Cosines and sines `(B, 1, N, head_dim)` by which queries and keys are rotated in every block."""
        return None

    def reset_parameters(self, std: float) -> None:
        """Initialises own parameters; called by the model's `_init_weights`."""


class NoPosition(PositionEncoding):
    """A bag of patches."""


class Sinusoidal(PositionEncoding):
    """The sinusoid of "Attention Is All You Need" over the raster index; CLS is position 0, patches follow."""

    def add(self, tokens: PatchTokens) -> PatchTokens:
        row, column = tokens.coordinates.unbind(-1)
        index = row * tokens.grid[:, 1:] + column
        table = sinusoid_1d(index + 1, tokens.features.shape[-1])
        return tokens.with_features(tokens.features + table.to(tokens.features.dtype))

    def add_to_cls(self, cls_token: torch.Tensor) -> torch.Tensor:
        position = torch.zeros(1, 1, device=cls_token.device)
        return cls_token + sinusoid_1d(position, cls_token.shape[-1]).to(cls_token.dtype)


class Sinusoidal2D(PositionEncoding):
    """Half of the channels for the row and half for the column, as MoCo v3 and MAE; nothing for CLS."""

    def add(self, tokens: PatchTokens) -> PatchTokens:
        table = sinusoid_2d(tokens.coordinates, tokens.features.shape[-1])
        return tokens.with_features(tokens.features + table.to(tokens.features.dtype))


class Learned(PositionEncoding):
    """A learned vector for each patch of the native grid, as ViT; elsewhere its bicubic interpolation.

    At the full grid of another resolution this equals transformers' `interpolate_pos_encoding`.
    """

    def __init__(self, config):
        super().__init__(config)
        image_size, patch_size = to_pair(config.image_size), to_pair(config.patch_size)
        self.native_grid = (image_size[0] // patch_size[0], image_size[1] // patch_size[1])
        num_patches = self.native_grid[0] * self.native_grid[1]
        # The name in transformers' ViT, so that its checkpoints fit: CLS first, then patches in raster order.
        self.position_embeddings = nn.Parameter(torch.empty(1, num_patches + 1, config.hidden_size))

    def add(self, tokens: PatchTokens) -> PatchTokens:
        table = self.position_embeddings[0, 1:]
        if tokens.full_grid == self.native_grid:
            return tokens.with_features(tokens.features + table)  # the same to the bit, without the weights
        weights = interpolation_weights(tokens.coordinates, tokens.grid, self.native_grid, "cubic")
        return tokens.with_features(tokens.features + weights.to(table.dtype) @ table)

    def add_to_cls(self, cls_token: torch.Tensor) -> torch.Tensor:
        return cls_token + self.position_embeddings[:, :1]

    def reset_parameters(self, std: float) -> None:
        init.trunc_normal_(self.position_embeddings, mean=0.0, std=std)


class LearnedFromSinusoidal(Learned):
    """A learned table that starts as the 2D sinusoid, with zeros for CLS."""

    def reset_parameters(self, std: float) -> None:
        init.copy_(self.position_embeddings, self._sinusoid())

    def _sinusoid(self) -> torch.Tensor:
        _, length, dim = self.position_embeddings.shape
        device = self.position_embeddings.device
        patches = sinusoid_2d(grid_coordinates(*self.native_grid, device=device), dim)
        return torch.cat((torch.zeros(1, dim, device=device), patches)).view(1, length, dim)


class Rotary(PositionEncoding):
    """Axial rotary embedding (RoFormer, Su et al., 2021, along rows and columns): half of each head for the row.

    Queries and keys are rotated by their coordinates in patches, so attention sees differences of places. Distances
    mean the same at every resolution.
    """

    def __init__(self, config):
        super().__init__(config)
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.base = config.rotary_base

    def rotation(self, tokens: PatchTokens) -> tuple[torch.Tensor, torch.Tensor]:
        frequencies = _frequencies(self.head_dim // 4, self.base, tokens.coordinates.device)
        angles = (tokens.coordinates.float().unsqueeze(-1) * frequencies).flatten(-2)  # (B, N, head_dim / 2)
        angles = torch.cat((angles, angles), dim=-1).unsqueeze(1)  # (B, 1, N, head_dim)
        return angles.cos().to(tokens.features.dtype), angles.sin().to(tokens.features.dtype)


POSITION_ENCODINGS: dict[str, type[PositionEncoding]] = {
    "learned": Learned,
    "learned_from_sinusoidal": LearnedFromSinusoidal,
    "sinusoidal": Sinusoidal,
    "sinusoidal_2d": Sinusoidal2D,
    "rotary": Rotary,
    "none": NoPosition,
}
