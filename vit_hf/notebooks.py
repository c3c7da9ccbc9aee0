"""Pictures that results show of themselves in notebooks."""

import io
from collections.abc import Callable
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from matplotlib.figure import Figure


def notebook_png(draw: Callable[[], "Figure"]) -> bytes | None:
    """Draws a figure as PNG for `_repr_png_`; None without matplotlib, where notebooks show the text."""
    try:
        figure = draw()
    except ImportError:
        return None
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
