"""Checks of the parts of a Swin's configuration: their names, their options, and what each needs of the
rest."""

from .configuration_adaptive_swin import UNFIT
from .layers import ACTIVATIONS
from .part_checks import check_choice, check_class_name, check_needed
from .registry import check_options


def check_swin_parts(config) -> None:
    """Checks every part of an `AdaptiveSwinConfig`.

    Raises:
        ValueError: naming the field, the legal names or options, and what to do.
    """
    check_choice("hidden_act", config.hidden_act, ACTIVATIONS)
    check_needed(config, "patch_selector", "num_selected_windows", None, UNFIT)
    if config.patch_selector is not None:
        check_class_name(config, "patch_selector")
        check_options(config, "patch_selector")
