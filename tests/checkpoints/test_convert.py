"""Every family of `vit_hf.convert` beside the original of transformers."""

import pytest
import torch
import transformers as t
from PIL import Image
from transformers import AutoModel

from tests.helpers.originals import (
    NAFLEX,
    ORIGINALS,
    SIZES,
    TIMM,
    TINY,
    TWO_TOWERS,
    cut,
    original,
    ours,
    theirs,
    timm_original,
)
from tests.helpers.scripts import command
from vit_hf import AdaptiveViTForImageClassification, AdaptiveViTModel, convert
from vit_hf.checkpoints.families import FAMILIES, CannotConvert
from vit_hf.checkpoints.loading import load_classifier


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
    encoder = getattr(model.config, "vision_config", model.config)
    options = {"patch_size": 8} if name.startswith("siglip2") else {}
    processor = getattr(t, FAMILIES[encoder.model_type].processor)(image_mean=[0.1, 0.2, 0.3], **options)
    processor.save_pretrained(tmp_path / "theirs")
    converted, our_processor = convert(tmp_path / "theirs")
    if isinstance(converted, AdaptiveViTForImageClassification):
        assert converted.config.id2label == model.config.id2label
    image = Image.effect_noise((300, 260), 80).convert("RGB")
    expected = processor(image, return_tensors="pt")["pixel_values"]
    got = our_processor(image, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=0)
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
    fields = {"patch_selector": selection, "num_selected_patches": 6}
    if selection == "attention":
        fields["patch_selector"] = {"type": "attention", "num_layers": 2}
    if selection == "merge":
        fields = {"token_reducer": {"type": "merge", "r": 2}, "reduction_layers": [0, 1]}
    if name.startswith(("siglip", "ijepa")) and selection == "attention":
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
    assert type(converted) is AdaptiveViTModel
    with torch.no_grad():
        images = torch.randn(1, 3, 32, 32)
        torch.testing.assert_close(converted(images).pooler_output, model.dinov2(images).pooler_output)


@pytest.mark.parametrize("size", SIZES[:2])
@pytest.mark.parametrize(
    "name",
    [
        "vit-encoder",
        "dinov2",
        "dinov2_with_registers",
        "dinov3_vit",
        "clip_vision_model",
        "beit",
        "beit-absolute",
        "siglip_vision_model",
        "siglip2_vision_model",
    ],
)
def test_pooler_output_of_an_encoder_is_that_of_the_original(name, size, tmp_path):
    """Also after the encoder was saved, and of one that selects (all patches here)."""
    encoder = original(name)
    encoder = getattr(encoder, FAMILIES[encoder.config.model_type].prefix, encoder)
    interpolate = {"interpolate_pos_encoding": True} if ORIGINALS[name][3] else {}
    images = torch.randn(2, 3, *size)
    with torch.no_grad():
        if name.startswith("siglip2"):
            expected = encoder(**cut(images, encoder.config)).pooler_output
        else:
            expected = encoder(images, **interpolate).pooler_output
        converted, _ = convert(encoder)
        torch.testing.assert_close(converted(images).pooler_output, expected, atol=1e-5, rtol=1e-5)
        converted.save_pretrained(tmp_path)
        again = AutoModel.from_pretrained(tmp_path, patch_selector="variance", num_selected_patches=1.0)
        torch.testing.assert_close(again(images).pooler_output, expected, atol=1e-5, rtol=1e-5)


def test_an_encoder_without_pooler_has_none_either():
    encoder = t.BeitModel(t.BeitConfig(**TINY), add_pooling_layer=False)
    assert convert(encoder)[0](torch.randn(1, 3, 32, 32)).pooler_output is None


def test_pooling_of_siglip_stays_in_a_classifier(tmp_path):
    encoder, _ = convert(original("siglip_vision_model"))
    encoder.save_pretrained(tmp_path)
    classifier, info = AdaptiveViTForImageClassification.from_pretrained(
        tmp_path, num_labels=5, output_loading_info=True
    )
    assert info["missing_keys"] == {"classifier.weight", "classifier.bias"} and not info["unexpected_keys"]
    images = torch.randn(1, 3, 32, 32)
    logits = classifier.classifier(encoder(images).pooler_output)
    torch.testing.assert_close(classifier.eval()(images).logits, logits)


