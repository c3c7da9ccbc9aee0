import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback, TrainerState

from tests.helpers.trainers import FAMILIES, make_trainer, weights
from vit_hf.model.pretrained import module_names
from vit_hf.training.callbacks import NonFiniteGuard


ROOT = Path(__file__).parents[2]
CULPRIT = "vit.layers.1.mlp.fc1.weight"


def break_gradient(trainer, step, value, name=CULPRIT):
    """One number of a gradient becomes `value` in the backward pass of a step, counted from 1."""

    def spoil(gradient):
        if trainer.state.global_step + 1 == step:
            gradient = gradient.clone()
            gradient.view(-1)[0] = value
        return gradient

    trainer.model.get_parameter(name).register_hook(spoil)


def hooks(model):
    return [
        *model._forward_hooks.values(),
        *(
            hook
            for value in model.parameters()
            for hook in (value._post_accumulate_grad_hooks or {}).values()
        ),
    ]


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("max_grad_norm", [1.0, 0.0])
def test_stops_before_the_weights_change_and_names_the_culprit(tmp_path, value, max_grad_norm):
    trainer = make_trainer(
        tmp_path, FAMILIES["policy"], save_strategy="steps", save_steps=2, max_grad_norm=max_grad_norm
    )
    break_gradient(trainer, 4, value)
    seen = {}

    class Remember(TrainerCallback):
        def on_step_end(self, args, state, control, model, **kwargs):
            seen[state.global_step] = weights(model)

    trainer.add_callback(Remember())
    with pytest.raises(FloatingPointError) as error:
        trainer.train()
    text = str(error.value)
    assert text.startswith("Step 4 of 8: the gradients of 1 of ")
    assert (
        f"from the loss backwards {CULPRIT}. Weights and checkpoints in {tmp_path} were not changed" in text
    )
    assert f"max_grad_norm{'=1 (now off)' if not max_grad_norm else ' (now 1)'}" in text
    assert "learning_rate (now 0.001)" in text
    assert "num_selected_patches" in text
    assert max(seen) == 3
    assert all(torch.equal(left, seen[3][name]) for name, left in weights(trainer.model).items())
    # The last checkpoint is what it was.
    assert sorted(folder.name for folder in tmp_path.glob("checkpoint-*")) == ["checkpoint-2"]
    saved = load_file(tmp_path / "checkpoint-2" / "model.safetensors")
    names = module_names(trainer.model, saved)
    assert all(torch.equal(value, seen[2][names[name]]) for name, value in saved.items())


def test_a_loss_that_is_not_finite_is_not_hidden(tmp_path):
    trainer = make_trainer(tmp_path, FAMILIES["attentive"], gradient_accumulation_steps=2)
    number = iter(range(100))

    def spoil(model, inputs, outputs):
        # The first of two batches of a step, so that Trainer would log something finite.
        if model.training and next(number) == 4:
            outputs.loss = outputs.loss * torch.inf
        return outputs

    trainer.model.register_forward_hook(spoil)
    with pytest.raises(FloatingPointError, match="Step 3 of 8: the loss is inf; the gradients of "):
        trainer.train()


def test_an_evaluation_stops_nothing(tmp_path):
    trainer = make_trainer(tmp_path, {}, max_steps=4, eval_strategy="steps", eval_steps=2)

    def spoil(model, inputs, outputs):
        if not model.training:
            outputs.loss = outputs.loss * torch.inf
        return outputs

    trainer.model.register_forward_hook(spoil)
    trainer.train()
    assert trainer.state.global_step == 4


def test_many_culprits_are_counted(tmp_path):
    trainer = make_trainer(tmp_path, {})
    for layer in range(3):
        for part in ("fc1", "fc2"):
            break_gradient(trainer, 1, torch.nan, f"vit.layers.{layer}.mlp.{part}.weight")
    with pytest.raises(FloatingPointError) as error:
        trainer.train()
    assert "of 6 of " in str(error.value)
    # In the order of the backward pass.
    names = "vit.layers.2.mlp.fc2.weight, vit.layers.2.mlp.fc1.weight, vit.layers.1.mlp.fc2.weight, "
    assert names in str(error.value)
    assert "vit.layers.0.mlp.fc2.weight and 1 more. " in str(error.value)
    assert "num_selected_patches" not in str(error.value)


