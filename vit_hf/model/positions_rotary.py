"""Positions by rotation of queries and keys. Shape legend: `tokens.py`."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from huggingface_hub.dataclasses import strict
from torch import nn
from transformers import initialization as init

from .axes import has_frames, native_grid
from .layer_sizes import head_dim_of
from .options import Options, check_range, type_of
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


@strict
@dataclass(kw_only=True)
class RotaryOptions(Options):
    """Options of encodings that rotate queries and keys.

    Args:
        base: base of the frequencies; the slowest has a wavelength of about 2 pi times the base, in
            `coordinates`. DINOv3 has 100, EVA-02 10000, RoPE-Mixed 10.
        coordinates: unit of the coordinates: "patches"; "native", patches of the native grid, over which the
            image is spread (EVA-02); "normalized", from -1 to 1 over the image, times 2 pi (DINOv3).
        shift, jitter, rescale: while training, largest shift of the coordinates, and largest factor of each
            axis, and of both (DINOv3); None for none.
        reference_grid: rows and columns (of videos time, rows and columns) that "native" spreads over an
            image, by default those of `image_size`. EVA-02 pretrained at 16 counts 16 at 448 pixels too.
    """

    base: float | int = 100.0
    coordinates: Literal["patches", "native", "normalized"] = "patches"
    shift: float | int | None = None
    jitter: float | int | None = None
    rescale: float | int | None = None
    reference_grid: int | list[int] | tuple[int, ...] | None = None

    def __post_init__(self):
        check_range(self, "base", "above 0", 0 < self.base < math.inf)
        check_range(self, "shift", "0 or more, or None", self.shift is None or 0 <= self.shift < math.inf)
        for name in ("jitter", "rescale"):
            factor = getattr(self, name)
            legal = "a factor of at least 1, or None"
            check_range(self, name, legal, factor is None or 1 <= factor < math.inf)


class Rotary(PositionEncoding):
    """Axial rotary embedding (RoFormer, Su et al., 2021, along rows and columns): half of each head for the row.

    Of videos and volumes a third each is for time, row and column; what head_dim has beyond a multiple of six stays as it
    is, as in V-JEPA 2 (Assran et al., 2025).

    Queries and keys are rotated by their coordinates, so attention sees differences of places. In
    `coordinates` "patches", distances mean the same at every resolution; in "native" and "normalized" ones,
    an image does. While training, each batch may be shifted, jittered and rescaled (DINOv3, Siméoni et al.,
    2025).
    """

    Options = RotaryOptions

    def __init__(self, config, options: Options | None = None):
        super().__init__(config, options)
        self.head_dim = head_dim_of(config)
        self.base = self.options.base
        self.coordinates = self.options.coordinates
        self.augmentation = (self.options.shift, self.options.jitter, self.options.rescale)
        reference = self.options.reference_grid or native_grid(config)
        self.reference_grid = (reference, reference) if isinstance(reference, int) else tuple(reference)
        self.num_axes = len(self.reference_grid)

    @classmethod
    def check(cls, config, options: Options) -> None:
        name, head_dim, num_axes = type_of(config.position_encoding), head_dim_of(config), 2
        if has_frames(config):
            num_axes = 3
            if head_dim < 6 or head_dim % 2:
                raise ValueError(
                    f"position_encoding={name!r} turns pairs of channels along three axes, and needs hidden_size / "
                    f"num_attention_heads to be even and at least 6, got {head_dim}."
                )
        elif head_dim % 4:
            raise ValueError(
                f"position_encoding={name!r} needs the channels of a head (hidden_size / num_attention_heads, or "
                f"head_dim) to be a multiple of 4, got {head_dim}."
            )
        reference = options.reference_grid
        sides = [reference] * 2 if isinstance(reference, int) else reference
        if reference is not None and (len(sides) != num_axes or min(sides) < 1):
            legal = "a number of at least 1 patch a side or a pair (rows, columns) of them"
            if num_axes == 3:
                legal = "three numbers of at least 1 patch (time, rows, columns)"
            raise ValueError(f"reference_grid={reference} must be {legal}, or None for those of image_size.")

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

    def __init__(self, config, options: Options | None = None):
        super().__init__(config, options)
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
