"""Selection that spreads: part of the budget evenly over the image, and draws in proportion to scores."""

import dataclasses

import pytest
import torch

from tests.helpers.models import cut, tiny_config, tiny_selector, tiny_swin_config
from tests.helpers.streaming import PROCESSOR, narrow_bands, picture  # noqa: F401  (for every test)
from vit_hf import (
    PATCH_SELECTORS,
    AdaptiveSwinForImageClassification,
    AdaptiveViTForImageClassification,
    AdaptiveViTImageProcessor,
    AdaptiveViTModel,
    predict_streaming,
)
from vit_hf.model.patches import grid_coordinates
from vit_hf.model.pixel_scorers import PIXEL_SCORERS, draw_uniform, favor_lattice, lattice_scores
from vit_hf.model.selection import draw_in_proportion, keep_top


SAMPLED = [
    name
    for name, cls in PATCH_SELECTORS.items()
    if "sampling" in {entry.name for entry in dataclasses.fields(cls.Options)}
]
# Every selector with every way to spread its choice.
SPREADS = [(name, {"coverage": 0.5}) for name in PATCH_SELECTORS] + [
    (name, {"coverage": coverage, "sampling": 0.5}) for name in SAMPLED for coverage in (0.0, 0.4)
]
every_spread = pytest.mark.parametrize(
    ("name", "options"), SPREADS, ids=["-".join([name, *options]) for name, options in SPREADS]
)
every_selector = pytest.mark.parametrize("name", PATCH_SELECTORS)


def model_of(name: str, options: dict, **fields) -> AdaptiveViTForImageClassification:
    torch.manual_seed(0)
    config = tiny_config(patch_selector=tiny_selector(name, **options), **fields)
    return AdaptiveViTForImageClassification(config).eval()


def lattice(rows: int, columns: int, number: int) -> set[int]:
    """Raster indices of a lattice of `number` points, by the rule for a cell in the middle of its part."""
    model = AdaptiveViTModel(tiny_config(patch_selector="uniform", num_selected_patches=number)).eval()
    return set(model(torch.randn(1, 3, 8 * rows, 8 * columns)).selected_patches[0].tolist())


@every_selector
def test_half_of_the_budget_covers_the_image_and_the_rest_goes_by_score(name):
    model = model_of(name, {"coverage": 0.5}, num_selected_patches=12)
    outputs = model(torch.randn(3, 3, 48, 64))
    covered = lattice(6, 8, 6)
    for kept, scores in zip(outputs.selected_patches.tolist(), outputs.patch_scores, strict=True):
        assert len(set(kept)) == 12 and kept == sorted(kept)
        others = scores.clone()
        others[list(covered)] = -torch.inf
        assert set(kept) - covered == set(keep_top(others[None], 6)[0][0].tolist())


@every_selector
def test_full_coverage_is_uniform(name):
    images = torch.randn(2, 3, 40, 72)
    kept = model_of(name, {"coverage": 1.0}, num_selected_patches=0.3)(images).selected_patches
    assert set(kept[0].tolist()) == set(kept[1].tolist()) == lattice(5, 9, kept.shape[1])


@every_selector
def test_scores_are_those_without_coverage(name):
    images = torch.randn(2, 3, 48, 48)
    # "uniform" scores for the number it keeps, which is the same.
    plain, spread = (model_of(name, options)(images) for options in ({}, {"coverage": 0.5}))
    assert torch.equal(plain.patch_scores, spread.patch_scores)


@every_spread
def test_mixed_sizes_and_padding_change_no_choice(name, options):
    model = model_of(name, options, num_selected_patches=0.4)
    images = [torch.randn(3, 48, 64), torch.randn(3, 24, 32), torch.randn(3, 64, 16)]
    batch = model(**cut(images))
    for index, image in enumerate(images):
        alone = model(image[None])
        kept = batch.selected_patches[index]
        assert torch.equal(kept[kept >= 0], alone.selected_patches[0])
        torch.testing.assert_close(batch.logits[index], alone.logits[0], atol=1e-5, rtol=1e-5)


