"""Selection and reduction that save nothing, or that happen twice."""

from collections.abc import Iterable

import torch
from transformers.utils import logging

from .budget import Budget
from .elastic_space import is_elastic
from .options import options_of, type_of
from .patches import ImagePatches, format_size
from .reducers import TokenReducer
from .registry import BUILT_IN


logger = logging.get_logger(__name__)


def warn_if_all_kept(config, patches: ImagePatches, num_selected: int) -> None:
    """Warns, once, that a selector keeps all patches of an image; says nothing where a graph is traced."""
    if torch.compiler.is_compiling():
        return
    if patches.is_whole:
        grid = patches.full_grid if num_selected >= patches.num_patches else None
    else:
        present = _present(patches)
        all_kept = (present == patches.grid.prod(dim=1)) & (present <= num_selected)
        grid = tuple(patches.grid[all_kept][0].tolist()) if all_kept.any() else None
    if grid is not None:
        warn_of_all_kept(
            f"patch_selector={type_of(config.patch_selector)!r} with "
            f"num_selected_patches={config.num_selected_patches}",
            grid,
        )


def warn_of_all_kept(selection: str, grid: tuple[int, ...], things: str = "patches") -> None:
    """Warns, once.

    Args:
        selection: what selects.
        grid: rows and columns of what is kept.
        things: what these are.
    """
    logger.warning_once(
        f"{selection} keeps all of the {format_size(grid)} {things} of an image, and saves "
        "nothing. Give larger images (the image "
        "processor resizes them to its size, by default 224x224: set do_resize=False, or a "
        "larger size), or keep fewer."
    )


def check_selected_once(config, patches: ImagePatches) -> None:
    """Refuses patches that an image processor selected, unless it kept as many as the model would.

    Raises:
        ValueError: naming both selectors.
    """
    if patches.is_whole or torch.compiler.is_compiling():
        return
    offered, wanted = patches.grid.prod(dim=1), config.num_selected_patches
    if Budget(wanted).is_fraction:
        wanted = (offered.double() * wanted).round().clamp(min=1).long()
    present = _present(patches)
    selected = (present < offered) & (present != wanted)
    if selected.any():
        index = int(selected.int().argmax())
        raise ValueError(
            f"Image {index} of the batch came with {int(present[index])} of its "
            f"{format_size(patches.grid[index].tolist())} patches: "
            "the image processor selected them (its patch_selector), and the model selects "
            "others: patch_selector="
            f"{type_of(config.patch_selector)!r}, "
            f"num_selected_patches={config.num_selected_patches}. Set patch_selector=None, "
            "num_selected_patches=None in one of the two, or the same num_selected_patches in both."
        )


def warn_if_nothing_reduced(config, reducers: Iterable[TokenReducer]) -> None:
    """Warns, once, of reducers that keep all tokens."""
    if is_elastic(config):  # whose largest network may be dense
        return
    # Those of the user's own may go by something else than keep_rate; "gumbel" runs its predictor whatever it
    # keeps.
    is_ours = type_of(config.token_reducer) in BUILT_IN["token_reducer"]
    merges_number = options_of(config.token_reducer).get("r") is not None
    by_rate = is_ours and config.keep_rate >= 1 and not merges_number
    if by_rate or any(reducer.keeps_all(0.0) for reducer in reducers):
        logger.warning_once(
            f"token_reducer={type_of(config.token_reducer)!r} with keep_rate={config.keep_rate} "
            "keeps all tokens, and saves nothing: "
            "set keep_rate below 1, such as 0.7."
        )


def _present(patches: ImagePatches) -> torch.Tensor:
    """How many patches of each image arrived, `(B,)`."""
    if patches.mask is None:
        return patches.grid.new_full(patches.grid.shape[:1], patches.num_patches)
    return patches.mask.sum(dim=1)
