"""The hybrid stem: a CNN before the encoder."""

import copy

import pytest
import torch
from transformers import (
    AutoModelForImageClassification,
    BitConfig,
    ResNetConfig,
)

from tests.helpers.hybrids import BIT, hybrid
from tests.helpers.models import cut, every_selection, tiny_config
from tests.helpers.remote_code import run_elsewhere
from vit_hf import (
    POSITION_ENCODINGS,
    AdaptiveViTConfig,
    AdaptiveViTForImageClassification,
    AdaptiveViTForMaskedImageModeling,
    AdaptiveViTImageProcessor,
    AdaptiveViTModel,
    explain,
)
from vit_hf.arguments import ModelArguments
from vit_hf.checkpoints.loading import part_of
from vit_hf.model.patches import ImagePatches
from vit_hf.training.model_loading import make_image_processor
from vit_hf.training.optimizer import layerwise_parameter_groups


# All of stride 8, as the patches of `tiny_config`.
BACKBONES = {
    "bit": BIT,
    "bit-preactivation": {
        **BIT,
        "layer_type": "preactivation",
        "global_padding": None,
        "embedding_dynamic_padding": False,
    },
    "resnet": {
        "model_type": "resnet",
        "embedding_size": 16,
        "hidden_sizes": [32, 64],
        "depths": [1, 1],
        "layer_type": "basic",
    },
    "convnext": {"model_type": "convnext", "hidden_sizes": [16, 32], "depths": [1, 1], "num_stages": 2},
    "timm": {"model_type": "timm_backbone", "backbone": "resnet10t", "out_indices": [2]},
}
every_backbone = pytest.mark.parametrize("backbone", BACKBONES.values(), ids=BACKBONES)


def stem_of(model):
    return getattr(model, "vit", model).embeddings.patch_embeddings


def count_passes(model) -> list:
    """A list that grows with each pass through the CNN."""
    passes = []
    stem_of(model).backbone.register_forward_hook(lambda *args: passes.append(1))
    return passes


@every_backbone
def test_reads_cells_of_the_feature_map(backbone):
    model, images = hybrid(backbone), torch.randn(2, 3, 65, 50)
    stem = stem_of(model)
    cells = stem.backbone(images[:, :, :64, :48]).feature_maps[-1]
    assert cells.shape[-2:] == (8, 6)
    expected = torch.nn.functional.conv2d(cells, stem.projection.weight, stem.projection.bias)
    patches = ImagePatches.from_images(images, 8)
    tokens = stem(patches)
    torch.testing.assert_close(tokens.features, expected.flatten(2).transpose(1, 2), atol=1e-5, rtol=1e-5)
    assert tokens.full_grid == (8, 6)
    chosen = torch.tensor([[0, 7, 13], [5, 40, 47]])
    picked = stem(patches, chosen)
    every = torch.arange(2)[:, None]
    torch.testing.assert_close(picked.features, tokens.features[every, chosen], atol=1e-5, rtol=1e-5)
    assert torch.equal(picked.coordinates, tokens.coordinates[every, chosen]) and picked.full_grid is None


