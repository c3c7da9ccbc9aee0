"""timm's hybrids beside what they become."""

import pytest
import timm
import torch
from timm.layers import StdConv2d

from tests.helpers.originals import SIZES, timm_hybrid
from vit_hf import convert
from vit_hf.checkpoints.families import CannotConvert


@pytest.mark.parametrize("fields", [{}, {"global_pool": "avg"}, {"num_classes": 0}], ids=str)
@pytest.mark.parametrize("size", SIZES)
def test_outputs_are_those_of_the_original(fields, size):
    model, images = timm_hybrid(**fields), torch.randn(2, 3, *size)
    converted, _ = convert(model)
    with torch.no_grad():
        torch.testing.assert_close(converted(images).logits, model(images), atol=1e-5, rtol=1e-5)


def test_selection_and_saving_at_once(tmp_path):
    model = timm_hybrid()
    selector = {"type": "attention", "num_layers": 2}
    converted, _ = convert(model, patch_selector=selector, num_selected_patches=6)
    images = torch.randn(2, 3, 48, 64)
    output = converted(images)
    assert output.selected_patches.shape == (2, 6)
    converted.save_pretrained(tmp_path)
    again, info = type(converted).from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values()) and torch.equal(again(images).logits, output.logits)


@pytest.mark.parametrize(("name", "stride"), [("vit_base_r50_s16_384", 16), ("vit_small_r26_s32_224", 32)])
def test_named_models(name, stride):
    model = timm.create_model(name, depth=1, num_classes=5, img_size=64, pretrained=False).eval()
    converted, processor = convert(model)
    assert converted.config.patch_size == stride and processor.patch_size == stride
    assert set(processor.image_mean) == {0.5}
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(converted(images).logits, model(images), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cnn": {"preact": True}}, "normalize first"),
        ({"cnn": {"stem_type": "deep_same", "stem_chs": 64}}, "a stem of .*conv1"),
        ({"cnn": {"stem_type": ""}}, "not padded to the same size"),
        ({"cnn": {"conv_layer": StdConv2d}}, "StdConv2dSame"),
        ({"cnn": {"avg_down": True}}, "DownsampleAvg"),
        ({"cnn": {"act_layer": torch.nn.SiLU}}, "SiLU"),
        ({"patch_size": 2}, r"patches of \(2, 2\) cells"),
    ],
    ids=str,
)
def test_refuses_what_cannot_be_represented(options, message):
    with pytest.raises(CannotConvert, match=message):
        convert(timm_hybrid(**options))


@pytest.mark.parametrize(
    ("name", "message"), [("vit_small_resnet26d_224", "FeatureList"), ("vit_tiny_r_s16_p8_224", "Sequential")]
)
def test_refuses_named_models_with_other_cnns(name, message):
    model = timm.create_model(name, depth=1, pretrained=False)
    with pytest.raises(CannotConvert, match=message):
        convert(model)
