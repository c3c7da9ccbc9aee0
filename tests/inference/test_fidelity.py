"""Fidelity to the dense pass: 1 where all patches are kept, and what each figure counts."""

import pytest
import torch

from tests.helpers.models import cut, tiny_config, tiny_selector
from vit_hf import (
    PATCH_SELECTORS,
    TOKEN_REDUCERS,
    AdaptiveViTForImageClassification,
    AdaptiveViTForSemanticSegmentation,
    AdaptiveViTModel,
)
from vit_hf.arguments import FIDELITY_FRACTIONS
from vit_hf.inference.fidelity import encode_states, measure_fidelity, nearest_images


def classifier(selector="variance", **fields) -> AdaptiveViTForImageClassification:
    torch.manual_seed(0)
    return AdaptiveViTForImageClassification(tiny_config(patch_selector=selector, **fields)).eval()


def batches(number: int = 3, size: int = 64) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [{"pixel_values": torch.randn(4, 3, size, size, generator=generator)} for _ in range(number)]


@pytest.mark.parametrize("name", PATCH_SELECTORS)
def test_all_patches_are_the_dense_pass(name):
    (row,) = measure_fidelity(classifier(name), batches(), fractions=[1.0])
    assert row.image_cosine == pytest.approx(1, abs=1e-5)
    assert row.worst_image_cosine == pytest.approx(1, abs=1e-5)
    assert row.patch_cosine == pytest.approx(1, abs=1e-5)
    assert row.nearest == row.neighbors == row.top1 == 1


@pytest.mark.parametrize("name", PATCH_SELECTORS)
def test_more_patches_are_closer(name):
    rows = measure_fidelity(classifier(name), batches(), fractions=[0.1, 0.95])
    assert -1 <= rows[0].worst_image_cosine <= rows[0].image_cosine < rows[1].image_cosine < 1
    assert rows[0].patch_cosine < rows[1].patch_cosine


def test_the_figures_are_those_of_the_outputs():
    model, inputs = classifier(num_selected_patches=0.25), batches()
    (row,) = measure_fidelity(model, inputs, fractions=[0.25], num_neighbors=3)
    with torch.no_grad():
        images = torch.cat([batch["pixel_values"] for batch in inputs])
        sparse, dense = model.vit(images), model.vit(images, dense_fraction=1.0)
        cosines = torch.cosine_similarity(
            sparse.last_hidden_state[:, 0], dense.last_hidden_state[:, 0], dim=-1
        )
        expected = dense.last_hidden_state[:, 1:].gather(
            1, sparse.selected_patches[..., None].expand(-1, -1, 32)
        )
        patches = torch.cosine_similarity(sparse.last_hidden_state[:, 1:], expected, dim=-1)
        same = model(images).logits.argmax(1) == model(images, dense_fraction=1.0).logits.argmax(1)
    assert row.image_cosine == pytest.approx(cosines.mean().item(), abs=1e-5)
    assert row.worst_image_cosine == pytest.approx(cosines.min().item(), abs=1e-5)
    assert row.patch_cosine == pytest.approx(patches.mean().item(), abs=1e-5)
    assert row.top1 == pytest.approx(same.float().mean().item())
    near = [nearest_images(outputs.last_hidden_state[:, 0], 3) for outputs in (sparse, dense)]
    shared = [len(set(found.tolist()) & set(right.tolist())) / 3 for found, right in zip(*near, strict=True)]
    assert row.neighbors == pytest.approx(sum(shared) / len(shared))
    assert row.nearest == pytest.approx((near[0][:, 0] == near[1][:, 0]).float().mean().item())
    assert row.as_metrics().keys() == {
        f"{name}_25"
        for name in ("image_cosine", "worst_image_cosine", "patch_cosine", "nearest", "neighbors", "top1")
    }


def test_nearest_images_leave_out_the_image_itself():
    states = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [0.1, 1.0], [5.0, 0.1]])
    assert nearest_images(states, 1)[:, 0].tolist() == [4, 4, 3, 2, 0]


def test_mixed_sizes_count_each_image_alike():
    model = classifier()
    images = [torch.randn(3, 64, 64), torch.randn(3, 32, 16), torch.randn(3, 24, 48)]
    together = measure_fidelity(model, [cut(images)], fractions=[0.25])[0]
    alone = measure_fidelity(model, [{"pixel_values": image[None]} for image in images], fractions=[0.25])[0]
    for name in ("image_cosine", "patch_cosine", "worst_image_cosine", "top1"):
        assert getattr(together, name) == pytest.approx(getattr(alone, name), abs=1e-4)


@pytest.mark.parametrize("reducer", TOKEN_REDUCERS)
def test_reducers_count_what_their_groups_have(reducer):
    model = classifier(token_reducer=reducer, keep_rate=0.6, reduction_layers=[1])
    rows = measure_fidelity(model, batches(1), fractions=FIDELITY_FRACTIONS)
    assert all(0 < row.patch_cosine < 1 for row in rows)
    states = encode_states(model, batches(1)[0])
    assert states.patches.shape == (4, 6, 32) and states.logits.shape == (4, 5)


@pytest.mark.parametrize(
    "fields",
    [{"pooling": "mean", "use_cls_token": False}, {"pooling": "map"}, {"pooling": "cls+mean"}],
    ids=["mean", "map", "cls+mean"],
)
def test_image_states_are_what_the_head_reads(fields):
    model, inputs = classifier(**fields), batches(1)[0]
    states = encode_states(model, inputs)
    torch.testing.assert_close(model.classify(states.image), states.logits)


def test_segmentation_counts_pixels():
    model = AdaptiveViTForSemanticSegmentation(tiny_config(patch_selector="uniform")).eval()
    (row,) = measure_fidelity(model, batches(1), fractions=[0.5])
    assert 0 < row.top1 < 1


def test_the_dense_model_may_be_another():
    model, other = (AdaptiveViTModel(tiny_config(patch_selector="uniform")).eval() for _ in range(2))
    own = measure_fidelity(model, batches(), fractions=[0.5])[0]
    foreign = measure_fidelity(model, batches(), other, fractions=[0.5])[0]
    assert foreign.image_cosine < own.image_cosine and own.top1 is None


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"fractions": [2]}, "fractions=2 must be a fraction"),
        ({"fractions": [1.5]}, "fractions=1.5"),
        ({"batches": []}, "no images"),
        ({"model": AdaptiveViTModel(tiny_config())}, "patch_selector=None"),
    ],
)
def test_errors_name_the_remedy(arguments, words):
    with pytest.raises(ValueError, match=words):
        measure_fidelity(**{"model": classifier(), "batches": batches(1)} | arguments)


def test_learned_selectors_choose_as_in_evaluation():
    model = classifier(tiny_selector("policy"))
    first, second = (measure_fidelity(model, batches(), fractions=[0.25])[0] for _ in range(2))
    assert first == second
