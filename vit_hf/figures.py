"""Figures laid out in inches, so that no label is clipped for any shape of image."""

import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


try:
    import matplotlib as mpl
except ImportError as error:
    raise ImportError("Pictures need matplotlib: pip install vit_hf[train]") from error

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.ticker import FuncFormatter, MaxNLocator


STYLE = {
    "font.size": 9,
    "axes.titlesize": 10.5,
    "axes.titlelocation": "left",
    "axes.titlepad": 5,
    "axes.linewidth": 0.5,
    "hatch.linewidth": 0.5,
    "text.parse_math": False,
    "figure.dpi": 130,
    "savefig.dpi": "figure",
}
INK, FAINT_INK = "#1a1a1a", "#666666"

# In inches.
MARGIN = 0.35
# Side of a single picture.
SIDE = 5.6
COLOR_BAR_GAP, COLOR_BAR_WIDTH = 0.07, 0.1
# Room for a color bar and its numbers on the right of a cell.
COLOR_BAR_SPACE = 0.67


@dataclass
class Cell:
    """Rectangle on a sheet, in inches from its top left corner."""

    x: float
    y: float
    width: float
    height: float


@contextmanager
def house_style() -> Iterator[None]:
    """Applies one style to all drawing in the context; the user's settings are restored after it."""
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(STYLE)
        yield


class Sheet:
    """White figure with positions in inches from its top left corner."""

    def __init__(self, width: float, height: float):
        self.width, self.height = width, height
        self.figure = Figure(figsize=(width, height), facecolor="white")

    def axes(self, cell: Cell) -> Axes:
        bottom = self.height - cell.y - cell.height
        return self.figure.add_axes(
            (cell.x / self.width, bottom / self.height, cell.width / self.width, cell.height / self.height)
        )

    def write(
        self, text: str, x: float, y: float, size: float, color: str = INK, weight: str = "normal"
    ) -> None:
        self.figure.text(
            x / self.width,
            1 - y / self.height,
            text,
            fontsize=size,
            color=color,
            fontweight=weight,
            verticalalignment="top",
            linespacing=1.35,
        )

    def color_bar(self, image: AxesImage, cell: Cell, extend: str = "neither") -> Axes:
        """Draws the color bar of `image` on the right of `cell`."""
        axes = self.axes(Cell(cell.x + cell.width + COLOR_BAR_GAP, cell.y, COLOR_BAR_WIDTH, cell.height))
        bar = self.figure.colorbar(image, cax=axes, extend=extend, extendfrac=0.03)
        bar.locator = MaxNLocator(nbins=max(1, min(5, int(cell.height / 0.4))))
        bar.formatter = FuncFormatter(lambda value, _: f"{value:.4g}")
        bar.update_ticks()
        bar.outline.set_visible(False)
        axes.tick_params(labelsize=8, length=2, width=0.5, colors=FAINT_INK)
        return axes


def wrap(text: str, width: float, size: float) -> list[str]:
    """Splits a text into lines of about `width` inches at a font size in points."""
    return textwrap.wrap(text, characters(width, size))


def shorten(text: str, width: float, size: float) -> str:
    limit = characters(width, size)
    return text if len(text) <= limit else text[: limit - 1].rstrip() + "…"


def characters(width: float, size: float) -> int:
    """Estimates how many characters fit: in DejaVu Sans, letters are about 0.52 em wide, digits 0.62."""
    return max(8, int(width * 72 / (0.57 * size)))


def format_size(first: int, second: int) -> str:
    return f"{first} \N{MULTIPLICATION SIGN} {second}"
