"""Contracts that transformers and its companions (PEFT, Trainer, detectors) rely on."""

import copy
import dataclasses
import sys

import pytest
import torch
from safetensors.torch import load_file
from transformers import ViTForImageClassification

from tests.helpers.models import SELECTIONS, SWINS, tiny_config, tiny_swin_config
from vit_hf import (
    POSITION_ENCODINGS,
    AdaptiveSwinBackbone,
    AdaptiveSwinConfig,
    AdaptiveSwinForImageClassification,
    AdaptiveSwinForMaskedImageModeling,
    AdaptiveSwinModel,
    AdaptiveViTBackbone,
    AdaptiveViTConfig,
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
from vit_hf.model import modeling_adaptive_swin, modeling_adaptive_vit
from vit_hf.model.patches import ImagePatches, PatchTokens, grid_coordinates
from vit_hf.model.swin_layers import WINDOW_BIASES


VIDEOS = {"num_frames": 4}
CONVOLUTIONAL = {
    "patch_embedding": {"type": "convolutional", "hidden_sizes": [8], "depths": [1], "num_groups": 4},
}
# Class and fields of the configuration.
MODELS = {
    "model": (AdaptiveViTModel, {}),
    "classifier": (AdaptiveViTForImageClassification, {}),
    "elastic": (AdaptiveViTForElasticImageClassification, {"elastic_space": {"depths": [2, 3]}}),
    "masked": (AdaptiveViTForMaskedImageModeling, {}),
    "pretraining": (AdaptiveViTForPreTraining, {}),
    "segmentation": (AdaptiveViTForSemanticSegmentation, {}),
    "backbone": (AdaptiveViTBackbone, {"out_indices": [1, 2]}),
    "video": (AdaptiveViTForVideoClassification, VIDEOS),
    "video_backbone": (AdaptiveViTBackbone, VIDEOS),
    "convolutional": (AdaptiveViTForImageClassification, CONVOLUTIONAL),
    **{
        name: (AdaptiveViTForImageClassification, SELECTIONS[name])
        for name in ("distilled", "perturbed", "merge", "context")
    },
    "swin_model": (AdaptiveSwinModel, {}),
    "swin_masked": (AdaptiveSwinForMaskedImageModeling, {}),
    "swin_backbone": (AdaptiveSwinBackbone, {"out_indices": [1, 2]}),
    **{name: (AdaptiveSwinForImageClassification, fields) for name, fields in SWINS.items()},
}
every_model = pytest.mark.parametrize("name", MODELS)


def build(name: str):
    model_class, fields = MODELS[name]
    config = tiny_swin_config if model_class.config_class is AdaptiveSwinConfig else tiny_config
    return model_class(config(**fields))


def pixels_of(model) -> torch.Tensor:
    frames = getattr(model.config, "num_frames", None)
    return torch.randn(2, frames, 3, 32, 32) if frames else torch.randn(2, 3, 64, 48)


def answer_of(model, pixels: torch.Tensor) -> torch.Tensor:
    outputs = model(pixels)
    keys = ("logits", "reconstruction", "last_hidden_state")
    return next((outputs[key] for key in keys if key in outputs), outputs.get("feature_maps", [None])[-1])


def loss_of(model, pixels: torch.Tensor) -> torch.Tensor:
    answer = answer_of(model, pixels)
    return (answer - answer.detach().roll(1, -1)).square().mean()


class TestInputEmbeddings:
    @every_model
    def test_a_hook_sees_a_tensor_with_gradient(self, name):
        """As PEFT does where the embedding is frozen and blocks are checkpointed."""
        model, seen = build(name).train(), []
        embeddings = model.get_input_embeddings()
        embeddings.requires_grad_(False)
        model.enable_input_require_grads()
        embeddings.register_forward_hook(lambda module, inputs, output: seen.append(output))
        loss_of(model, pixels_of(model)).backward()
        assert seen and all(output.ndim == 3 and output.shape[-1] in (16, 32) for output in seen)
        assert any(output.requires_grad for output in seen)

    @every_model
    def test_a_hook_may_change_what_is_embedded(self, name):
        """As NEFTune does."""
        model = build(name).eval()
        pixels = pixels_of(model)
        with torch.no_grad():
            before = answer_of(model, pixels)
            model.get_input_embeddings().register_forward_hook(lambda module, inputs, output: output.square())
            assert not torch.equal(answer_of(model, pixels), before)

    def test_they_can_be_replaced(self):
        for name in ("classifier", "backbone", "swin"):
            model = build(name)
            other = copy.deepcopy(model.get_input_embeddings())
            model.set_input_embeddings(other)
            assert model.get_input_embeddings() is other


class TestCheckpointing:
    """Reentrant checkpointing knows only of tensors that are arguments by themselves."""

    @pytest.mark.parametrize("encoding", POSITION_ENCODINGS)
    @pytest.mark.parametrize("model_class", [AdaptiveViTForImageClassification, AdaptiveViTForPreTraining])
    def test_gradients_with_every_encoding(self, model_class, encoding):
        fields = {
            "position_encoding": encoding,
            "masked_autoencoder": {"decoder_position_encoding": encoding},
        }
        self.compare(model_class(tiny_config(**fields)))

    @pytest.mark.parametrize("encoding", ["relative_bias", "relative_bias_continuous"])
    def test_gradients_with_a_bias_for_each_block(self, encoding):
        fields = {"position_encoding": {"type": encoding, "shared": False}}
        self.compare(AdaptiveViTForImageClassification(tiny_config(**fields)))

    # An elastic network would draw another sub-network.
    @pytest.mark.parametrize("name", [name for name in MODELS if name != "elastic"])
    def test_gradients_of_every_model(self, name):
        self.compare(build(name))

    @pytest.mark.parametrize("selection", SELECTIONS)
    def test_gradients_with_a_bias_and_every_selection(self, selection):
        config = tiny_config(**SELECTIONS[selection], position_encoding="relative_bias")
        self.compare(AdaptiveViTForImageClassification(config))

    @staticmethod
    def compare(model) -> None:
        pixels, gradients = pixels_of(model), []
        saving = copy.deepcopy(model)
        saving.activation_checkpointing_enable({"use_reentrant": True})
        for each in (model.train(), saving.train()):
            torch.manual_seed(1)
            loss_of(each, pixels).backward()
            gradients.append({name: value.grad for name, value in each.named_parameters()})
        for name, expected in gradients[0].items():
            got = gradients[1][name]
            if expected is None:
                assert got is None or not got.any(), name
            else:
                close = 1e-5 + 1e-4 * expected.abs().max().item()
                torch.testing.assert_close(got, expected, atol=close, rtol=1e-4, msg=name)


# What rounding to the type may cost, relative to the largest value.
ROUNDING = {torch.bfloat16: 2**-8, torch.float16: 2**-10}


def assert_rounded(mixed: torch.Tensor, exact: torch.Tensor, dtype: torch.dtype) -> None:
    error = (mixed.float() - exact.float()).abs().max()
    assert error <= ROUNDING[dtype] * exact.abs().max().clamp(min=1) * 1.01


@pytest.mark.parametrize("dtype", ROUNDING, ids=str)
class TestPrecision:
    """Products of coordinates are those of float32 under autocast: only what comes of them is rounded."""

    @pytest.mark.parametrize(
        ("encoding", "coordinates"),
        [(name, "patches") for name in POSITION_ENCODINGS]
        + [(name, unit) for name in ("rotary", "rotary_mixed") for unit in ("native", "normalized")],
    )
    def test_autocast(self, encoding, coordinates, dtype):
        options = {} if coordinates == "patches" else {"coordinates": coordinates}
        if encoding == "fourier":
            options = {"scale": 1.0}
        fields = {"position_encoding": {"type": encoding, **options}, "image_size": 224}
        fields |= {"patch_size": 16, "hidden_size": 96, "initializer_range": 0.02}
        module = AdaptiveViTModel(tiny_config(**fields)).embeddings.position_encoding.eval()
        patches = ImagePatches.from_images(torch.zeros(1, 3, 320, 480), 16).gather()
        tokens = patches.with_features(torch.zeros(1, patches.features.shape[1], 96))
        with torch.no_grad():
            exact = self.answers(module, tokens)
            with torch.autocast("cpu", dtype=dtype):
                mixed = self.answers(module, tokens)
        for name, value in exact.items():
            if encoding == "fourier" and name == "add":
                continue  # goes through dense layers, see below
            assert_rounded(mixed[name], value, dtype)

    @staticmethod
    def answers(module, tokens: PatchTokens) -> dict[str, torch.Tensor]:
        answers = {"add": module(tokens).features}
        _, _, rotation, bias = module(tokens, layer=0, num_prefix=1)
        if rotation is not None:
            answers |= {"cosine": rotation[0], "sine": rotation[1]}
        if bias is not None:
            answers["bias"] = bias
        return answers

    def test_fourier_is_rounded_by_its_dense_layers_alone(self, dtype):
        fields = {
            "position_encoding": {"type": "fourier", "scale": 1.0},
            "image_size": 224,
            "patch_size": 16,
        }
        module = AdaptiveViTModel(tiny_config(**fields)).embeddings.position_encoding
        patches = ImagePatches.from_images(torch.zeros(1, 3, 1024, 1024), 16).gather()
        tokens = patches.with_features(torch.zeros(1, 4096, 32))
        seen = []
        module.hidden.register_forward_pre_hook(lambda layer, inputs: seen.append(inputs[0]))
        with torch.no_grad():
            module.add(tokens)
            with torch.autocast("cpu", dtype=dtype):
                module.add(tokens)
        assert torch.equal(*seen)

    @pytest.mark.parametrize("encoding", WINDOW_BIASES)
    def test_windows_of_swin(self, encoding, dtype):
        config = tiny_swin_config(**{**SWINS["swinv2"], "position_encoding": encoding, "window_size": 24})
        model = AdaptiveSwinModel(config)
        bias = model.encoder.layers[0].blocks[0].attention.relative_position_bias
        coordinates = grid_coordinates(24, 24)[None]
        cells = PatchTokens(
            torch.zeros(1, 576, 16), coordinates, torch.tensor([[24, 24]]), full_grid=(24, 24)
        )
        with torch.no_grad():
            exact = bias(cells, layer=0).bias
            with torch.autocast("cpu", dtype=dtype):
                assert_rounded(bias(cells, layer=0).bias, exact, dtype)

    @pytest.mark.parametrize("encoding", ["rotary", "learned_rotary", "rotary_mixed", "learned", "alibi"])
    def test_weights_in_half_precision(self, encoding, dtype):
        """The weights are rounded, and what is computed of them once more at the end."""
        fields = {"position_encoding": encoding, "image_size": 224, "patch_size": 16}
        half = AdaptiveViTModel(tiny_config(**fields)).to(dtype).embeddings.position_encoding.eval()
        patches = ImagePatches.from_images(torch.zeros(1, 3, 320, 480), 16).gather()
        tokens = patches.with_features(torch.zeros(1, patches.features.shape[1], 32, dtype=dtype))
        with torch.no_grad():
            got = self.answers(half, tokens)
            exact = self.answers(half.float(), tokens.with_features(tokens.features.float()))
        for name, value in exact.items():
            assert got[name].dtype == dtype
            assert_rounded(got[name], value, dtype)


class TestSavedNames:
    def test_a_dense_model_opens_in_transformers(self, tmp_path):
        model = AdaptiveViTForImageClassification(tiny_config()).eval()
        model.save_pretrained(tmp_path)
        stock, info = ViTForImageClassification.from_pretrained(tmp_path, output_loading_info=True)
        assert not any(info.values())
        images = torch.randn(2, 3, 32, 32)
        torch.testing.assert_close(stock.eval()(images).logits, model(images).logits, atol=1e-6, rtol=1e-5)

    @pytest.mark.parametrize("origin", ["new", "loaded", "old_names"])
    def test_names_are_those_of_stock_whatever_was_loaded(self, origin, tmp_path):
        model = AdaptiveViTForImageClassification(tiny_config())
        if origin != "new":
            model.save_pretrained(tmp_path, save_original_format=origin == "loaded")
            model = AdaptiveViTForImageClassification.from_pretrained(tmp_path)
        model.save_pretrained(tmp_path)
        stock = ViTForImageClassification.from_pretrained(tmp_path)
        stock.save_pretrained(tmp_path / "stock")
        expected = load_file(tmp_path / "stock" / "model.safetensors")
        assert load_file(tmp_path / "model.safetensors").keys() == expected.keys()

    @every_model
    def test_a_saved_file_loads_by_load_state_dict(self, name, tmp_path):
        """As Trainer does to resume."""
        model = build(name)
        model.save_pretrained(tmp_path)
        fresh = build(name)
        fresh.load_state_dict(load_file(tmp_path / "model.safetensors"))
        for (ours, value), (other, again) in zip(
            model.state_dict().items(), fresh.state_dict().items(), strict=True
        ):
            assert ours == other and torch.equal(value, again)
        fresh.load_state_dict(model.state_dict())  # names of the modules are as good

    def test_a_part_of_another_model_loads_by_load_state_dict(self):
        holder = torch.nn.ModuleDict({"backbone": build("backbone")})
        other = torch.nn.ModuleDict({"backbone": build("backbone")})
        saved = {
            name.replace("position_encoding.position_embeddings", "position_embeddings"): value
            for name, value in holder.state_dict().items()
        }
        other.load_state_dict(saved)
        for value, again in zip(holder.parameters(), other.parameters(), strict=True):
            assert torch.equal(value, again)


class TestStages:
    @pytest.mark.parametrize("config_class", [AdaptiveViTConfig, AdaptiveSwinConfig])
    def test_the_last_stage_by_default(self, config_class, tmp_path):
        for fields in ({}, {"out_features": None, "out_indices": None}):
            last = config_class(**fields)
            assert last.out_features == last.stage_names[-1:]
            assert last.out_indices == [len(last.stage_names) - 1]
        last.save_pretrained(tmp_path)
        assert config_class.from_pretrained(tmp_path).out_features == last.stage_names[-1:]

    @pytest.mark.parametrize(
        ("model_class", "config"),
        [(AdaptiveViTBackbone, tiny_config), (AdaptiveSwinBackbone, tiny_swin_config)],
    )
    @pytest.mark.parametrize("field", ["out_features", "out_indices"])
    def test_a_model_of_a_changed_configuration(self, field, model_class, config):
        changed = config(out_indices=[1, 2])
        assert model_class(changed).channels == model_class(changed).num_features[1:3]
        setattr(changed, field, None)
        model = model_class(changed)
        assert model.channels == model.num_features[-1:] and model.out_features == ["stage3"]
        setattr(model, field, None)
        assert model.out_indices == [3]
        assert len(model(torch.randn(1, 3, 32, 32)).feature_maps) == 1

    def test_fewer_blocks_have_another_last_stage(self):
        changed = tiny_config(out_features=None)
        changed.num_hidden_layers = 2
        assert AdaptiveViTBackbone(changed).out_features == ["stage2"]


@pytest.mark.parametrize("processor_class", [AdaptiveViTImageProcessor, AdaptiveViTImageProcessorPil])
def test_keywords_of_a_processor_are_in_its_module(processor_class):
    module = sys.modules[processor_class.__module__]
    assert processor_class.valid_kwargs is module.AdaptiveViTImageProcessorKwargs


OUTPUTS = {
    name: value
    for module in (modeling_adaptive_vit, modeling_adaptive_swin)
    for name, value in vars(module).items()
    if name.startswith("Adaptive") and name.endswith("Output")
}


@pytest.mark.parametrize("output", OUTPUTS.values(), ids=OUTPUTS)
def test_outputs_begin_as_in_transformers(output):
    """Tuples are read by position: what was selected comes after the fields of transformers."""
    assert dataclasses.fields(output)[0].name in ("loss", "last_hidden_state", "feature_maps")