def test_means_of_cells():
    stem, images = stem_of(hybrid()), torch.randn(2, 3, 32, 32)
    patches = ImagePatches.from_images(images, 8)
    weights = torch.zeros(2, 2, 16)
    weights[:, 0, 3] = 1
    weights[:, 1, [0, 2]] = 0.5
    every, mixed = stem(patches), stem(patches, weights=weights)
    torch.testing.assert_close(mixed.features[:, 0], every.features[:, 3], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(
        mixed.features[:, 1], every.features[:, [0, 2]].mean(dim=1), atol=1e-5, rtol=1e-5
    )
    assert mixed.coordinates[0].tolist() == [[0.0, 3.0], [0.0, 1.0]]


@every_selection
def test_every_selection(selection):
    model = hybrid(**selection)
    images = torch.randn(2, 3, 64, 48)
    output = model(images)
    torch.testing.assert_close(hybrid_eager(model)(images).logits, output.logits, atol=1e-5, rtol=1e-5)
    if selection.get("patch_selector"):
        again = model(images, selected_patches=output.selected_patches)
        torch.testing.assert_close(again.logits, output.logits, atol=1e-5, rtol=1e-5)
        others = (output.selected_patches + 1) % 48
        assert not torch.allclose(model(images, selected_patches=others).logits, output.logits, atol=1e-4)
    model.train()
    model(images, labels=torch.tensor([1, 2])).loss.backward()
    for name, value in stem_of(model).named_parameters():
        assert value.grad is not None and value.grad.abs().sum() > 0, name


def hybrid_eager(model):
    eager = copy.deepcopy(model)
    eager.set_attn_implementation("eager")
    assert model.config._attn_implementation == "sdpa" and eager.config._attn_implementation == "eager"
    return eager


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_attention_is_chosen_for_the_encoder_alone(implementation, tmp_path):
    hybrid().save_pretrained(tmp_path)
    model = AdaptiveViTForImageClassification.from_pretrained(tmp_path, attn_implementation=implementation)
    assert model.config._attn_implementation == implementation
    model.set_attn_implementation("sdpa")
    assert model.config._attn_implementation == "sdpa"
    assert stem_of(model).backbone.config._attn_implementation == "eager"


@pytest.mark.parametrize(
    ("fields", "passes"),
    [
        ({}, 1),
        ({"patch_selector": "variance"}, 1),
        ({"patch_selector": "attention"}, 2),
        ({"patch_selector": "variance", "thumbnail_context": True}, 2),
    ],
)
def test_the_cnn_runs_once_for_each_image_it_reads(fields, passes):
    model = hybrid(**fields)
    seen = count_passes(model)
    model(torch.randn(2, 3, 64, 64))
    assert len(seen) == passes
    model.vit(torch.randn(2, 3, 64, 64), restore=True)
    assert len(seen) == 2 * passes


def test_a_look_without_gradient_leaves_the_main_pass_its_own():
    model = hybrid(patch_selector="distilled").train()
    model(torch.randn(2, 3, 64, 64), labels=torch.tensor([0, 1])).loss.backward()
    assert all(value.grad.abs().sum() > 0 for value in stem_of(model).backbone.parameters())


@every_backbone
def test_cut_patches_of_mixed_sizes(backbone):
    model = hybrid(backbone, patch_selector="attention")
    images = [torch.randn(3, 40, 64), torch.randn(3, 32, 24), torch.randn(3, 64, 16)]
    inputs = cut(images)
    # The order in which patches arrive does not matter.
    inputs["pixel_values"][1, :12] = inputs["pixel_values"][1, :12].flip(0)
    inputs["patch_coordinates"][1, :12] = inputs["patch_coordinates"][1, :12].flip(0)
    output = model(**inputs)
    for index, image in enumerate(images):
        alone = model(image[None])
        torch.testing.assert_close(output.logits[index], alone.logits[0], atol=1e-5, rtol=1e-5)
        assert set(output.selected_patches[index].tolist()) == set(alone.selected_patches[0].tolist())


def test_refuses_patches_that_the_data_loader_selected():
    model = hybrid(patch_selector="variance")
    processor = AdaptiveViTImageProcessor(
        size={"height": 64, "width": 64},
        patch_size=8,
        return_patches=True,
        patch_selector="variance",
        num_selected_patches=6,
    )
    inputs = processor(torch.randint(0, 255, (3, 64, 64), dtype=torch.uint8), return_tensors="pt")
    with pytest.raises(
        ValueError, match=r"6 of its 8x8 patches.*backbone_config.*leave out its patch_selector"
    ):
        model(**inputs)


def test_training_leaves_selection_to_the_model():
    arguments = ModelArguments(return_patches=True)
    for backbone, selector in ((None, "variance"), (BIT, None)):
        config = tiny_config(backbone_config=backbone, patch_selector="variance")
        assert make_image_processor(arguments, config).patch_selector == selector


@pytest.mark.parametrize(
    ("backbone", "message"),
    [
        ({**BIT, "out_features": ["stage1"]}, r"16x12 cells.*stride of 4.*needs 8x6: set patch_size=4"),
        ({**BIT, "hidden_sizes": [32, 64, 64], "depths": [1, 1, 1]}, r"4x3 cells.*set patch_size=16"),
        ({**BIT, "global_padding": None}, r"9x7 cells.*stride of 8.*padding that keeps the border"),
    ],
)
def test_refuses_a_patch_size_that_is_not_the_stride(backbone, message):
    with pytest.raises(ValueError, match=message):
        hybrid(backbone)(torch.randn(1, 3, 64, 48))


def test_refuses_configurations():
    with pytest.raises(ValueError, match=r"model_type 'vit'.*'bit'.*'resnet'.*'timm_backbone'"):
        tiny_config(backbone_config={"model_type": "vit"})
    with pytest.raises(ValueError, match="model_type None"):
        tiny_config(backbone_config={"depths": [1]})
    with pytest.raises(Exception, match=r"num_channels=1.*num_channels=3"):
        tiny_config(backbone_config={**BIT, "num_channels": 1})


def test_configuration_in_and_out_of_json(tmp_path):
    config = tiny_config(backbone_config=BitConfig(**{**BIT, "out_features": ["stage2"]}))
    assert type(config.backbone_config) is BitConfig
    config.save_pretrained(tmp_path)
    again = AdaptiveViTConfig.from_pretrained(tmp_path)
    assert type(again.backbone_config) is BitConfig and again.to_dict() == config.to_dict()
    assert again.backbone_config.out_features == ["stage2"] and again.backbone_config.global_padding == "SAME"
    assert AdaptiveViTConfig().to_dict()["backbone_config"] is None
    resnet = tiny_config(backbone_config=ResNetConfig(hidden_sizes=[8, 16], depths=[1, 1]))
    assert AdaptiveViTConfig.from_dict(resnet.to_dict()).backbone_config.hidden_sizes == [8, 16]


@every_backbone
def test_a_backbone_for_a_checkpoint_without(backbone, tmp_path):
    plain = AdaptiveViTForImageClassification(tiny_config())
    plain.save_pretrained(tmp_path)
    # Fresh memory often holds zeros: fill it with something that shows.
    junk = [torch.full((64, 64, 3, 3), 1e6) for _ in range(50)]
    del junk
    model = AdaptiveViTForImageClassification.from_pretrained(
        tmp_path, backbone_config=backbone, ignore_mismatched_sizes=True
    )
    assert model.config.backbone_config.model_type == backbone["model_type"]
    assert torch.equal(model.vit.layers[0].mlp.fc1.weight, plain.vit.layers[0].mlp.fc1.weight)
    weights = [value for value in stem_of(model).backbone.parameters() if value.ndim == 4]
    assert weights
    for value in weights:
        assert value.isfinite().all() and value.abs().max() < 10 and value.std() > 1e-3
    assert model(torch.randn(1, 3, 32, 32)).logits.isfinite().all()


@every_backbone
@pytest.mark.parametrize("encoding", ["learned", "rotary"])
def test_saves_and_loads(backbone, encoding, tmp_path):
    model = hybrid(backbone, position_encoding=encoding, patch_selector="variance")
    model.save_pretrained(tmp_path)
    again, info = AutoModelForImageClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert type(again) is type(model) and not any(info.values())
    for value, other in zip(model.state_dict().values(), again.state_dict().values(), strict=True):
        assert torch.equal(value, other)
    images = torch.randn(2, 3, 40, 32)
    assert torch.equal(model(images).logits, again(images).logits)
    again.save_pretrained(tmp_path / "again")
    name = "model.safetensors"
    assert (tmp_path / "again" / name).read_bytes() == (tmp_path / name).read_bytes()
    with torch.device("meta"):
        empty = AdaptiveViTForImageClassification(model.config)
    assert all(value.is_meta for value in empty.parameters())


@pytest.mark.parametrize("encoding", POSITION_ENCODINGS)
def test_every_encoding_and_pooling(encoding):
    model = hybrid(position_encoding=encoding, pooling="mean", patch_selector="variance")
    images, other = torch.randn(1, 3, 48, 64), torch.randn(1, 3, 48, 64)
    assert not torch.allclose(model(images).logits, model(other).logits, atol=1e-3)


def test_masked_image_modeling():
    model = hybrid(model_class=AdaptiveViTForMaskedImageModeling).train()
    masked = torch.rand(2, 24) < 0.5
    output = model(torch.randn(2, 3, 48, 32), bool_masked_pos=masked)
    assert output.reconstruction.shape == (2, 3, 48, 32)
    output.loss.backward()
    assert all(value.grad is not None for value in stem_of(model).parameters())


def test_gradient_checkpointing_gives_the_same_gradients():
    plain = hybrid(patch_selector="variance").train()
    saving = copy.deepcopy(plain)
    getattr(saving, "activation_checkpointing_enable", saving.gradient_checkpointing_enable)()
    images, labels = torch.randn(2, 3, 64, 64), torch.tensor([1, 3])
    for model in (plain, saving):
        model(images, labels=labels).loss.backward()
    for (name, value), other in zip(plain.named_parameters(), saving.parameters(), strict=True):
        torch.testing.assert_close(value.grad, other.grad, msg=name)


def test_half_precision():
    model = hybrid(patch_selector="variance")
    images = torch.randn(2, 3, 64, 70)
    half = copy.deepcopy(model).bfloat16()(images).logits
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), model(images).logits, atol=0.2, rtol=0.2)


