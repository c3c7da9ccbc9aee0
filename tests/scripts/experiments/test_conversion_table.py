"""`conversion_table.py`, which names every original."""

from tests.helpers.originals import ORIGINALS, TIMM
from tests.helpers.scripts import load_experiment
from tests.helpers.swin_originals import SWIN_ORIGINALS, SWIN_TIMM
from tests.helpers.video_originals import VIDEO_ORIGINALS


def test_every_original_is_compared(capsys):
    load_experiment("conversion_table").main([])
    table = capsys.readouterr().out
    names = [*ORIGINALS, *SWIN_ORIGINALS, *VIDEO_ORIGINALS, "hybrid"]
    names += [f"timm {name}" for name in (*TIMM, *SWIN_TIMM)]
    assert all(f"| {name} |" in table for name in names) and "no" not in table.split()
    assert table.count("| works |") == len(names)
