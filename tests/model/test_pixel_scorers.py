import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.filters import sobel_h, sobel_v

from vit_hf.model.patches import ImagePatches, flatten_channels_last
from vit_hf.model.pixel_scorers import PIXEL_SCORERS, pixel_scores
from vit_hf.model.selection import keep_top


def patches_of(*shape: int, patch_size: int = 8) -> ImagePatches:
    return ImagePatches.from_images(torch.randn(*shape), patch_size)


def cut(patches: ImagePatches) -> ImagePatches:
    """The same patches, arriving cut."""
    taken = patches.take()
    size = tuple(patches.pixels.shape[-2:])
    return ImagePatches.from_flat(
        flatten_channels_last(taken.features, size),
        taken.coordinates,
        taken.grid,
        None,
        size,
        patches.pixels.shape[-3],
    )


def test_whole_images_are_not_copied():
    images = torch.randn(2, 3, 70, 50)
    patches = ImagePatches.from_images(images, (8, 6))
    assert patches.pixels.shape == (2, 8, 8, 3, 8, 6)
    assert patches.pixels.untyped_storage().data_ptr() == images.untyped_storage().data_ptr()
    taken = patches.take(torch.tensor([[9], [63]]))
    assert torch.equal(taken.features[0, 0], images[0, :, 8:16, 6:12].flatten())
    assert torch.equal(taken.features[1, 0], images[1, :, 56:64, 42:48].flatten())
    assert taken.coordinates.tolist() == [[[1, 1]], [[7, 7]]]


def test_cut_patches_go_back_to_images():
    patches = patches_of(2, 3, 24, 16)
    shuffled = cut(patches)
    order = torch.randperm(6)
    shuffled.pixels, shuffled.coordinates = shuffled.pixels[:, order], shuffled.coordinates[:, order]
    for image, again in zip(patches.image, shuffled.to_images(), strict=True):
        assert torch.equal(image, again)


def test_missing_patches_cannot_go_back():
    patches = cut(patches_of(1, 3, 24, 16))
    patches.pixels, patches.coordinates = patches.pixels[:, :4], patches.coordinates[:, :4]
    with pytest.raises(ValueError, match="4 of its 3x2"):
        patches.to_images()


def test_smaller_than_a_patch():
    with pytest.raises(ValueError, match=r"7x20 .* 8x8"):
        patches_of(1, 3, 7, 20)


def test_variance_is_that_of_torch():
    patches = patches_of(2, 3, 33, 40)
    expected = patches.pixels.var((-1, -2), unbiased=False).mean(-1).flatten(1)
    torch.testing.assert_close(pixel_scores("variance", patches, 1), expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("level", [0.0, 0.7, -1.0, 100.3])
def test_flat_patches_have_no_variance(level):
    patches = ImagePatches.from_images(torch.full((1, 3, 32, 32), level), 8)
    assert pixel_scores("variance", patches, 1).abs().max() == 0


def test_gradient_is_that_of_skimage():
    patches = patches_of(1, 3, 24, 16)
    scores = pixel_scores("gradient", patches, 1)[0]
    for index, patch in enumerate(patches.take().features[0].unflatten(1, (3, 8, 8))):
        grey = patch.mean(0).numpy().astype(np.float64)
        # skimage divides the Sobel kernel by 4; its outermost pixels would need neighbours.
        magnitude = 4 * np.hypot(sobel_h(grey), sobel_v(grey))[1:-1, 1:-1]
        assert scores[index].item() == pytest.approx(magnitude.mean(), rel=1e-4)


def test_gradient_needs_three_pixels():
    with pytest.raises(ValueError, match="3x3"):
        pixel_scores("gradient", patches_of(1, 3, 8, 8, patch_size=2), 1)


@pytest.mark.parametrize("name", PIXEL_SCORERS)
def test_patches_score_the_same_cut_as_in_their_image(name):
    patches = patches_of(2, 3, 43, 64)
    whole, alone = pixel_scores(name, patches, 7), pixel_scores(name, cut(patches), 7)
    assert whole.shape == (2, 40)
    torch.testing.assert_close(whole, alone, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("name", PIXEL_SCORERS)
def test_nan_is_seen_or_left_out(name):
    images = torch.randn(1, 3, 32, 32)
    images[0, 1, 3, 5] = torch.nan
    scores = pixel_scores(name, ImagePatches.from_images(images, 8), 4)
    assert scores.isnan().any() or name in ("random", "uniform")


def test_unknown_heuristic():
    with pytest.raises(ValueError, match=r"psychic.*variance"):
        pixel_scores("psychic", patches_of(1, 3, 16, 16), 1)


def test_random_is_fresh_without_a_seed_and_fixed_with_one():
    patches = patches_of(2, 3, 64, 64)
    assert not torch.equal(
        pixel_scores("random", patches, 4, seed=None), pixel_scores("random", patches, 4, seed=None)
    )
    first, second = pixel_scores("random", patches, 4, seed=1)
    assert torch.equal(first, second)
    assert not torch.equal(first, pixel_scores("random", patches, 4, seed=2)[0])


@pytest.mark.parametrize("seed", range(3))
def test_fixed_random_patches_are_spread_like_random_ones(seed):
    patches = patches_of(1, 1, 1024, 1024, patch_size=16)
    indices, _ = keep_top(pixel_scores("random", patches, 1024, seed=seed), 1024)
    rows, columns = indices[0] // 64, indices[0] % 64
    counts = torch.histc((rows // 16 * 4 + columns // 16).float(), bins=16, min=0, max=15)
    # 1024 of 4096 in 16 squares: 64 expected in each, with a standard deviation of 6.7.
    assert counts.min() > 64 - 27 and counts.max() < 64 + 27
    # Along rows and diagonals there is no stripe: as many neighbours as chance gives (a quarter of 1008).
    kept = torch.zeros(64, 64, dtype=torch.bool)
    kept[rows, columns] = True
    for neighbours in (kept[1:] & kept[:-1], kept[:, 1:] & kept[:, :-1], kept[1:, 1:] & kept[:-1, :-1]):
        assert 190 < neighbours.sum() < 320


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 20), st.integers(1, 20), st.data())
def test_uniform_covers_the_grid(rows, columns, data):
    number = data.draw(st.integers(1, rows * columns))
    patches = ImagePatches.from_images(torch.zeros(1, 1, rows * 2, columns * 2), 2)
    scores = pixel_scores("uniform", patches, number)
    assert (scores == 2).sum() == number
    indices, _ = keep_top(scores, number)
    kept = patches.take(indices).coordinates[0]
    # Every patch of the grid has a kept one near: within the pitch of a lattice that some points were left out of.
    distance = torch.cdist(patches.coordinates[0], kept, p=float("inf")).min(dim=1).values
    assert distance.max() <= 2 * np.ceil(np.sqrt(rows * columns / number)) + 1