class Logits(torch.nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, pixel_values):
        return self.model(pixel_values=pixel_values).logits


@pytest.mark.parametrize(
    ("backbone", "selection"),
    [
        ("bit", {"patch_selector": "attention"}),
        pytest.param("bit", {}, marks=pytest.mark.slow),
        pytest.param("resnet", {"patch_selector": "attention"}, marks=pytest.mark.slow),
        pytest.param("resnet", {}, marks=pytest.mark.slow),
    ],
)
def test_exports_with_dynamic_batch_and_compiles(backbone, selection):
    model = hybrid(BACKBONES[backbone], **selection)
    batch = torch.export.Dim("batch", min=1, max=64)
    images = torch.randn(3, 3, 64, 64)
    exported = torch.export.export(
        Logits(model), (torch.randn(2, 3, 64, 64),), dynamic_shapes={"pixel_values": {0: batch}}
    )
    torch.testing.assert_close(exported.module()(images), model(images).logits, atol=1e-5, rtol=1e-5)
    torch.compiler.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        torch.testing.assert_close(compiled(images).logits, model(images).logits, atol=1e-5, rtol=1e-5)


@pytest.mark.slow
def test_loads_without_the_package(tmp_path):
    model = hybrid(patch_selector="variance")
    model.save_pretrained(tmp_path / "saved")
    images = torch.randn(2, 3, 64, 64)
    torch.save({"images": images, "logits": model(images).logits.detach()}, tmp_path / "expected.pt")
    out = run_elsewhere(
        """
        import torch
        from transformers import AutoModelForImageClassification
        expected = torch.load("expected.pt")
        model = AutoModelForImageClassification.from_pretrained("saved", trust_remote_code=True)
        assert type(model).__module__.startswith("transformers_modules"), type(model)
        torch.testing.assert_close(model(expected["images"]).logits, expected["logits"], atol=0, rtol=0)
        print(type(model.config.backbone_config).__name__)
        """,
        tmp_path,
    )
    assert out.strip() == "BitConfig"


