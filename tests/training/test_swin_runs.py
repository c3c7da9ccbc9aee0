"""Swin, fine-tuned by the same run as a ViT."""

import json

import pytest
import torch
from transformers import (
    AutoModelForImageClassification,
    SwinConfig,
    SwinForImageClassification,
    ViTImageProcessor,
)

from tests.helpers.models import tiny_swin_config
from tests.helpers.runs import write_images
from tests.helpers.trainers import Interrupt, assert_same_weights
from vit_hf import AdaptiveSwinForImageClassification
from vit_hf.training.optimizer import layerwise_parameter_groups


SWIN = {"patch_size": 4, "embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2], "window_size": 4}
SCRATCH = {
    "model_type": "adaptive_swin",
    "config_overrides": {**SWIN, "initializer_range": 0.1},
    "num_selected_patches": 20,
}


@pytest.fixture
def stock(tmp_path):
    """A Swin of transformers with two classes, and its image processor."""
    torch.manual_seed(0)
    SwinForImageClassification(SwinConfig(image_size=32, **SWIN, num_labels=2)).save_pretrained(
        tmp_path / "stock"
    )
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path / "stock")
    return tmp_path / "stock"


def test_from_scratch_on_as_many_windows_as_have_the_patches(make_run, tmp_path):
    run = make_run(**SCRATCH)
    assert "2 windows of an image's first stage by variance" in run.describe()
    metrics = run.execute()
    assert metrics.keys() >= {"train_loss", "eval_accuracy"}
    model = AutoModelForImageClassification.from_pretrained(tmp_path / "run")
    assert type(model) is AdaptiveSwinForImageClassification
    # 20 patches lie in two windows of 16.
    assert (model.config.patch_selector, model.config.num_selected_windows) == ("variance", 2)


def test_a_stock_checkpoint_goes_on_with_a_new_head(make_run, stock, caplog):
    run = make_run(model_name_or_path=str(stock), config_overrides={}, num_selected_patches=0.5)
    model = run.trainer.model
    saved = SwinForImageClassification.from_pretrained(stock)
    assert model.config.num_labels == 3 and model.config.num_selected_windows == 0.5
    weight = model.swin.encoder.layers[0].blocks[0].mlp.fc1.weight
    assert torch.equal(weight, saved.swin.encoder.layers[0].blocks[0].mlp.fc1.weight)
    assert not caplog.records


def test_interrupted_run_ends_with_the_same_weights(make_run, tmp_path):
    options = {
        **SCRATCH,
        "keep_rate_schedule": True,
        "layer_decay": 0.7,
        "patch_selector": {"type": "variance", "exploration": 0.5},
        "save_strategy": "steps",
    }
    options |= {"save_steps": 2, "eval_strategy": "no"}
    whole = make_run("whole", **options)
    kept = []
    whole.trainer.model.register_forward_hook(
        lambda module, args, output: kept.append(output.selected_patches.shape[1])
    )
    whole.execute()
    run = make_run("parts", **options)
    run.trainer.add_callback(Interrupt(5))
    with pytest.raises(KeyboardInterrupt):
        run.execute()
    make_run("parts", **options).execute()
    assert_same_weights(tmp_path / "whole", tmp_path / "parts")
    # All 64 patches at first, those of two windows at the end.
    assert (kept[0], kept[-1]) == (64, 32)
    logged = json.loads((tmp_path / "parts" / "trainer_state.json").read_text())["log_history"]
    assert logged[0]["dense_fraction"] == 1


def test_images_of_mixed_sizes_one_at_a_time(make_run, tmp_path):
    for name, sizes in (("wide", ((32, 48), (40, 64))), ("tall", ((64, 40), (48, 32)))):
        for number, size in enumerate(sizes):
            write_images(tmp_path / "data" / name, 4, size=size)
            for file in (tmp_path / "data" / name).glob("?.png"):
                file.rename(file.with_stem(f"{file.stem}{number}"))
    mixed = {"dataset": tmp_path / "data", "native_resolution": True, "image_size": None, **SCRATCH}
    with pytest.raises(ValueError, match="a Swin takes them one at a time"):
        make_run(**mixed, per_device_train_batch_size=8)
    one = {
        "per_device_train_batch_size": 1,
        "per_device_eval_batch_size": 1,
        "gradient_accumulation_steps": 2,
    }
    run = make_run(**mixed, **one)
    assert run.execute()["train_loss"] > 0


def test_layers_of_learning_rates():
    model = AdaptiveSwinForImageClassification(tiny_swin_config(depths=[1, 2], num_heads=[2, 4]))
    groups = layerwise_parameter_groups(model, 1.0, layer_decay=0.5)
    names = {parameter: name for name, parameter in model.named_parameters()}
    rates = {names[parameter]: group["lr"] for group in groups for parameter in group["params"]}
    assert len(rates) == len(names)
    expected = {
        "classifier.weight": 1,
        "swin.layernorm.weight": 1,
        "swin.encoder.layers.1.blocks.1.mlp.fc1.weight": 1 / 2,
        "swin.encoder.layers.1.blocks.0.mlp.fc1.weight": 1 / 4,
        "swin.encoder.layers.0.downsample.reduction.weight": 1 / 8,
        "swin.encoder.layers.0.blocks.0.mlp.fc1.weight": 1 / 16,
        "swin.embeddings.patch_embeddings.projection.weight": 1 / 32,
    }
    assert {name: rates[name] for name in expected} == expected


@pytest.mark.parametrize(
    "options, message",
    [
        ({"return_patches": True}, "return_patches is not for Swin"),
        (
            {"token_reducer": "merge", "keep_rate": 0.5},
            "token_reducer='merge' is not for Swin: windows need",
        ),
        ({"patch_selector": "policy"}, "rewarded for one draw of patches"),
        (
            {"config_overrides": {"hidden_layers": 3}},
            "hidden_layers=3 is not for Swin: AdaptiveSwinConfig has no such",
        ),
        ({"model_type": "resnet"}, "choose one of adaptive_vit, adaptive_swin"),
    ],
)
def test_refusals(make_run, options, message):
    with pytest.raises(ValueError, match=message):
        make_run(**SCRATCH | options)


def test_a_checkpoint_of_another_family_than_was_named(make_run, stock):
    with pytest.raises(
        ValueError, match="of model_type adaptive_swin, not adaptive_vit: leave model_type out"
    ):
        make_run(model_name_or_path=str(stock), model_type="adaptive_vit", config_overrides={})
