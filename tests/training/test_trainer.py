"""Plain `Trainer` trains our models as it trains any other."""

import pytest
import torch

from tests.helpers.models import tiny_config
from tests.helpers.trainers import Images, train
from vit_hf import AdaptiveViTForImageClassification, KeepRateSchedule


@pytest.mark.parametrize("problem", ["single_label_classification", None])
def test_accumulating_gradients_equals_a_larger_batch(tmp_path, problem):
    weights = []
    for batch_size, steps in ((8, 1), (2, 4)):
        torch.manual_seed(0)
        config = tiny_config(patch_selector="variance", num_selected_patches=4, problem_type=problem)
        # With plain gradient descent the update is the gradient; Adam would hide its scale.
        trainer = train(
            tmp_path,
            AdaptiveViTForImageClassification(config),
            per_device_train_batch_size=batch_size,
            gradient_accumulation_steps=steps,
            optim="sgd",
            max_grad_norm=0,
            max_steps=1,
        )
        weights.append(trainer.model.state_dict())
    for name, value in weights[0].items():
        torch.testing.assert_close(value, weights[1][name], atol=1e-6, rtol=1e-4, msg=name)


def test_predictions_are_logits_alone(tmp_path):
    trainer = train(tmp_path)
    predictions = trainer.predict(Images()).predictions
    assert predictions.shape == (16, 5)


def test_learns_with_a_keep_rate_schedule(tmp_path):
    trainer = train(tmp_path, callbacks=[KeepRateSchedule()], max_steps=60, learning_rate=3e-3)
    output = trainer.predict(Images())
    assert (output.predictions.argmax(-1) == output.label_ids).mean() > 0.9
    assert trainer.model.vit.dense_fraction == 0
