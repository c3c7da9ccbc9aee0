"""Other people's checkpoints, as ours, and ours as theirs."""

from .convert import convert
from .families import FAMILIES, CannotConvert
from .npz import load_npz, save_npz
from .plain import processor_to_transformers, to_transformers


__all__ = [
    "FAMILIES",
    "CannotConvert",
    "convert",
    "load_npz",
    "processor_to_transformers",
    "save_npz",
    "to_transformers",
]
