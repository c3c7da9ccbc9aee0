"""Requirements of transformers' own common tests, for our models: every selector, every encoding, and
Swin."""

import copy

import pytest
import torch
from transformers import (
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForMaskedImageModeling,
    AutoModelForPreTraining,
    AutoModelForSemanticSegmentation,
)

from tests.helpers.models import SELECTIONS, SWINS, every_selection, every_swin, tiny_config, tiny_swin_config
from vit_hf import (
    POSITION_ENCODINGS,
    AdaptiveSwinForImageClassification,
    AdaptiveSwinForMaskedImageModeling,
    AdaptiveSwinModel,
    AdaptiveViTForImageClassification,
    AdaptiveViTForMaskedImageModeling,
    AdaptiveViTForPreTraining,
    AdaptiveViTForSemanticSegmentation,
    AdaptiveViTModel,
)
from vit_hf.model.pixel_scorers import PIXEL_SCORERS


VIT_CLASSES = {
    AdaptiveViTModel: AutoModel,
    AdaptiveViTForImageClassification: AutoModelForImageClassification,
    AdaptiveViTForMaskedImageModeling: AutoModelForMaskedImageModeling,
    AdaptiveViTForPreTraining: AutoModelForPreTraining,
    AdaptiveViTForSemanticSegmentation: AutoModelForSemanticSegmentation,
}
SWIN_CLASSES = {
    AdaptiveSwinModel: AutoModel,
    AdaptiveSwinForImageClassification: AutoModelForImageClassification,
    AdaptiveSwinForMaskedImageModeling: AutoModelForMaskedImageModeling,
}
every_encoding = pytest.mark.parametrize("encoding", POSITION_ENCODINGS)


def all_options(**fields):
    fields = {"segmentation_decoder": "convolutional", **fields}
    return tiny_config(num_register_tokens=2, layerscale_value=0.1, drop_path_rate=0.1, **fields)


def models() -> dict:
    """Every class with everything that makes other parameters: class, Auto class, and configuration."""
    table = {}
    for model_class, auto_class in VIT_CLASSES.items():
        for encoding in POSITION_ENCODINGS:
            fields = {"position_encoding": encoding}
            table[f"{model_class.__name__}-{encoding}"] = (model_class, auto_class, all_options, fields)
    for model_class, auto_class in SWIN_CLASSES.items():
        for name, fields in SWINS.items():
            if "patch_selector" not in fields:
                table[f"{model_class.__name__}-{name}"] = (model_class, auto_class, tiny_swin_config, fields)
    return table


every_model = pytest.mark.parametrize(
    ("model_class", "auto_class", "config", "fields"), models().values(), ids=models()
)
every_classifier = pytest.mark.parametrize(
    ("model_class", "config", "fields"),
    [
        *((AdaptiveViTForImageClassification, all_options, fields) for fields in SELECTIONS.values()),
        *((AdaptiveSwinForImageClassification, tiny_swin_config, fields) for fields in SWINS.values()),
    ],
    ids=[*SELECTIONS, *SWINS],
)


def answer(output) -> torch.Tensor:
    return output[next(key for key in ("logits", "reconstruction", "last_hidden_state") if key in output)]


@every_model
def test_save_and_load(model_class, auto_class, config, fields, tmp_path):
    model = model_class(config(**fields)).eval()
    model.save_pretrained(tmp_path)
    again, info = auto_class.from_pretrained(tmp_path, output_loading_info=True)
    assert type(again) is model_class and not any(info.values())
    for (name, value), (other_name, other) in zip(
        model.state_dict().items(), again.state_dict().items(), strict=True
    ):
        assert name == other_name and torch.equal(value, other)
    images = torch.randn(2, 3, 40, 32)
    assert torch.equal(answer(model(images)), answer(again(images)))


def test_a_saved_model_saves_the_same_again(tmp_path):
    model = AdaptiveViTForImageClassification(all_options(patch_selector="attention"))
    model.save_pretrained(tmp_path / "first")
    AutoModelForImageClassification.from_pretrained(tmp_path / "first").save_pretrained(tmp_path / "second")
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()


