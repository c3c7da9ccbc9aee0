"""Progress bars of long computations."""

from collections.abc import Iterable
from typing import Any

from transformers.utils import logging


def progress_bar(iterable: Iterable | None = None, progress: bool | None = None, **options: Any) -> Any:
    """Makes a bar that transformers' `disable_progress_bar` hides as well.

    Args:
        iterable: what the bar goes through; None if it is updated by hand.
        progress: whether to show it; None shows it in a terminal only.
        options: of tqdm, such as `total` and `unit`.
    """
    return logging.tqdm(iterable, disable=None if progress is None else not progress, **options)
