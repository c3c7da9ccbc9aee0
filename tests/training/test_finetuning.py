import json
import logging

import numpy as np
import PIL.Image
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoImageProcessor,
    AutoModelForImageClassification,
    ViTConfig,
    ViTForImageClassification,
)

from tests.helpers.runs import CLASSES, MODEL, write_images
from tests.helpers.trainers import Interrupt, assert_same_weights
from vit_hf.training.output_dir import RUN_ARGUMENTS_NAME


EVERYTHING = {
    "num_train_epochs": 3,
    "random_crop": "resized",
    "horizontal_flip": 0.5,
    "rand_augment": 9,
    "mixup_alpha": 0.2,
    "cutmix_alpha": 1.0,
    "label_smoothing_factor": 0.1,
    "ema_decay": 0.9,
    "keep_rate_schedule": True,
    "layer_decay": 0.8,
    "weight_decay": 0.05,
    "eval_strategy": "steps",
    "eval_steps": 3,
    "save_strategy": "steps",
    "save_steps": 3,
}

LEARNED = {
    "patch_selector": {"type": "policy", "hidden_size": 8},
    "token_reducer": "gumbel",
    "keep_rate": 0.5,
    "reduction_layers": [1],
    "freeze_backbone_ratio": 0.4,
    "backbone_lr_factor": 0.1,
}


def interrupt(run, step):
    run.trainer.add_callback(Interrupt(step))
    with pytest.raises(KeyboardInterrupt):
        run.execute()


def test_saves_a_model_that_loads_with_its_names_and_results(make_run, tmp_path):
    run = make_run()
    assert "9 train, 3 validation images; 3 classes" in run.describe()
    assert "2 patches of an image by variance" in run.describe()
    metrics = run.execute()
    folder = tmp_path / "run"
    model = AutoModelForImageClassification.from_pretrained(folder)
    assert model.config.id2label == dict(enumerate(CLASSES))
    assert (model.config.patch_selector, model.config.num_selected_patches) == ("variance", 2)
    assert AutoImageProcessor.from_pretrained(folder).size == {"height": 32, "width": 32}
    saved = json.loads((folder / "all_results.json").read_text())
    assert saved.keys() == metrics.keys() >= {"train_loss", "eval_loss", "eval_accuracy", "eval_f1"}
    assert json.loads((folder / RUN_ARGUMENTS_NAME).read_text())["num_selected_patches"] == 2


def test_learns(make_run, tmp_path):
    for name, brightness in (("dark", 0), ("light", 150)):
        write_images(tmp_path / "data" / name, 8)
        for file in (tmp_path / "data" / name).iterdir():
            pixels = np.array(PIL.Image.open(file)) // 4 + brightness
            PIL.Image.fromarray(pixels.astype(np.uint8)).save(file)
    metrics = make_run(
        dataset=tmp_path / "data", num_train_epochs=6, learning_rate=1e-3, patch_selector="random"
    ).execute()
    assert metrics["eval_accuracy"] == 1
    assert metrics["train_loss"] < 0.5


@pytest.mark.parametrize(
    "options, steps",
    [
        ({}, (5, 10)),
        ({"gradient_accumulation_steps": 2, "eval_steps": 1, "save_steps": 1}, (2, 5)),
        (LEARNED, (5, 10)),
    ],
    ids=["plain", "accumulating", "learned"],
)
def test_interrupted_runs_end_with_the_same_weights(make_run, tmp_path, options, steps):
    make_run("whole", **EVERYTHING | options).execute()
    interrupt(make_run("parts", **EVERYTHING | options), step=steps[0])
    torch.rand(11)
    run = make_run("parts", **EVERYTHING | options)
    assert "resumes from" in run.describe()
    interrupt(run, step=steps[1])
    # One that was killed as it wrote a checkpoint leaves this.
    (tmp_path / "parts" / "checkpoint-999").mkdir()
    make_run("parts", **EVERYTHING | options).execute()
    assert_same_weights(tmp_path / "whole", tmp_path / "parts")
    assert (tmp_path / "parts" / "_incomplete-checkpoint-999").is_dir()


def test_workers_change_nothing(make_run, tmp_path):
    make_run("none", **EVERYTHING).execute()
    options = EVERYTHING | {"dataloader_num_workers": 1, "dataloader_persistent_workers": True}
    make_run("some", **options).execute()
    assert_same_weights(tmp_path / "none", tmp_path / "some")
    interrupt(make_run("parts", **options), step=5)
    make_run("parts", **options).execute()
    assert_same_weights(tmp_path / "none", tmp_path / "parts")


