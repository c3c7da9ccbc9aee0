"""transformers' own suites on the models and image processors of this package.

`test_transformers_suites.py` runs this file in a process of its own, where `transformers_tests` is the folder
`tests` of transformers' source distribution.
"""

import copy
import typing
import unittest

import torch
from transformers.modeling_outputs import SemanticSegmenterOutput
from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES
from transformers_tests.test_backbone_common import BackboneTesterMixin
from transformers_tests.test_image_processing_common import (
    ImageProcessingTestMixin,
    PostProcessSemanticSegmentationTestMixin,
    prepare_image_inputs,
)
from transformers_tests.test_modeling_common import ModelTesterMixin

import vit_hf
from tests.helpers.models import SELECTIONS, tiny_config, tiny_swin_config


class Tester:
    """What the suites ask for a model: its configuration and inputs."""

    batch_size = 2
    is_training = True
    num_channels = 3

    def __init__(self, fields: dict, is_swin: bool):
        self.fields, self.is_swin = fields, is_swin
        config = self.get_config()
        self.num_hidden_layers = config.num_hidden_layers
        self.seq_length, self.num_masks, self.mask_length = (64, 32, 64) if is_swin else (17, 8, 16)
        if fields.get("num_frames"):
            self.seq_length += 16 * (fields["num_frames"] // config.tubelet_size - 1)
        self.num_attention_heads = 2 if is_swin else config.num_attention_heads
        self.hidden_size = 16 if is_swin else config.hidden_size
        self.image_size, self.patch_size = 32, config.patch_size

    def get_config(self):
        fields = {"initializer_range": 0.02, **self.fields}
        if self.is_swin:
            return tiny_swin_config(**{"depths": [1, 1], "num_heads": [2, 2], "encoder_stride": 8, **fields})
        return tiny_config(
            **{"num_hidden_layers": 2, "masked_autoencoder": {"decoder_num_hidden_layers": 1}, **fields}
        )

    def prepare_config_and_inputs_for_common(self):
        config = self.get_config()
        shape = (self.batch_size, 3, 32, 32)
        if getattr(config, "num_frames", None):
            shape = (self.batch_size, config.num_frames, 3, 32, 32)
        return config, {"pixel_values": torch.rand(shape)}


# The suites train no encoder without a head, which they know by name.
MODEL_MAPPING_NAMES |= {"adaptive_vit": "AdaptiveViTModel", "adaptive_swin": "AdaptiveSwinModel"}


# The suites give every configuration fields of other families; ours refuses those that look like misspelt
# ones.
for _config in (vit_hf.AdaptiveViTConfig, vit_hf.AdaptiveSwinConfig):
    for _name in ("layer_norm_epsilon", "num_dense_layers", "post_norm_eps"):
        setattr(_config, _name, None)


class Suite(ModelTesterMixin):
    """ModelTesterMixin for images instead of tokens."""

    fields: dict = {}
    is_swin = False
    test_resize_embeddings = False

    def setUp(self):
        torch.manual_seed(0)
        self.model_tester = Tester(self.fields, self.is_swin)

    def test_attention_outputs(self):
        if self.is_swin or "patch_selector" in self.fields or "token_reducer" in self.fields:
            self.skipTest(
                "attention is that of windows, or of the tokens that were kept; tests/model has its shapes"
            )
        if vit_hf.AdaptiveViTForPreTraining in self.all_model_classes:
            self.skipTest("the encoder sees the patches that are not masked; tests/model has their shapes")
        super().test_attention_outputs()

    def test_hidden_states_output(self):
        if "patch_selector" in self.fields or "token_reducer" in self.fields:
            self.skipTest("sequences are as long as what was kept; tests/model has their shapes")
        if vit_hf.AdaptiveViTForPreTraining in self.all_model_classes:
            self.skipTest("the encoder sees the patches that are not masked; tests/model has their shapes")
        super().test_hidden_states_output()

    def test_reverse_loading_mapping(self):
        if self.fields.get("position_encoding", "learned") != "learned":
            self.skipTest(
                "the mapping is that of a class, and this encoding has no table of positions to rename"
            )
        super().test_reverse_loading_mapping()

    def test_model_get_set_embeddings(self):
        """Override: the suite expects `nn.Embedding`; that of pixels is a projection, as in transformers'
        ViT."""
        for model_class in self.all_model_classes:
            model = model_class(self.model_tester.get_config())
            self.assertIsInstance(model.get_input_embeddings(), torch.nn.Module)
            self.assertIsNone(model.get_output_embeddings())

    def _prepare_for_class(self, inputs_dict, model_class, return_labels=False):
        inputs = copy.deepcopy(inputs_dict)
        if return_labels and model_class.__name__.endswith("Classification"):
            inputs["labels"] = torch.zeros(2, dtype=torch.long)
        elif return_labels and model_class.__name__.endswith("Segmentation"):
            inputs["labels"] = torch.zeros(2, 32, 32, dtype=torch.long)
        elif return_labels and model_class.__name__.endswith("MaskedImageModeling"):
            inputs["bool_masked_pos"] = (torch.arange(16) % 2 == 0).repeat(2, 1)
        return inputs


ENCODERS = (vit_hf.AdaptiveViTModel, vit_hf.AdaptiveViTForImageClassification)
# Name of the suite: classes, fields of the configuration.
SUITES = {
    **{
        encoding: (ENCODERS, {"position_encoding": encoding})
        for encoding in ("learned", "sinusoidal", "rotary", "relative_bias")
    },
    **{
        name: ((vit_hf.AdaptiveViTForImageClassification,), fields)
        for name, fields in SELECTIONS.items()
        if name not in ("dense", "merge_r")  # the latter for three blocks
    },
    "segmentation": ((vit_hf.AdaptiveViTForSemanticSegmentation,), {}),
    "pretraining": ((vit_hf.AdaptiveViTForPreTraining, vit_hf.AdaptiveViTForMaskedImageModeling), {}),
    "video": ((vit_hf.AdaptiveViTForVideoClassification,), {"num_frames": 4}),
    "swin": (
        (vit_hf.AdaptiveSwinModel, vit_hf.AdaptiveSwinForImageClassification),
        {"use_absolute_embeddings": True},
    ),
}
for _name, (_classes, _fields) in SUITES.items():
    _title = f"Test_{_name}"
    globals()[_title] = type(
        _title,
        (Suite, unittest.TestCase),
        {
            "all_model_classes": _classes,
            "fields": _fields,
            "is_swin": _name == "swin",
            "__module__": __name__,
        },
    )


class BackboneSuite(BackboneTesterMixin):
    fields: dict = {}
    is_swin = False

    def setUp(self):
        torch.manual_seed(0)
        self.model_tester = Tester({"out_indices": [1, 2]}, self.is_swin)


class TestBackbone(BackboneSuite, unittest.TestCase):
    all_model_classes = (vit_hf.AdaptiveViTBackbone,)
    config_class = vit_hf.AdaptiveViTConfig


class TestSwinBackbone(BackboneSuite, unittest.TestCase):
    all_model_classes = (vit_hf.AdaptiveSwinBackbone,)
    config_class = vit_hf.AdaptiveSwinConfig
    is_swin = True


class ImageProcessorTester:
    batch_size = 3
    num_channels = 3
    min_resolution, max_resolution = 30, 60
    num_labels, size = 5, {"height": 18, "width": 18}
    image_processing_classes: typing.ClassVar = {
        "torchvision": vit_hf.AdaptiveViTImageProcessor,
        "pil": vit_hf.AdaptiveViTImageProcessorPil,
    }

    def __init__(self, parent):
        self.parent = parent

    def prepare_image_processor_dict(self):
        return {"size": {"height": 18, "width": 18}, "do_normalize": True}

    def expected_output_image_shape(self, images):
        return self.num_channels, 18, 18

    def prepare_post_process_semantic_segmentation_inputs(self):
        logits = torch.randn(self.batch_size, self.num_labels, 18, 18)
        return {"outputs": SemanticSegmenterOutput(logits=logits)}, {"num_labels": 5, **self.size}

    def prepare_image_inputs(self, equal_resolution=False, numpify=False, torchify=False):
        return prepare_image_inputs(
            batch_size=self.batch_size,
            num_channels=self.num_channels,
            min_resolution=self.min_resolution,
            max_resolution=self.max_resolution,
            equal_resolution=equal_resolution,
            numpify=numpify,
            torchify=torchify,
        )


class TestImageProcessors(
    ImageProcessingTestMixin, PostProcessSemanticSegmentationTestMixin, unittest.TestCase
):
    image_processor_tester_class = ImageProcessorTester

    def test_backends_equivalence(self):
        self.skipTest("downloads a picture; test_backends_equivalence_batched compares the same")