class TestSiglip2:
    @pytest.mark.parametrize("name", ["siglip2_vision_model", "siglip2_vision_model-classifier"])
    def test_images_of_mixed_sizes_in_a_batch(self, name, tmp_path):
        """From pictures on: each with its own processor."""
        model = original(name)
        model.save_pretrained(tmp_path)
        options = {"patch_size": 8, "max_num_patches": 24}
        t.Siglip2ImageProcessor(**options).save_pretrained(tmp_path)
        converted, processor = convert(tmp_path)
        # At least two patches wide: torch 2.15 resizes a table to one cell wrongly.
        images = [Image.effect_noise(size, 80).convert("RGB") for size in ((90, 40), (33, 57), (24, 120))]
        inputs = t.Siglip2ImageProcessor(**options)(images, return_tensors="pt")
        assert inputs["pixel_attention_mask"].sum(1).unique().numel() > 1
        with torch.no_grad():
            expected = model(**inputs)
        expected = expected.logits if "logits" in expected else expected.pooler_output
        got = ours(converted, **processor(images, return_tensors="pt"))
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)

    def test_another_resolution_goes_before_the_number_of_patches(self, tmp_path):
        converted, processor = convert(original("siglip2_vision_model-classifier"))
        converted.save_pretrained(tmp_path)
        processor.save_pretrained(tmp_path)
        image = Image.effect_noise((90, 40), 80).convert("RGB")
        for resolution, grid in ((None, [11, 23]), (48, [6, 6]), ("native", [5, 11])):
            _, again = load_classifier(str(tmp_path), resolution=resolution)
            assert again(image, return_tensors="pt")["spatial_shapes"].tolist() == [grid]

    def test_a_whole_model(self):
        fields = {**TWO_TOWERS, "vision_config": NAFLEX}
        model = t.Siglip2Model(t.Siglip2Config(**fields)).eval()
        images = torch.randn(2, 3, 48, 64)
        with torch.no_grad():
            expected = model.vision_model(**cut(images, model.config)).pooler_output
        torch.testing.assert_close(ours(convert(model)[0], images), expected, atol=1e-5, rtol=1e-5)

    def test_without_a_head(self):
        model = t.Siglip2VisionModel(t.Siglip2VisionConfig(**NAFLEX, vision_use_head=False)).eval()
        images = torch.randn(2, 3, 48, 64)
        with torch.no_grad():
            expected = model(**cut(images, model.config)).last_hidden_state
        converted, _ = convert(model)
        assert type(converted) is AdaptiveViTModel
        torch.testing.assert_close(ours(converted, images), expected, atol=1e-5, rtol=1e-5)


every_timm = pytest.mark.parametrize("name", TIMM)


class TestTimm:
    @every_timm
    @pytest.mark.parametrize("size", SIZES)
    def test_outputs_are_those_of_the_original(self, name, size):
        model, images = timm_original(name), torch.randn(2, 3, *size)
        with torch.no_grad():
            torch.testing.assert_close(ours(convert(model)[0], images), model(images), atol=1e-5, rtol=1e-5)

    @every_timm
    def test_a_second_load_is_the_same_to_the_bit(self, name, tmp_path):
        converted, _ = convert(timm_original(name))
        converted.save_pretrained(tmp_path / "once")
        once, report = type(converted).from_pretrained(tmp_path / "once", output_loading_info=True)
        assert not any(report.values())
        once.save_pretrained(tmp_path / "twice")
        twice = type(converted).from_pretrained(tmp_path / "twice")
        for key, value in converted.state_dict().items():
            assert torch.equal(value, once.state_dict()[key]) and torch.equal(value, twice.state_dict()[key])
        images = torch.randn(2, 3, 40, 32)
        assert torch.equal(ours(twice, images), ours(converted, images))


class TestRefuses:
    def test_other_families(self, tmp_path):
        config = t.ResNetConfig(embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1])
        with pytest.raises(CannotConvert, match=r"model_type 'resnet' .*dinov2.*swin"):
            convert(t.ResNetModel(config))

    def test_what_cannot_be_represented(self):
        fields = {**TINY, "use_relative_position_bias": True, "use_absolute_position_embeddings": True}
        with pytest.raises(CannotConvert, match="absolute and relative positions"):
            convert(t.BeitModel(t.BeitConfig(**fields)))
        config = t.ViTMAEConfig(**TINY)
        model = t.ViTMAEModel(config)
        model.classifier = torch.nn.Linear(32, 5)
        with pytest.raises(CannotConvert, match="convert its encoder alone"):
            convert(model)

    def test_a_path_without_a_checkpoint(self):
        with pytest.raises(OSError):
            convert("./nowhere")


def test_the_script_converts(tmp_path):
    script = command("convert")
    model = original("dinov2")
    model.save_pretrained(tmp_path / "theirs")
    t.BitImageProcessor().save_pretrained(tmp_path / "theirs")
    script([str(tmp_path / "theirs"), "--output", str(tmp_path / "ours")])
    again = AdaptiveViTForImageClassification.from_pretrained(tmp_path / "ours")
    images = torch.randn(1, 3, 32, 32)
    torch.testing.assert_close(ours(again, images), theirs(model, "dinov2", images), atol=1e-5, rtol=1e-5)
    with pytest.raises(SystemExit, match=r"cannot be converted\. Choose from"):
        config = t.ResNetConfig(embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1])
        t.ResNetModel(config).save_pretrained(tmp_path / "resnet")
        script([str(tmp_path / "resnet"), "--output", str(tmp_path / "no")])
    assert not (tmp_path / "no").exists()
