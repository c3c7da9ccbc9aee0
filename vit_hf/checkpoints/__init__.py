"""Other people's checkpoints, as ours."""

from .convert import convert
from .families import FAMILIES, CannotConvert


__all__ = ["FAMILIES", "CannotConvert", "convert"]
