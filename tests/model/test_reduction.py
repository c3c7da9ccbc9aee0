"""Token reducers beside plain loops written from the papers, image by image, without the code under test."""

import math

import pytest
import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from tests.helpers.models import SELECTIONS, cut, tiny_config, tiny_selector
from tests.helpers.reduction import PREFIX, REGISTERS, make, plain_logits
from vit_hf import TOKEN_REDUCERS, AdaptiveViTForImageClassification
from vit_hf.model.layers import AttentionContext, AttentionProjections, append_bias_channel
from vit_hf.model.patches import PatchTokens, grid_coordinates
from vit_hf.model.reducers import SamplingReducer


reducers = pytest.mark.parametrize("reducer", TOKEN_REDUCERS)


def keep_by_cls_attention(layers, keep_rate):
    """EViT, section 3: top ceil(rate M) of the head-mean CLS attention, and one token sum_i a_i x_i of the
    others."""

    def inside(index, x, log_sizes, weights, key, value):
        if index not in layers:
            return x, log_sizes
        scores = weights.mean(0)[0, PREFIX:].tolist()
        number = math.ceil(round(keep_rate * len(scores), 6))
        kept = sorted(sorted(range(len(scores)), key=lambda token: -scores[token])[:number])
        dropped = [token for token in range(len(scores)) if token not in kept]
        fused = sum(scores[token] * x[PREFIX + token] for token in dropped)
        x = torch.stack([*x[:PREFIX], *(x[PREFIX + token] for token in kept), fused])
        return x, torch.zeros(len(x))

    return inside


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("keep_rate", [0.7, 0.25])
def test_attentive_is_evit(implementation, keep_rate):
    layers = (0, 1, 2)
    model = make("attentive", layers, keep_rate)
    model.set_attn_implementation(implementation)
    images = torch.randn(3, 3, 48, 48)
    inside = keep_by_cls_attention(layers, keep_rate)
    expected = torch.stack([plain_logits(model, image, inside=inside) for image in images])
    torch.testing.assert_close(model(images).logits, expected, atol=1e-5, rtol=1e-5)


