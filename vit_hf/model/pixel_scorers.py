"""Pixel heuristics: a score for every patch from its pixels alone.

One function and one line in `PIXEL_SCORERS`; the image processors run them in the data loader as well.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from huggingface_hub.dataclasses import strict
from torch import nn

from .options import Options, Part, check_range, read_options, type_of
from .patches import ImagePatches, raster_indices
from .sizes import to_pair


# Bins of `entropy`: this many a unit of normalized gray, and how many in all.
BINS_PER_UNIT = 32
NUM_BINS = 256

# `saliency`: side of the thumbnail, and standard deviation of the smoothing, in pixels of it.
SALIENCY_SIZE = 64
SALIENCY_SIGMA = 2.5


def variance_scores(
    patches: ImagePatches, num_selected: int | torch.Tensor, seed: int | None
) -> torch.Tensor:
    """Variance of the pixels of each patch, averaged over channels."""
    pixels = patches.pixels.float()
    mean = pixels.mean(-1).mean(-1)
    # A norm and a mean over rows read the image once; torch.var over a strided view takes four times as long.
    power = torch.linalg.vector_norm(pixels, dim=-1).square().mean(-1) / pixels.shape[-1]
    if patches.num_axes == 3:
        mean, power = mean.mean(-1), power.mean(-1)
    variance = power - mean.square()
    # Rounding errors of a flat patch must not rank it: 1e-6 of the power is far below one gray level in
    # 255.
    variance = torch.where(variance > 1e-6 * power, variance, 0)
    # NaN fails every comparison, and must still be seen.
    return (variance + 0 * mean).mean(-1).flatten(1)


def gradient_scores(
    patches: ImagePatches, num_selected: int | torch.Tensor, seed: int | None
) -> torch.Tensor:
    """Mean magnitude of the Sobel gradient inside each patch.

    The gradient is that of the mean over channels; of a video, frame by frame. Only pixels whose 3x3
    neighborhood lies in the patch count, so that a patch scores the same alone as in its image.

    Raises:
        ValueError: if patches have less than 3 pixels a side.
    """
    if min(patches.pixels.shape[-2:]) < 3:
        raise ValueError(
            f"patch_selector='gradient' needs patches of at least 3x3 pixels, got patch_size "
            f"{tuple(patches.pixels.shape[-2:])}. Use patch_selector='variance'."
        )
    if patches.image is None:
        magnitude = _sobel_magnitude(patches.pixels.float().mean(2)).mean((-1, -2))
        return magnitude if patches.num_axes == 2 else magnitude.mean(-1)
    # One pass over the whole image is several times faster than many over small patches.
    height, width = patches.pixels.shape[-2:]
    magnitude = _sobel_magnitude(
        patches.image.float().mean(1)
    )  # its first row and column are the second of the image
    inside = magnitude.unfold(-2, height - 2, height).unfold(-2, width - 2, width)  # (B, R, S, P - 2, P - 2)
    return _over_tubelets(inside.mean(-1).mean(-1), patches).flatten(1)


def _over_tubelets(of_frames: torch.Tensor, patches: ImagePatches) -> torch.Tensor:
    """Means `(B, T', R, S)` over the frames of each patch of `(B, T, R, S)`; of images what there is."""
    if patches.num_axes == 2:
        return of_frames
    return of_frames.unflatten(1, (-1, patches.patch_size[0])).mean(2)


def _sobel_magnitude(gray: torch.Tensor) -> torch.Tensor:
    """Magnitude of the Sobel gradient of `gray` `(..., H, W)` at its inner pixels, `(..., H - 2, W - 2)`."""
    # In place, because fresh memory for an image of this size costs more than the arithmetic.
    smoothed_rows = (gray[..., :-2, :] + gray[..., 2:, :]).add_(gray[..., 1:-1, :], alpha=2)
    horizontal = smoothed_rows[..., 2:] - smoothed_rows[..., :-2]
    smoothed_columns = (gray[..., :-2] + gray[..., 2:]).add_(gray[..., 1:-1], alpha=2)
    vertical = smoothed_columns[..., 2:, :] - smoothed_columns[..., :-2, :]
    return horizontal.square_().addcmul_(vertical, vertical).sqrt_()


def entropy_scores(patches: ImagePatches, num_selected: int | torch.Tensor, seed: int | None) -> torch.Tensor:
    """Shannon entropy of the gray levels of each patch, in bits.

    It is 0 where the patch is flat, `log2(P * P)` at most. Gray is the mean over channels as the model sees
    it, normalized. Bins are fixed, so that a patch scores
    the same in any image and batch: 1/32 wide, with one centered at 0, and 256 of them, from -4 to 4; what is
    beyond counts for the outermost. A bin is then 4 of the 255 gray levels of an image normalized with mean
    and std 0.5, about 2 with those of ImageNet, and 8 of one scaled to 0..1: coarse enough to overlook most
    noise. Pixels in 0..255 fall into the last bin, all of them.
    """
    gray = _gray(patches.pixels, 2) if patches.image is None else _gray(patches.image, 1)
    # Clamped as whole numbers, for a NaN that was cast is one: no index may leave the table.
    cells = gray.mul(BINS_PER_UNIT).add_(NUM_BINS / 2 + 0.5).long().clamp_(0, NUM_BINS - 1)
    if patches.image is None:  # (B, N, P, P)
        number = torch.arange(cells.shape[1], device=cells.device)
        cells += NUM_BINS * number.view(-1, *[1] * patches.num_axes)
    else:  # (B, R * P, S * P): to be counted by patch, pixels need not be sorted by patch
        step = NUM_BINS
        for axis in reversed(range(patches.num_axes)):
            pixel = torch.arange(cells.shape[1 + axis], device=cells.device)
            of_patch = step * (pixel // patches.patch_size[axis])
            cells += of_patch.view(-1, *[1] * (patches.num_axes - 1 - axis))
            step *= patches.view_grid[axis]
    ones = gray.mul_(0).add_(1)  # NaN where a pixel is not finite
    histograms = ones.new_zeros(ones.shape[0], NUM_BINS * patches.num_patches)
    histograms.scatter_add_(1, cells.flatten(1), ones.flatten(1))
    shares = histograms.div_(math.prod(patches.patch_size)).unflatten(1, (-1, NUM_BINS))
    return torch.special.entr(shares).sum(-1) / math.log(2)


def _gray(images: torch.Tensor, dim: int) -> torch.Tensor:
    """Mean over the channels in `dim`, the same to the last bit whatever the layout in memory."""
    first, *others = images.float().unbind(dim)
    return sum(others, first) / images.shape[dim]


def saliency_scores(
    patches: ImagePatches, num_selected: int | torch.Tensor, seed: int | None
) -> torch.Tensor:
    """Mean spectral residual saliency of each patch, its contrast to its image.

    "Saliency Detection: A Spectral Residual Approach" (Hou and Zhang, 2007), on the gray image resized to
    64x64 whatever its aspect. The map is smoothed with the sigma of the authors' code, 2.5 pixels (the paper
    has 8), by what lies inside the image only; its minimum is taken off. The local mean of the log spectrum
    wraps around, as the spectrum does. Of a video each frame is an image, and a patch has the mean of its
    frames.

    Raises:
        ValueError: if some patches of an image are missing.
    """
    if patches.image is not None:
        return _saliency_of(_gray(patches.image, 1), patches, patches.view_grid)
    if patches.pixels.is_meta:  # of images that are never whole in memory
        images = patches.thumbnails((SALIENCY_SIZE, SALIENCY_SIZE))
    else:
        images = patches.to_images()
    places = raster_indices(patches.coordinates, patches.grid)
    scores = torch.zeros(places.shape, device=places.device)
    for index, image in enumerate(images):
        present = slice(None) if patches.mask is None else patches.mask[index]
        of_image = _saliency_of(_gray(image[None], 1), patches, patches.grid[index].tolist())[0]
        scores[index, present] = of_image[places[index, present]]
    return scores


def _saliency_of(gray: torch.Tensor, patches: ImagePatches, cells: Sequence[int]) -> torch.Tensor:
    """`(B, N)` of gray images `(B, H, W)`, or videos `(B, T, H, W)`, of so many cells along each axis."""
    if patches.num_axes == 2:
        return _saliency(gray, *cells)
    of_frames = _saliency(gray.flatten(0, 1), *cells[1:]).unflatten(0, gray.shape[:2])  # (B, T, R * S)
    return _over_tubelets(of_frames, patches).flatten(1)


def _saliency(gray: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """Mean saliency of gray images `(B, H, W)` in each of `rows` times `columns` patches, `(B, R * S)`."""
    # Half precision has no FFT on a CPU, and would blur the ranks; the data loader knows no autocast either.
    with torch.autocast(gray.device.type, enabled=False):
        size = (SALIENCY_SIZE, SALIENCY_SIZE)
        if gray.shape[1:] != size:
            gray = nn.functional.interpolate(
                gray.unsqueeze(1), size, mode="bilinear", antialias=True
            ).squeeze(1)
        spectrum = torch.fft.fft2(gray, norm="ortho")
        amplitude = spectrum.abs()
        # Rounding errors of a flat image are below this: as much as one pixel one gray level in 255 off
        # makes.
        least = 1e-6 * SALIENCY_SIZE * gray.abs().mean((1, 2), keepdim=True) + 1e-20
        spectrum = spectrum * (amplitude > least)
        log_amplitude = nn.functional.pad(amplitude.maximum(least).log(), (1, 1, 1, 1), mode="circular")
        local_mean = nn.functional.avg_pool2d(log_amplitude, 3, stride=1)
        # exp(log amplitude - local mean + i phase), without taking amplitude and phase apart.
        saliency = torch.fft.ifft2(spectrum * torch.exp(-local_mean), norm="ortho").abs().square()
        # So that a flat image is exactly zero, and its patches tie.
        saliency = saliency - saliency.amin((1, 2), keepdim=True)
        of_rows, of_columns = (_smooth_means(parts, gray.device) for parts in (rows, columns))
        return (of_rows @ saliency @ of_columns.T).flatten(1)


def _smooth_means(parts: int, device: torch.device) -> torch.Tensor:
    """Weights `(parts, 64)` that smooth an axis of the saliency map and average it over each of `parts`
    pieces."""
    edges = torch.arange(parts + 1, device=device) * (SALIENCY_SIZE / parts)
    centres = torch.arange(SALIENCY_SIZE, device=device) + 0.5
    # The mean of a Gaussian from edge to edge is a difference of error functions.
    below = torch.erf((edges[:, None] - centres) / (math.sqrt(2) * SALIENCY_SIGMA))
    weights = below.diff(dim=0)
    return weights / weights.sum(1, keepdim=True)


def random_scores(patches: ImagePatches, num_selected: int | torch.Tensor, seed: int | None) -> torch.Tensor:
    """Uniform random scores, fixed by coordinates and seed."""
    return draw_uniform(patches.coordinates, seed)


def draw_uniform(coordinates: torch.Tensor, seed: int | None) -> torch.Tensor:
    """Noise `(B, N)` in [0, 1]: drawn afresh for `seed=None`, else a fixed function of place and seed.

    So an image gets the same patches alone and in any batch, whatever the size of its neighbors.

    Args:
        coordinates: `(B, N, A)`.
        seed: of the noise.
    """
    if seed is None:
        return torch.rand(coordinates.shape[:2], device=coordinates.device)
    *time, row, column = coordinates.round().long().unbind(-1)
    # An integer hash (the finaliser of MurmurHash3), in 31 bits so that products fit in int64.
    value = row * 0x9E3779B1 + column * 0x85EBCA77 + (seed & 0x7FFFFFFF) * 0xC2B2AE3D + 0x27D4EB2F
    for place in time:
        value = value + place * 0x165667B1
    value = value & 0x7FFFFFFF
    for multiplier in (0x85EBCA6B, 0xC2B2AE35):
        value = ((value ^ (value >> 16)) * multiplier) & 0x7FFFFFFF
    return (value ^ (value >> 15)).float() / 0x7FFFFFFF


def uniform_scores(patches: ImagePatches, num_selected: int | torch.Tensor, seed: int | None) -> torch.Tensor:
    """Ranks patches by a regular lattice over the image."""
    return lattice_scores(patches.coordinates, patches.grid, num_selected)


def lattice_scores(
    coordinates: torch.Tensor, grid: torch.Tensor, num_points: int | torch.Tensor
) -> torch.Tensor:
    """Scores places by a regular lattice with the aspect of the grid, `(B, N)`.

    2 for the places of `num_points` points spread evenly, 1 for others of the lattice, 0 elsewhere.

    Args:
        coordinates: `(B, N, A)`.
        grid: `(B, A)`.
        num_points: at least 1; `(B,)` if images have different numbers.
    """
    places = coordinates.round().long().unbind(-1)  # (B, N) for each axis
    sides = grid.split(1, dim=1)  # (B, 1) for each axis
    budget = torch.as_tensor(num_points, device=grid.device).view(-1, 1)
    budget = budget.minimum(grid.prod(dim=1, keepdim=True))
    point, points, on_lattice = 0, 1, True
    for place, side, number in zip(places, sides, _lattice(budget, sides), strict=True):
        nearest, on_axis = _nearest_lattice_point(place, side, number)
        point, points, on_lattice = point * number + nearest, points * number, on_axis & on_lattice
    # The lattice may have more points than budgeted; leave some out evenly.
    chosen = (point + 1) * budget // points > point * budget // points
    return on_lattice.float() + (on_lattice & chosen).float()


def _lattice(budget: torch.Tensor, sides: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Points along each axis of a lattice of `budget` points, or a few more, in a grid; `(B, 1)` each."""
    if len(sides) == 3:
        length, *plane = sides
        area = plane[0] * plane[1]
        number = (budget * length.square() / area).pow(1 / 3).round().long()
        number = number.maximum(_ceil_divide(budget, area)).clamp(min=1).minimum(length)
        in_plane = _lattice(_ceil_divide(budget, number), plane)
        return [_ceil_divide(budget, in_plane[0] * in_plane[1]), *in_plane]
    rows, columns = sides
    lattice_rows = (budget * rows / columns).sqrt().round().long().clamp(min=1).minimum(rows)
    lattice_columns = _ceil_divide(budget, lattice_rows).minimum(columns)
    return [_ceil_divide(budget, lattice_columns), lattice_columns]


