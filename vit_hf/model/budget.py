"""How many patches, windows or tokens are kept."""

import math
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Budget:
    """How many of N are kept: a number of at least 1 (`int`), or a fraction in (0, 1] of them (`float`).

    Configuration, image processors, command lines, Swin and elastic networks read their budgets by it.

    Attributes:
        value: the number or fraction.
        name: field or argument that holds it, for errors.
        noun: what is counted, for errors.
    """

    value: int | float
    name: str = "num_selected_patches"
    noun: str = "patches"

    def __post_init__(self):
        value = self.value
        is_number = isinstance(value, int) and not isinstance(value, bool) and value >= 1
        if not is_number and not (isinstance(value, float) and 0 < value <= 1):
            raise ValueError(
                f"{self.name}={value!r} must be a number of {self.noun} of at least 1 (int), or a "
                "fraction of them in "
                "(0, 1] (float)."
            )

    @classmethod
    def parse(cls, text: Any, name: str = "num_selected_patches", noun: str = "patches") -> "Budget":
        """Reads what a command line was given: "98" is a number, "0.25" and "1.0" are fractions.

        Raises:
            ValueError: if it is neither.
        """
        value = text
        if isinstance(text, str):
            for read in (int, float):
                try:
                    value = read(text)
                except ValueError:
                    continue
                break
        return cls(value, name, noun)

    @property
    def is_fraction(self) -> bool:
        """Whether it is a fraction of N rather than a number."""
        return isinstance(self.value, float)

    def resolve(self, total: int) -> int:
        """How many of `total` are kept, at least one.

        Raises:
            ValueError: if it is a number above `total`.
        """
        if self.is_fraction:
            return max(1, round(self.value * total))
        if self.value > total:
            raise ValueError(
                f"{self.name}={self.value} does not fit an image of {total} {self.noun}: it must "
                "be a whole number from "
                f"1 to {total}, or a fraction in (0, 1]. Lower it, or give larger images."
            )
        return self.value

    def capped(self, total: int) -> "Budget":
        """Caps a number at `total`, where there may be fewer; a fraction stays."""
        return self if self.is_fraction else Budget(min(self.value, max(1, total)), self.name, self.noun)

    def coarsened(self, factor: int) -> "Budget":
        """The budget counted in groups of `factor`: a fraction stays, a number is divided and rounded up."""
        if self.is_fraction:
            return self
        return Budget(math.ceil(self.value / factor), self.name, self.noun)


__all__ = ["Budget"]