def test_seed_decides(make_run, tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        make_run(name, **EVERYTHING | {"seed": seed, "num_train_epochs": 1, "save_strategy": "no"}).execute()
    assert_same_weights(tmp_path / "a", tmp_path / "b")
    with pytest.raises(AssertionError):
        assert_same_weights(tmp_path / "a", tmp_path / "c")


def test_a_finished_run_is_evaluated_again_and_keeps_its_results(make_run, tmp_path):
    first = make_run().execute()
    again = make_run().execute()
    assert again["eval_loss"] == first["eval_loss"]
    assert "train_loss" not in again
    assert (
        json.loads((tmp_path / "run" / "all_results.json").read_text())["train_loss"] == first["train_loss"]
    )


def test_overwrite_output_dir_puts_the_earlier_run_aside(make_run, tmp_path):
    make_run().execute()
    before = (tmp_path / "run" / "model.safetensors").read_bytes()
    run = make_run(overwrite_output_dir=True, seed=3)
    assert run.checkpoint is None
    run.execute()
    assert (tmp_path / "run-previous-1" / "model.safetensors").read_bytes() == before
    assert (tmp_path / "run" / "model.safetensors").read_bytes() != before


def test_test_split_is_measured_at_the_end(make_run, tmp_path):
    for split, number in {"train": 4, "val": 2, "test": 2}.items():
        for name in ("a", "b"):
            write_images(tmp_path / "data" / split / name, number)
    metrics = make_run(dataset=tmp_path / "data", num_train_epochs=1).execute()
    assert {"eval_accuracy", "test_accuracy"} <= metrics.keys()


@pytest.mark.parametrize("task, metric", [("multi", "eval_exact_match"), ("majority", "eval_accuracy")])
def test_megapixel_digits_in_patches(make_run, task, metric):
    options = {"size": 64, "task": task, "noise": None, "num_train": 30, "num_test": 4, "digit_size": 12}
    metrics = make_run(
        dataset="megapixel_digits",
        dataset_options=options,
        image_size=None,
        native_resolution=True,
        return_patches=True,
        num_selected_patches=4,
        num_train_epochs=1,
    ).execute()
    assert metric in metrics


def test_images_of_mixed_sizes_in_patches(make_run, tmp_path):
    write_images(tmp_path / "data" / "a", 4, size=(32, 80))
    write_images(tmp_path / "data" / "b", 4, size=(64, 48))
    options = {"dataset": tmp_path / "data", "image_size": None, "longest_edge": 64, "num_train_epochs": 1}
    run = make_run(return_patches=True, num_selected_patches=0.5, **options)
    assert run.trainer.processing_class.patch_selector == "variance"
    assert "eval_accuracy" in run.execute()
    # Patches that the loader has dropped could not come back.
    run = make_run("other", return_patches=True, num_selected_patches=3, keep_rate_schedule=True, **options)
    assert run.trainer.processing_class.patch_selector is None
    run.execute()


def test_regression(make_run, tmp_path):
    write_images(tmp_path / "data", 8)
    lines = ["file_name,height", *(f"{index}.png,{index / 8}" for index in range(8))]
    (tmp_path / "data" / "metadata.csv").write_text("\n".join(lines))
    run = make_run(dataset=tmp_path / "data", num_train_epochs=1)
    assert "regression" in run.describe()
    assert run.trainer.args.greater_is_better is False
    assert run.execute().keys() >= {"eval_mse", "eval_loss"}


@pytest.fixture
def stock_checkpoint(tmp_path):
    config = ViTConfig(**MODEL, image_size=48, num_labels=7)
    ViTForImageClassification(config).save_pretrained(tmp_path / "stock")
    return tmp_path / "stock"


@pytest.fixture(autouse=True)
def propagate_logs(monkeypatch):
    # transformers' loggers keep their records from pytest's.
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)


def test_a_stock_checkpoint_gets_a_new_head_and_keeps_the_rest(make_run, stock_checkpoint, caplog):
    run = make_run(model_name_or_path=str(stock_checkpoint), config_overrides={"hidden_dropout_prob": 0.2})
    assert caplog.text == ""
    model = run.trainer.model
    stock = ViTForImageClassification.from_pretrained(stock_checkpoint)
    weight = "layers.1.mlp.fc1.weight"
    assert torch.equal(model.vit.get_parameter(weight), stock.vit.get_parameter(weight))
    assert model.classifier.weight.shape == (3, 32)
    assert model.config.hidden_dropout_prob == 0.2
    # The native grid is the checkpoint's; images come at the size asked for.
    assert model.config.image_size == 48
    assert run.trainer.processing_class.size == {"height": 32, "width": 32}
    run.execute()


