"""What every position encoding shares. Shape legend: `tokens.py`; T tokens of a sequence, the last N of patches."""

import math
from collections.abc import Callable
from typing import ClassVar

import torch
from torch import nn

from .axes import native_grid
from .options import Options, read_options
from .patches import by
from .tokens import PatchTokens


class PositionEncoding(nn.Module):
    """What the model may ask of an encoding; each answer is "nothing" unless a class has one.

    Every answer is evaluated at coordinates, which may be fractional, so any resolution and any subset of patches
    works. What has no parameters is computed and never stored: a buffer could go stale when a checkpoint is loaded.

    An encoding with a parameter that is sized by the native grid has a method `resample_table(name, table, grid)`, which
    returns the float32 `table` of another `grid` (None if unknown) as that of its own: for `from_pretrained(image_size=...)`.
    """

    # Whether rotation or bias differ from block to block.
    per_layer = False
    # Whether there is a bias, which flash attention cannot take.
    has_bias = False

    # Dataclass of the options that `position_encoding={"type": ..., ...}` may give.
    Options: ClassVar[type] = Options

    def __init__(self, config, options: Options | None = None):
        """Reads the options from `config.position_encoding` unless they are given."""
        super().__init__()
        self.options = options or read_options(self.Options, "position_encoding", config.position_encoding)

    @classmethod
    def check(cls, config, options: Options) -> None:
        """Raises: ValueError if the encoding or its options do not fit the rest of the configuration."""

    def forward(self, answer: str, *args, **kwargs):
        """One of the answers, by name. The model asks by this, so that whatever wraps modules (offloading) is there."""
        return getattr(self, answer)(*args, **kwargs)

    def add(self, tokens: PatchTokens) -> PatchTokens:
        """Patch embeddings with what is to be added at their coordinates."""
        return tokens

    def add_to_cls(self, cls_token: torch.Tensor) -> torch.Tensor:
        """CLS token `(1, 1, D)` with what is to be added to it."""
        return cls_token

    def rotation(self, tokens: PatchTokens, layer: int) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Cosines and sines `(B, 1 or heads, N, head_dim)` by which a block's queries and keys are rotated."""
        return None

    def bias(self, tokens: PatchTokens, layer: int, num_prefix: int) -> torch.Tensor | None:
        """What is added to a block's attention logits, `(B or 1, heads, T, T)`, T = num_prefix + N."""
        return None

    def reset_parameters(self, std: float) -> None:
        """Initialises own parameters; called by the model's `_init_weights`."""

    @staticmethod
    def grid_in(config) -> tuple[int, ...]:
        """The grid that a configuration sizes tables by: the native one, unless a class says another."""
        return native_grid(config)


def source_grid(
    size: int, grid: tuple[int, ...] | None, size_of: Callable[[tuple[int, ...]], int], num_axes: int
) -> tuple[int, ...]:
    """The grid of a table: the checkpoint's native one if it fits, or else the square one that does.

    Args:
        size: entries of the table.
        grid: of the checkpoint's configuration; None if unknown.
        size_of: entries of a grid's table.
        num_axes: of the model.

    Raises:
        ValueError: if neither fits.
    """
    if grid is not None and size_of(grid) == size:
        return grid
    for side in range(1, math.isqrt(size) + 2) if num_axes == 2 else ():
        if size_of((side, side)) == size:
            return side, side
    raise ValueError(
        f"The checkpoint's table of positions has {size} entries, which are those of no square grid, nor of the "
        f"{by(grid) if grid else 'unknown'} patches that its configuration says. Set image_size and patch_size in its "
        "config.json to those it was trained with, and load it without image_size: any size of image works then."
    )


def linear_combinations(places: torch.Tensor, frequencies: torch.Tensor) -> torch.Tensor:
    """Angles `(..., F)` at `places` `(..., A)`: the product with `frequencies` `(..., F, A)`, always in float32.

    As a matrix product it would run in half precision under autocast, where the places of neighbors coincide.
    """
    terms = zip(places.float().unbind(-1), frequencies.float().unbind(-1), strict=True)
    return sum(place.unsqueeze(-1) * frequency for place, frequency in terms)


def interpolation_weights(
    coordinates: torch.Tensor,
    grid: torch.Tensor,
    source: tuple[int, ...],
    kernel: str,
) -> torch.Tensor:
    """How much each cell of a `source` grid counts at `coordinates` of an image's `grid`, `(B, N, rows * columns)`.

    A matrix product with these weights equals `torch.nn.functional.interpolate(..., align_corners=False)` of the
    source (of three axes, trilinear, or cubic along each) to the full grid, read at the coordinates; but no full grid is ever made, and each image of a batch may
    have its own.

    Args:
        coordinates: `(B, N, A)`, see `PatchTokens`.
        grid: `(B, A)` rows and columns.
        source: rows and columns of what is interpolated, A sides.
        kernel: "cubic" (A = -0.75, torch's bicubic) or "linear"; either with "_antialias", as torch's `antialias=True`.
    """
    scale = torch.tensor(source, device=coordinates.device) / grid  # (B, A)
    position = (coordinates.float() + 0.5) * scale[:, None] - 0.5  # (B, N, A) in cells of the source
    weights, *others = (
        _axis_weights(position[..., axis], side, kernel, scale[:, axis : axis + 1])
        for axis, side in enumerate(source)
    )
    for of_axis in others:
        weights = (weights.unsqueeze(-1) * of_axis.unsqueeze(-2)).flatten(-2)
    return weights


def _axis_weights(position: torch.Tensor, length: int, kernel: str, scale: torch.Tensor) -> torch.Tensor:
    """Weights `(B, N, length)` of the cells along one axis; taps beyond the border count for the border cell."""
    cells = torch.arange(length, device=position.device)
    if kernel.endswith("_antialias"):
        # The kernel is as wide as a cell of the target, and cut off at the border.
        distance = (position.unsqueeze(-1) - cells).abs() / scale.clamp(min=1).unsqueeze(-1)
        if kernel == "linear_antialias":
            weights = (1 - distance).clamp(min=0)
        else:
            weights = torch.where(distance < 2, _cubic(distance, a=-0.5), 0)
        return weights / weights.sum(dim=-1, keepdim=True)
    first = position.floor()
    offset = position - first
    if kernel == "linear":
        taps = {0: 1 - offset, 1: offset}
    else:
        taps = {tap: _cubic((tap - offset).abs()) for tap in (-1, 0, 1, 2)}
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


def geometric_frequencies(count: int, base: float, device: torch.device) -> torch.Tensor:
    """base^(-i / count) for i = 0, ..., count - 1."""
    return torch.exp(-math.log(base) / count * torch.arange(count, device=device))
