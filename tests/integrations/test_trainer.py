"""Mixed precision in Trainer. Gradient accumulation is tested in tests/training/test_trainer.py."""

import pytest
import torch

from tests.helpers.models import SELECTIONS, tiny_config
from tests.helpers.trainers import train
from vit_hf import AdaptiveViTForImageClassification


@pytest.mark.parametrize("name", ["dense", "distilled", "perturbed", "merge", "gumbel"])
def test_bf16(name, tmp_path):
    model = AdaptiveViTForImageClassification(tiny_config(**SELECTIONS[name], initializer_range=0.02))
    dtypes = set()
    model.vit.layers[0].mlp.fc1.register_forward_hook(lambda module, args, output: dtypes.add(output.dtype))
    trainer = train(tmp_path, model, max_steps=20, bf16=True, logging_steps=1)
    assert dtypes == {torch.bfloat16}
    assert all(value.dtype == torch.float32 for value in model.parameters())
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(losses) == 20 and sum(losses[-5:]) < sum(losses[:5])
