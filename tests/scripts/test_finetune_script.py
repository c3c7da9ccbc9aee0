"""The scripts a user runs one after the other: fine-tune, evaluate, predict."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import PIL.Image
import psutil
import pytest
import torch
import yaml
from transformers import (
    AutoModelForImageClassification,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
)

from tests.helpers.models import tiny_config
from tests.helpers.runs import CLASSES, MODEL, write_images
from tests.helpers.scripts import SCRIPTS, command, flag_parser
from vit_hf import AdaptiveViTConfig, AdaptiveViTForImageClassification, AdaptiveViTImageProcessor
from vit_hf.arguments import (
    TASKS,
    ArchitectureArguments,
    AugmentationArguments,
    DataArguments,
    DetectionArguments,
    FinetuningArguments,
    ModelArguments,
    PretrainingArguments,
    SearchArguments,
    SegmentationArguments,
)
from vit_hf.checkpoints.loading import load_classifier
from vit_hf.cli.parsing import CONFIGS, read_config
from vit_hf.training.arguments import RunArguments


script = command


@pytest.fixture
def config(image_folder, tmp_path):
    """A configuration file of a short run on noise, with everything on."""
    entries = {
        "dataset": str(image_folder),
        "validation_fraction": 0.3,
        "output_dir": str(tmp_path / "run"),
        "config_overrides": MODEL,
        "image_size": 32,
        "patch_selector": "variance",
        "num_selected_patches": 2,
        "keep_rate_schedule": True,
        "random_crop": "resized",
        "rand_augment": 9,
        "mixup_alpha": 0.2,
        "ema_decay": 0.9,
        "num_train_epochs": 2,
        "per_device_train_batch_size": 2,
        "learning_rate": "1e-2",
        "use_cpu": True,
        "disable_tqdm": True,
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(entries))
    return str(tmp_path / "config.yaml")


def test_finetune_evaluate_predict(config, image_folder, tmp_path, capsys):
    script("finetune")([config, "--num_train_epochs", "1"])
    printed = capsys.readouterr().out
    assert "9 train, 3 validation images; 3 classes" in printed
    assert "eval_accuracy" in printed
    assert f"\nSaved to {tmp_path / 'run'}\nLearning curves: " in printed
    assert f"  vit-hf explain --model_name_or_path {tmp_path / 'run'} --images {image_folder}" in printed

    run = str(tmp_path / "run")
    expected = json.loads((tmp_path / "run" / "all_results.json").read_text())["eval_accuracy"]
    common = ["--model_name_or_path", run, "--dataset", str(image_folder), "--use_cpu"]
    script("evaluate")([*common, "--split", "validation", "--validation_fraction", "0.3"])
    metrics = json.loads((tmp_path / "run" / "evaluation_validation.json").read_text())
    assert metrics["validation_accuracy"] == expected
    assert "validation_accuracy" in capsys.readouterr().out

    output = tmp_path / "results" / "all.json"
    script("evaluate")([*common, "--num_selected_patches", "1.0", "--output", str(output)])
    assert json.loads(output.read_text()).keys() >= {"train_accuracy", "train_f1", "train_loss"}
    assert f"Saved to {output}" in capsys.readouterr().out

    assert (
        script("predict")([str(image_folder), "--model_name_or_path", run, "--with_patches", "--use_cpu"])
        == 0
    )
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["file"] for line in lines] == sorted(map(str, image_folder.rglob("*.png")))
    for line in lines:
        assert line["label"] in CLASSES
        assert line["label"] == line["top_k"][0]["label"]
        assert sum(entry["score"] for entry in line["top_k"]) == pytest.approx(1, abs=1e-4)
        assert len(line["selected_patches"]) == 2
        assert line["grid"] == [2, 2]


@pytest.mark.parametrize(
    "flags, message",
    [
        ("--patch_selector psychic", "vit-hf finetune: patch_selector='psychic' is unknown"),
        ("--dataset ./nowhere", "vit-hf finetune: there is no file or folder nowhere"),
    ],
)
def test_finetune_says_what_is_wrong_in_a_line(config, flags, message, tmp_path):
    with pytest.raises(SystemExit) as exit:
        script("finetune")([config, *flags.split()])
    assert str(exit.value.code).startswith(message)
    assert not (tmp_path / "run").exists()


@pytest.fixture
def stock_checkpoint(tmp_path):
    model = ViTForImageClassification(ViTConfig(**MODEL, image_size=32, num_labels=3))
    model.config.id2label = {0: "ant", 1: "bird", 2: "cat"}
    model.config.label2id = {"ant": 0, "bird": 1, "cat": 2}
    model.save_pretrained(tmp_path / "stock")
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path / "stock")
    return str(tmp_path / "stock")


def test_evaluate_matches_labels_by_name(stock_checkpoint, tmp_path):
    write_images(tmp_path / "data" / "bird", 4)
    write_images(tmp_path / "data" / "cat", 4)
    model = AutoModelForImageClassification.from_pretrained(stock_checkpoint)
    # always "cat": with labels numbered as the data's, that would be no class at all
    model.classifier.bias.data = model.classifier.bias.new_tensor([0, 0, 100])
    model.save_pretrained(stock_checkpoint)
    output = tmp_path / "metrics.json"
    flags = ["--model_name_or_path", stock_checkpoint, "--dataset", str(tmp_path / "data"), "--use_cpu"]
    script("evaluate")([*flags, "--output", str(output)])
    assert json.loads(output.read_text())["train_accuracy"] == 0.5
    # A stock ViT learns to select.
    script("evaluate")(
        [*flags, "--output", str(output), "--patch_selector", "random", "--num_selected_patches", "2"]
    )
    assert json.loads(output.read_text())["train_accuracy"] == 0.5


def test_evaluate_with_fewer_tokens(stock_checkpoint, tmp_path):
    write_images(tmp_path / "data" / "bird", 4)
    write_images(tmp_path / "data" / "cat", 4)
    flags = ["--model_name_or_path", stock_checkpoint, "--dataset", str(tmp_path / "data"), "--use_cpu"]
    losses = []
    for reduction in ("", "--keep_rate 1.0", "--keep_rate 0.25"):
        also = ["--output", str(tmp_path / "metrics.json"), *reduction.split()]
        if reduction:
            also += ["--token_reducer", "attentive", "--reduction_layers", "0"]
        script("evaluate")([*flags, *also])
        losses.append(json.loads((tmp_path / "metrics.json").read_text())["train_loss"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert losses[0] != pytest.approx(losses[2], rel=1e-5)


def test_selection_and_resolution_may_be_taken_away(tmp_path):
    fields = {"patch_selector": "variance", "token_reducer": "attentive", "keep_rate": 0.5}
    model = AdaptiveViTForImageClassification(tiny_config(**fields, reduction_layers=[1]))
    model.save_pretrained(tmp_path)
    AdaptiveViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path)
    image = PIL.Image.new("RGB", (64, 48), "grey")
    for asked, entered, left in [
        ({}, 6, 4),
        ({"token_reducer": "none"}, 6, 6),
        ({"patch_selector": "none"}, 16, 9),
        ({"patch_selector": "none", "token_reducer": "none"}, 16, 16),
        ({"patch_selector": "none", "resolution": "native"}, 48, 25),
        ({"patch_selector": "none", "resolution": 64}, 64, 33),
    ]:
        model, processor = load_classifier(str(tmp_path), **asked)
        output = model(**processor(image, return_tensors="pt"))
        assert (output.selected_patches.shape[1], output.token_coordinates.shape[1]) == (entered, left)
    with pytest.raises(ValueError, match="'merge' keeps every token: set keep_rate"):
        model.config.keep_rate = 1.0
        model.save_pretrained(tmp_path)
        load_classifier(str(tmp_path), token_reducer="merge")


def test_a_stock_checkpoint_may_see_whole_images(stock_checkpoint, tmp_path, capsys):
    write_images(tmp_path / "data" / "bird", 1)
    flags = [str(tmp_path / "data"), "--model_name_or_path", stock_checkpoint, "--use_cpu", "--with_patches"]
    assert script("predict")([*flags, "--native_resolution"]) == 0
    width, height = PIL.Image.open(next((tmp_path / "data" / "bird").iterdir())).size
    patch = AutoModelForImageClassification.from_pretrained(stock_checkpoint).config.patch_size
    assert json.loads(capsys.readouterr().out)["grid"] == [height // patch, width // patch]


def test_a_number_and_a_keep_rate_take_turns(tmp_path):
    """Whichever is asked for holds, whatever the checkpoint says."""
    fields = {"token_reducer": {"type": "merge", "r": 2}, "reduction_layers": [0, 1]}
    AdaptiveViTForImageClassification(tiny_config(**fields)).save_pretrained(tmp_path)
    AdaptiveViTImageProcessor().save_pretrained(tmp_path)
    images = torch.randn(1, 3, 32, 32)  # 16 patches
    for asked, left in [
        ({}, 12),
        ({"token_reducer": {"type": "merge", "r": 3}}, 10),
        ({"token_reducer": "merge"}, 12),
        ({"token_reducer": "merge", "keep_rate": 0.5}, 4),
        ({"keep_rate": 0.5}, 4),
        ({"token_reducer": "attentive", "keep_rate": 0.5}, 6),  # one that is fused each time
    ]:
        model, _ = load_classifier(str(tmp_path), **asked)
        assert model(images).token_coordinates.shape[1] == left
    model.save_pretrained(tmp_path)
    model, _ = load_classifier(str(tmp_path), token_reducer={"type": "merge", "r": 2})
    assert model(images).token_coordinates.shape[1] == 12


def test_predict_computes_on_what_it_is_told(stock_checkpoint, tmp_path, capsys):
    write_images(tmp_path / "data" / "bird", 1)
    flags = [str(tmp_path / "data"), "--model_name_or_path", stock_checkpoint, "--use_cpu"]
    answers = []
    for selection in ("", "--patch_selector variance --num_selected_patches 3 --with_patches"):
        assert script("predict")([*flags, *selection.split()]) == 0
        answers.append(json.loads(capsys.readouterr().out))
    dense, few = answers
    rows, columns = few["grid"]
    assert len(few["selected_patches"]) == 3 < rows * columns
    assert few["score"] != dense["score"]


@pytest.mark.parametrize(
    "flags, message",
    [
        ("--dataset {data}", "the model has no class 'dog'"),
        ("--dataset {data} --split test --label_column x", "no label column 'x'"),
        ("--dataset {images} --split test", "the model has no class 'train-station'"),
        ("--dataset {data} --patch_selector psychic --num_selected_patches 2", "'psychic' is unknown"),
        ("--dataset {data} --model_name_or_path ./nowhere", "there is no folder ./nowhere"),
        ("--dataset {data} --keep_rate 0.5", "keep_rate=0.5 needs a token_reducer"),
        (
            "--dataset {data} --token_reducer gumbel --reduction_layers 1",
            "token_reducer='gumbel' is learned, in fine-tuning, and",
        ),
        ("--dataset {data} --patch_selector policy --num_selected_patches 2", "is learned, in fine-tuning"),
    ],
)
def test_evaluate_says_what_is_wrong(stock_checkpoint, image_folder, tmp_path, flags, message):
    for name in ("ant", "dog"):
        write_images(tmp_path / "data" / name, 2)
    flags = flags.format(data=tmp_path / "data", images=image_folder).split()
    with pytest.raises(SystemExit) as exit:
        script("evaluate")(["--model_name_or_path", stock_checkpoint, *flags])
    assert message in str(exit.value.code)


def test_predict_goes_on_past_damaged_files(stock_checkpoint, tmp_path, capsys):
    write_images(tmp_path / "mixed", 4)
    write_images(tmp_path / "mixed" / "large", 1, size=(90, 60))
    damaged = tmp_path / "mixed" / "1.png"
    damaged.write_bytes(damaged.read_bytes()[:300])
    (tmp_path / "mixed" / "2.png").write_bytes(b"")
    PIL.Image.new("RGBA", (10, 300)).save(tmp_path / "mixed" / "3.png")
    inputs = [str(tmp_path / "mixed"), str(tmp_path / "missing.png")]
    output = tmp_path / "labels.jsonl"
    flags = ["--model_name_or_path", stock_checkpoint, "--batch_size", "3", "--top_k", "2", "--use_cpu"]
    assert script("predict")([*inputs, *flags, "--output", str(output)]) == 1
    lines = [json.loads(line) for line in output.read_text().splitlines()]
    assert [Path(line["file"]).relative_to(tmp_path / "mixed").as_posix() for line in lines] == [
        "0.png",
        "3.png",
        "large/0.png",
    ]
    assert all(len(line["top_k"]) == 2 for line in lines)
    errors = capsys.readouterr().err
    for name in ("1.png", "2.png", "missing.png"):
        assert f"{name}'" in errors
    assert "3 of 6 files could not be used" in errors


def test_predict_says_what_a_folder_has_beside_images(stock_checkpoint, tmp_path, capsys):
    write_images(tmp_path / "mixed[1]", 1)
    for name in (".hidden.png", "notes.txt"):
        (tmp_path / "mixed[1]" / name).write_text("x")
    np.save(tmp_path / "mixed[1]" / "array.npy", np.zeros((64, 64, 3), np.uint8))
    flags = [str(tmp_path / "mixed[1]"), "--model_name_or_path", stock_checkpoint, "--use_cpu"]
    assert script("predict")(flags) == 0
    captured = capsys.readouterr()
    assert len(captured.out.splitlines()) == 1
    for part in (
        "1 image of a kind that only vit-hf predict --tile reads (array.npy)",
        "(.hidden.png)",
        "(notes.txt)",
    ):
        assert part in captured.err
    assert script("predict")([*flags, "--tile", "32"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2
    assert script("predict")([str(tmp_path / "mixed[1]" / "array.npy"), *flags[1:]]) == 0
    (tmp_path / "cut.npy").write_bytes(b"x")
    assert script("predict")([str(tmp_path / "cut.npy"), *flags[1:]]) == 1
    assert "Set tile to read it by regions" in capsys.readouterr().err


def test_predict_isolates_the_image_that_does_not_fit(tmp_path, capsys):
    from tests.helpers.models import tiny_config
    from vit_hf import AdaptiveViTForImageClassification, AdaptiveViTImageProcessor

    config = tiny_config(
        patch_selector="variance", num_selected_patches=6, num_labels=1, problem_type="regression"
    )
    AdaptiveViTForImageClassification(config).save_pretrained(tmp_path / "model")
    AdaptiveViTImageProcessor(do_resize=False, patch_size=8).save_pretrained(tmp_path / "model")
    write_images(tmp_path / "data" / "a", 2, size=(32, 32))
    write_images(tmp_path / "data" / "b", 1, size=(4, 4))  # less than a patch
    write_images(tmp_path / "data" / "c", 1, size=(16, 16))  # fewer than six patches
    write_images(tmp_path / "data" / "d", 1, size=(40, 24))
    assert (
        script("predict")(
            [str(tmp_path / "data"), "--model_name_or_path", str(tmp_path / "model"), "--use_cpu"]
        )
        == 1
    )
    captured = capsys.readouterr()
    lines = [json.loads(line) for line in captured.out.splitlines()]
    assert [Path(line["file"]).parent.name for line in lines] == ["a", "a", "d"]
    assert all(isinstance(line["value"], float) for line in lines)
    assert "b/0.png: " in captured.err
    assert "num_selected_patches=6 does not fit" in captured.err


@pytest.mark.parametrize(
    "flags, message",
    [
        ("{empty} --model_name_or_path {model}", "no image in the folder"),
        ("x.png --model_name_or_path ./nowhere", "there is no folder ./nowhere"),
        (
            "x.png --model_name_or_path {model} --with_patches",
            "does not output selected_patches: leave with_patches out",
        ),
        ("x.png --model_name_or_path {model} --top_k 0", "top_k is 0"),
        ("x.png --model_name_or_path {model} --output {empty}/no/such/file", "No such file"),
        ("--model_name_or_path {model}", "INPUT"),
    ],
)
def test_predict_says_what_is_wrong(stock_checkpoint, tmp_path, flags, message, capsys):
    (tmp_path / "empty").mkdir()
    with pytest.raises(SystemExit) as exit:
        script("predict")(flags.format(empty=tmp_path / "empty", model=stock_checkpoint).split())
    assert exit.value.code == 2
    assert message in capsys.readouterr().err


EXAMPLES = sorted(set(CONFIGS.glob("*.yaml")) - set(CONFIGS.glob("accelerate_*.yaml")))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_example_configurations_are_valid(path):
    # The command that a configuration's name begins with, or finetune.
    finetune = [ModelArguments, DataArguments, AugmentationArguments, FinetuningArguments]
    groups = {
        "pretrain": [ArchitectureArguments, DataArguments, AugmentationArguments, PretrainingArguments],
        "segment": [ModelArguments, DataArguments, SegmentationArguments],
        "distill": list(TASKS["distill"]),
        "detect": [ModelArguments, DataArguments, DetectionArguments],
        "search": [*finetune, SearchArguments],
    }.get(path.name.partition("_")[0], finetune)
    parser = flag_parser([*groups, RunArguments])
    arguments = parser.parse_args_into_dataclasses([*read_config(parser, str(path)), "--bf16", "false"])
    AdaptiveViTConfig(**arguments[0].config_fields())


@pytest.mark.parametrize(
    "name, flags, said, first",
    [
        ("policy", "--image_size 32 --num_selected_patches 2", "2 patches of an image by policy", 0.5),
        (
            "token_reduction",
            "--reduction_layers 1",
            "all patches; attentive keeps 70.0% of the tokens in each of the blocks 1",
            1.0,
        ),
    ],
)
def test_example_configurations_run(
    name,
    flags,
    said,
    first,
    image_folder,
    stock_checkpoint,
    tmp_path,
    capsys,
):
    flags = [*flags.split(), "--model_name_or_path", stock_checkpoint, "--output_dir", str(tmp_path / "run")]
    flags += ["--dataset", str(image_folder), "--validation_fraction", "0.3", "--num_train_epochs", "3"]
    flags += [
        "--per_device_train_batch_size",
        "2",
        "--gradient_accumulation_steps",
        "1",
        "--logging_steps",
        "1",
    ]
    flags += ["--dataloader_num_workers", "0", "--bf16", "false", "--use_cpu", "--disable_tqdm", "true"]
    script("finetune")(["--config", name, *flags])
    assert said in capsys.readouterr().out
    state = json.loads((tmp_path / "run" / "trainer_state.json").read_text())
    dense_fractions = [entry["dense_fraction"] for entry in state["log_history"] if "loss" in entry]
    assert dense_fractions[0] == pytest.approx(first, abs=0.01)
    assert dense_fractions[-1] == 0


def test_finetune_says_where_numbers_stop_being_finite(config, tmp_path, capsys):
    with pytest.raises(SystemExit) as exit:
        script("finetune")([config, "--learning_rate", "1e30", "--max_grad_norm", "0", "--warmup_steps", "2"])
    text = str(exit.value.code)
    assert "vit-hf finetune: Step " in text
    assert "a lower learning_rate (now 1e+30)" in text


def run_finetune(*argv, processes=1, **options):
    command = [sys.executable]
    if processes > 1:
        command += ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [*command, str(SCRIPTS / "finetune.py"), *argv],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        **options,
    )


def complain(output):
    """Lines of a run that look like a warning, but for one about the speed of this machine's file system."""
    lines = output.splitlines()
    return [
        line for line in lines if "warn" in line.lower() or ("[transformers]" in line and "mtime" not in line)
    ]


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_a_killed_run_ends_with_the_same_weights(config, tmp_path, processes):
    flags = ["--num_train_epochs", "30", "--save_strategy", "steps", "--eval_strategy", "steps"]
    flags += ["--save_steps", "7", "--eval_steps", "7"]
    whole = run_finetune(config, *flags, "--output_dir", str(tmp_path / "whole"), processes=processes)
    output, _ = whole.communicate(timeout=250)
    assert whole.returncode == 0, output
    assert complain(output) == []
    # The first process tells, and no other.
    assert output.count("9 train, 3 validation images") == output.count("Saved to") == 1

    parts = tmp_path / "parts"
    for step in (14, 42):
        process = run_finetune(config, *flags, "--output_dir", str(parts), processes=processes)
        while process.poll() is None and not any(
            int(folder.name.split("-")[1]) >= step for folder in parts.glob("checkpoint-*")
        ):
            time.sleep(0.01)
        # Workers of torchrun have process groups of their own.
        for child in psutil.Process(process.pid).children(recursive=True):
            child.kill()
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    process = run_finetune(config, *flags, "--output_dir", str(parts), processes=processes)
    output, _ = process.communicate(timeout=250)
    assert process.returncode == 0, output
    assert "resumes from" in output
    assert (tmp_path / "whole" / "model.safetensors").read_bytes() == (
        parts / "model.safetensors"
    ).read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize(
    "flags",
    [
        "",
        "--patch_selector policy --token_reducer gumbel --keep_rate 0.5 --reduction_layers 1 "
        "--freeze_backbone_ratio 0.5 "
        "--backbone_lr_factor 0.1",
    ],
    ids=["plain", "learned"],
)
def test_accelerate_launches_it(config, tmp_path, flags):
    command = ["-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2"]
    result = subprocess.run(
        [sys.executable, *command, str(SCRIPTS / "finetune.py"), config, *flags.split()],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=250,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("Saved to") == 1
    assert (tmp_path / "run" / "all_results.json").is_file()