@every_spread
def test_an_image_of_fewer_patches_keeps_all(name, options):
    model = model_of(name, options, num_selected_patches=9)
    kept = model(**cut([torch.randn(3, 48, 64), torch.randn(3, 16, 16)])).selected_patches
    assert (kept[0] >= 0).all() and kept[1].tolist() == [0, 1, 2, 3, *[-1] * 5]


@every_spread
def test_streaming_equals_the_whole_image(name, options):
    model, image = model_of(name, options, num_selected_patches=11), picture(150, 203)
    whole = model(**PROCESSOR(image, return_tensors="pt"))
    streamed = predict_streaming(model, image, image_processor=PROCESSOR)
    assert torch.equal(streamed.selected_patches, whole.selected_patches)
    torch.testing.assert_close(streamed.logits, whole.logits, atol=1e-5, rtol=1e-5)


@every_spread
def test_training_has_finite_gradients(name, options):
    model = model_of(name, options).train()
    outputs = model(torch.randn(3, 3, 48, 48), labels=torch.tensor([0, 1, 2]))
    outputs.loss.backward()
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    assert gradients and all(gradient.isfinite().all() for gradient in gradients)
    assert outputs.selected_patches.shape == (3, 6)
    if options["coverage"]:
        number = round(6 * options["coverage"])
        assert all(lattice(6, 6, number) <= set(kept) for kept in outputs.selected_patches.tolist())


@pytest.mark.parametrize("name", [*SAMPLED, "random"])
def test_draws_are_fresh_in_training_and_fixed_in_evaluation(name):
    model = model_of(name, {"sampling": 0.5} if name in SAMPLED else {"coverage": 0.2})
    images = torch.randn(2, 3, 64, 64)

    def kept():
        return model(images).selected_patches

    assert torch.equal(kept(), kept())
    model.train()
    assert not torch.equal(kept(), kept())


def test_draws_are_in_proportion_and_without_replacement():
    weights = torch.tensor([1.0, 2.0, 3.0, 4.0])
    places = torch.tensor([[[0.0, column] for column in range(4)]]).expand(20_000, -1, -1)
    torch.manual_seed(0)
    ranks = draw_in_proportion(weights.log().expand(20_000, -1), places, None)
    indices, _ = keep_top(ranks, 1)
    frequencies = indices.flatten().bincount(minlength=4) / 20_000
    torch.testing.assert_close(frequencies, weights / 10, atol=0.02, rtol=0)
    pairs, _ = keep_top(ranks, 2)
    assert (pairs[:, 0] != pairs[:, 1]).all()
    # P(1 and 4) = 1/10 * 4/9 + 4/10 * 1/6
    together = ((pairs[:, 0] == 0) & (pairs[:, 1] == 3)).float().mean()
    assert together.item() == pytest.approx(1 / 10 * 4 / 9 + 4 / 10 * 1 / 6, abs=0.01)


@pytest.mark.parametrize("scores", [[5.0, 0.0, 0.0, 1.0], [-3.0, -9.0, -9.0, -8.0]])
def test_a_power_sharpens_and_zero_forgets(scores):
    scores = torch.tensor(scores)[None]

    def best(power):
        selector = model_of("variance", {"sampling": power}).vit.selector
        places = torch.tensor([[[0.0, column] for column in range(4)]]).expand(2000, -1, -1)
        torch.manual_seed(0)
        ranks = selector.rank(scores.expand(2000, -1), places, torch.tensor([[1, 4]]), 1, True)
        return keep_top(ranks, 1)[0].flatten().bincount(minlength=4) / 2000

    assert best(20)[0] > 0.99
    torch.testing.assert_close(best(0), torch.full((4,), 0.25), atol=0.04, rtol=0)
    assert best(1)[0] > best(0.5)[0] > 0.5


