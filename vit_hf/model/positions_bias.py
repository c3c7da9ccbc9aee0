"""Positions by a bias on attention logits. Shape legend: `tokens.py`; T = num_prefix + N tokens of a sequence.

A bias is a number for each pair of tokens and head: memory is quadratic in T, whatever the attention.
"""

import math
from dataclasses import dataclass

import torch
from huggingface_hub.dataclasses import strict
from torch import nn
from transformers import initialization as init

from .axes import native_grid
from .options import Options
from .positions_base import PositionEncoding, source_grid
from .tokens import PatchTokens


class AttentionBias(PositionEncoding):
    """A bias that depends on the differences of places."""

    has_bias = True

    def bias(self, tokens: PatchTokens, layer: int, num_prefix: int) -> torch.Tensor:
        coordinates, grid = tokens.coordinates.float(), tokens.grid
        if tokens.full_grid is not None:  # the same for all images
            coordinates, grid = coordinates[:1], grid[:1]
        differences = coordinates[:, :, None] - coordinates[:, None]  # (B, N, N, A), query minus key
        bias = self.pairs(differences, grid, layer)
        return self.with_prefix(bias, layer, num_prefix).to(tokens.features.dtype)

    def pairs(self, differences: torch.Tensor, grid: torch.Tensor, layer: int) -> torch.Tensor:
        """Bias `(B, heads, N, N)` of patches.

        Args:
            differences: `(B, N, N, A)`, place of the query minus that of the key, in patches.
            grid: `(B, A)`.
        """
        raise NotImplementedError

    def with_prefix(self, bias: torch.Tensor, layer: int, num_prefix: int) -> torch.Tensor:
        """`(B, heads, T, T)`; tokens without a place have no bias."""
        return nn.functional.pad(bias, (num_prefix, 0, num_prefix, 0))


class Alibi(AttentionBias):
    """Attention falls with the distance in patches, in each head at another rate.

    ALiBi (Press et al., 2022, "Train Short, Test Long") with Euclidean distances, as in CROMA (Fuller et al., 2023):
    -m |query - key|, m = 2^(-8 h / heads) for h = 1, ..., heads.
    """

    def __init__(self, config, options: Options | None = None):
        super().__init__(config, options)
        self.heads = config.num_attention_heads

    def pairs(self, differences: torch.Tensor, grid: torch.Tensor, layer: int) -> torch.Tensor:
        head = torch.arange(1, self.heads + 1, device=differences.device)
        slopes = torch.exp2(-8 * head / self.heads)
        return -slopes[:, None, None] * torch.linalg.vector_norm(differences, dim=-1).unsqueeze(1)


@strict
@dataclass(kw_only=True)
class RelativeBiasOptions(Options):
    """Options of learned biases.

    Args:
        shared: whether all blocks share one table or network, instead of each having its own.
    """

    shared: bool = True


class RelativeBias(AttentionBias):
    """A learned number for each difference of places of the native grid, and head; BEiT (Bao et al., 2022), Swin.

    At another resolution the table is interpolated linearly, as transformers' BEiT does. Three numbers more stand for
    pairs with a token that has no place: such a query, such a key, both.
    """

    Options = RelativeBiasOptions

    def __init__(self, config, options: Options | None = None):
        super().__init__(config, options)
        self.native_grid = native_grid(config)
        self.per_layer = not self.options.shared
        tables = config.num_hidden_layers if self.per_layer else 1
        self.extent = tuple(2 * side - 1 for side in self.native_grid)
        self.relative_position_bias_table = nn.Parameter(
            torch.empty(tables, math.prod(self.extent) + 3, config.num_attention_heads)
        )

    def pairs(self, differences: torch.Tensor, grid: torch.Tensor, layer: int) -> torch.Tensor:
        table = self._table(layer)[:-3].float()
        return read_differences(table.T.unflatten(1, self.extent), differences, grid)

    def with_prefix(self, bias: torch.Tensor, layer: int, num_prefix: int) -> torch.Tensor:
        from_prefix, to_prefix, inside = self._table(layer)[-3:].float()
        bias = nn.functional.pad(bias, (num_prefix, 0, num_prefix, 0))
        is_prefix = torch.arange(bias.shape[-1], device=bias.device) < num_prefix
        query, key = is_prefix[:, None], is_prefix[None]
        for pairs, value in ((query & ~key, from_prefix), (~query & key, to_prefix), (query & key, inside)):
            bias = torch.where(pairs, value[:, None, None], bias)
        return bias

    def reset_parameters(self, std: float) -> None:
        init.zeros_(self.relative_position_bias_table)

    def resample_table(self, name: str, table: torch.Tensor, grid: tuple[int, ...] | None) -> torch.Tensor:
        differences, special = table[:, :-3], table[:, -3:]
        grid = source_grid(differences.shape[1], grid, num_differences, len(self.native_grid))
        mode = "bilinear" if len(self.native_grid) == 2 else "trilinear"
        return torch.cat((resample_differences(differences, grid, self.native_grid, mode), special), dim=1)

    def _table(self, layer: int) -> torch.Tensor:
        return self.relative_position_bias_table[layer if self.per_layer else 0]


