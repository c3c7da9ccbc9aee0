"""How windows tile a grid of cells, and which of them are computed on.

Shapes, beside those of `tokens.py`:
    R, S  rows and columns of a stage's grid, N = R * S cells     n  windows of a grid
    L     cells of a window                                       K  windows that are computed on

A window of a shifted block is what its attention sees: L cells of the grid rolled by the shift, as in Swin (Liu et al.,
2021, section 3.2), of up to four pieces of the image that do not attend to each other. There are as many as without
shift. Each has a score of its own, of the patches in it, so shifted blocks compute around what matters as unshifted
ones do, and reach half a window across the borders of those.
"""

from dataclasses import dataclass

import torch
from torch import nn

from .tokens import gather_tokens, grid_coordinates, move_fields, put_tokens


# Added to the logits of cells that do not attend to each other, as in Swin's own code.
NOT_ADJACENT = -100.0


@dataclass
class WindowLayout:
    """The windows of a grid.

    Attributes:
        cells: `(n, L)` int64 raster index in the grid of each window's cells, -1 for padding.
        places: `(N,)` int64 where each cell of the grid is in `cells`, flat.
        regions: `(n, L)` int64, different for cells of a window that do not attend to each other; None if all do.
        window: rows and columns of a window.
        rows, columns: of windows.
        has_padding: whether some cells are padding.
    """

    cells: torch.Tensor
    places: torch.Tensor
    regions: torch.Tensor | None
    window: tuple[int, int]
    rows: int
    columns: int
    has_padding: bool

    @property
    def num_windows(self) -> int:
        return self.rows * self.columns

    def to(self, device: torch.device, non_blocking: bool = False) -> "WindowLayout":
        """The same on another device; what accelerate calls where a model is spread over several."""
        return move_fields(self, device, non_blocking)

    def coordinates(self) -> torch.Tensor:
        """`(L, 2)` float row and column of a window's cells in it."""
        return grid_coordinates(*self.window, device=self.cells.device)

    def cells_of(self, indices: torch.Tensor) -> torch.Tensor:
        """Cells `(B, K * L)` of the windows at `indices` `(B, K)`, -1 for padding."""
        return self.cells[indices].flatten(1)

    def take(self, states: torch.Tensor, indices: torch.Tensor | None) -> torch.Tensor:
        """States `(B, K * L, D)` of windows' cells, of `states` `(B, N, D)`; zeros for padding."""
        if indices is None:
            taken = states.index_select(1, self.cells.clamp(min=0).flatten())
        else:
            taken = gather_tokens(states, self.cells_of(indices).clamp(min=0))
        return self.without_padding(taken, indices)

    def without_padding(self, states: torch.Tensor, indices: torch.Tensor | None) -> torch.Tensor:
        """`states` `(B, K * L, D)` of windows' cells, with zeros for padding."""
        if not self.has_padding:
            return states
        cells = self.cells.flatten()[None] if indices is None else self.cells_of(indices)
        return states.masked_fill((cells < 0).unsqueeze(-1), 0)

    def put(self, states: torch.Tensor, windows: torch.Tensor, indices: torch.Tensor | None) -> torch.Tensor:
        """`states` `(B, N, D)` with those of windows' cells, `(B, K * L, D)`, in their places."""
        if indices is None:
            return windows.index_select(1, self.places)
        cells = self.cells_of(indices)
        mask = cells >= 0 if self.has_padding else None
        return put_tokens(states, cells, windows, mask)

    def mask(self, batch_size: int, indices: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor | None:
        """What is added to the logits of windows, `(B * K, 1, L, L)`; None for nothing."""
        if self.regions is None:
            return None
        regions = self.regions.expand(batch_size, -1, -1) if indices is None else self.regions[indices]
        regions = regions.flatten(0, 1)  # (B * K, L)
        apart = regions.unsqueeze(-1) != regions.unsqueeze(-2)
        return torch.zeros_like(apart, dtype=dtype).masked_fill(apart, NOT_ADJACENT).unsqueeze(1)


def lay_out(
    grid: tuple[int, int],
    window: tuple[int, int],
    shift: tuple[int, int],
    pad_before_shift: bool,
    device: torch.device,
) -> WindowLayout:
    """Windows of `grid` (rows, columns), padded to whole windows at the end and rolled by `shift`."""
    num_cells = grid[0] * grid[1]
    index = torch.arange(num_cells, device=device).view(grid)
    index = arrange(index, window, shift, pad_before_shift, padding=-1)  # (rows of all windows, columns)
    padded = tuple(index.shape)
    cells = split(index, window)
    order = torch.arange(cells.numel(), device=device)
    flat = cells.flatten()
    places = flat.new_zeros(num_cells + 1).scatter(0, flat.masked_fill(flat < 0, num_cells), order)[:-1]
    regions = None
    if any(shift):
        row, column = (
            _regions(side, length, step, device)
            for side, length, step in zip(padded, window, shift, strict=True)
        )
        regions = split(row[:, None] * 3 + column, window)
    return WindowLayout(
        cells=cells,
        places=places,
        regions=regions,
        window=window,
        rows=padded[0] // window[0],
        columns=padded[1] // window[1],
        has_padding=padded != tuple(grid),
    )


def arrange(
    values: torch.Tensor,
    window: tuple[int, int],
    shift: tuple[int, int],
    pad_before_shift: bool,
    padding: float,
) -> torch.Tensor:
    """`values` `(..., R, S)` padded at the end to whole windows, and rolled by `shift`, in the one order or the other."""
    rows, columns = values.shape[-2:]
    missing = (0, -columns % window[1], 0, -rows % window[0])
    backwards = (-shift[0], -shift[1])
    if not pad_before_shift:
        values = values.roll(backwards, dims=(-2, -1))
    values = nn.functional.pad(values, missing, value=padding)
    return values.roll(backwards, dims=(-2, -1)) if pad_before_shift else values


def split(values: torch.Tensor, window: tuple[int, int]) -> torch.Tensor:
    """`values` `(..., R, S)` of whole windows, as `(..., n, L)`."""
    parts = values.unflatten(-1, (-1, window[1])).unflatten(-3, (-1, window[0]))  # (..., rows, h, columns, w)
    return parts.transpose(-3, -2).flatten(-2).flatten(-3, -2)


def _regions(side: int, window: int, shift: int, device: torch.device) -> torch.Tensor:
    """Which of up to three pieces each cell of a rolled axis belongs to, `(side,)`."""
    cell = torch.arange(side, device=device)
    return (cell >= side - window).long() + (cell >= side - shift).long()


def fit_window(
    grid: tuple[int, int], window: tuple[int, int], shift: tuple[int, int], fixed: bool
) -> tuple[tuple[int, int], tuple[int, int]]:
    """Window and shift on a grid; see `window_fit` of the configuration."""
    if fixed or all(side > length for side, length in zip(grid, window, strict=True)):
        return window, shift
    smaller = min(grid)
    return (min(smaller, window[0]), min(smaller, window[1])), (0, 0)


def pool_cells(scores: torch.Tensor, kind: str) -> torch.Tensor:
    """Scores `(B, R, S)` of cells of the next stage, each of up to four."""
    if kind == "max":
        return nn.functional.max_pool2d(scores, 2, ceil_mode=True)
    return nn.functional.avg_pool2d(scores, 2, ceil_mode=True, count_include_pad=False)


def pool_windows(
    scores: torch.Tensor,
    layout: WindowLayout,
    kind: str,
) -> torch.Tensor:
    """Scores `(B, n)` of windows, of those of the grid's cells `(B, R, S)`; padding has none."""
    cells = layout.cells
    taken = scores.flatten(1)[:, cells.clamp(min=0)]  # (B, n, L)
    if kind == "max":
        return taken.masked_fill(cells < 0, -torch.inf).amax(dim=-1)
    present = cells >= 0
    return taken.masked_fill(~present, 0).sum(dim=-1) / present.sum(dim=-1)
