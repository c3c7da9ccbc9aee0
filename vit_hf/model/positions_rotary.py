"""Positions by rotation of queries and keys. Shape legend: `tokens.py`."""

import math

import torch
from torch import nn
from transformers import initialization as init

from .axes import native_grid
from .layer_sizes import head_dim_of
from .positions_base import PositionEncoding, geometric_frequencies, linear_combinations
from .tokens import PatchTokens


def rotate_half_pairs(states: torch.Tensor, rotation: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Rotates the last tokens of `states` `(B, heads, T, d)` by cosines and sines `(B, 1 or heads, N, d)`, N <= T.

    Tokens before them (CLS, registers) have no place in the image and stay as they are.
    """
    cosine, sine = rotation
    prefix = states.shape[2] - cosine.shape[2]
    first, second = states[:, :, prefix:].chunk(2, dim=-1)
    rotated = states[:, :, prefix:] * cosine + torch.cat((-second, first), dim=-1) * sine
    return torch.cat((states[:, :, :prefix], rotated), dim=2) if prefix else rotated


class Rotary(PositionEncoding):
    """Axial rotary embedding (RoFormer, Su et al., 2021, along rows and columns): half of each head for the row.

    Of videos and volumes a third each is for time, row and column; what head_dim has beyond a multiple of six stays as it
    is, as in V-JEPA 2 (Assran et al., 2025).

    Queries and keys are rotated by their coordinates, so attention sees differences of places. `rotary_coordinates`
    says of what: "patches" (distances mean the same at every resolution), "native" (those of the native grid, or of
    `rotary_reference_grid`, as EVA-02: an image means the same at every resolution), or "normalized" (from -1 to 1,
    times 2 pi, as DINOv3).
    While training, each batch may be shifted, jittered and rescaled (DINOv3, Siméoni et al., 2025).
    """

    def __init__(self, config):
        super().__init__(config)
        self.head_dim = head_dim_of(config)
        self.base = config.rotary_base
        self.coordinates = config.rotary_coordinates
        self.augmentation = (config.rotary_shift, config.rotary_jitter, config.rotary_rescale)
        reference = config.rotary_reference_grid or native_grid(config)
        self.reference_grid = (reference, reference) if isinstance(reference, int) else tuple(reference)
        self.num_axes = len(self.reference_grid)

    def rotation(self, tokens: PatchTokens, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        places = self.places(tokens)
        count = self.head_dim // (2 * self.num_axes)
        frequencies = geometric_frequencies(count, self.base, places.device)
        angles = (places.unsqueeze(-1) * frequencies).flatten(-2)  # (B, N, head_dim / 2)
        if angles.shape[-1] < self.head_dim // 2:
            angles = nn.functional.pad(angles, (0, self.head_dim // 2 - angles.shape[-1]))
        return self._by_angles(angles.unsqueeze(1), tokens.features.dtype)

    def places(self, tokens: PatchTokens) -> torch.Tensor:
        """Coordinates `(B, N, A)` in the units that are asked for."""
        places, grid = tokens.coordinates.float(), tokens.grid[:, None]
        if self.coordinates == "native":
            return places * (torch.tensor(self.reference_grid, device=places.device) / grid)
        if self.coordinates == "normalized":
            return 2 * math.pi * self._augmented((places + 0.5) / grid * 2 - 1)
        return self._augmented(places)

    def _augmented(self, places: torch.Tensor) -> torch.Tensor:
        shift, jitter, rescale = self.augmentation
        if not self.training:
            return places
        if shift:
            places = places + places.new_empty(self.num_axes).uniform_(-shift, shift)
        for factor, axes in ((jitter, self.num_axes), (rescale, 1)):
            if factor:
                limit = math.log(factor)
                places = places * places.new_empty(axes).uniform_(-limit, limit).exp()
        return places

    @staticmethod
    def _by_angles(angles: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        angles = torch.cat((angles, angles), dim=-1)
        return angles.cos().to(dtype), angles.sin().to(dtype)


class RotaryMixed(Rotary):
    """Rotary embedding whose frequencies are learned, for each block and head, and mix rows and columns.

    RoPE-Mixed of "Rotary Position Embedding for Vision Transformer" (Heo et al., 2024), section 3: angles are
    f_row * row + f_column * column (+ f_time * time). They start with the axial frequencies in a random direction for
    each head.
    """

    per_layer = True

    def __init__(self, config):
        super().__init__(config)
        shape = (config.num_hidden_layers, config.num_attention_heads, self.num_axes, self.head_dim // 2)
        self.frequencies = nn.Parameter(torch.empty(shape))

    def rotation(self, tokens: PatchTokens, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        places = self.places(tokens).unsqueeze(1)  # (B, 1, N, A)
        frequencies = self.frequencies[layer].mT.unsqueeze(1)  # (heads, 1, head_dim / 2, A)
        return self._by_angles(linear_combinations(places, frequencies), tokens.features.dtype)

    def reset_parameters(self, std: float) -> None:
        if self.num_axes == 3:
            init.copy_(self.frequencies, self._rotated_axes())
            return
        layers, heads, _, channels = self.frequencies.shape
        magnitude = geometric_frequencies(channels // 2, self.base, self.frequencies.device)
        direction = 2 * math.pi * torch.rand(layers, heads, 1, device=self.frequencies.device)
        directions = torch.stack((direction, direction + math.pi / 2), dim=-1)  # (L, heads, 1, 2)
        rows = (magnitude[:, None] * directions.cos()).transpose(-1, -2).flatten(-2)
        columns = (magnitude[:, None] * directions.sin()).transpose(-1, -2).flatten(-2)
        init.copy_(self.frequencies, torch.stack((rows, columns), dim=2))

    def _rotated_axes(self) -> torch.Tensor:
        """Three axes at right angles, turned at random in each head, with the axial frequencies along each."""
        layers, heads, _, channels = self.frequencies.shape
        device = self.frequencies.device
        magnitude = geometric_frequencies(self.head_dim // 6, self.base, device)
        axes = torch.linalg.qr(torch.randn(layers, heads, 3, 3, device=device)).Q
        turned = (axes.unsqueeze(-1) * magnitude).flatten(-2)  # (L, heads, 3, 3 * (head_dim // 6))
        return nn.functional.pad(turned, (0, channels - turned.shape[-1]))