class RelativeBiasContinuous(AttentionBias):
    """A small network tells the bias of a difference of places, on a logarithmic scale.

    SwinV2 (Liu et al., 2022, "Swin Transformer V2"), section 3.3: sign(d) log2(1 + 8 |d| / (side - 1)) / 3 of both
    axes, 512 hidden units, 16 sigmoid. The side is that of the native grid, so that places beyond it are extrapolated
    little. The network is asked at whole differences, and between them interpolated linearly (but for compiled models,
    which ask it for every pair).
    """

    Options = RelativeBiasOptions

    def __init__(self, config, options: Options | None = None):
        super().__init__(config, options)
        self.native_grid = native_grid(config)
        self.per_layer = not self.options.shared
        self.networks = nn.ModuleList(
            bias_network(config.num_attention_heads, len(self.native_grid))
            for _ in range(config.num_hidden_layers if self.per_layer else 1)
        )

    def pairs(self, differences: torch.Tensor, grid: torch.Tensor, layer: int) -> torch.Tensor:
        network = self.networks[layer if self.per_layer else 0]
        if torch.compiler.is_compiling():  # how large the table must be is not known then
            return ask_bias_network(network, differences, self.native_grid).permute(0, 3, 1, 2)
        # One more: a thumbnail's places may be farther apart than those of patches.
        sides = (grid.amax(dim=0) + 1).tolist()
        axes = [torch.arange(1 - side, side, device=grid.device).float() for side in sides]
        places = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)
        table = ask_bias_network(network, places, self.native_grid)
        whole = torch.tensor([sides], device=grid.device).expand_as(grid)
        return read_differences(table.movedim(-1, 0), differences, whole)


def num_differences(grid: tuple[int, ...]) -> int:
    """Differences of places that occur in a grid."""
    return math.prod(2 * side - 1 for side in grid)


def resample_differences(
    table: torch.Tensor, grid: tuple[int, ...], wanted: tuple[int, ...], mode: str
) -> torch.Tensor:
    """A table `(B, differences, heads)` of a grid's differences as that of another grid's."""
    table = table.transpose(1, 2).unflatten(2, tuple(2 * side - 1 for side in grid))
    table = nn.functional.interpolate(table, tuple(2 * side - 1 for side in wanted), mode=mode)
    return table.flatten(2).transpose(1, 2)


def bias_network(num_heads: int, num_axes: int = 2) -> nn.Sequential:
    return nn.Sequential(nn.Linear(num_axes, 512), nn.ReLU(), nn.Linear(512, num_heads, bias=False))


def ask_bias_network(
    network: nn.Module, differences: torch.Tensor, native_grid: tuple[int, ...]
) -> torch.Tensor:
    """Bias `(..., heads)` of differences `(..., A)`, see `RelativeBiasContinuous`."""
    native = torch.tensor([max(side - 1, 1) for side in native_grid], device=differences.device)
    scaled = differences.sign() * torch.log2(1 + 8 * differences.abs() / native) / 3
    # In half precision, distant differences would coincide, and 16 times the answer be coarse.
    with torch.autocast(scaled.device.type, enabled=False):
        return 16 * network(scaled.to(network[0].weight.dtype)).float().sigmoid()


def read_differences(table: torch.Tensor, differences: torch.Tensor, grid: torch.Tensor) -> torch.Tensor:
    """A table of differences in its native grid, read at those of other grids, `(B, heads, N, N)`.

    Equal to `interpolate(table, (2 * rows - 1, 2 * columns - 1), mode="bilinear")`, or "trilinear", read there.

    Args:
        table: `(heads, 2R - 1, 2S - 1)`, or `(heads, 2T' - 1, 2R - 1, 2S - 1)`, the difference 0 in the middle.
        differences: `(B, N, N, A)`.
        grid: `(B, A)` rows and columns of the grids.
    """
    extent = torch.tensor(table.shape[1:], device=grid.device)
    wanted = 2 * grid[:, None, None] - 1  # (B, 1, 1, A)
    place = (differences + grid[:, None, None] - 0.5) * (extent / wanted)  # from 0 to extent
    place = (2 * place / extent - 1).flip(-1).to(table.dtype)
    if table.ndim == 4:
        place = place.unsqueeze(1)
    read = nn.functional.grid_sample(
        table.expand(differences.shape[0], *table.shape),
        place,
        mode="bilinear",
        padding_mode="border",
        align_corners=False,
    )
    return read.squeeze(2) if table.ndim == 4 else read
