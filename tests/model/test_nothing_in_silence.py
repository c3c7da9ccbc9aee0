"""Selection and reduction that save nothing are told; inputs that no processor has prepared are refused."""

import logging

import numpy as np
import PIL.Image
import pytest
import torch

from tests.helpers.models import tiny_config, tiny_swin_config
from vit_hf import (
    TOKEN_REDUCERS,
    AdaptiveSwinBackbone,
    AdaptiveSwinForImageClassification,
    AdaptiveSwinForMaskedImageModeling,
    AdaptiveSwinModel,
    AdaptiveViTBackbone,
    AdaptiveViTForElasticImageClassification,
    AdaptiveViTForImageClassification,
    AdaptiveViTForMaskedImageModeling,
    AdaptiveViTForPreTraining,
    AdaptiveViTForSemanticSegmentation,
    AdaptiveViTForVideoClassification,
    AdaptiveViTImageProcessor,
    AdaptiveViTImageProcessorPil,
    AdaptiveViTModel,
)
from vit_hf.model.selection_checks import logger as selection_logger


MODELS = {
    **{
        model_class.__name__: (model_class, tiny_config)
        for model_class in (
            AdaptiveViTModel,
            AdaptiveViTForImageClassification,
            AdaptiveViTForMaskedImageModeling,
            AdaptiveViTForPreTraining,
            AdaptiveViTForSemanticSegmentation,
            AdaptiveViTBackbone,
        )
    },
    **{
        model_class.__name__: (model_class, tiny_swin_config)
        for model_class in (
            AdaptiveSwinModel,
            AdaptiveSwinForImageClassification,
            AdaptiveSwinForMaskedImageModeling,
            AdaptiveSwinBackbone,
        )
    },
    "AdaptiveViTForVideoClassification": (
        AdaptiveViTForVideoClassification,
        lambda: tiny_config(num_frames=4),
    ),
    "AdaptiveViTForElasticImageClassification": (
        AdaptiveViTForElasticImageClassification,
        lambda: tiny_config(elastic_space={"depths": [2, 3]}),
    ),
}
every_model = pytest.mark.parametrize("name", MODELS)
PROCESSORS = {"torchvision": AdaptiveViTImageProcessor, "pil": AdaptiveViTImageProcessorPil}
every_processor = pytest.mark.parametrize("processor_class", PROCESSORS.values(), ids=PROCESSORS)


@pytest.fixture
def warnings(caplog):
    """Text of what was warned of, as if nothing had been before."""
    type(selection_logger).warning_once.cache_clear()
    caplog.set_level(logging.WARNING)
    return lambda: [
        record.getMessage() for record in caplog.records if "saves nothing" in record.getMessage()
    ]


@every_model
@pytest.mark.parametrize(
    "images",
    [
        PIL.Image.new("RGB", (32, 32)),
        [PIL.Image.new("RGB", (32, 32))],
        [torch.rand(3, 32, 32)],
        np.zeros((1, 3, 32, 32), dtype=np.float32),
        torch.zeros(1, 3, 32, 32, dtype=torch.uint8),
        torch.zeros(1, 3, 32, 32, dtype=torch.int64),
        "photo.jpg",
        None,
    ],
    ids=["image", "images", "tensors", "array", "bytes", "integers", "path", "none"],
)
def test_unprepared_images_are_refused(name, images):
    model_class, make_config = MODELS[name]
    with pytest.raises(TypeError, match="AdaptiveViTImageProcessor"):
        model_class(make_config()).eval()(images)


def test_inputs_that_were_not_unpacked_are_refused():
    inputs = AdaptiveViTImageProcessor()(PIL.Image.new("RGB", (32, 32)), return_tensors="pt")
    with pytest.raises(TypeError, match=r"model\(\*\*inputs\)"):
        AdaptiveViTModel(tiny_config())(inputs)


@pytest.mark.parametrize(
    "name",
    [
        "AdaptiveViTForImageClassification",
        "AdaptiveViTForSemanticSegmentation",
        "AdaptiveSwinForImageClassification",
        "AdaptiveViTForVideoClassification",
        "AdaptiveViTForElasticImageClassification",
    ],
)
@pytest.mark.parametrize("labels", [[1], 1, np.ones(1)], ids=["list", "number", "array"])
def test_labels_that_are_no_tensor_are_refused(name, labels):
    model_class, make_config = MODELS[name]
    shape = (1, 4, 3, 32, 32) if "Video" in name else (1, 3, 32, 32)
    with pytest.raises(TypeError, match=r"labels must be a tensor.*torch\.tensor\(labels\)"):
        model_class(make_config())(torch.rand(shape), labels=labels)


