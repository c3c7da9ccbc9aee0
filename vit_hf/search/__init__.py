"""Search for good sub-networks of an elastic ViT under a budget, and for good settings of an optimiser.

Names are imported when they are first used: each needs its own libraries.
"""

import importlib
from typing import Any


_MODULES = {
    "evolution": ("Evolution", "crossover", "evolve", "mutate"),
    "arguments": ("SearchArguments",),
    "costs": ("COSTS", "measure_costs"),
    "hand_made": ("hand_made_networks",),
    "history": ("History",),
    "running": ("SearchRun", "prepare_search"),
    "tuning": ("TrialArguments", "TuningArguments", "TuningRun", "prepare_tuning"),
}
_HOMES = {name: module for module, names in _MODULES.items() for name in names}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)


def __dir__() -> list[str]:
    return __all__
