"""The published protocol of Megapixel MNIST: its configuration, and `megapixel_protocol.py`."""

import json
import subprocess
import sys

import numpy as np
import pytest

from tests.helpers.scripts import EXPERIMENTS, load_experiment, read_flags
from vit_hf.arguments import AugmentationArguments, DataArguments, FinetuningArguments, ModelArguments
from vit_hf.training.arguments import RunArguments
from vit_hf.training.classification import Classification
from vit_hf.training.task import prepare


@pytest.mark.parametrize("task", ["majority", "max", "top", "multi"])
def test_configuration(task, tmp_path):
    """Canvases of the published size arrive as 100 patches of 900, with all of the digits on them."""
    groups = [ModelArguments, DataArguments, AugmentationArguments, FinetuningArguments, RunArguments]
    options = {"task": task, "size": 1500, "num_train": 4, "num_test": 2}
    flags = ["--dataset_options", json.dumps(options), "--output_dir", str(tmp_path / "run"), "--use_cpu"]
    argv = ["--config", "megapixel_protocol", *flags]
    *arguments, training = read_flags(groups, argv)
    run = prepare(Classification(*arguments), training)
    assert run.task.data.splits.keys() == {"train", "test"} and len(run.task.data.splits["train"]) == 4
    problem = "multi_label_classification" if task == "multi" else "single_label_classification"
    assert run.trainer.model.config.problem_type == problem and run.task.data.num_labels == 10
    example = run.trainer.train_dataset[0]
    batch = run.trainer.data_collator([example])
    assert batch["pixel_values"].shape == (1, 100, 50 * 50) and batch["spatial_shapes"].tolist() == [[30, 30]]
    ink = (batch["pixel_values"] + 1).sum() / 2
    assert ink > 0.9 * (np.asarray(example["image"]) / 255).sum()


def test_refuses_a_size_whose_ninth_is_no_square(capsys):
    with pytest.raises(SystemExit):
        load_experiment("megapixel_protocol").main(["--size", "500"])
    assert (
        "--size is 500; a ninth of its patches is a square grid for multiples of 150"
        in capsys.readouterr().err
    )


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_learns_on_selected_patches_and_not_on_random_ones(tmp_path):
    arms = ["entropy", "random"]
    flags = ["--arms", *arms, "--seeds", "0", "--num-test", "300", "--output", tmp_path]
    result = subprocess.run(
        [sys.executable, EXPERIMENTS / "megapixel_protocol.py", *flags], capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    runs = {arm: json.loads((tmp_path / f"majority_{arm}_0" / "measured.json").read_text()) for arm in arms}
    entropy, random = (runs[arm]["metrics"]["test_accuracy"] for arm in arms)
    # Chance is 10 %.
    assert entropy > 0.35 and entropy > random + 0.15
    assert f"| entropy | 1 | {100 * entropy:.1f} |" in result.stdout
    assert all(run["memory_mib"] > 0 and run["cpu_s"] > 0 for run in runs.values())
