"""Sparse self-distillation: losses, runs that resume, adapters, and the guard against collapse."""

import contextlib
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForImageClassification

from tests.helpers.models import cut, stock, tiny_config, tiny_selector
from tests.helpers.runs import write_images
from vit_hf import (
    POSITION_ENCODINGS,
    AdaptiveViTForImageClassification,
    AdaptiveViTForSemanticSegmentation,
    AdaptiveViTModel,
)
from vit_hf.arguments import AugmentationArguments, DataArguments, DistillationArguments, ModelArguments
from vit_hf.model.patches import ImagePatches, grid_coordinates
from vit_hf.training.arguments import DistillationRunArguments
from vit_hf.training.distillation import (
    CollapseError,
    SparseDistillation,
    SpreadGuard,
    attention_map,
    choose_patches,
    draw_fraction,
    map_divergence,
    relative_error,
    spread_to_nearest,
)
from vit_hf.training.task import prepare


GROUPS = (
    ModelArguments,
    DataArguments,
    AugmentationArguments,
    DistillationArguments,
    DistillationRunArguments,
)


@pytest.fixture(scope="session")
def unlabeled(tmp_path_factory):
    """A folder of twelve images, in no classes."""
    folder = tmp_path_factory.mktemp("unlabeled")
    write_images(folder, 12)
    return folder


@pytest.fixture
def make_distillation(unlabeled, tmp_path):
    """A function of a model and arguments (flat, as on the command line) to a prepared run."""

    def make(model=None, output_dir="distilled", **arguments):
        if model is not None:
            model.save_pretrained(tmp_path / "teacher")
        values = {
            "model_name_or_path": str(tmp_path / "teacher"),
            "image_size": 48,
            "dataset": str(unlabeled),
            "validation_fraction": 0.34,
            "output_dir": str(tmp_path / output_dir),
            "num_train_epochs": 2,
            "per_device_train_batch_size": 4,
            "per_device_eval_batch_size": 4,
            "learning_rate": 1e-3,
            "min_fraction": 0.2,
            "ema_decay": 0.5,
            "logging_steps": 1,
            "disable_tqdm": True,
            "use_cpu": True,
            **arguments,
        }
        groups = []
        for group in GROUPS:
            names = group.__dataclass_fields__.keys() & values.keys()
            groups.append(group(**{name: values.pop(name) for name in names}))
        assert not values
        *arguments, training = groups
        return prepare(SparseDistillation(*arguments), training)

    return make


def classifier(**fields) -> AdaptiveViTForImageClassification:
    torch.manual_seed(0)
    return AdaptiveViTForImageClassification(tiny_config(**fields)).eval()


def test_the_same_class_comes_out_with_its_head_and_its_selection(make_distillation):
    model = classifier()
    run = make_distillation(model, patch_selector="variance", num_selected_patches=0.25)
    assert "8 train, 4 validation images, without labels" in run.describe()
    metrics = run.execute()
    assert {f"eval_{name}_{percent}" for percent in (5, 10, 25, 50) for name in ("image_cosine", "top1")} <= (
        metrics.keys()
    )
    log = run.trainer.state.log_history
    assert log[0]["step"] == 0 and "eval_fidelity" in log[0]  # before training
    assert {"image_loss", "kept_loss", "dropped_loss", "fraction", "spread"} <= log[1].keys()
    folder = Path(run.trainer.args.output_dir)
    again = AutoModelForImageClassification.from_pretrained(folder)
    assert type(again) is AdaptiveViTForImageClassification
    assert (again.config.patch_selector, again.config.num_selected_patches) == ("variance", 0.25)
    assert {path.name for path in folder.glob("*.py")} == {
        "modeling_adaptive_vit.py",
        "image_processing_adaptive_vit.py",
    }
    for name, value in model.state_dict().items():
        is_head = name.startswith("classifier")
        assert torch.equal(again.state_dict()[name], value) == is_head, name


