"""Scripts that pretrain and segment, and those that measure what it brings, on a few tiny canvases."""

import importlib.util
import json
from pathlib import Path

import pytest
import yaml

from vit_hf.training import (
    ArchitectureArguments,
    AugmentationArguments,
    DataArguments,
    ModelArguments,
    PretrainingArguments,
    RunArguments,
    SegmentationArguments,
    make_parser,
)
from vit_hf.training.command_line import read_config


SCRIPTS = Path(__file__).parents[2] / "scripts"
TINY = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "patch_size": 8,
    "num_channels": 1,
}


def load(name: str):
    spec = importlib.util.spec_from_file_location(f"{name}_script", SCRIPTS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_what_pretraining_brings(tmp_path, capsys, monkeypatch):
    script = load("pretraining_gain")
    monkeypatch.setattr(script, "ARCHITECTURE", script.ARCHITECTURE | TINY)
    steps = ["--pretraining-steps", "2", "--finetuning-steps", "2", "--batch-size", "4", "--num-test", "8"]
    script.main(["--output", str(tmp_path / "runs"), "--labels", "10", "--seeds", "2", "--use-cpu", *steps])
    results = json.loads((tmp_path / "runs" / "results.json").read_text())["10"]
    assert len(results["scratch"]) == len(results["pretrained"]) == 2
    printed = capsys.readouterr().out
    assert "| labels | seeds | from scratch | pretrained | gain |" in printed and "| 10 | 2 |" in printed


def test_iou_beside_the_share_of_patches(tmp_path, capsys, monkeypatch):
    script = load("segmentation_iou")
    monkeypatch.setattr(script, "ARCHITECTURE", script.ARCHITECTURE | TINY)
    sizes = ["--size", "96", "--num-noise", "2", "--batch-size", "4", "--num-test", "4", "--steps", "2"]
    sizes.append("--use-cpu")
    script.main(
        [
            "--output",
            str(tmp_path / "runs"),
            "--selectors",
            "random",
            "--shares",
            "0.5",
            "--seeds",
            "1",
            *sizes,
        ]
    )
    assert json.loads((tmp_path / "runs" / "results.json").read_text()).keys() == {"all 1.0", "random 0.5"}
    printed = capsys.readouterr().out
    assert "| all | 100% | 1 |" in printed and "| random | 50% | 1 |" in printed


@pytest.mark.parametrize(
    ("name", "groups"),
    [
        (
            "pretrain_digits",
            [
                ArchitectureArguments,
                DataArguments,
                AugmentationArguments,
                PretrainingArguments,
                RunArguments,
            ],
        ),
        ("segment_digits", [ModelArguments, DataArguments, SegmentationArguments, RunArguments]),
    ],
)
def test_configurations_are_flags(name, groups):
    path = SCRIPTS / "configs" / f"{name}.yaml"
    flags = read_config(make_parser(groups, ""), str(path))
    assert {flag[2:] for flag in flags if flag.startswith("--")} == yaml.safe_load(path.read_text()).keys()


@pytest.mark.parametrize("name", ["pretrain", "segment"])
def test_what_is_wrong_ends_with_a_message(name, tmp_path):
    with pytest.raises(SystemExit, match=rf"{name}.py: there is no file or folder .*nowhere"):
        load(name).main(["--dataset", str(tmp_path / "nowhere"), "--output_dir", str(tmp_path / "run")])
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_accuracy_of_swin_by_the_size_of_objects(tmp_path, capsys, monkeypatch):
    script = load("swin_accuracy")
    tiny = {
        "ViT": {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    }
    tiny["Swin"] = {"embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2], "window_size": 4}
    for name, fields in tiny.items():
        monkeypatch.setitem(script.ARCHITECTURES[name]["config_overrides"], "initializer_range", 0.02)
        for field, value in fields.items():
            monkeypatch.setitem(script.ARCHITECTURES[name]["config_overrides"], field, value)
    numbers = [
        "--num-pretrain",
        "8",
        "--num-train",
        "8",
        "--num-test",
        "4",
        "--batch-size",
        "4",
        "--seeds",
        "1",
    ]
    sizes = ["--size", "64", "--digit-sizes", "14", "28", "--num-noise", "1", "--use-cpu"]
    results = script.main(["--output", str(tmp_path), "--selectors", "saliency", *numbers, *sizes])
    assert json.loads((tmp_path / "results.json").read_text()) == results
    by_windows = results["Swin, 25% of the windows by `saliency`"][0]
    assert by_windows["gflops"] < results["Swin, all windows"][0]["gflops"]
    assert "| digits of 14 px | digits of 28 px |" in capsys.readouterr().out
