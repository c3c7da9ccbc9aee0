import pytest
import torch

from tests.helpers.models import every_selection, tiny_config
from vit_hf import (
    POSITION_ENCODINGS,
    AdaptiveViTBackbone,
    AdaptiveViTForImageClassification,
    AdaptiveViTForPreTraining,
)
from vit_hf.checkpoints.families import CannotConvert
from vit_hf.checkpoints.npz import save_npz
from vit_hf.checkpoints.plain import to_transformers
from vit_hf.comparison.measuring import count_flops, tallying


HEADS, SIZES = [3, 1, 4], [64, 16, 40]
FIELDS = {"layer_sizes": {"num_attention_heads": HEADS, "intermediate_size": SIZES}}


def narrowed(**fields) -> tuple[AdaptiveViTForImageClassification, AdaptiveViTForImageClassification]:
    """A model whose blocks have several sizes, and one of the largest size in which what it lacks counts
    nothing."""
    if fields.get("position_encoding", "").startswith("relative_bias"):
        fields["position_encoding"] = {"type": fields["position_encoding"], "shared": False}
    fields |= {"head_dim": 12, "feed_forward": "gated"}
    wide = AdaptiveViTForImageClassification(tiny_config(**fields)).eval()
    with torch.no_grad():
        for name, parameter in wide.named_parameters():
            if "position_encoding" in name:  # some of which start at zero
                parameter.normal_()
        for layer, heads, size in zip(wide.vit.layers, HEADS, SIZES, strict=True):
            layer.attention.o_proj.weight[:, 12 * heads :] = 0
            layer.mlp.down_proj.weight[:, size:] = 0
    narrow = AdaptiveViTForImageClassification(tiny_config(**fields, **FIELDS)).eval()
    with torch.no_grad():
        for name, parameter in narrow.named_parameters():
            source = wide.get_parameter(name)
            parameter.copy_(source[tuple(slice(length) for length in parameter.shape)])
    return narrow, wide


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("encoding", POSITION_ENCODINGS)
def test_blocks_have_the_first_heads_of_an_encoding(encoding, implementation):
    narrow, wide = narrowed(position_encoding=encoding)
    narrow.set_attn_implementation(implementation)
    images = torch.randn(2, 3, 40, 32)
    torch.testing.assert_close(narrow(images).logits, wide(images).logits, atol=1e-4, rtol=1e-4)


@every_selection
def test_selection_and_reduction_see_the_same(selection):
    # CLS attention is a mean over heads, so its heads are all there: only the feed-forward networks differ.
    fields = {**selection, "layer_sizes": {"intermediate_size": SIZES}, "head_dim": 12}
    model = AdaptiveViTForImageClassification(tiny_config(**fields))
    model(torch.randn(2, 3, 32, 32), labels=torch.tensor([0, 1])).loss.backward()
    assert [layer.mlp.fc1.out_features for layer in model.vit.layers] == SIZES
    assert [layer.attention.o_proj.in_features for layer in model.vit.layers] == [48, 48, 48]


@pytest.mark.parametrize("name", ["attention", "attentive", "sample", "merge"])
def test_what_looks_at_attention_takes_any_number_of_heads(name):
    selector = {"patch_selector": {"type": name, "num_layers": 2, "reduction": "rollout"}}
    reducer = {"token_reducer": name, "keep_rate": 0.6, "reduction_layers": [0, 1]}
    fields = selector if name == "attention" else reducer
    model = AdaptiveViTForImageClassification(
        tiny_config(**fields, **FIELDS, position_encoding="rotary_mixed")
    )
    assert model(torch.randn(2, 3, 32, 32)).logits.isfinite().all()


def test_saves_and_loads(tmp_path):
    narrow, _ = narrowed()
    narrow.save_pretrained(tmp_path)
    again = AdaptiveViTForImageClassification.from_pretrained(tmp_path).eval()
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(again(images).logits, narrow(images).logits)
    assert again.config.layer_sizes["num_attention_heads"] == HEADS


def test_other_classes_have_such_blocks_too():
    images = torch.randn(1, 3, 32, 32)
    pretraining = AdaptiveViTForPreTraining(tiny_config(**FIELDS, head_dim=12))
    assert pretraining(images).loss.isfinite()
    assert AdaptiveViTBackbone(tiny_config(**FIELDS)).eval()(images).feature_maps[0].shape == (1, 32, 4, 4)


def test_formula_of_the_comparison_is_what_torch_counts():
    narrow, _ = narrowed()
    with tallying(narrow) as tally:
        counted = count_flops(lambda: narrow(torch.randn(1, 3, 32, 32)))
    # The CLS token's own part of the embedding is none, and nothing else differs.
    assert counted == pytest.approx(tally.formula, rel=0.01)


@pytest.mark.parametrize("export", [to_transformers, lambda model: save_npz(model, "never.npz")])
def test_what_cannot_hold_them_says_so(export):
    model = AdaptiveViTForImageClassification(tiny_config(**FIELDS))
    with pytest.raises(CannotConvert, match=r"layer_sizes=.*num_attention_heads"):
        export(model)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"head_dim": 0}, ["head_dim=0", "at least 1"]),
        (
            {"layer_sizes": {"num_attention_heads": [4, 4]}},
            ["num_attention_heads=", "[4, 4]", "num_hidden_layers=3"],
        ),
        ({"layer_sizes": {"num_attention_heads": [4, 5, 4]}}, ["[4, 5, 4]", "num_attention_heads=4"]),
        (
            {"layer_sizes": {"intermediate_size": [64, 0, 64]}},
            ["intermediate_size=[64, 0, 64]", "at least 1"],
        ),
        ({"layer_sizes": {"heads": [4, 4, 4]}}, ["no option 'heads'", "'num_attention_heads'"]),
        ({"hidden_size": 30, "head_dim": 8, "pooling": "map"}, ["pooling='map'", "hidden_size=30"]),
        ({"head_dim": 6, "position_encoding": "rotary"}, ["head_dim", "multiple of 4", "got 6"]),
    ],
)
def test_sizes_that_do_not_fit_are_refused(fields, words):
    with pytest.raises(Exception) as error:
        tiny_config(**fields)
    for word in words:
        assert word in str(error.value)