def test_layers_for_training_and_for_devices():
    model = hybrid()
    names = [name for name, _ in model.named_parameters() if ".backbone." in name]
    assert names and {part_of(model, name) for name in names} == {"backbone"}
    rates = {
        id(parameter): group["lr"]
        for group in layerwise_parameter_groups(model, 1.0, layer_decay=0.5)
        for parameter in group["params"]
    }
    lowest = min(rates.values())
    assert lowest == 0.5**4
    assert {rates[id(value)] for value in stem_of(model).parameters()} == {lowest}
    assert "AdaptiveViTLayer" in model._no_split_modules
    assert model.num_parameters() == sum(value.numel() for value in model.parameters())
    assert model.get_input_embeddings() is stem_of(model).projection


def test_explains(tmp_path):
    model = hybrid(patch_selector="attention")
    processor = AdaptiveViTImageProcessor(size={"height": 64, "width": 64}, patch_size=8)
    image = torch.randint(0, 255, (3, 64, 64), dtype=torch.uint8)
    (explanation,) = explain(model, processor, image, output=tmp_path)
    assert explanation.files and all(path.exists() for path in explanation.files.values())


def test_base_model():
    model = hybrid(model_class=AdaptiveViTModel)
    output = model(torch.randn(1, 3, 48, 64), restore=True)
    assert output.restored_hidden_state.shape == (1, 48, 32)
