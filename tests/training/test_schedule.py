import pytest
import torch
from transformers import TrainerCallback, TrainerState, ViTConfig, ViTForImageClassification

from tests.helpers.models import tiny_config
from vit_hf import AdaptiveViTForImageClassification, AdaptiveViTImageProcessor
from vit_hf.training.callbacks import KeepRateSchedule, dense_fraction_at


def dense_fractions(max_steps, **options):
    return [dense_fraction_at(step, max_steps, **options) for step in range(max_steps)]


def test_dense_then_falling_then_at_the_target():
    values = dense_fractions(100, warmup_ratio=0.1, final_ratio=0.2, num_buckets=8)
    assert values[:10] == [1.0] * 10
    assert values[-20:] == [0.0] * 20
    between = values[10:-20]
    assert all(0 < value < 1 for value in between)
    assert between == sorted(between, reverse=True)
    assert len(set(between)) == 8


def test_buckets_follow_the_cosine():
    values = dense_fractions(1000, warmup_ratio=0.0, final_ratio=0.0, num_buckets=1000)
    steps = torch.arange(1000) / 1000
    torch.testing.assert_close(torch.tensor(values), (1 + torch.cos(torch.pi * steps)) / 2, atol=2e-3, rtol=0)


@pytest.mark.parametrize(
    "warmup, final", [(0.3, 0.7), (1.0, 0.0), (0.0, 1.0), (0.5, 0.5), (0.1, 0.9), (0.0, 0.0)]
)
@pytest.mark.parametrize("max_steps", [1, 3, 10, 11])
def test_any_shares_and_lengths_work(warmup, final, max_steps):
    values = dense_fractions(max_steps, warmup_ratio=warmup, final_ratio=final)
    assert all(0 <= value <= 1 for value in values)
    assert values == sorted(values, reverse=True)
    assert dense_fraction_at(max_steps, max_steps, warmup, final) == 0


@pytest.mark.parametrize(
    "options, message",
    [
        ({"warmup_ratio": -0.1}, "warmup_ratio is -0.1"),
        ({"final_ratio": 1.5}, "final_ratio is 1.5"),
        ({"warmup_ratio": 0.6, "final_ratio": 0.5}, "add up to more"),
        ({"num_buckets": 0}, "num_buckets is 0"),
    ],
)
def test_refuses_nonsense(options, message):
    with pytest.raises(ValueError, match=message):
        dense_fraction_at(0, 10, **options)
    with pytest.raises(ValueError, match=message):
        KeepRateSchedule(**options)


def test_model_sees_fewer_and_fewer_patches(make_run):
    seen = {"train": [], "eval": []}
    run = make_run(
        keep_rate_schedule=True, num_train_epochs=3, eval_strategy="steps", eval_steps=1, save_strategy="no"
    )
    model = run.trainer.model

    def record(module, inputs, output):
        seen["train" if module.training else "eval"].append(output.selected_patches.shape[1])

    model.vit.register_forward_hook(record)
    run.execute()
    assert seen["train"][0] == 4  # all
    assert seen["train"][-1] == 2
    assert seen["train"] == sorted(seen["train"], reverse=True)
    assert set(seen["eval"]) == {2}
    assert model.vit.dense_fraction == 0
    logged = [entry for entry in run.trainer.state.log_history if "loss" in entry]
    assert logged[0]["dense_fraction"] == 1
    assert logged[-1]["dense_fraction"] == 0
    assert all(
        "dense_fraction" not in entry for entry in run.trainer.state.log_history if "eval_loss" in entry
    )


@pytest.mark.parametrize(
    "fields",
    [
        {"token_reducer": "attentive", "keep_rate": 0.25},
        {"token_reducer": {"type": "merge", "r": 2}, "keep_rate": None},
    ],
)
def test_tokens_become_fewer_without_a_selector(make_run, fields):
    seen = []
    run = make_run(
        patch_selector=None,
        num_selected_patches=None,
        reduction_layers=[1],
        keep_rate_schedule=True,
        eval_strategy="no",
        save_strategy="no",
        **fields,
    )
    model = run.trainer.model

    def record(module, inputs, output):
        if module.training:
            seen.append(output.token_coordinates.shape[1])

    model.vit.register_forward_hook(record)
    run.execute()
    assert seen[0] == 4  # all
    assert seen[-1] == 2
    # Between all and fewest: the one token that is fused of many may be one of three as well.
    assert seen == sorted(seen, reverse=True)
    logged = [entry["dense_fraction"] for entry in run.trainer.state.log_history if "loss" in entry]
    assert (logged[0], logged[-1]) == (1, 0)


def test_relaxation_ends_with_training_that_ends_early(make_run):
    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_training_stop = True

    run = make_run(keep_rate_schedule=True, eval_strategy="no", save_strategy="no")
    run.trainer.add_callback(Stop())
    run.execute()
    assert run.trainer.model.vit.dense_fraction == 0


def test_refuses_a_model_that_does_not_select(make_run):
    callback = KeepRateSchedule()
    stock = ViTForImageClassification(
        ViTConfig(
            hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, image_size=16
        )
    )
    with pytest.raises(TypeError, match="ViTForImageClassification has none"):
        callback.on_train_begin(None, make_run().trainer.state, None, model=stock)


@pytest.mark.parametrize(
    ("fields", "selector", "message"),
    [
        ({}, None, "needs a patch_selector or a token_reducer in the model"),
        (
            {"patch_selector": "variance"},
            "variance",
            "no effect if the image processor selects, by patch_selector='variance'",
        ),
    ],
)
def test_refuses_where_it_would_have_no_effect(fields, selector, message):
    model = AdaptiveViTForImageClassification(tiny_config(**fields))
    processor = AdaptiveViTImageProcessor(
        return_patches=True, patch_selector=selector, num_selected_patches=selector and 6
    )
    with pytest.raises(ValueError, match=message):
        KeepRateSchedule().on_train_begin(None, TrainerState(), None, model=model, processing_class=processor)
