import copy

import pytest
import torch
from safetensors.torch import load_file
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers import TrainerCallback

from vit_hf.model.pretrained import module_names
from vit_hf.training.callbacks import UNAVERAGED_WEIGHTS_NAME, EmaCallback, ema_decay_at


class Record(TrainerCallback):
    """Copies the weights at the beginning, before each optimizer step, and at each evaluation."""

    def __init__(self):
        self.initial, self.trained, self.evaluated = None, [], []

    def on_train_begin(self, args, state, control, model, **kwargs):
        self.initial = weights(model)

    def on_optimizer_step(self, args, state, control, model, **kwargs):
        self.trained.append(weights(model))

    def on_evaluate(self, args, state, control, model, **kwargs):
        self.evaluated.append(weights(model))


def weights(model):
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def saved_weights(model, folder):
    saved = load_file(folder / "model.safetensors")
    return {name: saved[stored] for stored, name in module_names(model, saved).items()}


def assert_same(left, right):
    assert left.keys() == right.keys()
    assert all(torch.equal(left[name], right[name]) for name in left)


def averages_of(record, decay):
    average, averages = copy.deepcopy(record.initial), []
    for step, trained in enumerate(record.trained, 1):
        for name, value in average.items():
            value.lerp_(trained[name], 1 - ema_decay_at(step, decay))
        averages.append(copy.deepcopy(average))
    return averages


@pytest.fixture
def record(make_run):
    def run(output_dir="run", **arguments):
        options = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 2}
        run = make_run(output_dir, load_best_model_at_end=False, **(options | arguments))
        recorded = Record()
        run.trainer.add_callback(recorded)
        run.execute()
        return run, recorded

    return run


def test_evaluation_sees_the_average_and_training_does_not(record):
    run, averaged = record("averaged", ema_decay=0.7)
    _, plain = record("plain")
    assert len(plain.trained) == len(averaged.trained) == 10
    for left, right in zip(plain.trained, averaged.trained, strict=True):
        assert_same(left, right)
    expected = averages_of(averaged, 0.7)
    # and once more when the run is over
    for left, right in zip(averaged.evaluated, [*expected, expected[-1]], strict=True):
        torch.testing.assert_close(left, right)
    torch.testing.assert_close(weights(run.trainer.model), expected[-1])


def test_checkpoints_hold_both(record, tmp_path):
    run, recorded = record(ema_decay=0.7, save_total_limit=None)
    expected = averages_of(recorded, 0.7)
    for step in (2, 6, 10):
        folder = tmp_path / "run" / f"checkpoint-{step}"
        torch.testing.assert_close(saved_weights(run.trainer.model, folder), expected[step - 1])
        assert_same(load_file(folder / UNAVERAGED_WEIGHTS_NAME), recorded.trained[step - 1])
        assert not list(folder.glob("*.part"))
    torch.testing.assert_close(saved_weights(run.trainer.model, tmp_path / "run"), expected[-1])


def test_best_model_is_an_average(record, make_run):
    run = make_run(ema_decay=0.7, metric_for_best_model="loss", eval_strategy="epoch", save_strategy="epoch")
    recorded = Record()
    run.trainer.add_callback(recorded)
    metrics = run.execute()
    best = run.trainer.state.best_global_step
    torch.testing.assert_close(weights(run.trainer.model), averages_of(recorded, 0.7)[best - 1])
    assert metrics["eval_loss"] == pytest.approx(run.trainer.state.best_metric)


def test_decay_warms_up():
    decays = [ema_decay_at(step, 0.9) for step in range(200)]
    assert decays[0] == 0.1
    assert decays == sorted(decays)
    assert decays[-1] == 0.9


@pytest.mark.parametrize("decay", [-0.1, 1.0])
def test_refuses_nonsense(decay):
    with pytest.raises(ValueError, match=rf"ema_decay\) is {decay}"):
        EmaCallback(decay)


def test_refuses_a_model_in_pieces(make_run):
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        run = make_run()
        fully_shard(run.trainer.model, mesh=init_device_mesh("cpu", (1,)))
        with pytest.raises(ValueError, match=r"needs the whole model .* do not use FSDP"):
            EmaCallback().on_train_begin(run.trainer.args, run.trainer.state, None, model=run.trainer.model)
    finally:
        torch.distributed.destroy_process_group()
