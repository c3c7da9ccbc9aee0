import pytest
import torch
from torch import nn
from transformers import ViTConfig, ViTForImageClassification

from tests.helpers.models import tiny_config
from vit_hf import AdaptiveViTForImageClassification, AdaptiveViTModel
from vit_hf.training.optimizer import layerwise_parameter_groups


def by_name(model, groups):
    names = {parameter: name for name, parameter in model.named_parameters()}
    return {names[parameter]: group for group in groups for parameter in group["params"]}


def model_with_everything():
    return AdaptiveViTForImageClassification(tiny_config(num_register_tokens=2, layerscale_value=0.1))


def test_rates_fall_from_the_head_to_the_embeddings():
    model = model_with_everything()
    groups = layerwise_parameter_groups(model, learning_rate=1.0, layer_decay=0.5)
    rates = {name: group["lr"] for name, group in by_name(model, groups).items()}
    assert rates["classifier.weight"] == rates["vit.layernorm.weight"] == 1
    assert rates["vit.layers.2.mlp.fc1.weight"] == 0.5
    assert rates["vit.layers.0.mlp.fc1.bias"] == 0.125
    assert (
        rates["vit.embeddings.cls_token"]
        == rates["vit.embeddings.patch_embeddings.projection.weight"]
        == 0.0625
    )
    # What Trainer logs is the first group's.
    assert groups[0]["lr"] == 1


def test_each_parameter_is_in_one_group():
    model = model_with_everything()
    groups = layerwise_parameter_groups(model, 1.0, 0.1, 0.5)
    grouped = [parameter for group in groups for parameter in group["params"]]
    assert len(grouped) == len(set(grouped)) == len(list(model.parameters()))


def test_what_is_decayed():
    model = model_with_everything()
    groups = by_name(model, layerwise_parameter_groups(model, 1.0, weight_decay=0.1))
    decayed = {name for name, group in groups.items() if group["weight_decay"]}
    expected = {
        f"{name}.weight"
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d) or name.endswith("projection")
    }
    assert decayed == expected
    assert {group["weight_decay"] for group in groups.values()} == {0.0, 0.1}


def test_frozen_parameters_are_left_out():
    model = model_with_everything()
    model.vit.requires_grad_(False)
    groups = layerwise_parameter_groups(model, 1.0)
    assert by_name(model, groups).keys() == {"classifier.weight", "classifier.bias"}


@pytest.mark.parametrize("make", [AdaptiveViTForImageClassification, AdaptiveViTModel])
def test_base_models_work_as_well(make):
    groups = layerwise_parameter_groups(make(tiny_config()), 1.0, 0.0, 0.5)
    assert {group["lr"] for group in groups} == {1, 0.5, 0.25, 0.125, 0.0625}


def test_stock_vit():
    config = ViTConfig(
        hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=8, image_size=16
    )
    groups = layerwise_parameter_groups(ViTForImageClassification(config), 1.0, 0.0, 0.5)
    assert {group["lr"] for group in groups} == {1, 0.5, 0.25, 0.125}


def test_order_is_that_of_the_model_so_that_saved_states_fit():
    def shapes():
        groups = layerwise_parameter_groups(model_with_everything(), 1e-3, 0.1, 0.7)
        return [[parameter.shape for parameter in group["params"]] for group in groups]

    assert shapes() == shapes()
    torch.optim.AdamW(layerwise_parameter_groups(model_with_everything(), 1e-3, 0.1, 0.7))


def model_that_predicts():
    return AdaptiveViTForImageClassification(
        tiny_config(patch_selector="policy", token_reducer="gumbel", keep_rate=0.5, reduction_layers=[1])
    )


def test_backbone_learns_slower_than_head_and_predictors():
    model = model_that_predicts()
    groups = layerwise_parameter_groups(model, 1.0, 0.1, layer_decay=0.5, backbone_lr_factor=0.01)
    by_parameter = by_name(model, groups)
    rates = {name: group["lr"] for name, group in by_parameter.items()}
    assert rates.keys() == dict(model.named_parameters()).keys()
    assert rates["classifier.weight"] == rates["vit.selector.scorer.output.weight"] == 1
    assert rates["vit.reducers.1.output.bias"] == 1
    assert rates["vit.layernorm.weight"] == 0.01
    assert rates["vit.layers.2.mlp.fc1.weight"] == 0.005
    assert rates["vit.embeddings.cls_token"] == 0.01 * 0.0625
    assert groups[0]["lr"] == 1
    assert by_parameter["vit.reducers.1.output.weight"]["weight_decay"] == 0.1
    assert by_parameter["vit.reducers.1.output.bias"]["weight_decay"] == 0


def test_without_a_factor_groups_are_those_of_layers_alone():
    model = model_with_everything()
    assert len(layerwise_parameter_groups(model, 1.0, 0.1, 0.5)) == 2 * 5
    assert len(layerwise_parameter_groups(model, 1.0, 0.1, 0.5, backbone_lr_factor=0.5)) == 2 * 5 + 1


@pytest.mark.parametrize("decay", [0.0, -1.0, 1.1])
def test_refuses_nonsense(decay):
    with pytest.raises(ValueError, match=f"layer_decay is {decay}"):
        layerwise_parameter_groups(model_with_everything(), 1.0, layer_decay=decay)
    with pytest.raises(ValueError, match=f"backbone_lr_factor is {decay}.*set freeze_backbone_ratio"):
        layerwise_parameter_groups(model_with_everything(), 1.0, backbone_lr_factor=decay)