def merge_pairs(layers, wanted, groups):
    """ToMe, section 3. `wanted(M)` is r; `groups` becomes the lists of patches that the tokens stand for."""

    def inside(index, x, log_sizes, weights, key, value):
        if index not in layers:
            return x, log_sizes
        patches, metric = x[PREFIX:], key.mean(0)[PREFIX:]
        if not groups:
            groups.extend([patch] for patch in range(len(patches)))
        candidates = []
        for a in range(0, len(patches), 2):
            alike = {
                b: torch.cosine_similarity(metric[a], metric[b], dim=0).item()
                for b in range(1, len(patches), 2)
            }
            best = max(alike, key=alike.get)
            candidates.append((alike[best], a, best))
        members = {token: [token] for token in range(len(patches))}
        for _, a, b in sorted(candidates, reverse=True)[: wanted(len(patches))]:
            members[b].append(a)
            del members[a]
        sizes = [len(group) for group in groups]
        merged, new_groups = [], []
        for token in sorted(members):
            total = sum(sizes[member] for member in members[token])
            merged.append(sum(sizes[member] * patches[member] for member in members[token]) / total)
            new_groups.append([patch for member in members[token] for patch in groups[member]])
        groups[:] = new_groups
        logs = torch.tensor([0.0] * PREFIX + [math.log(len(group)) for group in groups])
        return torch.stack([*x[:PREFIX], *merged]), logs

    return inside


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize(
    ("reducer", "keep_rate", "layers", "wanted"),
    [
        ({"type": "merge", "r": 5}, 1.0, (0, 1, 2), lambda number: min(5, number // 2)),
        ({"type": "merge", "r": 30}, 1.0, (0, 2), lambda number: number // 2),
        ("merge", 0.7, (0, 1), lambda number: number - math.ceil(round(0.7 * number, 6))),
        ("merge", 0.5, (1, 2), lambda number: number // 2),
    ],
)
def test_merge_is_tome(implementation, reducer, keep_rate, layers, wanted):
    model = make(reducer, layers, keep_rate=keep_rate)
    model.set_attn_implementation(implementation)
    images = torch.randn(3, 3, 48, 48)
    output = model(images)
    assert torch.equal(output.token_sizes.sum(1), torch.full((3,), 36.0))
    for index, image in enumerate(images):
        groups = []
        expected = plain_logits(model, image, inside=merge_pairs(layers, wanted, groups))
        torch.testing.assert_close(output.logits[index], expected, atol=1e-5, rtol=1e-5)
        assert output.token_sizes[index].tolist() == [len(group) for group in groups]
        for place, group in zip(output.token_coordinates[index], groups, strict=True):
            torch.testing.assert_close(place, torch.tensor([[p // 6, p % 6] for p in group]).float().mean(0))
        for patch in range(36):
            assert patch in groups[output.token_assignments[index, -1, patch]]


def draw_by_significance(layers, keep_rate, counts):
    """ATS, section 3: the inverse of the cumulated significance on the grid (i + 1/2) / K."""

    def inside(index, x, log_sizes, weights, key, value):
        if index not in layers:
            return x, log_sizes
        scores = (weights[:, 0, PREFIX:] * value[:, PREFIX:].norm(dim=-1)).sum(0).double()
        number = math.ceil(round(keep_rate * len(scores), 6))
        order = sorted(range(len(scores)), key=lambda token: scores[token])
        drawn = set()
        for step in range(number):
            cumulated = 0.0
            for token in order:
                cumulated += (scores[token] / scores.sum()).item()
                if cumulated >= (step + 0.5) / number:
                    break
            drawn.add(token)
        assert len(drawn) <= number
        counts.append(len(drawn))
        x = torch.stack([*x[:PREFIX], *(x[PREFIX + token] for token in sorted(drawn))])
        return x, torch.zeros(len(x))

    return inside


@pytest.mark.parametrize("keep_rate", [0.8, 0.3])
def test_sample_is_ats(keep_rate):
    model = make("sample", (0, 2), keep_rate)
    images = torch.randn(4, 3, 48, 48)
    output = model(images)
    for index, image in enumerate(images):
        counts = []
        expected = plain_logits(model, image, inside=draw_by_significance((0, 2), keep_rate, counts))
        torch.testing.assert_close(output.logits[index], expected, atol=1e-5, rtol=1e-5)
        assert output.token_sizes[index].sum() == counts[-1]


def test_sample_by_hand():
    """Shares .4, .1, .2, .3 on the grid 1/4, 3/4 and on 1/8, 3/8, 5/8, 7/8: in both, .4 is hit, and .1
    never."""
    value = torch.tensor([9.0, 4, 1, 2, 3]).view(1, 1, 5, 1)  # the first is CLS
    same = torch.ones(1, 1, 5, 1)
    states = AttentionProjections(same, same, value, same, AttentionContext(), 1.0)
    tokens = PatchTokens(torch.randn(1, 4, 8), grid_coordinates(2, 2)[None], torch.tensor([[2, 2]]))
    for keep_rate, kept in [(0.5, [0, 2]), (1.0, [0, 2, 3]), (0.25, [3])]:
        config = tiny_config(token_reducer="sample", keep_rate=keep_rate, reduction_layers=[0])
        reduction = SamplingReducer(config, 0)(tokens, states, 0.0)
        assert [token for token in range(4) if reduction.assignment[0, token] >= 0] == kept
        assert reduction.tokens.mask.sum() == len(kept)


@reducers
@pytest.mark.parametrize("training", [False, True])
def test_padding_has_no_influence(reducer, training):
    model = make(reducer, pooling="mean").train(training)
    inputs = cut([torch.randn(3, *size) for size in [(48, 48), (24, 32), (8, 8)]])
    torch.manual_seed(1)
    expected = model(**inputs, labels=torch.tensor([0, 1, 2]))
    padding = inputs["pixel_attention_mask"] == 0
    inputs["pixel_values"][padding] = 50 * torch.randn(int(padding.sum()), 192)
    inputs["patch_coordinates"][padding] = torch.rand(int(padding.sum()), 2) * 6
    torch.manual_seed(1)
    got = model(**inputs, labels=torch.tensor([0, 1, 2]))
    torch.testing.assert_close(got.logits, expected.logits, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(got.loss, expected.loss, atol=1e-6, rtol=1e-6)


@reducers
@pytest.mark.parametrize("keep_rate", [0.1, 0.2, 0.45])
def test_low_rates_in_mixed_sizes_equal_one_by_one(reducer, keep_rate):
    model = make(reducer, keep_rate=keep_rate + 0.5 * (reducer == "merge"))  # which merges pairs
    images = [torch.randn(3, *size) for size in [(48, 48), (32, 32), (64, 40), (8, 16)]]
    together = model(**cut(images)).logits
    alone = torch.cat([model(image[None]).logits for image in images])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)


@reducers
def test_padding_may_be_anywhere(reducer):
    model, images = make(reducer), torch.randn(1, 3, 48, 48)
    expected = model(images, selected_patches=torch.tensor([[3, 5, 9, 11, 20, 31]])).logits
    scattered = torch.tensor([[-1, 3, -1, 5, -1, 9, -1, 11, -1, 20, -1, 31]])
    got = model(images, selected_patches=scattered).logits
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


@reducers
def test_an_image_without_patches_keeps_none(reducer):
    model, images = make(reducer), torch.randn(2, 3, 48, 48)
    chosen = torch.tensor([[1, 2, 3, 4, 5, 6], [-1] * 6])
    output = model(images, selected_patches=chosen)
    assert output.token_sizes[0].sum() > 0 and output.token_sizes[1].sum() == 0
    dense = AdaptiveViTForImageClassification(
        tiny_config(image_size=48, num_register_tokens=REGISTERS)
    ).eval()
    dense.load_state_dict(model.state_dict(), strict=False)
    expected = dense(images, selected_patches=chosen).logits[1]
    torch.testing.assert_close(output.logits[1], expected, atol=1e-5, rtol=1e-5)
    assert torch.isfinite(model.train()(images, selected_patches=chosen, labels=torch.tensor([0, 1])).loss)


@reducers
def test_relaxation_raises_the_keep_rate_while_training(reducer):
    model = make(reducer, keep_rate=0.5)
    images = torch.randn(2, 3, 48, 48)
    tokens = {"attentive": 28, "merge": 27}  # of 36 at a rate of 0.75, and one more that is fused
    model.set_dense_fraction(0.5)
    stages = model.train()(images).token_assignments
    if reducer in tokens:
        assert stages[:, 0].max() + 1 == tokens[reducer] - (reducer == "attentive")
    elif reducer == "sample":
        assert 18 < (stages[:, 0] >= 0).sum(1).max() <= 27
    else:
        assert model.vit.reducers["0"].keep_rate(0.5) == 0.75
    # `gumbel` learns even then.
    model.set_dense_fraction(1.0)
    assert (model(images).token_assignments is None) == (reducer != "gumbel")
    kept = model.eval()(images).token_assignments[:, 0] >= 0
    assert kept.all() if reducer == "merge" else (kept.sum(1) <= 18).all()


def test_relaxation_lowers_r_while_training():
    model, images = make({"type": "merge", "r": 6}, keep_rate=1.0), torch.randn(1, 3, 48, 48)
    for dense_fraction, left in [(0.0, 24), (0.5, 30), (1.0, 36)]:
        model.set_dense_fraction(dense_fraction)
        assert model.train()(images).token_coordinates.shape[1] == left
        assert model.eval()(images).token_coordinates.shape[1] == 24


def plain_bias_attention(query, key, value, key_bias):
    logits = query @ key.transpose(2, 3) / math.sqrt(query.shape[-1]) + key_bias[:, None, None]
    return logits.softmax(-1) @ value


@pytest.mark.parametrize("head_dim", [4, 7, 12, 64])
def test_bias_channel_equals_an_additive_bias(head_dim):
    inputs = [torch.randn(2, 3, 9, head_dim, requires_grad=True) for _ in range(3)]
    key_bias = torch.randn(2, 9).mul(3).requires_grad_()
    expected = plain_bias_attention(*inputs, key_bias)
    appended = append_bias_channel(*inputs, key_bias, head_dim**-0.5)
    assert all(states.shape[-1] % 8 == 0 for states in appended)
    got = torch.nn.functional.scaled_dot_product_attention(*appended, scale=head_dim**-0.5)[..., :head_dim]
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)
    direction = torch.randn_like(expected)
    for value, other in zip(
        torch.autograd.grad((got * direction).sum(), [*inputs, key_bias]),
        torch.autograd.grad((expected * direction).sum(), [*inputs, key_bias]),
        strict=True,
    ):
        torch.testing.assert_close(value, other, atol=1e-5, rtol=1e-4)


def like_flash(module, query, key, value, attention_mask, dropout=0.0, scaling=None, **kwargs):
    """What flash attention is given and gives: no additive mask, at most which keys are padding `(B, T)`."""
    assert attention_mask is None or attention_mask.ndim == 2
    assert query.shape[-1] % 8 == 0 and query.shape == key.shape == value.shape
    mask = None if attention_mask is None else attention_mask.bool()[:, None, None]
    out = torch.nn.functional.scaled_dot_product_attention(query, key, value, mask, scale=scaling)
    return out.transpose(1, 2), None


@reducers
@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("heads", [4, 2])
def test_flash_attention_equals_sdpa(reducer, mixed, heads, monkeypatch):
    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS, "like_flash", like_flash)
    masks = ALL_MASK_ATTENTION_FUNCTIONS._global_mapping
    monkeypatch.setitem(masks, "like_flash", masks["flash_attention_2"])
    model = make(reducer, num_attention_heads=heads).train()  # training, where `gumbel` has sizes
    images = [torch.randn(3, 48, 48), torch.randn(3, *((24, 16) if mixed else (48, 48)))]
    inputs = cut(images) if mixed else {"pixel_values": torch.stack(images)}
    results = []
    for implementation in ("sdpa", "like_flash"):
        model.config._attn_implementation = implementation
        model.zero_grad()
        torch.manual_seed(1)
        output = model(**inputs, labels=torch.tensor([1, 2]))
        output.loss.backward()
        results.append((output.logits, [value.grad.clone() for value in model.parameters()]))
    torch.testing.assert_close(results[1][0], results[0][0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(results[1][1], results[0][1], atol=1e-4, rtol=1e-3)


def test_a_loss_of_exactly_zero_reaches_all_parameters():
    """Distributed training waits for the gradient of each."""
    selector = tiny_selector("policy", entropy_weight=0.0)
    model = AdaptiveViTForImageClassification(tiny_config(patch_selector=selector, num_labels=2)).train()
    model.classifier.weight.data.zero_()  # right whatever it sees
    model.classifier.bias.data = torch.tensor([9.0, 0.0])
    output = model(torch.randn(2, 3, 64, 64), labels=torch.tensor([0, 0]))
    assert output.selection_loss == 0
    output.loss.backward()
    assert all(value.grad is not None for value in model.parameters())


def test_a_policy_and_a_reducer_learn_together():
    selector = tiny_selector("policy", loss_weight=0.0, entropy_weight=0.0)
    for distillation in (0.0, 4.0):
        weights = {"ratio_weight": 0.0, "token_weight": 0.0, "distillation_weight": distillation}
        reducer = {"type": "gumbel", **weights}
        model = make(reducer, patch_selector=selector, num_selected_patches=20).train()
        loss = model(torch.randn(2, 3, 48, 48), labels=torch.tensor([0, 1])).selection_loss
        assert (loss > 1e-4) == (distillation > 0)


@pytest.mark.parametrize("learner", ["policy", "distilled", "gumbel"])
def test_compiled_training_step(learner):
    torch.compiler.reset()
    model = AdaptiveViTForImageClassification(tiny_config(**SELECTIONS[learner])).train()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    compiled(torch.randn(2, 3, 64, 64), labels=torch.tensor([1, 2])).loss.backward()
    assert all(value.grad is not None for value in model.parameters())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("mixed", [False, True])
@reducers
def test_flex_attention_equals_eager(reducer, mixed):
    model = make(reducer)
    images = [torch.randn(3, 48, 48), torch.randn(3, *((24, 16) if mixed else (48, 48)))]
    inputs = cut(images) if mixed else {"pixel_values": torch.stack(images)}
    with torch.no_grad():
        model.set_attn_implementation("eager")
        expected = model(**inputs).logits
        model.set_attn_implementation("flex_attention")
        torch.testing.assert_close(model(**inputs).logits, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("fields", [{}, {"position_encoding": "rotary"}, {"thumbnail_context": True}])
@pytest.mark.parametrize("reducer", [None, *TOKEN_REDUCERS])
def test_blocks_may_lie_on_several_devices(reducer, fields):
    """As with device_map="auto"; the second device is one that computes shapes only."""
    reduction = {"token_reducer": reducer, "keep_rate": 0.5, "reduction_layers": [0, 2]} if reducer else {}
    model = AdaptiveViTForImageClassification(tiny_config(**reduction, **fields)).eval()
    parts = [*model.vit.layers[1:], model.vit.layernorm, model.classifier]
    for part in parts + [module for index, module in model.vit.reducers.items() if index == "2"]:
        part.to("meta")
        add_hook_to_module(part, AlignDevicesHook(execution_device="meta"))
    images = (
        cut([torch.randn(3, 32, 32), torch.randn(3, 48, 40)]) if not fields else torch.randn(2, 3, 48, 40)
    )
    logits = model(**images if isinstance(images, dict) else {"pixel_values": images}).logits
    assert logits.shape == (2, 5) and logits.device.type == "meta"
