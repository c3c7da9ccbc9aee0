"""Curves, the next commands, and a finished run that is started again."""

import builtins
import json
import shlex

import PIL.Image
import pytest

from tests.helpers.runs import CLASSES
from vit_hf.arguments import DataArguments
from vit_hf.cli.parsing import parse, read_arguments
from vit_hf.training.curves import CURVES_NAME, draw_curves, read_curves, write_curves
from vit_hf.training.next_commands import flags_of, next_commands
from vit_hf.training.output_dir import read_run


LOG = [
    {"step": 1, "loss": 2.0, "learning_rate": 0.1, "epoch": 0.5},
    {"step": 2, "loss": 1.0, "learning_rate": 0.2, "epoch": 1.0},
    {"step": 2, "eval_loss": 1.5, "eval_accuracy": 0.25, "eval_f1": 0.2},
    {"step": 1, "loss": 3.0},
]


@pytest.mark.parametrize("metric", ["accuracy", "eval_accuracy"])
def test_curves_are_those_of_the_log(metric):
    assert read_curves(LOG, metric) == {
        "Loss": {"training": [(1, 3.0), (2, 1.0)], "validation": [(2, 1.5)]},
        "Accuracy": {"validation": [(2, 0.25)]},
        "Learning rate": {"": [(1, 0.1), (2, 0.2)]},
    }


@pytest.mark.parametrize("metric", [None, "loss", "eval_loss"])
def test_the_loss_is_drawn_once(metric):
    assert list(read_curves(LOG, metric)) == ["Loss", "Learning rate"]


def test_figure_has_a_panel_for_each_curve_and_marks_the_best_step():
    figure = draw_curves(LOG, "accuracy", best_step=2)
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["Loss", "Accuracy", "Learning rate"]
    assert "step 2, whose model was kept" in figure.axes[-1].get_xlabel()


def test_without_matplotlib_or_a_log_a_line_says_so(tmp_path, monkeypatch):
    assert "set logging_steps" in write_curves(tmp_path, [])
    real = builtins.__import__

    def without_figures(name, *args):
        if name == "figures":
            raise ImportError("Pictures need matplotlib")
        return real(name, *args)

    monkeypatch.setattr(builtins, "__import__", without_figures)
    assert "needs matplotlib" in write_curves(tmp_path, LOG)
    assert not list(tmp_path.iterdir())


def test_a_finished_run_says_so_and_trains_on_when_asked(make_run, tmp_path):
    run = make_run()
    assert "Run:    begins" in run.describe()
    assert "2 of 4 patches of the first image" in run.describe()
    run.execute()
    folder = tmp_path / "run"
    assert run.notes == [f"Learning curves: {folder / CURVES_NAME}"]
    assert PIL.Image.open(folder / CURVES_NAME).width > 500
    assert list(read_run(folder)["pictures"].values()) == [str(folder / CURVES_NAME)]
    again = make_run()
    assert again.is_finished
    assert "is finished" in again.describe() and "raise num_train_epochs or max_steps" in again.describe()
    metrics = again.execute()
    assert "eval_accuracy" in metrics and "train_loss" not in metrics
    longer = make_run(num_train_epochs=3)
    assert "resumes from" in longer.describe() and not longer.is_finished
    assert "train_loss" in longer.execute()


def test_next_commands_are_accepted_by_the_command_line(image_folder, tmp_path):
    from vit_hf.cli import evaluate, explain

    data = DataArguments(dataset=str(image_folder), validation_fraction=0.3, dataset_options={"a b": 1})
    title, *lines = next_commands([data], "vit-hf finetune", str(tmp_path / "a run"), ["validation"])
    assert title == "Next:"
    for line, command in zip(lines, (evaluate, explain), strict=True):
        program, name, *argv = shlex.split(line)
        assert program == "vit-hf"
        parser = command.make_parser(name)
        arguments, *others, _ = parse(parser, read_arguments(parser, argv))
        assert arguments.model_name_or_path == str(tmp_path / "a run")
        if command is evaluate:
            assert others == [data] and arguments.split == "validation"
        else:
            assert any(f"/{label}/" in arguments.images[0] for label in CLASSES)
    assert "IMAGE.jpg" in next_commands([DataArguments("me/birds")], "vit-hf finetune", "run")[2]
    assert next_commands([], "vit-hf segment", "run") == []


def test_flags_leave_out_defaults():
    assert flags_of(DataArguments("photos")) == "--dataset photos"
    words = shlex.split(flags_of(DataArguments("photos", dataset_options='{"size": 9}', skip_corrupt=True)))
    assert words[:3] == ["--dataset", "photos", "--dataset_options"]
    assert json.loads(words[3]) == {"size": 9}
    assert words[4:] == ["--skip_corrupt", "True"]
