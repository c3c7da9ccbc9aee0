"""timm's EVA family beside what it becomes."""

from functools import partial

import pytest
import timm
import torch
from timm.layers import LayerNorm
from timm.models.eva import Eva

from vit_hf import AdaptiveViTForImageClassification, convert
from vit_hf.checkpoints.families import CannotConvert


TINY = {
    "img_size": 32,
    "patch_size": 8,
    "embed_dim": 32,
    "depth": 3,
    "num_heads": 4,
    "mlp_ratio": 4 * 2 / 3,
    "num_classes": 5,
    "dynamic_img_size": True,
}
SWIGLU = {"swiglu_mlp": True, "use_rot_pos_emb": True, "ref_feat_shape": (3, 3)}
BASE = {**SWIGLU, "qkv_fused": False, "scale_mlp": True}
DINOV3 = {
    "qkv_bias": False,
    "init_values": 0.1,
    "rope_type": "dinov3",
    "rope_temperature": 100,
    "rope_rotate_half": True,
    "use_rot_pos_emb": True,
    "use_abs_pos_emb": False,
    "num_reg_tokens": 4,
    "use_fc_norm": False,
    "norm_layer": partial(LayerNorm, eps=1e-5),
}
ROPE_VIT = {
    "use_rot_pos_emb": True,
    "attn_type": "rope",
    "rope_grid_indexing": "xy",
    "rope_temperature": 100.0,
}
ORIGINALS = {
    "eva": {"mlp_ratio": 2},
    "eva02_tiny": SWIGLU,
    "eva02_tiny of the native grid": {**SWIGLU, "ref_feat_shape": (4, 4)},
    "eva02_base": BASE,
    "eva02_base of its own classes": {**BASE, "num_classes": 0},
    "eva02_base_clip": {**BASE, "scale_attn_inner": True, "global_pool": "token"},
    "eva02 with a table for patches": {**BASE, "no_embed_class": True, "num_reg_tokens": 2},
    "dinov3": DINOV3,
    "dinov3 of bias and swiglu": {**DINOV3, "qkv_bias": True, "swiglu_mlp": True, "swiglu_align_to": 8},
    "rope vit": {
        **ROPE_VIT,
        "use_abs_pos_emb": False,
        "init_values": 0.1,
        "use_fc_norm": False,
        "global_pool": "token",
    },
    "rope vit with a table": ROPE_VIT,
    "no biases": {"qkv_bias": False},
    "map": {"mlp_ratio": 2, "global_pool": "map", "class_token": False},
}


def original(**fields):
    model = Eva(**{**TINY, **fields}).eval()
    with torch.no_grad():
        for value in model.parameters():
            value.add_(0.1 * torch.randn_like(value))
    return model


@pytest.mark.parametrize("fields", ORIGINALS.values(), ids=ORIGINALS)
@pytest.mark.parametrize("size", [(32, 32), (48, 64), (24, 16)])
def test_outputs_are_those_of_the_original(fields, size):
    model, images = original(**fields), torch.randn(2, 3, *size)
    converted, _ = convert(model)
    with torch.no_grad():
        torch.testing.assert_close(converted(images).logits, model(images), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("fields", ORIGINALS.values(), ids=ORIGINALS)
def test_a_second_load_is_the_same_and_selection_works(fields, tmp_path):
    model = original(**fields)
    converted, _ = convert(model)
    converted.save_pretrained(tmp_path)
    again, report = AdaptiveViTForImageClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values())
    images = torch.randn(2, 3, 40, 32)
    with torch.no_grad():
        assert torch.equal(again(images).logits, converted(images).logits)
        fewer, _ = convert(model, patch_selector="variance", num_selected_patches=6)
        assert fewer(images).selected_patches.shape == (2, 6)


@pytest.mark.parametrize(
    "name", ["eva02_tiny_patch14_336", "eva02_base_patch14_448", "eva02_base_patch16_clip_224"]
)
def test_named_models(name):
    """Two of the three count in another grid than their own."""
    size = 112 if "patch16" in name else 98
    model = timm.create_model(name, depth=2, img_size=size, num_classes=5, pretrained=False).eval()
    with torch.no_grad():
        for value in model.parameters():
            value.add_(0.05 * torch.randn_like(value))
        images = torch.randn(1, 3, size, size)
        converted, _ = convert(model)
        torch.testing.assert_close(converted(images).logits, model(images), atol=1e-5, rtol=1e-5)
    assert converted.config.position_encoding["reference_grid"] == [16, 16]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"use_post_norm": True}, "EvaBlockPostNorm"),
        ({"qk_norm": True}, "norms of queries and keys"),
        ({"attn_type": "rope", "qkv_fused": False, "num_kv_heads": 2}, "heads that share keys"),
        ({"init_values": 0.1, "attn_only_layer_scale": True}, "a layer scale of attention alone"),
        ({"use_rot_pos_emb": True, "rope_type": "mixed"}, "rotation of type RotaryEmbeddingMixed"),
        ({"use_rot_pos_emb": True, "rope_grid_offset": 1.0}, "an offset of 1.0"),
        ({"global_pool": "map"}, "attention pooling over prefix tokens"),
        ({"global_pool": "avgmax"}, "global_pool='avgmax'"),
    ],
)
def test_refuses_what_cannot_be_represented(fields, message):
    with pytest.raises(CannotConvert, match=message):
        convert(original(**{"mlp_ratio": 2, **fields}))


def test_refuses_gated_attention():
    model = original(mlp_ratio=2)
    model.blocks[0].attn.gate = torch.nn.Linear(32, 32)
    with pytest.raises(CannotConvert, match="gated attention"):
        convert(model)


def test_refuses_two_final_norms():
    with pytest.raises(CannotConvert, match="a final norm of all tokens and another"):
        convert(original(use_post_transformer_norm=True, use_fc_norm=True))