def test_head_loads_base_and_base_loads_head(tmp_path):
    base = AdaptiveViTModel(all_options(), add_pooling_layer=False).eval()
    base.save_pretrained(tmp_path / "base")
    head, info = AdaptiveViTForImageClassification.from_pretrained(
        tmp_path / "base", output_loading_info=True
    )
    assert info["missing_keys"] == {"classifier.weight", "classifier.bias"} and not info["unexpected_keys"]
    head.save_pretrained(tmp_path / "head")
    again = AdaptiveViTModel.from_pretrained(tmp_path / "head", add_pooling_layer=False)
    images = torch.randn(1, 3, 32, 32)
    assert torch.equal(base(images).last_hidden_state, again(images).last_hidden_state)


def test_other_number_of_labels(tmp_path):
    AdaptiveViTForImageClassification(tiny_config()).save_pretrained(tmp_path)
    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
        AdaptiveViTForImageClassification.from_pretrained(tmp_path, num_labels=7)
    model = AdaptiveViTForImageClassification.from_pretrained(
        tmp_path, num_labels=7, ignore_mismatched_sizes=True
    )
    assert model(torch.randn(1, 3, 32, 32)).logits.shape == (1, 7)


@every_model
def test_meta_initialization_leaves_nothing_behind(model_class, auto_class, config, fields, tmp_path):
    """Parameters made on the meta device come from the file or from `_init_weights`: none is garbage."""
    with torch.device("meta"):
        model = model_class(config(**fields))
    assert all(value.is_meta for value in model.state_dict().values())
    model_class(config(**fields)).save_pretrained(tmp_path)
    loaded = model_class.from_pretrained(tmp_path)
    assert not any(value.is_meta for value in [*loaded.parameters(), *loaded.buffers()])
    assert list(loaded.buffers()) == []


@every_encoding
def test_missing_keys_are_initialized(encoding, tmp_path):
    from safetensors.torch import save_file

    config = all_options(position_encoding=encoding)
    config.save_pretrained(tmp_path)
    save_file(
        {"vit.layernorm.weight": torch.full((32,), 7.0)}, tmp_path / "model.safetensors", {"format": "pt"}
    )
    # Fresh memory often holds zeros: fill it with something that shows.
    junk = [torch.full((64, 64), 1e6) for _ in range(200)]
    del junk
    model = AdaptiveViTForImageClassification.from_pretrained(tmp_path)
    assert (model.vit.layernorm.weight == 7).all()
    for name, value in model.named_parameters():
        assert value.abs().max() < 10, name
    assert (model.vit.layers[0].layer_scale1.lambda1 == 0.1).all()
    assert model.vit.embeddings.cls_token.std() > 0.05


@every_swin
def test_missing_keys_of_swin_are_initialized(swin, tmp_path):
    from safetensors.torch import save_file

    tiny_swin_config(**swin).save_pretrained(tmp_path)
    weights = {"swin.layernorm.weight": torch.full((64,), 7.0)}
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    junk = [torch.full((64, 64), 1e6) for _ in range(200)]
    del junk
    model = AdaptiveSwinForImageClassification.from_pretrained(tmp_path)
    assert (model.swin.layernorm.weight == 7).all()
    for name, value in model.named_parameters():
        assert value.abs().max() < 10, name
    if model.config.cosine_attention:
        torch.testing.assert_close(
            model.swin.encoder.layers[1].blocks[0].attention.logit_scale.exp(), torch.full((2, 1, 1), 10.0)
        )


@every_classifier
def test_evaluation_is_deterministic(model_class, config, fields):
    model = model_class(config(**fields)).eval()
    images = torch.randn(2, 3, 64, 64)
    assert torch.equal(model(images).logits, model(images).logits)


@every_classifier
def test_tuples_equal_dictionaries(model_class, config, fields):
    model = model_class(config(**fields)).eval()
    images = torch.randn(2, 3, 64, 64)
    kwargs = {"output_hidden_states": True, "output_attentions": True, "labels": torch.tensor([1, 2])}
    as_tuple, as_dict = model(images, return_dict=False, **kwargs), model(images, **kwargs)
    assert isinstance(as_tuple, tuple) and len(as_tuple) == len(as_dict.to_tuple())
    torch.testing.assert_close(as_tuple, as_dict.to_tuple())
    model.config.return_dict = False
    torch.testing.assert_close(model(images, **kwargs), as_dict.to_tuple())