def test_what_a_checkpoint_lacks_is_said(make_run, stock_checkpoint, caplog):
    make_run(model_name_or_path=str(stock_checkpoint), config_overrides={"num_register_tokens": 2})
    assert "initialized at random: vit.embeddings.register_tokens." in caplog.text


def test_refuses_a_checkpoint_of_another_width(make_run, stock_checkpoint):
    with pytest.raises(ValueError, match=r"stock does not fit: vit\..* has the shape"):
        make_run(model_name_or_path=str(stock_checkpoint), config_overrides={"intermediate_size": 48})


def test_own_checkpoint_goes_on_with_its_image_processor(make_run, tmp_path):
    make_run("first", return_patches=True).execute()
    run = make_run(
        "second", model_name_or_path=str(tmp_path / "first"), config_overrides=None, image_size=None
    )
    assert run.trainer.processing_class.return_patches
    assert run.trainer.processing_class.size == {"height": 32, "width": 32}
    first = load_file(tmp_path / "first" / "model.safetensors")
    assert torch.equal(run.trainer.model.classifier.weight, first["classifier.weight"])


@pytest.mark.parametrize(
    "arguments, error, message",
    [
        ({"patch_selector": "psychic"}, ValueError, "'psychic' is unknown. Choose one of"),
        ({"num_selected_patches": 99}, ValueError, "num_selected_patches=99 does not fit"),
        ({"config_overrides": {"hiden_size": 8}}, ValueError, "no field hiden_size"),
        ({"model_name_or_path": "./nowhere"}, FileNotFoundError, "there is no folder ./nowhere"),
        ({"dataset": "./nowhere"}, FileNotFoundError, "there is no file or folder"),
        ({"validation_fraction": 0.0}, ValueError, "there is no validation split"),
        ({"layer_decay": 2.0}, ValueError, "layer_decay is 2.0"),
        ({"ema_decay": 1.0}, ValueError, "ema_decay.* is 1.0"),
        ({"keep_rate_schedule": True, "keep_rate_warmup": 0.9}, ValueError, "add up to more"),
        ({"mixup_alpha": 0.5, "return_patches": True}, ValueError, "return_patches cuts them before"),
        (
            {"random_crop": "resized", "image_size": None, "native_resolution": True},
            ValueError,
            "use random_crop='plain'",
        ),
    ],
)
def test_what_is_wrong_is_found_before_anything_is_written(make_run, tmp_path, arguments, error, message):
    make_run(num_train_epochs=1).execute()
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "run").rglob("*")}
    with pytest.raises(error, match=message):
        make_run(overwrite_output_dir=True, **arguments)
    assert {file: file.stat().st_mtime_ns for file in (tmp_path / "run").rglob("*")} == before
    assert not (tmp_path / "run-previous-1").exists()


def test_refuses_to_resume_another_model_or_method(make_run, tmp_path):
    make_run(num_train_epochs=1, ema_decay=0.9).execute()
    with pytest.raises(ValueError, match=r"num_selected_patches was 2 and is 3.*set overwrite_output_dir"):
        make_run(num_train_epochs=2, ema_decay=0.9, num_selected_patches=3)
    with pytest.raises(ValueError, match="belongs to a run with ema_decay"):
        make_run(num_train_epochs=2)
    with pytest.raises(FileExistsError, match="holds no run"):
        make_run(output_dir="..")


def test_refuses_a_checkpoint_whose_weights_it_would_not_find(make_run, tmp_path):
    make_run(num_train_epochs=1).execute()
    for file in (tmp_path / "run").glob("checkpoint-*/model.safetensors"):
        save_file({f"wrapped.{name}": value for name, value in load_file(file).items()}, file)
    with pytest.raises(ValueError, match="lacks classifier"):
        make_run(num_train_epochs=2)


def test_refuses_a_finished_model_without_checkpoints(make_run):
    make_run(save_strategy="no").execute()
    with pytest.raises(FileExistsError, match="a finished model and no checkpoint"):
        make_run()


def test_tensorboard_only_if_asked_for(make_run, tmp_path):
    make_run(num_train_epochs=1).execute()
    assert not list((tmp_path / "run").rglob("*tfevents*"))
    make_run("logged", num_train_epochs=1, report_to="tensorboard", keep_rate_schedule=True).execute()
    # One file of training, one of the evaluation after it.
    events = [file.read_bytes() for file in (tmp_path / "logged").rglob("*tfevents*")]
    assert any(b"dense_fraction" in content for content in events)
