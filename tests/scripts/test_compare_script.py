"""The command line of a comparison; what it does is tested in tests/comparison/test_running.py."""

import dataclasses
from pathlib import Path

import pytest

from tests.helpers.scripts import command
from vit_hf.arguments import ComparedDataArguments, ComparisonArguments
from vit_hf.comparison import training as demonstration_module
from vit_hf.comparison.results import read_rows
from vit_hf.comparison.training import TrainingStage, demonstration


compare = command("compare")
# Steps enough to end, not to learn.
SHORT = {
    "VIT_STAGES": (TrainingStage(32, 0, 1), TrainingStage(48, 1, 1)),
    "HYBRID_STAGES": (TrainingStage(32, 0, 1),),
}


@pytest.fixture
def short(monkeypatch):
    for name, stages in SHORT.items():
        monkeypatch.setattr(demonstration_module, name, stages)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "vit-hf compare: name the model to compare with: --model"),
        (["--model", "./nowhere"], "vit-hf compare: name the data to compare with: --data"),
        (["--model", "./nowhere", "--data", "x"], "vit-hf compare: there is no folder ./nowhere"),
    ],
)
def test_what_is_missing(flags, message, tmp_path):
    with pytest.raises(SystemExit, match=message):
        compare([*flags, "--output", str(tmp_path)])


def test_help(capsys):
    with pytest.raises(SystemExit, match="0"):
        compare(["--help"])
    text = capsys.readouterr().out
    for flag in ("--model", "--data", "--hybrid", "--adapt", "--strategies", "--limit", "--card", "--demo"):
        assert f"{flag} " in text or f"{flag}," in text
    assert "(default: 500)" in text


def test_demonstration_yields_to_flags(short, tmp_path):
    arguments = ComparisonArguments(output=str(tmp_path), adapt=3, hybrid="mine", tokens=[5])
    given = {"adapt", "hybrid", "tokens"}
    said = []
    ours, data = demonstration(arguments, ComparedDataArguments(), given, said.append)
    assert (ours.adapt, ours.hybrid, ours.tokens) == (3, "mine", [5])
    assert ours.selectors == demonstration_module.DEMONSTRATION["selectors"]
    assert Path(ours.model_name_or_path, "model.safetensors").is_file() and len(said) == 2
    assert data.dataset == "megapixel_digits" and data.dataset_options["size"] == 512
    assert data.dataset_options["num_train"] == 3 * ours.adapt_batch_size
    # What was trained is used again.
    again, _ = demonstration(arguments, ComparedDataArguments(), given, said.append)
    assert again == ours and len(said) == 2
    small = dataclasses.replace(ComparedDataArguments(), dataset_options={"size": 64})
    _, data = demonstration(arguments, small, given | {"dataset_options"}, said.append)
    assert data.dataset_options == {"size": 64}


@pytest.mark.slow
def test_demonstration(short, tmp_path, capsys):
    flags = ["--demo", "--output", str(tmp_path), "--limit", "4", "--adapt", "1", "--adapt_batch_size", "2"]
    compare([*flags, "--repeats", "1", "--use_cpu"])
    out = capsys.readouterr().out
    assert "not measured" not in out
    rows = {row["name"]: row for row in read_rows(tmp_path / "results.csv")}
    for name in ("resize to 80x80", "all patches", "24 patches, saliency", "hybrid stem, all cells"):
        assert float(rows[name]["peak_memory_mib"]) > 0 and int(rows[name]["adapt_steps"]) == 1
    assert sum(name.startswith("tiles of 48x48") for name in rows) == 5
