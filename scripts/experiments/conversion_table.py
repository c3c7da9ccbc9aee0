"""Prints how far converted models are from their originals: every family, small and with random weights.

    python scripts/experiments/conversion_table.py

One row for each original of the tests: the largest differences of outputs at the model's own image size and
at others, and whether the converted model selects patches. Rows of timm's models appear if timm is installed.
"""

import importlib.metadata
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path

import harness


sys.path.insert(0, str(Path(__file__).parents[2]))  # for tests.helpers, which no installation has

from tests.helpers import originals, swin_originals, video_originals
from tests.helpers.originals import Comparison


HEADER = [
    "checkpoint",
    "class there",
    "native size, max difference",
    "other sizes, max difference",
    "selection",
]


def compare_all() -> Iterator[Comparison]:
    has_timm = importlib.util.find_spec("timm") is not None
    yield from map(originals.compare_transformers, originals.ORIGINALS)
    if has_timm:
        yield originals.compare_hybrid()
    yield from map(swin_originals.compare_swin, swin_originals.SWIN_ORIGINALS)
    if has_timm:
        yield from map(swin_originals.compare_swin_timm, swin_originals.SWIN_TIMM)
    yield from map(video_originals.compare_video, video_originals.VIDEO_ORIGINALS)
    if has_timm:
        yield from map(originals.compare_timm, originals.TIMM)


def format_row(found: Comparison) -> list[str]:
    other = "takes none" if found.other is None else f"{found.other:.1e}"
    return [found.name, found.original, f"{found.native:.1e}", other, "works" if found.selects else "no"]


def main(argv: list[str] | None = None) -> None:
    harness.make_parser(__doc__).parse_args(argv)
    versions = harness.machine_line()
    if importlib.util.find_spec("timm"):
        versions += f", timm {importlib.metadata.version('timm')}"
    print(f"Small random models, fp32; {versions}\n")
    print(harness.markdown_table(HEADER, map(format_row, compare_all())))


if __name__ == "__main__":
    harness.hide_reports()
    main()
