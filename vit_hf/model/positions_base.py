"""What every position encoding shares. Shape legend: `tokens.py`; T tokens of a sequence, the last N of patches."""

import math
from typing import NamedTuple

import torch
from torch import nn

from .blocks import Initialized
from .tokens import PatchTokens


class Positions(NamedTuple):
    """Positions as the embeddings use them (`features`, `cls_token`), or the attention of a block (the others).

    Attributes:
        features: `(B, N, D)` patch embeddings with positions added.
        cls_token: `(1, 1, D)` CLS token with its position added; None if none was given.
        rotation: cosines and sines, see `PositionEncoding.rotation`; None for none.
        bias: see `PositionEncoding.bias`; None for none.
    """

    features: torch.Tensor | None = None
    cls_token: torch.Tensor | None = None
    rotation: tuple[torch.Tensor, torch.Tensor] | None = None
    bias: torch.Tensor | None = None


class PositionEncoding(Initialized, nn.Module):
    """Adds positions to embeddings, rotates queries and keys, or adds a bias to attention.

    A class overrides `add`, `add_to_cls`, `rotation` or `bias`; what it leaves out changes nothing. All are evaluated
    at coordinates, which may be fractional, so any resolution and any subset of patches works. An encoding without
    parameters is computed and never stored: a buffer could go stale when a checkpoint is loaded.
    """

    # Whether rotation or bias differ from block to block.
    per_layer = False
    # Whether there is a bias, which flash attention cannot take.
    has_bias = False

    def __init__(self, config):
        super().__init__()

    def forward(
        self,
        tokens: PatchTokens,
        layer: int | None = None,
        num_prefix: int = 0,
        cls_token: torch.Tensor | None = None,
    ) -> Positions:
        """Positions of `tokens`. The model calls the module, so that whatever wraps it (offloading) takes part.

        Args:
            tokens: patch embeddings; or, with a `layer`, the tokens of the sequence that have coordinates.
            layer: index of the block whose attention needs positions; None for the embeddings.
            num_prefix: tokens of the sequence before `tokens`.
            cls_token: `(1, 1, D)`, for the embeddings.

        Raises:
            ValueError: if the `add` of a class returns features of another shape.
        """
        if layer is not None:
            return Positions(rotation=self.rotation(tokens, layer), bias=self.bias(tokens, layer, num_prefix))
        added = self.add(tokens)
        shape = getattr(getattr(added, "features", None), "shape", None)
        if shape != tokens.features.shape:
            raise ValueError(
                f"{type(self).__name__}.add must return the tokens with features of the shape "
                f"{tuple(tokens.features.shape)}, by tokens.with_features(...), got "
                f"{type(added).__name__ if shape is None else tuple(shape)}."
            )
        return Positions(added.features, None if cls_token is None else self.add_to_cls(cls_token))

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


def interpolation_weights(
    coordinates: torch.Tensor,
    grid: torch.Tensor,
    source: tuple[int, ...],
    kernel: str,
    offset: float = 0.0,
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
        offset: added to rows and columns for the scale, as DINOv2's first code did with 0.1.
    """
    scale = torch.tensor(source, device=coordinates.device) / (grid + offset)  # (B, A)
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
