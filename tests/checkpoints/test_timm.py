"""timm's Vision Transformers beside what they become."""

import pytest
import timm
import torch
from PIL import Image
from timm.layers import AttentionPoolLatent, SwiGLUPacked
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from vit_hf import convert
from vit_hf.checkpoints.families import CannotConvert


TINY = {
    "img_size": 32,
    "patch_size": 8,
    "embed_dim": 32,
    "depth": 3,
    "num_heads": 4,
    "mlp_ratio": 2,
    "num_classes": 5,
    "dynamic_img_size": True,
}
ORIGINALS = {
    "vit": {},
    "deit3": {"no_embed_class": True, "init_values": 0.1},
    "mean and its own norm": {"global_pool": "avg"},
    "mean and the last norm": {"global_pool": "avg", "fc_norm": False},
    "registers": {"reg_tokens": 4, "no_embed_class": True, "init_values": 0.1},
    "registers with positions": {"reg_tokens": 4},
    "no cls": {"class_token": False, "global_pool": "avg", "fc_norm": False},
    "clip": {"pre_norm": True, "qkv_bias": False, "act_layer": "quick_gelu"},
    "swiglu": {"mlp_layer": SwiGLUPacked, "act_layer": nn.SiLU, "mlp_ratio": 4},
    "no head": {"num_classes": 0},
    "siglip": {"class_token": False, "global_pool": "map"},
    "siglip without classes": {
        "class_token": False,
        "global_pool": "map",
        "num_classes": 0,
        "act_layer": "gelu_tanh",
    },
    "map beside cls and registers": {"global_pool": "map", "reg_tokens": 2},
}


def original(**fields):
    model = VisionTransformer(**{**TINY, **fields}).eval()
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


def test_distilled():
    model = timm.create_model(
        "deit_tiny_distilled_patch16_224", img_size=32, depth=2, num_classes=5, pretrained=False
    ).eval()
    with torch.no_grad():
        for value in model.parameters():
            value.add_(0.1 * torch.randn_like(value))
        images = torch.randn(2, 3, 32, 32)
        torch.testing.assert_close(convert(model)[0](images).logits, model(images), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "name", ["vit_tiny_patch16_224", "vit_small_patch14_reg4_dinov2", "deit3_small_patch16_224"]
)
def test_named_models_and_their_preparation(name, tmp_path):
    model = timm.create_model(name, depth=1, num_classes=5, pretrained=False).eval()
    converted, processor = convert(model, patch_selector="variance", num_selected_patches=9)
    converted.save_pretrained(tmp_path)
    again = type(converted).from_pretrained(tmp_path)
    # Square, as torchvision and transformers round the middle of an odd rest to different sides.
    image = Image.effect_noise((60, 60), 80).convert("RGB").resize((600, 600))
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model), is_training=False)
    expected, got = transform(image)[None], processor(image, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(got, expected, atol=0.05, rtol=0)  # Pillow's rounding beside torchvision's
    for value, other in zip(again.state_dict().values(), converted.state_dict().values(), strict=True):
        assert torch.equal(value, other)
    with torch.no_grad():
        dense, _ = convert(model)
        torch.testing.assert_close(dense(got).logits, model(got), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"qk_norm": True}, "norms of queries and keys"),
        ({"global_pool": "max"}, "global_pool='max'"),
        (
            {"global_pool": "map", "mlp_layer": SwiGLUPacked, "act_layer": nn.SiLU},
            "attention pooling with another feed",
        ),
        ({"dynamic_img_pad": True}, r"padding to whole patches .*dynamic_img_pad = False"),
        ({"block_fn": timm.models.vision_transformer.ParallelScalingBlock}, "ParallelScalingBlock"),
    ],
)
def test_refuses_what_cannot_be_represented(fields, message):
    with pytest.raises(CannotConvert, match=message):
        convert(original(**fields))


