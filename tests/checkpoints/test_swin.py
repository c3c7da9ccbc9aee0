"""Swin and SwinV2 of transformers and timm beside what they become."""

import pytest
import torch
import transformers as t
from torch import nn

from tests.helpers.originals import perturbed
from tests.helpers.swin_originals import (
    SIZES,
    SWIN_ORIGINALS,
    SWIN_TIMM,
    TINY,
    TINY_TIMM,
    predict_swin,
    predict_timm,
    swin_original,
    swin_timm_original,
)
from vit_hf import (
    AdaptiveSwinBackbone,
    AdaptiveSwinConfig,
    AdaptiveSwinForImageClassification,
    AdaptiveSwinForMaskedImageModeling,
    convert,
)
from vit_hf.checkpoints.families import CannotConvert


every_size = pytest.mark.parametrize("size", SIZES)
every_version = pytest.mark.parametrize("version", ["Swin", "Swinv2"])
CLOSE = {"atol": 1e-5, "rtol": 1e-5}


def make(name: str, **fields) -> t.PreTrainedModel:
    model_class = getattr(t, name)
    return perturbed(model_class(model_class.config_class(**{**TINY, **fields})))


@every_size
@pytest.mark.parametrize("name", SWIN_ORIGINALS)
def test_outputs_are_those_of_the_original(name, size):
    model, images = swin_original(name), torch.randn(2, 3, *size)
    converted, _ = convert(model)
    assert not converted.training
    torch.testing.assert_close(predict_swin(converted, images), predict_swin(model, images), **CLOSE)


@every_size
@pytest.mark.parametrize("name", SWIN_TIMM)
def test_outputs_are_those_of_timm(name, size):
    model, images = swin_timm_original(name), torch.randn(2, 3, *size)
    torch.testing.assert_close(predict_swin(convert(model)[0], images), predict_timm(model, images), **CLOSE)


@every_size
@every_version
@torch.no_grad()
def test_hidden_states_and_attentions_of_each_stage(version, size):
    model, images = make(f"{version}Model"), torch.randn(2, 3, *size)
    converted, _ = convert(model)
    model.set_attn_implementation("eager")
    wanted = {"output_hidden_states": True, "output_attentions": True}
    expected, got = model(images, **wanted), converted(images, **wanted)
    for name in ("hidden_states", "reshaped_hidden_states", "attentions"):
        for ours, theirs in zip(got[name], expected[name], strict=True):
            torch.testing.assert_close(ours, theirs, **CLOSE)
    torch.testing.assert_close(got.pooler_output, expected.pooler_output, **CLOSE)


@every_size
@every_version
@torch.no_grad()
def test_feature_maps_of_the_backbone(version, size):
    """Where a grid is not larger than a window, a backbone of transformers' Swin shifts windows all the
    same."""
    stages = ["stem", "stage1", "stage2"]
    model, images = make(f"{version}Backbone", out_features=stages), torch.randn(2, 3, *size)
    converted, _ = convert(model)
    assert type(converted) is AdaptiveSwinBackbone and converted.channels == model.channels
    for ours, theirs in zip(converted(images).feature_maps, model(images).feature_maps, strict=True):
        torch.testing.assert_close(ours, theirs, **CLOSE)


@every_size
@pytest.mark.parametrize("name", ["swin", "swin-windows", "swinv2"])
@torch.no_grad()
def test_feature_maps_of_timm(name, size):
    model, images = swin_timm_original(name), torch.randn(2, 3, *size)
    classifier, _ = convert(model)
    config = classifier.config
    config.apply_layernorm, config.out_features = False, ["stage1", "stage2"]
    backbone = AdaptiveSwinBackbone(config).eval()
    backbone.load_state_dict(classifier.swin.state_dict(), strict=False)
    expected = model.forward_intermediates(images, intermediates_only=True)
    for ours, theirs in zip(backbone(images).feature_maps, expected, strict=True):
        torch.testing.assert_close(ours, theirs, **CLOSE)


@every_version
@torch.no_grad()
def test_masked_image_modelling(version):
    model = make(f"{version}ForMaskedImageModeling")
    images, masked = torch.randn(2, 3, 32, 32), torch.rand(2, 64) < 0.5
    converted, _ = convert(model)
    assert type(converted) is AdaptiveSwinForMaskedImageModeling
    expected, got = model(images, bool_masked_pos=masked), converted(images, bool_masked_pos=masked)
    torch.testing.assert_close(got.loss, expected.loss, **CLOSE)
    torch.testing.assert_close(got.reconstruction, expected.reconstruction, **CLOSE)