def step(guard, loss, scaler=True):
    """What Trainer does in a step whose gradients are `loss`."""
    optimizer = SimpleNamespace(scaler=object() if scaler else None)
    args = SimpleNamespace(
        device="cpu", world_size=1, max_grad_norm=1.0, learning_rate=1.0, fp16=scaler, output_dir="runs/x"
    )
    guard.peaks = {"weight": torch.tensor(loss)}
    guard.on_pre_optimizer_step(args, TrainerState(), None, model=None, optimizer=optimizer)


def test_scaled_gradients_may_overflow_for_a_while():
    guard = NonFiniteGuard(max_skipped=3)
    for _ in range(5):
        for _ in range(3):
            step(guard, torch.inf)
        step(guard, 1.0)
    for _ in range(3):
        step(guard, torch.inf)
    with pytest.raises(FloatingPointError, match=r"after 3 skipped steps.*Try bf16 instead of fp16"):
        step(guard, torch.inf)
    with pytest.raises(FloatingPointError):
        step(NonFiniteGuard(), torch.inf, scaler=False)


def test_leaves_nothing_behind(tmp_path):
    trainer = make_trainer(tmp_path, FAMILIES["policy"], max_steps=2)
    trainer.train()
    assert hooks(trainer.model) == []
    guard = next(one for one in trainer.callback_handler.callbacks if isinstance(one, NonFiniteGuard))
    assert (guard.losses, guard.peaks) == ([], {})
    break_gradient(trainer, 2, torch.nan)
    for _ in range(2):
        with pytest.raises(FloatingPointError):
            trainer.train()
        # That of LogSelectionLoss, which nobody told, and which removes it when training begins again.
        assert len(hooks(trainer.model)) == 1


def test_logs_what_selection_adds_to_the_loss(tmp_path):
    trainer = make_trainer(tmp_path, FAMILIES["policy"], logging_steps=3, eval_strategy="steps", eval_steps=2)
    seen = []

    def record(model, inputs, outputs):
        if model.training:
            seen.append(outputs.selection_loss.item())

    trainer.model.register_forward_hook(record)
    trainer.train()
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    expected = [sum(seen[:3]) / 3, sum(seen[3:6]) / 3]
    assert [entry["selection_loss"] for entry in logs[:2]] == pytest.approx(expected)
    assert all("selection_loss" not in entry for entry in trainer.state.log_history if "eval_loss" in entry)


IN_TWO_PROCESSES = """
import gc, os, sys
import torch
from tests.helpers.trainers import FAMILIES, make_trainer, weights
from tests.training.test_monitoring import break_gradient
from vit_hf.training.optimizer import FreezeBackbone


def main(folder, outcome):
    callbacks = [FreezeBackbone(0.5)]
    options = {"save_strategy": "steps", "save_steps": 2}
    trainer = make_trainer(folder, FAMILIES["policy_and_gumbel"], callbacks, **options)
    if outcome == "fails" and os.environ["RANK"] == "1":
        break_gradient(trainer, 6, torch.nan)
    try:
        trainer.train()
    except FloatingPointError as error:
        print(f"rank {os.environ['RANK']}: {error}", flush=True)
    else:
        total = sum(value.double().sum() for value in weights(trainer.model).values())
        sums = trainer.accelerator.gather(total[None])
        assert sums[0] == sums[1]
        print("done", flush=True)


main(*sys.argv[1:])
# Gloo's threads abort a process that they outlive: first goes what holds the group, then the group.
gc.collect()
torch.distributed.destroy_process_group()
"""


@pytest.mark.slow
@pytest.mark.parametrize("outcome", ["works", "fails"])
def test_two_processes(tmp_path, outcome):
    (tmp_path / "train.py").write_text(IN_TWO_PROCESSES)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    result = subprocess.run(
        [*command, str(tmp_path / "train.py"), str(tmp_path / "run"), outcome],
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=250,
    )
    assert result.returncode == 0, result.stderr
    if outcome == "works":
        assert result.stdout.count("done") == 2
    else:
        assert "rank 0: Step 6 of 8: a loss or a gradient in another process is not finite" in result.stdout
        assert "rank 1: Step 6 of 8: the gradients of 1 of " in result.stdout
        steps = {folder.name for folder in (tmp_path / "run").glob("checkpoint-*")}
        assert steps == {"checkpoint-2", "checkpoint-4"}
