"""Which windows a Swin computes on. Shape legend: `swin_windows.py`."""

import torch

from .budget import Budget
from .options import type_of
from .patches import ImagePatches
from .selection_base import PatchSelector
from .selection_checks import warn_of_all_kept
from .swin_windows import WindowLayout, pool_cells, pool_windows
from .tokens import check_finite


class NoScout:
    """What a selector of a user's own is told that asks for the model's attention, see `Scout`."""

    def __getattr__(self, name: str):
        raise ValueError(
            f"The patch selector asks for the model's own {name}, and Swin's blocks see windows, without a CLS token: score "
            "patches by their pixels, or by a network of the selector's own."
        )


def num_windows_selected(wanted: int | float, stage: int, num_windows: int, relaxation: float = 0.0) -> int:
    """How many of a stage's windows a model computes on, see `num_selected_windows`.

    Args:
        wanted: a number of the first stage's windows, or a fraction of each stage's.
        stage: from 0.
        num_windows: windows of the stage.
        relaxation: 0 for what is wanted, 1 for all windows, linear between.
    """
    budget = Budget(wanted, "num_selected_windows", "windows")
    # A window of the next stage covers four.
    number = budget.coarsened(4**stage).capped(num_windows).resolve(num_windows)
    return number + round(relaxation * (num_windows - number))


class WindowChooser:
    """Chooses windows of one batch, for each stage, and with shift and without, by scores of patches.

    Args:
        config: of the model.
        selector: what scores patches; None to compute on all windows.
        patches: all patches of the batch.
        relaxation: 0 for as many windows as the configuration says, 1 for all, linear between.
        sample: whether chance may play a part.

    Attributes:
        scores: `(B, N)` of patches, as the first stage is chosen by; None without a selector.
    """

    def __init__(
        self, config, selector: PatchSelector | None, patches: ImagePatches, relaxation: float, sample: bool
    ):
        self.config = config
        self.selector = selector
        self.patches = patches
        self.relaxation = relaxation
        self.sample = sample
        self.scores: torch.Tensor | None = None

    def __call__(self, stage: int, layout: WindowLayout, grid: tuple[int, int]) -> torch.Tensor | None:
        """`(B, K)` int64 ascending windows of a stage's `grid` to compute on; None for all."""
        if self.selector is None:
            return None
        number = num_windows_selected(
            self.config.num_selected_windows, stage, layout.num_windows, self.relaxation
        )
        # A stage may lie on another device.
        scores = self._score(number).to(layout.cells.device).unflatten(1, self.patches.full_grid)
        if number == layout.num_windows:
            # Later stages have few windows, and may need all of them.
            if stage == 0 and self.relaxation == 0 and not torch.compiler.is_compiling():
                selection = (
                    f"patch_selector={type_of(self.config.patch_selector)!r} with "
                    f"num_selected_windows={self.config.num_selected_windows}"
                )
                warn_of_all_kept(selection, (number,), "windows")
            return None
        for _ in range(stage):
            scores = pool_cells(scores, self.config.window_score)
        windows = pool_windows(scores, layout, self.config.window_score)
        selection = self.selector.select(windows, number, None, self.sample)
        if selection.weights is not None or selection.log_prob is not None or selection.indices is None:
            raise ValueError(
                f"{type(self.selector).__name__}.select mixes patches, draws them or leaves the choice open, and windows "
                "can only be kept or not: use it in an AdaptiveViT."
            )
        return selection.indices

    def _score(self, number: int) -> torch.Tensor:
        """Scores `(B, N)` of patches where so many windows will be kept."""
        if self.scores is not None and not self.selector.uses_number:
            return self.scores
        scores = self.selector.score(self.patches, number, NoScout())
        if scores.shape != self.patches.coordinates.shape[:2]:
            raise ValueError(
                f"{type(self.selector).__name__}.score returned the shape {tuple(scores.shape)}, and must give a score "
                f"for each patch, {tuple(self.patches.coordinates.shape[:2])}."
            )
        check_finite(scores, "pixel_values, or the weights of the patch selector,")
        if self.scores is None:
            self.scores = scores
        return scores

    def loss(self) -> torch.Tensor | None:
        """What training the selector adds to the loss; None for nothing."""
        return None if self.scores is None else self.selector.loss(self.patches, self.scores, NoScout())