@every_version
def test_from_pretrained_reads_stock_checkpoints(version, tmp_path):
    """With the names of transformers 5 and, of Swin, those of 4; a head, an encoder, a backbone, masked
    modelling."""
    model = make(f"{version}ForImageClassification", id2label={index: f"class {index}" for index in range(5)})
    model.save_pretrained(tmp_path / "stock")
    model.save_pretrained(tmp_path / "new", save_original_format=False)
    images = torch.randn(2, 3, 40, 28)
    for folder in ("stock", "new"):
        ours, report = AdaptiveSwinForImageClassification.from_pretrained(
            tmp_path / folder, output_loading_info=True
        )
        assert not any(report.values()) and ours.config.id2label[3] == "class 3"
        torch.testing.assert_close(predict_swin(ours, images), predict_swin(model, images), **CLOSE)
        backbone, report = AdaptiveSwinBackbone.from_pretrained(
            tmp_path / folder, out_features=["stage1"], apply_layernorm=False, output_loading_info=True
        )
        assert not any(report.values())
        torch.testing.assert_close(
            backbone.encoder.layers[1].blocks[1].mlp.fc1.weight,
            ours.swin.encoder.layers[1].blocks[1].mlp.fc1.weight,
        )
    few = AdaptiveSwinForImageClassification.from_pretrained(
        tmp_path / "stock", patch_selector="variance", num_selected_windows=2
    )
    assert few(images).selected_windows[0].shape == (2, 2)


def test_buffers_of_older_files_are_left_out(tmp_path):
    from safetensors.torch import load_file, save_file

    make("SwinForImageClassification").save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    name = "swin.encoder.layers.0.blocks.0.attention.self.relative_position_index"
    save_file(
        weights | {name: torch.zeros(9, 9, dtype=torch.long)},
        tmp_path / "model.safetensors",
        {"format": "pt"},
    )
    _, report = AdaptiveSwinForImageClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values())


@every_version
def test_from_disk_with_the_preparation(version, tmp_path):
    model = make(f"{version}ForImageClassification")
    model.save_pretrained(tmp_path)
    t.ViTImageProcessor(image_mean=[0.1, 0.2, 0.3]).save_pretrained(tmp_path)
    converted, processor = convert(tmp_path, patch_selector="entropy", num_selected_windows=0.5)
    assert list(processor.image_mean) == [0.1, 0.2, 0.3] and converted.config.patch_selector == "entropy"
    converted.save_pretrained(tmp_path / "ours")
    again, report = AdaptiveSwinForImageClassification.from_pretrained(
        tmp_path / "ours", output_loading_info=True
    )
    images = torch.randn(1, 3, 40, 28)
    assert not any(report.values())
    torch.testing.assert_close(predict_swin(again, images), predict_swin(converted, images))


class TestRefuses:
    def test_windows_that_are_not_square(self):
        with pytest.raises(CannotConvert, match=r"grid of 2x8 cells"):
            convert(make("Swinv2Model", image_size=(8, 32), depths=[1], num_heads=[2]))

    def test_positions_that_do_not_fit(self):
        with pytest.raises(CannotConvert, match="use_absolute_embeddings=True of a SwinV2"):
            convert(make("Swinv2Model", use_absolute_embeddings=True))

    def test_fields_of_a_vit(self):
        model = swin_original("swin")
        with pytest.raises(ValueError, match=r"AdaptiveSwinConfig has no keep_rate"):
            convert(model, keep_rate=0.5)
        with pytest.raises(ValueError, match=r"AdaptiveViTConfig has no num_selected_windows"):
            convert(make("ViTModel", hidden_size=32, num_attention_heads=4), num_selected_windows=2)

    def test_other_models(self, tmp_path):
        t.ViTConfig().save_pretrained(tmp_path)
        with pytest.raises(ValueError, match=r"holds a 'vit' model; AdaptiveSwin loads"):
            AdaptiveSwinConfig.from_pretrained(tmp_path)

    @pytest.mark.parametrize(
        ("fields", "reason"),
        [
            ({"global_pool": "max"}, "global_pool='max'"),
            ({"head_dim": 4}, "heads of other width"),
            ({"mlp_ratio": (2.0, 3.0)}, "feed-forward networks"),
        ],
        ids=["pooling", "heads", "mlp"],
    )
    def test_options_of_timm(self, fields, reason):
        from timm.models.swin_transformer import SwinTransformer

        with pytest.raises(CannotConvert, match=reason):
            convert(SwinTransformer(**{**TINY_TIMM, **fields}))

    def test_another_activation_of_timm(self):
        model = swin_timm_original("swin")
        for part in model.modules():
            if type(part).__name__ == "Mlp":
                part.act = nn.Hardswish()
        with pytest.raises(CannotConvert, match="Hardswish"):
            convert(model)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["swin_tiny_patch4_window7_224", "swinv2_tiny_window8_256"])
def test_weights_of_timm_at_real_size(name):
    import timm

    model = perturbed(timm.create_model(name, pretrained=False, dynamic_img_size=True))
    converted, processor = convert(model.state_dict(), architecture=name)
    side = processor.crop_size.height
    for size in ((side, side), (300, 260)):
        images = torch.randn(1, 3, *size)
        expected = predict_timm(model, images)
        assert (predict_swin(converted, images) - expected).abs().max() < 1e-5 * expected.abs().max()
