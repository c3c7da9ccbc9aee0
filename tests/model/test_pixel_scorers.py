import numpy as np
import PIL.Image
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import uniform_filter
from skimage.filters import sobel_h, sobel_v
from skimage.measure import shannon_entropy

from vit_hf.model.patches import ImagePatches, flatten_channels_last
from vit_hf.model.pixel_scorers import PIXEL_SCORERS, pixel_scores
from vit_hf.model.selection import keep_top


def patches_of(*shape: int, patch_size: int = 8) -> ImagePatches:
    return ImagePatches.from_images(torch.randn(*shape), patch_size)


def cut(patches: ImagePatches) -> ImagePatches:
    """The same patches, arriving cut."""
    taken = patches.gather()
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
    taken = patches.gather(torch.tensor([[9], [63]]))
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


@pytest.mark.parametrize("size", [(32, 32), (700, 1000)])
@pytest.mark.parametrize("level", [0.0, 0.7, -1.0, 100.3])
@pytest.mark.parametrize("name", ["variance", "gradient", "entropy", "saliency"])
def test_flat_images_score_nothing(name, level, size):
    patches = ImagePatches.from_images(torch.full((1, 3, *size), level), 8)
    assert pixel_scores(name, patches, 1).abs().max() == 0


def test_gradient_is_that_of_skimage():
    patches = patches_of(1, 3, 24, 16)
    scores = pixel_scores("gradient", patches, 1)[0]
    for index, patch in enumerate(patches.gather().features[0].unflatten(1, (3, 8, 8))):
        gray = patch.mean(0).numpy().astype(np.float64)
        # skimage divides the Sobel kernel by 4; its outermost pixels would need neighbors.
        magnitude = 4 * np.hypot(sobel_h(gray), sobel_v(gray))[1:-1, 1:-1]
        assert scores[index].item() == pytest.approx(magnitude.mean(), rel=1e-4)


def test_gradient_needs_three_pixels():
    with pytest.raises(ValueError, match="3x3"):
        pixel_scores("gradient", patches_of(1, 3, 8, 8, patch_size=2), 1)


@settings(deadline=None, max_examples=40)
@given(
    sides=st.tuples(st.integers(1, 18), st.integers(1, 18)),
    channels=st.integers(1, 4),
    # 1: mean and std 0.5; 10 reaches beyond the outermost bins.
    scale=st.sampled_from([1, 10]),
    spread=st.integers(1, 255),
    seed=st.integers(0, 1000),
)
def test_entropy_is_that_of_skimage(sides, channels, scale, spread, seed):
    height, width = sides
    rng = np.random.default_rng(seed)
    low = rng.integers(0, 256 - spread)
    # No mean of 8-bit channels lies on the border of two bins, so rounding cannot matter.
    pixels = rng.integers(low, low + spread, (2, channels, 3 * height, 2 * width), endpoint=True)
    images = scale * (pixels / 127.5 - 1)
    patches = ImagePatches.from_images(torch.tensor(images, dtype=torch.float32), sides)
    scores = pixel_scores("entropy", patches, 1).view(2, 3, 2)
    bins = np.floor(images.mean(1) * 32 + 0.5).clip(-128, 127)
    for image, row, column in np.ndindex(2, 3, 2):
        patch = bins[image, row * height : (row + 1) * height, column * width : (column + 1) * width]
        assert scores[image, row, column].item() == pytest.approx(shannon_entropy(patch, base=2), abs=1e-5)


def test_entropy_of_known_histograms():
    two_levels = torch.arange(256.0).remainder(2)
    every_level = torch.arange(-128.0, 128.0) / 32
    # Rounding errors of one level, at 0 and at the ends of the range of mean and std 0.5, are no information.
    noise = (torch.rand(3, 256) - 0.5) * 1e-5 + torch.tensor([[0.0], [1.0], [-1.0]])
    images = torch.stack((two_levels, every_level, *noise)).view(5, 1, 16, 16)
    scores = pixel_scores("entropy", ImagePatches.from_images(images, 16), 1)
    assert scores.flatten().tolist() == pytest.approx([1, 8, 0, 0, 0], abs=1e-6)


