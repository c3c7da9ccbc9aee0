"""Other people's checkpoints, as ours."""

from .convert import convert
from .families import FAMILIES, CannotConvert
from .npz import load_npz, save_npz


__all__ = ["FAMILIES", "CannotConvert", "convert", "load_npz", "save_npz"]
