"""Elastic classifiers among what else there is: pictures, large images, other formats, LoRA."""

import numpy as np
import PIL.Image
import pytest
import torch
from transformers import ViTForImageClassification

from tests.helpers.elastic import batch, supernet
from vit_hf import AdaptiveViTImageProcessor, explain, predict_streaming, predict_tiled
from vit_hf.checkpoints.npz import load_npz, save_npz
from vit_hf.checkpoints.plain import to_transformers
from vit_hf.inference.streaming import select_streaming
from vit_hf.inference.tiles import feature_map_tiled


SELECTING = {
    "patch_selector": "variance",
    "num_selected_patches": 0.5,
    "elastic_space": {"keep_rates": [0.25, 0.5]},
}


def photo() -> PIL.Image.Image:
    return PIL.Image.fromarray(np.random.default_rng(0).integers(0, 255, (48, 64, 3), np.uint8))


def processor() -> AdaptiveViTImageProcessor:
    return AdaptiveViTImageProcessor(patch_size=8, do_resize=False)


def smallest(**fields):
    model = supernet(**fields).eval()
    model.set_subnetwork(model.space.uniform(0))
    return model


def test_a_whole_share_is_not_one_patch():
    """As somebody writes it in JSON: 1, which as `num_selected_patches` is a number."""
    model = supernet(
        patch_selector="variance", num_selected_patches=1.0, elastic_space={"keep_rates": [0.5, 1]}
    ).eval()
    images = batch()["pixel_values"]
    network = model.extract()
    assert network(images).selected_patches.shape == (2, 20)
    assert torch.equal(network(images).logits, model(images).logits)


def test_pictures_are_of_the_sub_network_that_is_set():
    model = smallest(token_reducer="merge", keep_rate=0.9, reduction_layers=[1], **SELECTING)
    (shown,) = explain(model, processor(), photo())
    (expected,) = explain(model.extract(), processor(), photo())
    assert len(shown.kept_patches) == 12 and len(shown.stages) == len(expected.stages) == 1
    assert shown.settings["num_blocks"] == 2
    np.testing.assert_array_equal(shown.attention, expected.attention)
    np.testing.assert_array_equal(shown.rollout, expected.rollout)


def test_large_images_are_read_by_the_sub_network_that_is_set():
    model = smallest(**SELECTING).train()
    network, image = model.extract(), photo()
    streamed = predict_streaming(model, image, image_processor=processor())
    assert streamed.selected_patches.shape == (1, 12)
    assert torch.equal(streamed.logits, predict_streaming(network, image, image_processor=processor()).logits)
    assert len(select_streaming(model, image, image_processor=processor()).scores[0]) == 12
    tiled = {"tile": 32, "image_processor": processor()}
    assert torch.equal(feature_map_tiled(model, image, **tiled), feature_map_tiled(network, image, **tiled))
    answer = predict_tiled(model, image, **tiled, feature_maps=True)
    assert torch.equal(answer.logits, predict_tiled(network, image, **tiled).logits)
    assert answer.feature_map.shape[0] == 16
    assert model.training


def test_other_formats_hold_the_sub_network_that_is_set(tmp_path):
    model = smallest(elastic_space={"num_attention_heads": None, "mlp_ratios": None, "hidden_sizes": None})
    images = torch.randn(1, 3, 32, 32)
    stock = to_transformers(model)
    assert isinstance(stock, ViTForImageClassification) and stock.config.num_hidden_layers == 2
    torch.testing.assert_close(stock(images).logits, model(images).logits)
    save_npz(model, tmp_path / "small.npz")
    config = model.config
    back, _ = load_npz(
        tmp_path / "small.npz", hidden_act=config.hidden_act, layer_norm_eps=config.layer_norm_eps
    )
    torch.testing.assert_close(back(images).logits, model(images).logits)


@pytest.mark.parametrize("name", ["output_hidden_states", "output_attentions"])
def test_sub_networks_hear_of_what_the_configuration_is_told_later(name):
    model = smallest()
    model.set_attn_implementation("eager")
    images = batch()["pixel_values"]
    asked = name.removeprefix("output_")
    assert getattr(model(images), asked) is None
    setattr(model.config, name, True)
    assert getattr(model(images), asked) is not None


def test_tuples_are_returned_where_the_configuration_says_so():
    model = supernet(elastic_space={"distillation": True}, return_dict=False).train()
    loss, logits, *_ = model(**batch())
    assert loss.ndim == 0 and logits.shape == (2, 5)


def test_layers_that_were_wrapped_are_refused():
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(supernet().train(), peft.LoraConfig(target_modules=["q_proj"]))
    with pytest.raises(ValueError, match=r"q_proj.weight .*LoRA.* extract\(\)"):
        model(**batch())
