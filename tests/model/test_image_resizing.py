"""The options by which other families resize, beside their own image processors."""

import numpy as np
import PIL.Image
import pytest
import torch
import transformers as t
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.image_utils import SizeDict
from transformers.models.siglip2.image_processing_siglip2 import get_image_size_for_max_num_patches

from tests.helpers.processors import BACKENDS, picture
from vit_hf import AdaptiveViTConfig, AdaptiveViTForImageClassification
from vit_hf.model.image_processing_adaptive_vit import size_for_patches, target_size


HALF = [0.5, 0.5, 0.5]
SIGLIP2 = {"torchvision": t.Siglip2ImageProcessor, "pil": t.Siglip2ImageProcessorPil}
backends = pytest.mark.parametrize("backend", BACKENDS)


class TestNumberOfPatches:
    @settings(deadline=None, max_examples=150)
    @given(st.integers(1, 3000), st.integers(1, 3000), st.integers(1, 40), st.integers(1, 1200))
    def test_sizes_are_those_of_siglip2(self, height, width, patch, most):
        expected = get_image_size_for_max_num_patches(height, width, patch, most)
        assert size_for_patches(height, width, (patch, patch), most) == expected

    def test_patches_may_be_oblong(self):
        height, width = size_for_patches(480, 640, (8, 16), 100)
        assert height % 8 == width % 16 == 0 and (height // 8) * (width // 16) <= 100
        assert height / width == pytest.approx(480 / 640, rel=0.1)

    @backends
    @pytest.mark.parametrize("resample", [PIL.Image.Resampling.BILINEAR, PIL.Image.Resampling.BICUBIC])
    def test_pixels_are_those_of_siglip2(self, backend, resample):
        options = {
            "patch_size": 8,
            "max_num_patches": 20,
            "image_mean": HALF,
            "image_std": HALF,
            "resample": resample,
        }
        ours = BACKENDS[backend][0](return_patches=True, **options)
        images = [picture(90, 40), picture(33, 57, seed=1), picture(16, 500, seed=2)]
        expected, got = (
            SIGLIP2[backend](**options)(images, return_tensors="pt"),
            ours(images, return_tensors="pt"),
        )
        assert got["spatial_shapes"].tolist() == expected["spatial_shapes"].tolist()
        assert torch.equal(got["pixel_attention_mask"], expected["pixel_attention_mask"].long())
        torch.testing.assert_close(got["pixel_values"], expected["pixel_values"], atol=1e-5, rtol=0)

    @backends
    def test_whole_images_and_a_selector(self, backend):
        ours = BACKENDS[backend][0](max_num_patches=30, patch_size=8)
        whole = ours([picture(90, 40), picture(16, 500)]).pixel_values
        assert [tuple(image.shape) for image in whole] == [(3, 56, 32), (3, 8, 240)]
        options = {"return_patches": True, "patch_selector": "variance", "num_selected_patches": 0.5}
        cut = ours([picture(90, 40), picture(16, 500)], **options, return_tensors="pt")
        assert cut["pixel_attention_mask"].sum(1).tolist() == [14, 15]

    @backends
    def test_saved_and_turned_off(self, backend, tmp_path):
        processor = BACKENDS[backend][0](max_num_patches=30, patch_size=8)
        processor.save_pretrained(tmp_path)
        again = type(processor).from_pretrained(tmp_path)
        assert again.max_num_patches == 30
        assert again(picture(90, 40), do_resize=False).pixel_values[0].shape == (3, 90, 40)

    @backends
    @pytest.mark.parametrize("wrong", [0, -3])
    def test_refuses(self, backend, wrong):
        with pytest.raises(ValueError, match=f"max_num_patches={wrong} must be"):
            BACKENDS[backend][0](max_num_patches=wrong)


class TestFloats:
    SIZES = [
        {"height": 20, "width": 30},
        {"shortest_edge": 24},
        {"shortest_edge": 24, "longest_edge": 28},
        {"max_height": 30, "max_width": 30},
    ]

    @pytest.mark.parametrize("size", SIZES, ids=str)
    @pytest.mark.parametrize(
        "others", [{}, {"do_rescale": False}, {"do_normalize": False}, {"do_resize": False}]
    )
    @pytest.mark.parametrize("crop", [False, True])
    def test_pixels_are_those_of_dinov3(self, size, others, crop):
        options = {"size": size, "do_center_crop": crop, "crop_size": {"height": 18, "width": 16}, **others}
        image = np.float32(picture() / 255) if others.get("do_rescale") is False else picture()
        expected = t.DINOv3ViTImageProcessor(**options)(image, return_tensors="pt").pixel_values
        means = {
            "image_mean": t.DINOv3ViTImageProcessor.image_mean,
            "image_std": t.DINOv3ViTImageProcessor.image_std,
        }
        ours = BACKENDS["torchvision"][0](rescale_before_resize=True, **means, **options)
        got = ours(image, return_tensors="pt").pixel_values
        torch.testing.assert_close(got, expected, atol=1e-6, rtol=0)
        if not others:
            plain = ours(picture(), rescale_before_resize=False, return_tensors="pt").pixel_values
            assert (plain - expected).abs().max() > 1e-4

    @pytest.mark.parametrize("size", SIZES, ids=str)
    @pytest.mark.parametrize("resample", [PIL.Image.Resampling.BILINEAR, PIL.Image.Resampling.BICUBIC])
    def test_pillow_resizes_floats_as_torchvision(self, size, resample):
        options = {"size": size, "resample": resample, "rescale_before_resize": True}
        got, expected = (
            processor[0](**options)(picture(), return_tensors="pt").pixel_values
            for processor in BACKENDS.values()
        )
        assert got.dtype == expected.dtype
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=0)

    @backends
    def test_with_patches(self, backend):
        processor = BACKENDS[backend][0](size=32, patch_size=8, rescale_before_resize=True)
        model = AdaptiveViTForImageClassification(
            AdaptiveViTConfig(
                hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, patch_size=8
            )
        ).eval()
        with torch.no_grad():
            cut = model(**processor(picture(), return_patches=True, return_tensors="pt")).logits
            torch.testing.assert_close(cut, model(**processor(picture(), return_tensors="pt")).logits)


@settings(deadline=None, max_examples=60)
@given(
    st.integers(20, 300),
    st.integers(20, 300),
    st.sampled_from([*TestFloats.SIZES, {"shortest_edge": 7}, {"longest_edge": 50}]),
    st.sampled_from(sorted(BACKENDS)),
)
def test_target_sizes_are_those_of_the_backends(height, width, size, backend):
    image = torch.zeros(3, height, width, dtype=torch.uint8)
    image = image if backend == "torchvision" else image.numpy()
    wanted = target_size(height, width, SizeDict(**size))
    assert BACKENDS[backend][0]().resize(image=image, size=SizeDict(**size)).shape[1:] == wanted