def motion_scores(patches: ImagePatches, num_selected: int | torch.Tensor, seed: int | None) -> torch.Tensor:
    """Mean absolute difference of successive frames inside each patch (videos, volumes).

    Averaged over channels. Only differences between frames of the same patch count, so that a patch scores
    the same alone as in its video.
    """
    return patches.pixels.float().diff(dim=-3).abs().flatten(-4).mean(-1).flatten(1)


def _ceil_divide(dividend: torch.Tensor, divisor: torch.Tensor) -> torch.Tensor:
    return (dividend + divisor - 1) // divisor


def _nearest_lattice_point(
    position: torch.Tensor, length: torch.Tensor, points: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Which of `points` evenly spread points along `length` cells is nearest, and whether it is this cell."""
    nearest = (2 * position + 1) * points // (2 * length)
    return nearest, (2 * nearest + 1) * length // (2 * points) == position


# name -> function of (patches, how many will be kept, seed) to scores (B, N)
PIXEL_SCORERS: dict[str, Callable[[ImagePatches, int | torch.Tensor, int | None], torch.Tensor]] = {
    "variance": variance_scores,
    "gradient": gradient_scores,
    "entropy": entropy_scores,
    "saliency": saliency_scores,
    "random": random_scores,
    "uniform": uniform_scores,
}
# For videos and volumes alone.
VOLUME_SCORERS = {"motion": motion_scores}
# Those that look at one patch at a time.
LOCAL_SCORERS = ("variance", "gradient", "entropy", "motion")


@strict
@dataclass(kw_only=True)
class CoverageOptions(Options):
    """Options of every selector, and of the pixel heuristics of image processors.

    Args:
        coverage: fraction in [0, 1] of the budget that is spread evenly over the image; the rest goes to the
            highest scores elsewhere.
    """

    coverage: float | int = 0.0

    def __post_init__(self):
        check_range(self, "coverage", "a fraction in [0, 1]", 0 <= self.coverage <= 1)


@strict
@dataclass(kw_only=True)
class RandomOptions(CoverageOptions):
    """Options of `"random"`.

    Args:
        seed: which patches are kept outside training; None draws afresh at every call.
    """

    seed: int | None = 0


def favor_lattice(
    scores: torch.Tensor,
    coordinates: torch.Tensor,
    grid: torch.Tensor,
    num_selected: int | torch.Tensor,
    coverage: float,
) -> torch.Tensor:
    """Scores `(B, N)` in which those of evenly spread places are higher than all others.

    The places are a lattice of `coverage` times `num_selected` points, rounded. It follows from the places
    alone, so that one image gets the same in any batch, whole or read in bands.

    Args:
        scores: minus infinity for padding, which is never favored.
        coordinates: `(B, N, A)`.
        grid: `(B, A)`.
        num_selected: K; `(B,)` if images keep different numbers.
        coverage: fraction of the budget.
    """
    number = (torch.as_tensor(num_selected, device=grid.device).view(-1, 1) * coverage).round().long()
    on_lattice = lattice_scores(coordinates, grid, number.flatten().clamp(min=1)) == 2
    favored = on_lattice & (number > 0) & (scores != -torch.inf)
    # Finite, so that selectors may compute with it, and far above what any noise they add can reach.
    highest = scores.detach().masked_fill(scores == -torch.inf, 0).abs().amax(dim=-1, keepdim=True)
    return torch.where(favored, 2 * highest + 1e4, scores)


# Options of those that have more than `CoverageOptions`.
SCORER_OPTIONS: dict[str, type[CoverageOptions]] = {"random": RandomOptions}


def read_scorer_options(part: Part) -> CoverageOptions:
    """Checked options of a pixel heuristic, as image processors have them."""
    return read_options(SCORER_OPTIONS.get(type_of(part), CoverageOptions), "patch_selector", part)


def check_scorer(name: str, config) -> None:
    """Checks that patches are large enough for a heuristic.

    Raises:
        ValueError: if they are not.
    """
    if name == "gradient" and min(to_pair(config.patch_size)) < 3:
        raise ValueError(
            f"patch_selector='gradient' looks at 3x3 pixels; patch_size={config.patch_size} is smaller."
        )
    if name == "motion" and config.tubelet_size < 2:
        raise ValueError(
            "patch_selector='motion' compares frames of one patch, and tubelet_size=1 gives it "
            "one: use tubelet_size=2."
        )


@torch.no_grad()
def pixel_scores(
    name: str, patches: ImagePatches, num_selected: int | torch.Tensor, seed: int | None = 0
) -> torch.Tensor:
    """Scores `(B, N)` of a pixel heuristic.

    Args:
        name: a key of `PIXEL_SCORERS`, or of videos of `VOLUME_SCORERS`.
        patches: all patches of a batch.
        num_selected: K, how many the caller will keep; `(B,)` if images keep different numbers.
        seed: for `random`; None draws afresh from torch's global generator.

    Raises:
        ValueError: if no pixel heuristic has this name.
    """
    scorers = PIXEL_SCORERS | VOLUME_SCORERS if patches.num_axes == 3 else PIXEL_SCORERS
    if name not in scorers:
        raise ValueError(
            f"patch_selector={name!r} does not work on pixels alone: choose one of {sorted(scorers)}."
        )
    return scorers[name](patches, num_selected, seed)