def test_states_come_closer_to_the_teachers(make_distillation):
    run = make_distillation(
        classifier(), num_train_epochs=8, learning_rate=3e-3, ema_decay=None, save_strategy="no"
    )
    run.execute()
    values = [entry["eval_fidelity"] for entry in run.trainer.state.log_history if "eval_fidelity" in entry]
    assert values[-1] > values[0] + 0.005
    assert run.trainer.model.config.patch_selector == "uniform"  # where none was named


@pytest.mark.parametrize("options", [{}, {"lora_rank": 2}], ids=["full", "lora"])
def test_a_run_that_was_interrupted_ends_with_the_same_weights(make_distillation, tmp_path, options):
    options |= {"patch_selector": tiny_selector("distilled")}
    make_distillation(classifier(), "whole", **options).execute()
    expected = load_file(tmp_path / "whole" / "model.safetensors")
    first, last = sorted((tmp_path / "whole").glob("checkpoint-*"), key=lambda path: int(path.name[11:]))
    for name in ("model.safetensors", "eval_results.json"):
        (tmp_path / "whole" / name).unlink()
    shutil.rmtree(last)
    resumed = make_distillation(None, "whole", **options)
    assert resumed.checkpoint == first
    resumed.execute()
    found = load_file(tmp_path / "whole" / "model.safetensors")
    assert found.keys() == expected.keys() and not any("lora" in name for name in found)
    for name, value in found.items():
        assert torch.equal(value, expected[name]), name


def test_adapters_change_the_blocks_alone(make_distillation):
    model = classifier()
    run = make_distillation(model, lora_rank=2, learning_rate=1e-2)
    run.execute()
    again = AutoModelForImageClassification.from_pretrained(run.trainer.args.output_dir)
    changed = {
        name for name, value in model.state_dict().items() if not torch.equal(again.state_dict()[name], value)
    }
    assert changed and all(".layers." in name and name.endswith("weight") for name in changed)
    assert not any("layernorm" in name for name in changed)


@pytest.mark.parametrize(
    ("model_class", "fields"),
    [
        (AdaptiveViTModel, {"use_cls_token": False, "pooling": "mean", "position_encoding": "rotary"}),
        (AdaptiveViTModel, {"pooling": "map"}),
        (AdaptiveViTModel, {"thumbnail_context": True}),
        (AdaptiveViTForSemanticSegmentation, {}),
        (
            AdaptiveViTForImageClassification,
            {"token_reducer": "merge", "keep_rate": 0.6, "reduction_layers": [1]},
        ),
    ],
)
def test_every_kind_of_model_is_distilled(make_distillation, model_class, fields):
    run = make_distillation(model_class(tiny_config(**fields)), num_train_epochs=1)
    metrics = run.execute()
    assert type(run.trainer.model) is model_class and 0 < metrics["eval_fidelity"] <= 1.0001
    dense = run.task.teacher.config
    assert (dense.patch_selector, dense.token_reducer, dense.thumbnail_context) == (None, None, False)


@pytest.mark.parametrize(
    "selector",
    ["distilled", *(pytest.param(name, marks=pytest.mark.slow) for name in ("policy", "perturbed"))],
)
def test_a_learned_selector_learns_the_map_of_the_last_block(make_distillation, selector):
    run = make_distillation(
        classifier(),
        patch_selector=tiny_selector(selector),
        num_train_epochs=8,
        map_weight=1.0,
        eval_strategy="no",
        save_strategy="no",
    )
    before = {name: value.clone() for name, value in run.trainer.model.vit.selector.named_parameters()}
    run.execute()
    losses = [entry["map_loss"] for entry in run.trainer.state.log_history if "map_loss" in entry]
    assert sum(losses[-4:]) < sum(losses[:4])
    after = dict(run.trainer.model.vit.selector.named_parameters())
    assert all(not torch.equal(after[name], value) for name, value in before.items() if value.ndim > 1)


def test_stock_checkpoints_are_distilled(make_distillation):
    run = make_distillation(stock(), num_train_epochs=1, bf16=True)
    run.execute()
    assert type(run.trainer.model) is AdaptiveViTForImageClassification


