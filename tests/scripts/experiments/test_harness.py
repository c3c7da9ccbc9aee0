"""The parts that experiments have in common."""

import pytest

from tests.helpers.scripts import EXPERIMENTS, load_experiment


harness = load_experiment("harness")
NAMES = sorted(path.stem for path in EXPERIMENTS.glob("*.py") if path.stem != "harness")


@pytest.mark.parametrize("name", NAMES)
def test_help(name, capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", [f"{name}.py", "--help"])
    script = load_experiment(name)
    with pytest.raises(SystemExit, match="0"):
        script.main()
    assert f"usage: {name}.py" in capsys.readouterr().out
    assert f"python scripts/experiments/{name}.py" in script.__doc__


@pytest.mark.parametrize(
    ("values", "text"), [([0.5], "50.0"), ([0.5, 0.7], "60.0 ± 14.1"), ([0.5, None], "-")]
)
def test_mean_and_sd(values, text):
    assert harness.mean_and_sd(values) == text


def test_markdown_table():
    table = harness.markdown_table(["method", "patches"], [["all", 4], ["random", 2]])
    assert table.splitlines() == ["| method | patches |", "|---|---|", "| all | 4 |", "| random | 2 |"]


def test_a_result_is_computed_once_for_its_settings(tmp_path):
    file, calls = tmp_path / "results" / "run.json", []

    def compute():
        calls.append(1)
        return {"accuracy": 0.5}

    first = harness.cached(file, {"steps": 1}, compute)
    assert first == harness.cached(file, {"steps": 1}, compute) and len(calls) == 1
    assert first == {"accuracy": 0.5, "settings": {"steps": 1}}
    with pytest.raises(SystemExit, match=r"run.json was made with other settings: give another --output"):
        harness.cached(file, {"steps": 2}, compute)