@pytest.mark.parametrize("number", [1, 2, 5, 12, 40])
def test_lattices_are_even(number):
    """No quarter of the image has more than its part and two."""
    on = lattice_scores(grid_coordinates(16, 24)[None], torch.tensor([[16, 24]]), number) == 2
    assert on.sum() == number
    quarters = on.view(2, 8, 2, 12).sum((1, 3))
    assert quarters.max() <= -(-number // 4) + 2


def test_a_coverage_that_rounds_to_nothing_favors_nothing():
    scores = torch.rand(2, 12)
    places = torch.cartesian_prod(torch.arange(3.0), torch.arange(4.0)).expand(2, -1, -1)
    grid = torch.tensor([[3, 4]]).expand(2, -1)
    assert torch.equal(favor_lattice(scores, places, grid, 2, 0.2), scores)
    assert (favor_lattice(scores, places, grid, torch.tensor([2, 5]), 0.2) != scores).sum(1).tolist() == [
        0,
        1,
    ]


def test_noise_of_a_place_is_the_same_in_every_image():
    places = torch.cartesian_prod(torch.arange(30.0), torch.arange(40.0))[None]
    noise = draw_uniform(places, 0)
    assert torch.equal(draw_uniform(places[:, 500:], 0), noise[:, 500:])
    assert not torch.equal(draw_uniform(places, 1), noise)


@pytest.mark.parametrize("selector", ["variance", "random", "uniform"])
def test_swin_covers_windows(selector, monkeypatch):
    options = {"patch_selector": {"type": selector, "coverage": 1.0}, "num_selected_windows": 0.25}
    model = AdaptiveSwinForImageClassification(tiny_swin_config(**options)).eval()
    chooser, choices = model.swin.selector, []
    select = chooser.select
    monkeypatch.setattr(chooser, "select", lambda *args: choices.append(select(*args)) or choices[-1])
    model(torch.randn(2, 3, 128, 128))
    # 8x8 windows in the first stage: a lattice of 4x4, whatever the scores.
    rows = torch.tensor([1, 3, 5, 7])
    expected = (rows[:, None] * 8 + rows).flatten()
    assert torch.equal(choices[0].indices, expected.expand(2, -1))


@pytest.mark.parametrize("name", sorted(PIXEL_SCORERS.keys() - {"random"}))
def test_the_image_processor_covers_as_the_model_does(name):
    selection = {"patch_selector": {"type": name, "coverage": 0.5}, "num_selected_patches": 10}
    image = picture(72, 56)
    inputs = AdaptiveViTImageProcessor(patch_size=8, do_resize=False, return_patches=True, **selection)(
        image, return_tensors="pt"
    )
    model = model_of(name, {"coverage": 0.5}, num_selected_patches=10)
    expected = model(**PROCESSOR(image, return_tensors="pt")).selected_patches[0]
    places = inputs["patch_coordinates"][0]
    assert torch.equal(places[:, 0] * 7 + places[:, 1], expected)


# Tracing takes seconds: one is traced every time, all of them by the slow tests.
QUICK = ("variance", {"coverage": 0.4, "sampling": 0.5})


@pytest.mark.parametrize(
    ("name", "options"),
    [pytest.param(*spread, marks=[pytest.mark.slow] * (spread != QUICK)) for spread in SPREADS],
)
def test_compile_and_export(name, options):
    torch.compiler.reset()
    model, images = model_of(name, options), torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = model(images).logits
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(images).logits, expected, atol=1e-5, rtol=1e-5)
        exported = torch.export.export(model, (images,), strict=False).module()
        torch.testing.assert_close(exported(images).logits, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"coverage": 1.5}, "coverage=1.5 must be a fraction"),
        ({"coverage": -0.1}, "coverage=-0.1"),
        ({"sampling": -1}, "sampling=-1 must be 0 or more"),
        ({"sampling": float("nan")}, "sampling=nan"),
    ],
)
def test_illegal_values_are_refused(options, words):
    with pytest.raises(Exception, match=words):
        model_of("variance", options)