def test_images_of_mixed_sizes(make_distillation, unlabeled):
    write_images(unlabeled / "more", 3, seed=1, size=(64, 24))
    try:
        run = make_distillation(classifier(), image_size=None, native_resolution=True, return_patches=True)
        assert run.trainer.processing_class.patch_selector is None  # the teacher needs all patches
        assert 0 < run.execute()["eval_fidelity"] <= 1.0001
    finally:
        shutil.rmtree(unlabeled / "more")


@pytest.mark.filterwarnings("ignore")
def test_collapse_stops_the_run_with_a_message(make_distillation):
    run = make_distillation(
        classifier(), learning_rate=3.0, num_train_epochs=40, eval_strategy="no", save_strategy="no"
    )
    with pytest.raises(CollapseError, match=r"states of different images differ by .*Lower learning_rate"):
        run.execute()


def test_the_guard_waits_and_forgives():
    guard = SpreadGuard(0.5)
    for _ in range(9):
        guard.check(0.1, 3)
    guard.check(0.6, 3)
    for _ in range(9):
        guard.check(0.4, 3)
    with pytest.raises(CollapseError, match=r"at step 3.*differ by 40%"):
        guard.check(0.4, 3)


def test_the_spread_is_measured_over_batches_of_one():
    guard, states = SpreadGuard(0.5), torch.randn(8, 16)
    for index in range(8):
        spread = guard.see(states[index : index + 1], states[index : index + 1])
    assert spread == pytest.approx(1)
    for index in range(64):
        spread = guard.see(torch.ones(1, 16), states[index % 8 :][:1])
    assert spread == pytest.approx(0, abs=1e-6)


def test_fractions_are_drawn_evenly_in_their_logarithm():
    torch.manual_seed(0)
    drawn = torch.tensor([draw_fraction(0.05, 0.5) for _ in range(4000)])
    assert 0.05 <= drawn.min() < 0.051 and 0.49 < drawn.max() <= 0.5
    assert (drawn < 0.05 * 10**0.5).float().mean().item() == pytest.approx(0.5, abs=0.03)


def test_choice_mixes_random_patches_with_those_of_the_selector():
    model = AdaptiveViTModel(tiny_config(patch_selector="variance")).train()
    patches = ImagePatches.from_images(torch.randn(60, 3, 64, 64), 8)
    chosen = {ratio: choose_patches(model, patches, 0.1, ratio).indices for ratio in (0.0, 0.5, 1.0)}
    expected = model.select(patches, sample=False, num_selected=0.1).indices
    equal = {ratio: (indices == expected).all(1).float().mean() for ratio, indices in chosen.items()}
    assert equal[0.0] == 1 and 0.2 < equal[0.5] < 0.8 and equal[1.0] == 0
    assert all((indices.diff(dim=1) > 0).all() for indices in chosen.values())


def test_choice_of_padded_images_has_a_number_for_each():
    model = AdaptiveViTModel(tiny_config(patch_selector="variance", num_selected_patches=0.5))
    inputs = cut([torch.randn(3, 64, 64), torch.randn(3, 16, 24)])
    patches = ImagePatches.from_inputs(model.config, **inputs)
    for ratio in (0.0, 1.0):
        selection = choose_patches(model, patches, 0.5, ratio)
        assert selection.mask.sum(1).tolist() == [32, 3]
        assert (selection.indices[1][selection.mask[1]] < 6).all()


def test_each_patch_has_the_state_of_the_nearest_kept_one():
    coordinates = grid_coordinates(3, 4).expand(2, -1, -1)
    indices = torch.tensor([[0, 11], [5, 0]])
    mask = torch.tensor([[True, True], [True, False]])
    kept = torch.tensor([[[1.0], [2.0]], [[3.0], [4.0]]])
    spread = spread_to_nearest(kept, mask, coordinates, indices)[..., 0]
    assert spread[0].tolist() == [1, 1, 1, 2, 1, 1, 2, 2, 1, 2, 2, 2]
    assert (spread[1] == 3).all()