@pytest.mark.parametrize("number", [16, 1.0])
@pytest.mark.parametrize("selector", ["variance", "attention", "policy", "perturbed", "cross_attention"])
def test_selector_that_keeps_all_is_told_once(selector, number, warnings):
    model = AdaptiveViTModel(tiny_config(patch_selector=selector, num_selected_patches=number)).eval()
    for _ in range(2):
        model(torch.rand(1, 3, 32, 32))
    (text,) = warnings()
    assert "4x4" in text and "do_resize=False" in text and selector in text


@pytest.mark.parametrize("number", [9, 0.5])
def test_selector_that_drops_is_not_told(number, warnings):
    model = AdaptiveViTModel(tiny_config(patch_selector="variance", num_selected_patches=number))
    model.set_dense_fraction(1.0)
    model(torch.rand(1, 3, 32, 32))
    model.eval()(torch.rand(1, 3, 32, 32))
    assert not warnings()


def test_backbone_and_segmentation_tell_as_well(warnings):
    config = tiny_config(patch_selector="variance", num_selected_patches=16)
    AdaptiveViTBackbone(config).eval()(torch.rand(1, 3, 32, 32))
    assert len(warnings()) == 1


def test_swin_that_keeps_all_windows_is_told(warnings):
    config = tiny_swin_config(patch_selector="variance", num_selected_windows=4)
    AdaptiveSwinModel(config).eval()(torch.rand(1, 3, 32, 32))
    (text,) = warnings()
    assert "num_selected_windows=4" in text


@pytest.mark.parametrize("reducer", TOKEN_REDUCERS)
def test_reducer_that_keeps_all_is_told(reducer, warnings):
    AdaptiveViTModel(tiny_config(token_reducer=reducer, keep_rate=0.5, reduction_layers=[1]))
    assert not warnings()
    AdaptiveViTModel(tiny_config(token_reducer=reducer, reduction_layers=[1]))
    (text,) = warnings()
    assert reducer in text and "keep_rate below 1" in text


@every_processor
def test_processor_that_keeps_all_is_told(processor_class, warnings):
    processor = processor_class(
        return_patches=True, patch_selector="variance", num_selected_patches=196, patch_size=16
    )
    processor(PIL.Image.new("RGB", (400, 400)), return_tensors="pt")
    (text,) = warnings()
    assert "14x14" in text and "do_resize=False" in text


@every_processor
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"patch_selector": "variance", "num_selected_patches": 4}, "needs return_patches=True"),
        ({"patch_selector": "variance", "return_patches": True}, "needs num_selected_patches"),
        ({"num_selected_patches": 4, "return_patches": True}, "needs a patch_selector"),
    ],
)
def test_processor_that_cannot_select_is_refused(processor_class, options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        processor_class(**options)
    processor = processor_class()
    with pytest.raises(ValueError, match=message):
        processor(PIL.Image.new("RGB", (32, 32)), **options)
    processor.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=message):
        processor_class.from_pretrained(tmp_path, **options)
    for name, value in options.items():
        setattr(processor, name, value)
    with pytest.raises(ValueError, match=message):
        processor(PIL.Image.new("RGB", (32, 32)))


class TestSelectedTwice:
    def make(self, of_processor, of_model):
        processor = AdaptiveViTImageProcessor(
            size={"height": 32, "width": 32},
            patch_size=8,
            return_patches=True,
            **({"patch_selector": "variance", "num_selected_patches": of_processor} if of_processor else {}),
        )
        config = tiny_config(patch_selector="saliency", num_selected_patches=of_model)
        noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
        return AdaptiveViTModel(config).eval(), processor(noise, return_tensors="pt")

    @pytest.mark.parametrize(("of_processor", "of_model"), [(8, 4), (0.5, 0.25), (8, 0.25), (8, 12)])
    def test_is_refused_with_both_names(self, of_processor, of_model):
        model, inputs = self.make(of_processor, of_model)
        with pytest.raises(ValueError, match=r"8 of its 4x4 patches.*image processor.*'saliency'"):
            model(**inputs)

    @pytest.mark.parametrize(("of_processor", "of_model"), [(4, 4), (None, 4), (0.25, 0.25)])
    def test_is_not_seen_where_there_is_one(self, of_processor, of_model, warnings):
        model, inputs = self.make(of_processor, of_model)
        assert model(**inputs).token_coordinates.shape[1] == 4
        assert not warnings()