@pytest.mark.parametrize("model_class", VIT_CLASSES)
def test_hidden_states_and_attentions(model_class):
    model = model_class(all_options()).eval()
    images = torch.randn(2, 3, 32, 32)
    output = model(images, output_hidden_states=True, output_attentions=True)
    length = 3 + (4 if model_class is AdaptiveViTForPreTraining else 16)
    assert [state.shape for state in output.hidden_states] == [(2, length, 32)] * 4
    assert [weights.shape for weights in output.attentions] == [(2, 4, length, length)] * 3
    torch.testing.assert_close(output.attentions[0].sum(-1), torch.ones(2, 4, length))
    plain = model(images)
    assert plain.hidden_states is None and plain.attentions is None
    torch.testing.assert_close(answer(plain), answer(output), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("model_class", SWIN_CLASSES)
@pytest.mark.parametrize("swin", ["swin", "swinv2"])
def test_hidden_states_and_attentions_of_swin(model_class, swin):
    """As transformers' Swin has them: of stages, and the attention of each one's last block."""
    model = model_class(tiny_swin_config(**SWINS[swin])).eval()
    images = torch.randn(2, 3, 40, 32)
    output = model(images, output_hidden_states=True, output_attentions=True)
    shapes = [(2, 80, 16), (2, 20, 32), (2, 6, 64), (2, 6, 64)]
    assert [state.shape for state in output.hidden_states] == shapes
    maps = [(2, 16, 10, 8), (2, 32, 5, 4), (2, 64, 3, 2), (2, 64, 3, 2)]
    assert [state.shape for state in output.reshaped_hidden_states] == maps
    # Windows of 4x4 on a grid of 10x8; of one window's size, and of 2x2, where a side of the grid is not
    # larger.
    assert [weights.shape for weights in output.attentions] == [
        (2 * 6, 2, 16, 16),
        (2 * 2, 2, 16, 16),
        (2 * 2, 4, 4, 4),
    ]
    for weights in output.attentions:
        torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:-1]))
    plain = model(images)
    assert plain.hidden_states is None and plain.attentions is None
    torch.testing.assert_close(answer(plain), answer(output), atol=1e-5, rtol=1e-5)


def test_hidden_states_and_attentions_by_configuration():
    model = AdaptiveViTModel(all_options(output_hidden_states=True)).eval()
    assert len(model(torch.randn(1, 3, 32, 32)).hidden_states) == 4
    model.set_attn_implementation("eager")
    model.config.output_attentions = True
    assert len(model(torch.randn(1, 3, 32, 32)).attentions) == 3


@every_classifier
def test_gradients_are_retained(model_class, config, fields):
    model = model_class(config(**fields))
    output = model(torch.randn(2, 3, 64, 64), output_hidden_states=True, output_attentions=True)
    output.hidden_states[0].retain_grad()
    output.attentions[0].retain_grad()
    output.logits.flatten()[0].backward()
    assert output.hidden_states[0].grad.abs().sum() > 0
    assert output.attentions[0].grad is not None


@pytest.mark.parametrize("model_class", [AdaptiveViTForPreTraining, AdaptiveViTForSemanticSegmentation])
def test_other_heads_in_every_way(model_class):
    """Batching, traced graphs, checkpointing, half precision, attention: for the classifier these are
    apart."""
    config = all_options()
    config.drop_path_rate = 0.0
    model = model_class(config).eval()
    images = torch.randn(3, 3, 48, 32)
    expected = answer(model(images))
    for index in range(3):
        torch.testing.assert_close(
            answer(model(images[index, None]))[0], expected[index], atol=1e-5, rtol=1e-5
        )
    exported = torch.export.export(
        model, (images,), dynamic_shapes={"pixel_values": {0: torch.export.Dim("batch")}}
    )
    torch.testing.assert_close(answer(exported.module()(images[:2])), expected[:2], atol=1e-5, rtol=1e-5)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(answer(compiled(images)), expected, atol=1e-5, rtol=1e-5)

    saving = copy.deepcopy(model).train()
    getattr(saving, "activation_checkpointing_enable", saving.gradient_checkpointing_enable)()
    for other in (model.train(), saving):
        torch.manual_seed(1)
        answer(other(images)).square().mean().backward()
    for (name, value), other in zip(model.named_parameters(), saving.parameters(), strict=True):
        torch.testing.assert_close(value.grad, other.grad, msg=name)

    half = answer(copy.deepcopy(model).eval().bfloat16()(images))
    assert half.dtype == torch.bfloat16 and torch.isfinite(half).all()
    model.eval().set_attn_implementation("eager")
    torch.testing.assert_close(answer(model(images)), expected, atol=1e-5, rtol=1e-5)


