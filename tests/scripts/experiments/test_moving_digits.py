"""`moving_digits.py`, made short."""

import json

import pytest

from tests.helpers.scripts import load_experiment


@pytest.fixture(scope="module")
def script():
    return load_experiment("moving_digits")


def test_every_method_is_trained_and_printed(script, tmp_path, capsys):
    arguments = [
        "--seeds",
        "1",
        "--first-steps",
        "1",
        "1",
        "1",
        "--steps",
        "1",
        "--batch-size",
        "2",
        "--use-cpu",
    ]
    arguments += ["--num-test", "10", "--num-frames", "4", "--size", "48", "--repeats", "0"]
    script.main([*arguments, "--output", str(tmp_path), "--selectors", "motion"])
    results = json.loads((tmp_path / "results.json").read_text())
    assert list(results) == ["all patches", "motion", "resize"]
    assert all(len(values) == 1 and all(0 <= value <= 1 for value in values) for values in results.values())
    out = capsys.readouterr().out
    for line in ("| all patches | 18 | 1 |", "| motion | 8 | 1 |", "| resize | 8 | 1 |"):
        assert line in out


def test_the_smaller_clip_has_as_many_tokens_as_are_selected(script):
    clips = script.Resized(script.MovingDigits("test", 2, num_frames=4, size=48), script.SMALL_SIZE)
    row = clips[1]
    assert row["pixel_values"].shape == (4, 1, 32, 32) and row["labels"] == 1


@pytest.mark.slow
def test_speed_is_printed(script, tmp_path, capsys):
    script.main(["--seeds", "0", "--repeats", "1", "--output", str(tmp_path), "--selectors", "motion"])
    assert "| motion | 196 |" in capsys.readouterr().out