def spectral_residual(gray: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """Mean saliency in each of `rows` times `columns` pieces of `gray` `(H, W)`, from the paper, up to its
    scale."""
    thumbnail = PIL.Image.fromarray(gray.astype(np.float32)).resize((64, 64), PIL.Image.Resampling.BILINEAR)
    spectrum = np.fft.fft2(np.asarray(thumbnail, np.float64))
    log_amplitude = np.log(np.abs(spectrum))
    residual = log_amplitude - uniform_filter(log_amplitude, 3, mode="wrap")
    saliency = np.abs(np.fft.ifft2(np.exp(residual + 1j * np.angle(spectrum)))) ** 2
    saliency -= saliency.min()
    cells = np.arange(64) + 0.5

    def smooth(parts: int) -> np.ndarray:
        places = (np.arange(50 * parts) + 0.5) / (50 * parts) * 64
        weights = np.exp(-((places[:, None] - cells) ** 2) / (2 * 2.5**2)).reshape(parts, 50, 64).sum(1)
        return weights / weights.sum(1, keepdims=True)

    return smooth(rows) @ saliency @ smooth(columns).T


@settings(deadline=None, max_examples=30)
# Not below 64 pixels: enlarged images lack the highest frequencies, where the log would be that of rounding.
@given(st.integers(4, 12), st.integers(4, 12), st.sampled_from([16, (17, 23)]), st.integers(0, 1000))
def test_saliency_is_that_of_the_paper(rows, columns, patch_size, seed):
    height, width = np.broadcast_to(patch_size, 2)
    images = np.random.default_rng(seed).normal(size=(2, 3, rows * height, columns * width))
    patches = ImagePatches.from_images(torch.tensor(images, dtype=torch.float32), patch_size)
    for image, scores in zip(images, pixel_scores("saliency", patches, 1).numpy(), strict=True):
        expected = spectral_residual(image.mean(0), rows, columns).flatten()
        np.testing.assert_allclose(scores / scores.max(), expected / expected.max(), atol=3e-4)


def test_what_pops_out_is_the_most_salient():
    images = torch.zeros(20, 1, 16, 16, 16, 16)  # (B, C, R, S, P, P)
    images[..., 3:13, 6:10] = 1  # upright bars
    places = torch.randint(16, (20, 2))
    for image, (row, column) in zip(images, places, strict=True):
        image[0, row, column] = image[0, row, column].T.clone()  # and one that lies
    images = images.transpose(3, 4).flatten(4, 5).flatten(2, 3)
    # Most of the spectrum of a perfect lattice is zero to the last bit, and the method makes nothing of that.
    images += 0.03 * torch.randn(images.shape)
    found = pixel_scores("saliency", ImagePatches.from_images(images, 16), 1).argmax(1)
    assert (found == places[:, 0] * 16 + places[:, 1]).sum() >= 17  # of 256 patches each


def test_saliency_needs_every_patch():
    patches = cut(patches_of(1, 3, 24, 16))
    patches.pixels, patches.coordinates = patches.pixels[:, :4], patches.coordinates[:, :4]
    with pytest.raises(ValueError, match="4 of its 3x2"):
        pixel_scores("saliency", patches, 1)


@pytest.mark.parametrize("name", PIXEL_SCORERS)
def test_patches_score_the_same_cut_as_in_their_image(name):
    patches = patches_of(2, 3, 43, 64)
    whole, alone = pixel_scores(name, patches, 7), pixel_scores(name, cut(patches), 7)
    assert whole.shape == (2, 40)
    torch.testing.assert_close(whole, alone, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("name", PIXEL_SCORERS)
def test_mixed_sizes_score_as_alone_in_any_order(name):
    alone = [patches_of(1, 3, *size) for size in [(43, 64), (24, 24), (8, 90)]]
    together = ImagePatches(
        pixels=torch.zeros(3, 45, 3, 8, 8),
        coordinates=torch.full((3, 45, 2), 999.0),  # of padding, whatever it is
        grid=torch.cat([patches.grid for patches in alone]),
        mask=torch.zeros(3, 45, dtype=torch.bool),
    )
    places = []
    for index, patches in enumerate(map(cut, alone)):
        places.append(torch.randperm(45)[: patches.num_patches])
        together.pixels[index, places[-1]] = patches.pixels[0]
        together.coordinates[index, places[-1]] = patches.coordinates[0]
        together.mask[index, places[-1]] = True
    scores = pixel_scores(name, together, 7)
    for index, patches in enumerate(alone):
        expected = pixel_scores(name, patches, 7)[0]
        torch.testing.assert_close(scores[index, places[index]], expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("name", PIXEL_SCORERS)
def test_neighbors_in_the_batch_do_not_matter(name):
    images = torch.randn(3, 3, 43, 64)
    images[1] *= 100
    images[2] = 0.5
    together = pixel_scores(name, ImagePatches.from_images(images, 8), 7)
    for scores, image in zip(together, images, strict=True):
        alone = pixel_scores(name, ImagePatches.from_images(image[None], 8), 7)[0]
        torch.testing.assert_close(scores, alone, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("name", sorted(PIXEL_SCORERS.keys() - {"saliency"}))
def test_neighbors_in_the_image_do_not_matter(name):
    images = torch.randn(1, 3, 32, 32)
    before = pixel_scores(name, ImagePatches.from_images(images, 8), 4)[0]
    images[..., :8, 8:16] *= 100
    after = pixel_scores(name, ImagePatches.from_images(images, 8), 4)[0]
    others = torch.arange(16) != 1
    torch.testing.assert_close(after[others], before[others], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("name", PIXEL_SCORERS)
def test_scores_are_the_same_under_autocast(name):
    patches = patches_of(2, 3, 43, 64)
    expected = pixel_scores(name, patches, 7)
    with torch.autocast("cpu", torch.bfloat16):
        scores = pixel_scores(name, patches, 7)
    assert scores.dtype == torch.float32 and torch.equal(scores, expected)


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
    # Along rows and diagonals there is no stripe: as many neighbors as chance gives (a quarter of 1008).
    kept = torch.zeros(64, 64, dtype=torch.bool)
    kept[rows, columns] = True
    for neighbors in (kept[1:] & kept[:-1], kept[:, 1:] & kept[:, :-1], kept[1:, 1:] & kept[:-1, :-1]):
        assert 190 < neighbors.sum() < 320


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 20), st.integers(1, 20), st.data())
def test_uniform_covers_the_grid(rows, columns, data):
    number = data.draw(st.integers(1, rows * columns))
    patches = ImagePatches.from_images(torch.zeros(1, 1, rows * 2, columns * 2), 2)
    scores = pixel_scores("uniform", patches, number)
    assert (scores == 2).sum() == number
    indices, _ = keep_top(scores, number)
    kept = patches.gather(indices).coordinates[0]
    # Every patch of the grid has a kept one near: within the pitch of a lattice that some points were left
    # out of.
    distance = torch.cdist(patches.coordinates[0], kept, p=float("inf")).min(dim=1).values
    assert distance.max() <= 2 * np.ceil(np.sqrt(rows * columns / number)) + 1
