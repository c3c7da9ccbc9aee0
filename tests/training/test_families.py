"""Every family of selection and reduction, fine-tuned by plain `Trainer`."""

import math

import pytest
import torch
from transformers import AutoModelForImageClassification, Trainer

from tests.helpers.trainers import FAMILIES, Images, make_trainer, weights
from vit_hf import AdaptiveViTForImageClassification
from vit_hf.checkpoints.loading import part_of
from vit_hf.training.optimizer import FreezeBackbone


ADDING_TO_THE_LOSS = {"distilled", "policy", "gumbel", "policy_and_gumbel"}
LEARNED = ADDING_TO_THE_LOSS | {"perturbed", "cross_attention"}


@pytest.mark.parametrize("name", FAMILIES)
def test_trains_evaluates_and_reloads(name, tmp_path):
    trainer = make_trainer(tmp_path, FAMILIES[name])
    before = weights(trainer.model)
    trainer.train()
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert len(logs) == 8
    assert all(math.isfinite(entry["loss"]) for entry in logs)
    dense_fractions = [entry["dense_fraction"] for entry in logs]
    assert (dense_fractions[0], dense_fractions[-1]) == (1, 0)
    assert 0 < dense_fractions[4] < 1
    assert all(("selection_loss" in entry) == (name in ADDING_TO_THE_LOSS) for entry in logs)

    after = weights(trainer.model)
    unchanged = {key for key in before if torch.equal(before[key], after[key])}
    predictors = {key for key in before if part_of(trainer.model, key) == "predictor"}
    assert bool(predictors) == (name in LEARNED)
    assert not unchanged & predictors
    assert not torch.equal(before["vit.layers.0.mlp.fc1.weight"], after["vit.layers.0.mlp.fc1.weight"])

    expected = trainer.predict(Images())
    assert trainer.evaluate()["eval_loss"] == pytest.approx(expected.metrics["test_loss"])
    trainer.save_model(tmp_path / "saved")
    loaded = AutoModelForImageClassification.from_pretrained(tmp_path / "saved")
    assert type(loaded) is AdaptiveViTForImageClassification
    again = Trainer(loaded, trainer.args).predict(Images())
    torch.testing.assert_close(again.predictions, expected.predictions, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["policy_and_gumbel", "perturbed"])
def test_resumed_in_the_curriculum_ends_with_the_same_weights(name, tmp_path):
    options = {"save_strategy": "steps", "save_steps": 3, "weight_decay": 0.1}
    callbacks = [FreezeBackbone(0.5)]
    whole = make_trainer(tmp_path / "whole", FAMILIES[name], callbacks, **options)
    whole.train()
    # Both while the backbone is frozen and after that, between all patches and the target.
    for step in (3, 6):
        torch.rand(7)
        resumed = make_trainer(tmp_path / f"from-{step}", FAMILIES[name], callbacks, **options)
        resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / f"checkpoint-{step}"))
        assert resumed.state.global_step == 8
        expected, found = weights(whole.model), weights(resumed.model)
        assert [key for key in expected if not torch.equal(expected[key], found[key])] == []