def test_refuses_attention_pooling_of_another_kind():
    for name, pool in {
        "other heads": AttentionPoolLatent(32, num_heads=2, mlp_ratio=2, norm_layer=nn.LayerNorm),
        "several queries": AttentionPoolLatent(32, num_heads=4, latent_len=2, norm_layer=nn.LayerNorm),
        "norms of queries": AttentionPoolLatent(32, num_heads=4, qk_norm=True, norm_layer=nn.LayerNorm),
        "without projections": AttentionPoolLatent(32, num_heads=4, q_proj=False, norm_layer=nn.LayerNorm),
        "another norm": AttentionPoolLatent(32, num_heads=4, mlp_ratio=2),
        "positions": AttentionPoolLatent(32, num_heads=4, feat_size=16, pos_embed="abs"),
    }.items():
        model = original(global_pool="map")
        model.attn_pool = pool
        with pytest.raises(CannotConvert, match=f"attention pooling .*{name}"):
            convert(model)


def test_refuses_other_architectures():
    with pytest.raises(CannotConvert, match="not ResNet"):
        convert(timm.create_model("resnet18", pretrained=False))


def test_a_head_without_bias_has_zeros():
    model = original()
    model.head = nn.Linear(32, 5, bias=False)
    converted, _ = convert(model)
    images = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(converted(images).logits, model(images), atol=1e-5, rtol=1e-5)


def test_image_size_is_that_of_the_table():
    with pytest.raises(CannotConvert, match=r"image_size is the native size .*takes images of any size"):
        convert(original(), image_size=64)


class TestPreparation:
    """Beside timm's `create_transform`, of what a `pretrained_cfg` says."""

    @staticmethod
    def prepare(cfg, **fields):
        model = original(**fields)
        model.pretrained_cfg = {"input_size": (3, 32, 32), "interpolation": "bilinear", **cfg}
        _, processor = convert(model)
        transform = timm.data.create_transform(
            **timm.data.resolve_model_data_config(model), is_training=False
        )
        image = Image.effect_noise((30, 20), 80).convert("RGB").resize((240, 160), Image.Resampling.BICUBIC)
        return processor, processor(image, return_tensors="pt")["pixel_values"], transform(image)[None]

    @pytest.mark.parametrize(
        "cfg",
        [
            {"crop_mode": "squash", "crop_pct": 0.8},
            {"crop_mode": "squash", "crop_pct": 1.0},
            {"crop_mode": None, "crop_pct": None, "interpolation": None},
            {"mean": (0.1, 0.2, 0.3), "std": (0.5, 0.6, 0.7)},
        ],
        ids=str,
    )
    def test_is_that_of_timm(self, cfg, caplog):
        _, got, expected = self.prepare(cfg)
        torch.testing.assert_close(got, expected, atol=0.05, rtol=0)
        assert not caplog.text

    def test_squash_of_another_shape(self, caplog):
        cfg = {"crop_mode": "squash", "crop_pct": 0.8, "input_size": (3, 16, 32)}
        _, got, expected = self.prepare(cfg, img_size=(16, 32))
        torch.testing.assert_close(got, expected, atol=0.05, rtol=0)
        assert not caplog.text

    @pytest.mark.parametrize(
        ("mode", "size"), [("border", (32, 32)), ("border", (16, 32)), ("center", (16, 32))]
    )
    def test_what_ours_has_not_is_said(self, mode, size, caplog):
        _, got, expected = self.prepare({"crop_mode": mode, "input_size": (3, *size)}, img_size=size)
        assert got.shape == expected.shape
        assert f"crop_mode='{mode}'" in caplog.text and "timm.data.create_transform" in caplog.text

    def test_is_of_the_size_that_a_strict_model_takes(self):
        model = original(img_size=(16, 32), dynamic_img_size=False)
        model.pretrained_cfg = {"input_size": (3, 224, 224), "crop_mode": "squash"}
        _, processor = convert(model)
        assert (processor.crop_size.height, processor.crop_size.width) == (16, 32)

    @pytest.mark.parametrize("cfg", [{}, {"mean": (0.3,), "std": (0.2,)}], ids=str)
    def test_of_one_channel(self, cfg):
        model = original(in_chans=1)
        model.pretrained_cfg = {"input_size": (1, 32, 32), **cfg}
        converted, processor = convert(model)
        pixels = processor(Image.new("L", (50, 40), 128), return_tensors="pt")["pixel_values"]
        assert pixels.shape == (1, 1, 32, 32) and converted(pixels).logits.shape == (1, 5)
        torch.testing.assert_close(processor.image_mean[0], 0.3 if cfg else (0.485 + 0.456 + 0.406) / 3)
