"""Folders as transformers 4 wrote them for its ViTHybrid, beside the model of timm that those were made
from."""

import json
import re

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from timm.data import create_transform

from tests.helpers.hybrids import CONFIG
from tests.helpers.originals import SIZES, timm_hybrid
from vit_hf import AdaptiveViTForImageClassification, AdaptiveViTModel, convert
from vit_hf.checkpoints.families import CannotConvert


PREPROCESSOR = {
    "crop_size": {"height": 32, "width": 32},
    "do_center_crop": True,
    "do_convert_rgb": True,
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": [0.5, 0.5, 0.5],
    "image_processor_type": "ViTHybridImageProcessor",
    "image_std": [0.5, 0.5, 0.5],
    "resample": 3,
    "rescale_factor": 0.00392156862745098,
    "size": {"shortest_edge": 32},
}
STEM = "vit.embeddings.patch_embeddings"
NAMES = [
    (r"^cls_token", "vit.embeddings.cls_token"),
    (r"^pos_embed", "vit.embeddings.position_embeddings"),
    (r"^patch_embed\.proj", f"{STEM}.projection"),
    (r"^patch_embed\.backbone\.stem\.conv", f"{STEM}.backbone.bit.embedder.convolution"),
    (r"^patch_embed\.backbone\.stem\.norm", f"{STEM}.backbone.bit.embedder.norm"),
    (
        r"^patch_embed\.backbone\.stages\.(\d+)\.blocks\.(\d+)",
        rf"{STEM}.backbone.bit.encoder.stages.\1.layers.\2",
    ),
    (r"^blocks\.(\d+)\.norm1", r"vit.encoder.layer.\1.layernorm_before"),
    (r"^blocks\.(\d+)\.norm2", r"vit.encoder.layer.\1.layernorm_after"),
    (r"^blocks\.(\d+)\.attn\.proj", r"vit.encoder.layer.\1.attention.output.dense"),
    (r"^blocks\.(\d+)\.mlp\.fc1", r"vit.encoder.layer.\1.intermediate.dense"),
    (r"^blocks\.(\d+)\.mlp\.fc2", r"vit.encoder.layer.\1.output.dense"),
    (r"^norm\.", "vit.layernorm."),
    (r"^head\.", "classifier."),
]


def write_folder(path, model, config=CONFIG):
    """What transformers 4 saved of a hybrid: the weights of timm's `model` by its names."""
    weights = {}
    for name, value in model.state_dict().items():
        if ".attn.qkv." in name:
            block, kind = re.match(r"blocks\.(\d+)\.attn\.qkv\.(\w+)", name).groups()
            for part, third in zip(("query", "key", "value"), value.chunk(3), strict=True):
                weights[f"vit.encoder.layer.{block}.attention.attention.{part}.{kind}"] = third.clone()
            continue
        for theirs, ours in NAMES:
            name = re.sub(theirs, ours, name)
        weights[name] = value
    path.mkdir(exist_ok=True)
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
    (path / "config.json").write_text(json.dumps(config))
    (path / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR))
    return path


@pytest.mark.parametrize("way", ["from_pretrained", "convert"])
@pytest.mark.parametrize("size", SIZES)
def test_outputs_are_those_of_the_original(way, size, tmp_path):
    model = timm_hybrid()
    folder = write_folder(tmp_path, model)
    fields = {
        "position_encoding": {"type": "learned", "antialias": True}
    }  # as timm shrinks and stretches positions
    if way == "convert":
        ours, _ = convert(folder, **fields)
    else:
        ours, info = AdaptiveViTForImageClassification.from_pretrained(
            folder, output_loading_info=True, **fields
        )
        assert not any(info.values())
    assert ours.config.patch_size == 8 and ours.config.id2label[3] == "class 3"
    images = torch.randn(2, 3, *size)
    with torch.no_grad():
        torch.testing.assert_close(ours(images).logits, model(images), atol=1e-5, rtol=1e-5)


def test_prepares_as_the_original(tmp_path):
    _, processor = convert(write_folder(tmp_path, timm_hybrid()))
    assert processor.patch_size == 8
    transform = create_transform(
        (3, 32, 32), interpolation="bicubic", mean=(0.5,) * 3, std=(0.5,) * 3, crop_pct=1.0
    )
    image = Image.effect_noise((60, 60), 80).convert("RGB").resize((192, 128))
    got = processor(image, return_tensors="pt")["pixel_values"][0]
    # The rest is even, as torchvision and transformers round the middle of an odd one to different sides.
    torch.testing.assert_close(got, transform(image), atol=0.05, rtol=0)
    (tmp_path / "preprocessor_config.json").unlink()
    _, default = convert(tmp_path)
    assert torch.equal(default(image, return_tensors="pt")["pixel_values"][0], got)


def test_without_a_head_with_selection_and_saved_again(tmp_path):
    folder = write_folder(tmp_path / "theirs", timm_hybrid())
    weights = load_file(folder / "model.safetensors")
    weights = {
        name.removeprefix("vit."): value for name, value in weights.items() if not name.startswith("class")
    }
    weights |= {"pooler.dense.weight": torch.randn(32, 32), "pooler.dense.bias": torch.randn(32)}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps({**CONFIG, "architectures": ["ViTHybridModel"]}))
    model, _ = convert(folder, patch_selector="variance", num_selected_patches=6)
    assert type(model) is AdaptiveViTModel
    assert torch.equal(model.pooler.dense.bias, weights["pooler.dense.bias"])
    images = torch.randn(1, 3, 48, 64)
    output = model(images)
    assert output.selected_patches.shape == (1, 6)
    model.save_pretrained(tmp_path / "ours")
    again, info = AdaptiveViTModel.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(info.values())
    assert torch.equal(again(images).last_hidden_state, output.last_hidden_state)


def test_the_default_cnn(tmp_path):
    """Without backbone_config it is that of R50+ViT-B/16, on which transformers 4 had the defaults."""
    from vit_hf import AdaptiveViTConfig

    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vit-hybrid", "image_size": 384}))
    config = AdaptiveViTConfig.from_pretrained(tmp_path)
    assert config.patch_size == 16 and config.backbone_config.depths == [3, 4, 9]
    assert config.backbone_config.out_features == ["stage3"] and config.encoder_stride == 16


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"patch_size": 2}, "patch_size=2 cells"),
        ({"backbone_config": {"model_type": "resnet"}}, "not 'resnet'"),
        ({"backbone": "resnet50"}, "'resnet50'.*backbone_config"),
    ],
)
def test_refuses(changes, message, tmp_path):
    folder = write_folder(tmp_path, timm_hybrid(), {**CONFIG, **changes})
    with pytest.raises(ValueError, match=message):
        convert(folder)


def test_refuses_incomplete_weights(tmp_path):
    folder = write_folder(tmp_path, timm_hybrid())
    weights = load_file(folder / "model.safetensors")
    del weights[f"{STEM}.backbone.bit.embedder.norm.bias"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CannotConvert, match=r"lacks some, .*embedder\.norm\.bias"):
        convert(folder)
