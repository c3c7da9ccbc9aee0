"""Every family of `vit_hf.convert` beside the original of transformers."""

import importlib.util
from pathlib import Path

import pytest
import torch
import transformers as t
from PIL import Image

from vit_hf import AdaptiveViTForImageClassification, AdaptiveViTModel, convert
from vit_hf.checkpoints import FAMILIES, CannotConvert
from vit_hf.checkpoints.verify import ORIGINALS, SIZES, TINY, original, ours, theirs


every_original = pytest.mark.parametrize("name", ORIGINALS)


def test_every_family_has_an_original():
    assert {name.partition("-")[0] for name in ORIGINALS if name != "data2vec-vision"} | {
        "data2vec-vision"
    } == set(FAMILIES)


@every_original
@pytest.mark.parametrize("size", SIZES)
def test_outputs_are_those_of_the_original(name, size):
    model, images = original(name), torch.randn(2, 3, *size)
    converted, _ = convert(model)
    assert not converted.training
    torch.testing.assert_close(ours(converted, images), theirs(model, name, images), atol=1e-5, rtol=1e-5)


@every_original
def test_from_disk_and_back(name, tmp_path):
    """Labels are kept, a second load is the same to the bit, and the image processor prepares alike."""
    model = original(name)
    if hasattr(model, "classifier") or hasattr(model, "cls_classifier"):
        model.config.id2label = {index: f"class {index}" for index in range(5)}
        model.config.label2id = {label: index for index, label in model.config.id2label.items()}
    model.save_pretrained(tmp_path / "theirs")
    processor = getattr(t, FAMILIES[model.config.model_type].processor)(image_mean=[0.1, 0.2, 0.3])
    processor.save_pretrained(tmp_path / "theirs")
    converted, our_processor = convert(tmp_path / "theirs")
    if name == "siglip_vision_model":
        assert converted.config.num_labels == 0  # its logits are the embedding
    elif isinstance(converted, AdaptiveViTForImageClassification):
        assert converted.config.id2label == model.config.id2label
    image = Image.effect_noise((300, 260), 80).convert("RGB")
    expected = processor(image, return_tensors="pt")["pixel_values"]
    got = our_processor(image, return_tensors="pt")["pixel_values"]
    # DINOv3's resizes numbers, all others bytes, which are rounded.
    step = 1.01 / 255 / min(processor.image_std) if name.startswith("dinov3") else 1e-5
    torch.testing.assert_close(got, expected, atol=step, rtol=0)
    converted.save_pretrained(tmp_path / "ours")
    pooler = {} if getattr(converted, "pooler", converted) is not None else {"add_pooling_layer": False}
    again, report = type(converted).from_pretrained(tmp_path / "ours", output_loading_info=True, **pooler)
    assert not any(report.values())
    images = torch.randn(2, 3, 40, 32)
    assert torch.equal(ours(again, images), ours(converted, images))
    torch.testing.assert_close(ours(converted, images), theirs(model, name, images), atol=1e-5, rtol=1e-5)


@every_original
@pytest.mark.parametrize("selection", ["variance", "attention", "merge"])
def test_selection_works_at_once(name, selection):
    fields = {"patch_selector": selection, "num_selected_patches": 6, "scout_num_layers": 2}
    if selection == "merge":
        fields = {"token_reducer": "merge", "merge_r": 2, "reduction_layers": [0, 1]}
    if name in ("siglip_vision_model", "ijepa") and selection == "attention":
        with pytest.raises(Exception, match="needs the CLS token"):
            convert(original(name), **fields)
        return
    converted, _ = convert(original(name), **fields)
    images = torch.randn(2, 3, 48, 64)
    outputs = converted(images)
    left = 48 - 4 if selection == "merge" else 6
    assert outputs.token_coordinates.shape[1] == left
    assert ours(converted, images).isfinite().all()


def test_dtype_is_kept():
    converted, _ = convert(original("dinov2").to(torch.bfloat16))
    assert converted.dtype == torch.bfloat16


def test_a_bare_encoder_of_a_classifier():
    model = original("dinov2")
    converted, _ = convert(model.dinov2)
    assert type(converted) is AdaptiveViTModel and converted.pooler is None


class TestRefuses:
    def test_other_families(self, tmp_path):
        config = t.SwinConfig(embed_dim=24, depths=[1, 1], num_heads=[2, 2], image_size=32, window_size=2)
        with pytest.raises(CannotConvert, match=r"model_type 'swin' .*dinov2"):
            convert(t.SwinModel(config))

    def test_what_cannot_be_represented(self):
        fields = {**TINY, "use_relative_position_bias": True, "use_absolute_position_embeddings": True}
        with pytest.raises(CannotConvert, match="absolute and relative positions"):
            convert(t.BeitModel(t.BeitConfig(**fields)))
        config = t.CLIPConfig(
            vision_config=TINY, text_config={"hidden_size": 32, "intermediate_size": 64}, num_labels=3
        )
        with pytest.raises(CannotConvert, match="convert its encoder alone"):
            convert(t.CLIPForImageClassification(config))

    def test_a_path_without_a_checkpoint(self):
        with pytest.raises(OSError):
            convert("./nowhere")


def test_the_script_converts_and_verifies(tmp_path, capsys):
    spec = importlib.util.spec_from_file_location(
        "convert_script", Path(__file__).parents[2] / "scripts/convert.py"
    )
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    model = original("dinov2")
    model.save_pretrained(tmp_path / "theirs")
    t.BitImageProcessor().save_pretrained(tmp_path / "theirs")
    script.main([str(tmp_path / "theirs"), "--output", str(tmp_path / "ours")])
    again = AdaptiveViTForImageClassification.from_pretrained(tmp_path / "ours")
    images = torch.randn(1, 3, 32, 32)
    torch.testing.assert_close(ours(again, images), theirs(model, "dinov2", images), atol=1e-5, rtol=1e-5)
    capsys.readouterr()
    script.main(["--verify-all"])
    table = capsys.readouterr().out
    assert all(f"| {name} |" in table for name in (*ORIGINALS, "hybrid")) and "no" not in table.split()
    with pytest.raises(SystemExit, match="none of those that can be converted"):
        t.SwinModel(t.SwinConfig(embed_dim=24, depths=[1], num_heads=[2])).save_pretrained(tmp_path / "swin")
        script.main([str(tmp_path / "swin"), "--output", str(tmp_path / "no")])
    assert not (tmp_path / "no").exists()