@every_selection
@every_encoding
def test_sdpa_equals_eager(selection, encoding):
    config = all_options(**selection, position_encoding=encoding)
    model = AdaptiveViTForImageClassification(config).eval()
    assert model.config._attn_implementation == "sdpa"
    images = torch.randn(2, 3, 64, 48)
    fused = model(images).logits
    model.set_attn_implementation("eager")
    torch.testing.assert_close(model(images).logits, fused, atol=1e-5, rtol=1e-5)


@every_swin
def test_sdpa_equals_eager_in_windows(swin):
    model = AdaptiveSwinForImageClassification(tiny_swin_config(**swin)).eval()
    assert model.config._attn_implementation == "sdpa"
    images = torch.randn(2, 3, 72, 50)
    fused = model(images).logits
    model.set_attn_implementation("eager")
    torch.testing.assert_close(model(images).logits, fused, atol=1e-5, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_flex_equals_eager():
    model = AdaptiveViTForImageClassification(all_options(patch_selector="variance")).eval()
    images = torch.randn(2, 3, 64, 48)
    with torch.no_grad():
        expected = model(images).logits
        model.set_attn_implementation("flex_attention")
        torch.testing.assert_close(model(images).logits, expected, atol=1e-4, rtol=1e-4)


@every_classifier
@pytest.mark.filterwarnings("error")
def test_gradient_checkpointing_gives_the_same_gradients(model_class, config, fields):
    config = config(**fields)
    config.drop_path_rate = 0.0
    plain = model_class(config).train()
    saving = copy.deepcopy(plain)
    # The name changes with transformers 6, and the old one warns already.
    getattr(saving, "activation_checkpointing_enable", saving.gradient_checkpointing_enable)()
    images, labels = torch.randn(2, 3, 64, 64), torch.tensor([1, 3])
    for model in (plain, saving):
        torch.manual_seed(1)  # the same draws
        model(images, labels=labels).loss.backward()
    for (name, value), other in zip(plain.named_parameters(), saving.parameters(), strict=True):
        torch.testing.assert_close(value.grad, other.grad, msg=name)


@every_classifier
def test_half_precision(model_class, config, fields):
    model = model_class(config(**fields)).eval()
    images = torch.randn(2, 3, 64, 70)
    expected = model(images)
    half = copy.deepcopy(model).bfloat16()
    got = half(images)
    assert got.logits.dtype == torch.bfloat16
    if fields.get("patch_selector") in PIXEL_SCORERS:  # the heuristics see the same pixels
        assert torch.equal(got.selected_patches, expected.selected_patches)
        torch.testing.assert_close(got.logits.float(), expected.logits, atol=0.15, rtol=0.1)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.isfinite(model(images, labels=torch.tensor([0, 1])).loss)


def test_overfits_a_few_images():
    model = AdaptiveViTForImageClassification(tiny_config(patch_selector="variance", initializer_range=0.02))
    images, labels = torch.randn(5, 3, 64, 64), torch.arange(5)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(60):
        loss = model(images, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.1


def test_input_embeddings_and_no_split_modules():
    model = AdaptiveViTForImageClassification(tiny_config())
    assert model.get_input_embeddings() is model.vit.embeddings.patch_embeddings.projection
    names = {type(module).__name__ for module in model.modules()}
    assert set(model._no_split_modules) <= names
