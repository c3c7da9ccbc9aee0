import json

import pytest
from huggingface_hub.errors import StrictDataclassFieldValidationError
from transformers import AutoConfig, ViTConfig

from tests.helpers.models import tiny_config
from vit_hf import PATCH_SELECTORS, POSITION_ENCODINGS, AdaptiveViTConfig, AdaptiveViTModel


def test_fields_of_vit_keep_name_and_default():
    ours, stock = AdaptiveViTConfig().to_dict(), ViTConfig().to_dict()
    different = {key for key, value in stock.items() if key not in ours or ours[key] != value}
    assert different == {"model_type"}


def test_round_trip(tmp_path):
    config = tiny_config(position_encoding="rotary", patch_selector="attention", num_selected_patches=0.25)
    config.save_pretrained(tmp_path)
    again = AutoConfig.from_pretrained(tmp_path)
    assert isinstance(again, AdaptiveViTConfig)
    config._name_or_path = again._name_or_path
    assert again.to_dict() == config.to_dict()


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"hidden_size": 33}, ["33", "num_attention_heads"]),
        ({"position_encoding": "spiral"}, ["spiral", *POSITION_ENCODINGS]),
        ({"patch_selector": "psychic", "num_selected_patches": 4}, ["psychic", *PATCH_SELECTORS]),
        ({"num_selected_patches": 4}, ["patch_selector", *PATCH_SELECTORS]),
        ({"patch_selector": "variance", "num_selected_patches": 0}, ["=0", "at least 1"]),
        ({"patch_selector": "variance", "num_selected_patches": 1.5}, ["1.5", "(0, 1]"]),
        ({"patch_selector": "variance", "num_selected_patches": 0.0}, ["0.0", "(0, 1]"]),
        ({"patch_selector": {"type": "attention", "num_layers": 4}}, ["num_layers=4", "3"]),
        ({"position_encoding": "rotary", "num_attention_heads": 16}, ["rotary", "multiple of 4"]),
        (
            {"position_encoding": "learned_rotary", "num_attention_heads": 16},
            ["learned_rotary", "multiple of 4"],
        ),
        ({"classifier_hidden_size": 0}, ["classifier_hidden_size=0", "at least 1"]),
        ({"position_encoding": {"type": "rotary", "reference_grid": 0}}, ["reference_grid=0", "pair"]),
        (
            {"position_encoding": {"type": "rotary", "reference_grid": [4, 4, 4]}},
            ["reference_grid=[4, 4, 4]", "pair"],
        ),
        (
            {"position_encoding": "sinusoidal_2d", "hidden_size": 30, "num_attention_heads": 2},
            ["30", "multiple of 4"],
        ),
        ({"patch_size": 64}, ["image_size", "patch_size"]),
        ({"image_size": [32, 32, 32]}, ["image_size", "pair"]),
        ({"drop_path_rate": 1.0}, ["drop_path_rate", "[0, 1)"]),
        ({"hidden_dropout_prob": 2.0}, ["hidden_dropout_prob", "[0, 1)"]),
        ({"num_attention_heads": 0}, ["num_attention_heads=0"]),
        ({"num_hidden_layers": -1}, ["num_hidden_layers=-1"]),
        ({"hidden_act": "foo"}, ["foo", "gelu"]),
        (
            {"patch_selector": {"type": "cross_attention", "hidden_size": 32, "num_heads": 3}},
            ["hidden_size=32", "num_heads=3"],
        ),
        (
            {"patch_selector": {"type": "attention", "thumbnail_size": 4}},
            ["thumbnail_size=4", "at least [8, 8]"],
        ),
        ({"thumbnail_context": 4}, ["thumbnail_context=4", "at least [8, 8]"]),
        ({"position_encoding": {"type": "rotary", "base": 0}}, ["base=0"]),
        ({"num_register_tokens": -1}, ["-1"]),
    ],
)
def test_errors_name_value_and_legal_values(fields, words):
    with pytest.raises(Exception) as error:  # huggingface_hub wraps the ValueError of a validator
        tiny_config(**fields)
    for word in words:
        assert word in str(error.value)


def test_selector_needs_a_number():
    with pytest.raises(Exception, match="num_selected_patches"):
        AdaptiveViTConfig(patch_selector="variance")


@pytest.mark.parametrize("fields", [{"pooling": "max"}, {"norm_type": "groupnorm"}, {"hidden_size": "wide"}])
def test_wrong_types_are_refused(fields):
    with pytest.raises(StrictDataclassFieldValidationError):
        tiny_config(**fields)


def test_fields_set_after_construction_are_checked_when_a_model_is_built():
    config = tiny_config()
    config.patch_selector, config.num_selected_patches = "psychic", 4
    with pytest.raises(ValueError, match="psychic"):
        AdaptiveViTModel(config)


def test_other_families_are_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "swin"}))
    with pytest.raises(ValueError, match="swin"):
        AdaptiveViTConfig.from_pretrained(tmp_path)
