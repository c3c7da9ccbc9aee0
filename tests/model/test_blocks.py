"""Options of blocks, pooling and initialization beside plain torch and transformers' own modules."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from transformers import Dinov2Config, DINOv3ViTConfig, SiglipVisionConfig
from transformers.models.dinov2.modeling_dinov2 import Dinov2SwiGLUFFN
from transformers.models.dinov3_vit.modeling_dinov3_vit import DINOv3ViTGatedMLP
from transformers.models.siglip.modeling_siglip import SiglipMultiheadAttentionPoolingHead

from tests.helpers.models import SELECTIONS, cut, every_selection, tiny_config
from vit_hf import (
    POSITION_ENCODINGS,
    AdaptiveViTForImageClassification,
    AdaptiveViTImageProcessor,
    AdaptiveViTModel,
    explain,
)
from vit_hf.model.heads import POOLINGS
from vit_hf.model.layers import GatedMLP, TokenBatchNorm


OPTIONS = {
    "rmsnorm": {"norm_type": "rmsnorm"},
    "batchnorm": {"norm_type": "batchnorm"},
    "swiglu": {"feed_forward": "gated", "hidden_act": "silu", "intermediate_size": 48},
    "elu": {"hidden_act": "elu"},
    "clip": {
        "pre_layernorm": True,
        "patch_embedding": {"type": "linear", "bias": False},
        "hidden_act": "quick_gelu",
    },
    "no_bias": {
        "qkv_bias": False,
        "attention": {"projection_bias": False},
        "feed_forward": {"type": "mlp", "bias": False},
        "patch_embedding": {"type": "linear", "bias": False},
    },
    "no_key_bias": {"key_bias": False},
    "pre_logits": {"classifier_hidden_size": 24},
    "pre_logits_of_two": {"classifier_hidden_size": 24, "pooling": "cls+mean"},
    "inner_norms": {"feed_forward": {"type": "mlp", "norm": True}, "attention": {"norm": True}},
    "eva02": {
        "feed_forward": {"type": "gated", "norm": True},
        "position_encoding": {"type": "learned_rotary", "reference_grid": 3},
    },
    **{f"pooling_{name}": {"pooling": name, "num_register_tokens": 1} for name in POOLINGS},
    "norm_after_pooling": {"final_norm": "pooled", "pooling": "mean"},
    "norm_after_pooling_with_eps": {"final_norm": {"type": "pooled", "eps": 0.1}, "pooling": "mean"},
    "no_final_norm": {"final_norm": "none"},
    "no_cls": {"use_cls_token": False, "pooling": "mean"},
    "no_cls_map": {"use_cls_token": False, "pooling": "map", "num_register_tokens": 2},
    **{
        f"initializer_{name}": {"initializer": name}
        for name in ("normal", "truncated_normal", "xavier_uniform")
    },
}
every_option = pytest.mark.parametrize("fields", OPTIONS.values(), ids=OPTIONS)
images_of_mixed_sizes = [(32, 32), (64, 47), (16, 24)]


@every_option
def test_save_and_load(fields, tmp_path):
    model = AdaptiveViTForImageClassification(tiny_config(**fields)).train()
    model(torch.randn(2, 3, 48, 40))  # statistics of a batch are to be saved as well
    model.eval().save_pretrained(tmp_path)
    again, info = AdaptiveViTForImageClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    images = torch.randn(2, 3, 48, 40)
    assert torch.equal(model(images).logits, again(images).logits)


@every_option
@pytest.mark.parametrize("selection", ["dense", "attention", "context", "merge", "gumbel", "both_attentive"])
def test_mixed_sizes_equal_one_by_one(fields, selection):
    if "use_cls_token" in fields and selection in ("attention", "both_attentive"):
        with pytest.raises(Exception, match="needs the CLS token"):
            tiny_config(**fields, **SELECTIONS[selection])
        return
    model = AdaptiveViTForImageClassification(tiny_config(**fields, **SELECTIONS[selection])).eval()
    images = [torch.randn(3, *size) for size in images_of_mixed_sizes]
    together = model(**cut(images)).logits
    alone = torch.cat([model(image[None]).logits for image in images])
    # No batch has told the batch norm anything yet, so states grow from block to block.
    tolerance = 1e-3 if fields.get("norm_type") == "batchnorm" else 1e-5
    # Relative to the largest logit: some heads give large ones.
    torch.testing.assert_close(
        together, alone, atol=tolerance * max(1.0, alone.abs().max().item()), rtol=tolerance
    )


@every_option
def test_everything_learns(fields):
    model = AdaptiveViTForImageClassification(tiny_config(**fields)).train()
    model(torch.randn(4, 3, 32, 32), labels=torch.arange(4)).loss.backward()
    for name, value in model.named_parameters():
        assert value.grad is not None and torch.isfinite(value.grad).all(), name


@pytest.mark.slow
@every_option
def test_compiles_as_a_whole(fields):
    model = AdaptiveViTForImageClassification(tiny_config(**fields)).eval()
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(compiled(images).logits, model(images).logits)


@pytest.mark.parametrize("pooler", ["cls", "mean", "map"])
def test_norm_after_pooling_with_options_equals_its_name(pooler):
    options = {"type": "pooled", "eps": 1e-3}
    models = [
        AdaptiveViTModel(
            tiny_config(final_norm=norm, pooler=pooler, layer_norm_eps=1e-3, pooling="mean")
        ).eval()
        for norm in ("pooled", options)
    ]
    models[1].load_state_dict(models[0].state_dict())
    images = torch.randn(2, 3, 32, 32)
    named, described = (model(images).pooler_output for model in models)
    assert torch.equal(named, described)
    torch.testing.assert_close(named.mean(dim=1), torch.zeros(2), atol=1e-5, rtol=0)


class TestBatchNorm:
    def test_padding_does_not_count(self):
        ours, plain = TokenBatchNorm(8), nn.BatchNorm1d(8)
        states, mask = torch.randn(3, 5, 8), torch.tensor([[1, 1, 1, 0, 0], [1, 0, 0, 0, 0], [1] * 5]).bool()
        got, expected = ours(states, mask), plain(states[mask])
        torch.testing.assert_close(got[mask], expected, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(ours.running_mean, plain.running_mean)
        torch.testing.assert_close(ours.running_var, plain.running_var)
        assert ours.num_batches_tracked == 1
        torch.testing.assert_close(ours.eval()(states, mask)[mask], plain.eval()(states[mask]))

    @every_selection
    def test_what_padding_holds_changes_nothing(self, selection):
        model = AdaptiveViTForImageClassification(tiny_config(norm_type="batchnorm", **selection)).train()
        inputs, answers = cut([torch.randn(3, *size) for size in images_of_mixed_sizes]), []
        padding = inputs["pixel_attention_mask"] == 0
        for value in (0.0, 9.0):
            inputs["pixel_values"][padding] = value
            torch.manual_seed(1)
            answers.append(model(**inputs, labels=torch.tensor([0, 1, 2])).loss)
        torch.testing.assert_close(*answers, atol=1e-5, rtol=1e-5)


def test_gated_mlp_is_that_of_dinov3_and_dinov2():
    states = torch.randn(2, 5, 32)
    config = tiny_config(feed_forward="gated", hidden_act="silu", intermediate_size=88)
    ours = GatedMLP(config)
    stock = DINOv3ViTConfig(hidden_size=32, intermediate_size=88, hidden_act="silu", mlp_bias=True)
    theirs = DINOv3ViTGatedMLP(stock)
    theirs.load_state_dict(ours.state_dict())
    torch.testing.assert_close(ours(states), theirs(states))
    theirs = Dinov2SwiGLUFFN(Dinov2Config(hidden_size=32, mlp_ratio=4))  # 88 channels
    theirs.load_state_dict(ours.state_dict())
    torch.testing.assert_close(ours(states), theirs(states))


class TestPooling:
    def test_map_is_that_of_siglip(self):
        model = AdaptiveViTForImageClassification(tiny_config(pooling="map", layer_norm_eps=1e-6)).eval()
        stock = SiglipVisionConfig(
            hidden_size=32,
            intermediate_size=64,
            num_attention_heads=4,
            hidden_act="gelu",
            layer_norm_eps=1e-6,
        )
        theirs = SiglipMultiheadAttentionPoolingHead(stock)
        theirs.load_state_dict(model.pooling.state_dict())
        states = torch.randn(2, 17, 32)
        torch.testing.assert_close(model.pooling(states, 16, None), theirs(states[:, 1:]))

    def test_map_counts_tokens_by_how_many_they_stand_for(self):
        pooling = AdaptiveViTForImageClassification(tiny_config(pooling="map")).pooling
        states = torch.randn(1, 4, 32)
        sizes = torch.tensor([[2.0, 0.0, 1.0, 3.0]])
        repeated = states[:, [0, 0, 2, 3, 3, 3]]
        torch.testing.assert_close(
            pooling(states, 4, sizes), pooling(repeated, 6, None), atol=1e-5, rtol=1e-5
        )

    def test_cls_and_mean_stand_beside_each_other(self):
        model = AdaptiveViTForImageClassification(
            tiny_config(pooling="cls+mean", num_register_tokens=2)
        ).eval()
        images = torch.randn(2, 3, 32, 32)
        states = model.vit(images).last_hidden_state
        expected = model.classifier(torch.cat((states[:, 0], states[:, 3:].mean(1)), dim=-1))
        torch.testing.assert_close(model(images).logits, expected)


@pytest.mark.parametrize("name", ["normal", "truncated_normal", "xavier_uniform"])
def test_initializers(name):
    model = AdaptiveViTModel(tiny_config(initializer=name, hidden_size=128, initializer_range=0.05))
    weight = model.layers[0].mlp.fc1.weight  # 64 x 128
    if name == "xavier_uniform":
        bound = (6 / (64 + 128)) ** 0.5
        assert 0.95 * bound < weight.abs().max() <= bound
        kernel = model.embeddings.patch_embeddings.projection.weight  # 128 x 3 x 8 x 8
        assert 0.95 * (6 / (128 + 192)) ** 0.5 < kernel.abs().max() <= (6 / (128 + 192)) ** 0.5
    elif name == "truncated_normal":
        assert 0.09 < weight.abs().max() <= 0.1
    else:
        assert weight.abs().max() > 0.15 and abs(weight.std() - 0.05) < 0.003
    assert model.layers[0].mlp.fc1.bias.abs().max() == 0


@pytest.mark.parametrize("encoding", POSITION_ENCODINGS)
def test_every_encoding_does_without_cls(encoding, tmp_path):
    fields = {"use_cls_token": False, "pooling": "mean", "position_encoding": encoding}
    model = AdaptiveViTForImageClassification(tiny_config(**fields, patch_selector="variance")).eval()
    images = torch.randn(2, 3, 48, 40)
    assert model.vit(images).last_hidden_state.shape == (2, 6, 32)
    assert model.vit(images, restore=True).restored_hidden_state.shape == (2, 30, 32)
    model.save_pretrained(tmp_path)
    again = AdaptiveViTForImageClassification.from_pretrained(tmp_path)
    assert torch.equal(again(images).logits, model(images).logits)
    (explanation,) = explain(model, AdaptiveViTImageProcessor(do_resize=False), Image.new("RGB", (40, 48)))
    assert np.isfinite(explanation.attention).sum() == 6  # of the patches that were kept
