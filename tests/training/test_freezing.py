from types import SimpleNamespace

import pytest
import torch
from transformers import TrainerCallback, TrainerState, ViTConfig, ViTForImageClassification

from tests.helpers.models import tiny_config
from tests.helpers.trainers import make_trainer
from vit_hf import AdaptiveViTForImageClassification, AdaptiveViTModel
from vit_hf.checkpoints.loading import part_of
from vit_hf.training.optimizer import FreezeBackbone


LEARNED = {
    "patch_selector": "policy",
    "token_reducer": "gumbel",
    "keep_rate": 0.6,
    "reduction_layers": [1],
}


class Record(TrainerCallback):
    """Which parts have gradients before each optimizer step, the norm of all, and what the step changed."""

    def __init__(self):
        self.with_gradient, self.norms, self.changed, self.before = [], [], [], {}

    def on_pre_optimizer_step(self, args, state, control, model, **kwargs):
        gradients = {name: value.grad for name, value in model.named_parameters() if value.grad is not None}
        self.with_gradient.append({part_of(model, name) for name in gradients})
        self.norms.append(torch.nn.utils.get_total_norm(gradients.values()).item())
        self.before = {name: value.detach().clone() for name, value in model.named_parameters()}

    def on_optimizer_step(self, args, state, control, model, **kwargs):
        self.changed.append(
            {
                part_of(model, name)
                for name, value in model.named_parameters()
                if (value != self.before[name]).any()
            }
        )


def test_parts():
    model = AdaptiveViTForImageClassification(tiny_config(**LEARNED))
    parts = {
        "classifier.weight": "head",
        "vit.selector.scorer.output.weight": "predictor",
        "vit.reducers.1.output.bias": "predictor",
        "vit.layers.0.mlp.fc1.weight": "backbone",
        "vit.layernorm.weight": "backbone",
        "vit.embeddings.cls_token": "backbone",
    }
    assert {name: part_of(model, name) for name in parts} == parts
    base = AdaptiveViTModel(tiny_config(**LEARNED))
    assert {part_of(base, name) for name, _ in base.named_parameters()} == {"predictor", "backbone"}
    assert part_of(base, "selector.scorer.output.weight") == "predictor"


@pytest.mark.parametrize("head", [False, True])
def test_backbone_learns_after_its_share_of_the_steps(head, tmp_path):
    record = Record()
    options = {
        "weight_decay": 0.1,
        "gradient_accumulation_steps": 2,
        "per_device_train_batch_size": 2,
        "max_grad_norm": 0.1,
    }
    trainer = make_trainer(tmp_path, LEARNED, [FreezeBackbone(0.375, head), record], **options)
    trainer.train()
    first = {"predictor"} if head else {"predictor", "head"}
    everything = {"predictor", "head", "backbone"}
    assert record.with_gradient == record.changed == [first] * 3 + [everything] * 5
    # What is frozen has no part in clipping: there the others would be left with less than the norm allows.
    assert all(entry["grad_norm"] > 0.1 for entry in trainer.state.log_history if "grad_norm" in entry)
    assert record.norms == pytest.approx([0.1] * 8, rel=1e-4)
    assert all(parameter.requires_grad for parameter in trainer.model.parameters())


def test_frozen_to_the_end_leaves_no_trace_in_the_optimizer(tmp_path):
    trainer = make_trainer(tmp_path, LEARNED, [FreezeBackbone(1.0)], max_steps=2)
    trainer.train()
    for name, parameter in trainer.model.named_parameters():
        assert (parameter in trainer.optimizer.state) == (part_of(trainer.model, name) != "backbone"), name


def test_what_was_frozen_before_stays_frozen(tmp_path):
    class Fail(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            raise KeyboardInterrupt

    fail, freeze = Fail(), FreezeBackbone(0.5)
    trainer = make_trainer(tmp_path, LEARNED, [freeze, fail], max_steps=2)
    trainer.model.vit.embeddings.requires_grad_(False)
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert not trainer.model.vit.layernorm.weight.requires_grad
    # Training that failed does not make the backbone one that its user froze.
    trainer.remove_callback(fail)
    trainer.train()
    for name, parameter in trainer.model.named_parameters():
        assert parameter.requires_grad == ("embeddings" not in name), name


@pytest.mark.parametrize("ratio", [-0.1, 1.1])
def test_refuses_nonsense(ratio):
    with pytest.raises(ValueError, match=f"freeze_backbone_ratio is {ratio}; it is a fraction"):
        FreezeBackbone(ratio)


def test_refuses_to_freeze_everything():
    config = ViTConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, image_size=16
    )
    stock = ViTForImageClassification(config)
    assert len(FreezeBackbone(0.5).parameters_of(stock)) == len(list(stock.vit.parameters()))
    with pytest.raises(
        ValueError, match="leaves nothing to learn: ViTForImageClassification has no patch selector"
    ):
        FreezeBackbone(0.5, head=True).parameters_of(stock)
    with pytest.raises(ValueError, match="has no head and no patch selector"):
        FreezeBackbone(0.5).parameters_of(AdaptiveViTModel(tiny_config()))


@pytest.mark.parametrize(
    "options, message",
    [
        ({"fsdp": ["full_shard"]}, "do not use fsdp"),
        ({"world_size": 2, "ddp_find_unused_parameters": False}, "needs ddp_find_unused_parameters=True"),
    ],
)
def test_refuses_what_would_not_work(options, message):
    args = SimpleNamespace(
        **{"fsdp": [], "deepspeed": None, "world_size": 1, "ddp_find_unused_parameters": None, **options}
    )
    model = AdaptiveViTForImageClassification(tiny_config(**LEARNED))
    with pytest.raises(ValueError, match=message):
        FreezeBackbone(0.5).on_train_begin(args, TrainerState(), None, model=model)