def test_relative_error():
    target = torch.randn(2, 5, 8)
    assert relative_error(target, target) == 0
    assert relative_error(torch.zeros_like(target), target) == 1
    assert relative_error(1000 * target + 1, 1000 * target) == pytest.approx(
        (1 / (1000 * target).square().mean()).item(), rel=1e-4
    )
    mask = torch.zeros(2, 5, dtype=torch.bool)
    mask[0, 0] = True
    half = target.clone()
    half[0, 0] *= 0.5
    assert relative_error(half, target, mask) == pytest.approx(0.25)


def test_map_divergence_is_least_for_the_map_itself():
    target, mask = torch.randn(3, 7), torch.ones(3, 7, dtype=torch.bool)
    mask[0, 5:] = False
    assert map_divergence(target + 3, target, mask) == pytest.approx(0, abs=1e-6)
    scores = target.clone()
    scores[0, 5:] = torch.nan  # padding counts for nothing
    assert map_divergence(scores, target, mask) == pytest.approx(0, abs=1e-6)
    assert map_divergence(-target, target, mask) > 0.1


@pytest.mark.parametrize("encoding", POSITION_ENCODINGS)
def test_the_map_is_the_mean_of_the_logits_of_the_last_block(encoding):
    without_cls = {"use_cls_token": False, "pooling": "mean", "num_register_tokens": 2}
    config = tiny_config(position_encoding=encoding, **without_cls)
    config._attn_implementation = "eager"
    model = AdaptiveViTModel(config, add_pooling_layer=False).eval()
    inputs = cut([torch.randn(3, 32, 40), torch.randn(3, 24, 32)])
    patches = ImagePatches.from_inputs(config, **inputs)
    found = attention_map(model, patches)
    with torch.no_grad():
        weights = model(**inputs, output_attentions=True).attentions[-1]  # (B, heads, T, T)
    for index, number in enumerate((20, 12)):
        logits = weights[index, :, 2 : 2 + number, 2 : 2 + number].log()
        # Softmax has taken a number off each row, which changes no difference between keys.
        expected = logits.mean((0, 1))
        torch.testing.assert_close(
            found[index, :number] - found[index, :number].mean(),
            expected - expected.mean(),
            atol=1e-4,
            rtol=1e-4,
        )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"min_fraction": 0.0}, "min_fraction"),
        ({"min_fraction": 0.6, "max_fraction": 0.5}, "above max_fraction=0.5"),
        ({"random_ratio": 1.2}, "random_ratio is 1.2"),
        ({"image_weight": 0.0, "kept_weight": 0.0, "dropped_weight": 0.0}, "teaches nothing"),
        ({"lora_rank": 0}, "lora_rank is 0"),
        ({"fractions": [0.1, 2.0]}, "fractions"),
        ({"label_column": "label"}, "reads no labels"),
        ({"mixup_alpha": 0.2}, "does not mix"),
        ({"validation_fraction": 0.0}, "no validation split"),
        ({"model_type": "adaptive_vit"}, "from scratch"),
        ({"config_overrides": {"hidden_size": 64}}, "another shape"),
    ],
)
def test_refuses_before_anything_is_written(make_distillation, tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        make_distillation(classifier(), **arguments)
    assert not (tmp_path / "distilled").exists()


@pytest.mark.parametrize(
    ("selector", "map_weight"), [("distilled", 0.1), ("distilled", 0.0), ("variance", 0.1)]
)
def test_several_processes_train_no_selector(make_distillation, selector, map_weight):
    run = make_distillation(classifier(), patch_selector=tiny_selector(selector), map_weight=map_weight)
    training = SimpleNamespace(
        world_size=2, eval_on_start=True, eval_strategy="epoch", ddp_find_unused_parameters=None
    )
    refused = selector == "distilled" and map_weight
    with pytest.raises(ValueError, match="set map_weight=0") if refused else contextlib.nullcontext():
        run.task.adjust(run.trainer.model, training)
    assert refused or training.ddp_find_unused_parameters


def test_needs_a_checkpoint(make_distillation):
    with pytest.raises(ValueError, match="needs a trained checkpoint"):
        make_distillation(model_name_or_path=None)
