"""Every way of using a checkpoint on large images, measured side by side on a user's own data.

A strategy is a class and a line of `STRATEGIES` (`strategies.py`).
"""

from .arguments import ComparedDataArguments, ComparisonArguments
from .pareto import pareto_front
from .recommendation import recommend
from .rows import Row, read_rows, write_rows
from .running import Comparison, compare
from .strategies import STRATEGIES, Setting, Strategy


__all__ = [
    "STRATEGIES",
    "ComparedDataArguments",
    "Comparison",
    "ComparisonArguments",
    "Row",
    "Setting",
    "Strategy",
    "compare",
    "pareto_front",
    "read_rows",
    "recommend",
    "write_rows",
]
