"""Selection with a gradient: perturbed top-K. Shape legend: `tokens.py`; n samples."""

import math
from dataclasses import dataclass

import torch
from huggingface_hub.dataclasses import strict

from .options import check_positive, check_range
from .patches import ImagePatches
from .selection_base import PatchSelector, Scout, Selection, keep_top
from .selection_scorer import ScorerOptions, ThumbnailScorer, check_scorer_size


# Noise held at once, in numbers: 64 MiB of float32. At 196 of 4096 patches, all samples of an image would be 8 MiB,
# and their indicators K x N, which are never made, 1.5 GiB.
NOISE_CHUNK_SIZE = 2**24


def perturbed_top_k(
    scores: torch.Tensor,
    num_selected: int,
    num_samples: int,
    sigma: float,
    counts: torch.Tensor | None = None,
) -> torch.Tensor:
    """Expected indicators `(B, K, N)` of the K highest of `scores` plus Gaussian noise.

    Row k is the distribution of what is kept in the place of the k-th favourite, by raster order: this favourite
    itself wherever it stays among the K highest, or one that then is instead of it (the first newcomer, by raster
    order, for the first that leaves). As `sigma` goes to 0 it becomes that of the top K. In the paper row k is the k-th
    kept patch, so that one newcomer shifts all rows behind it and the encoder sees few whole patches; the encoder
    is blind to the order of rows.

    Differentiable in the scores: "Differentiable Patch Selection for Image Recognition" (Cordonnier et al., 2021),
    after Berthet et al. (2020).

    Args:
        scores: `(B, N)`, minus infinity for padding.
        num_selected: K.
        num_samples: n.
        sigma: standard deviation of the noise, above 0.
        counts: `(B,)` how many an image keeps, if that differs; rows beyond are zero.
    """
    seed = int(torch.randint(2**31, ()))  # from torch's global generator
    return _PerturbedTopK.apply(scores, num_selected, num_samples, sigma, counts, seed)


class _PerturbedTopK(torch.autograd.Function):
    @staticmethod
    def forward(ctx, scores, num_selected, num_samples, sigma, counts, seed):
        batch_size, num_patches = scores.shape
        expected = scores.new_zeros(batch_size, num_selected * num_patches)
        favourites, present = keep_top(scores, num_selected, counts)
        row = torch.arange(num_selected, device=scores.device) * num_patches
        kept = []
        for noise in _noise_chunks(scores, num_samples, seed):
            noisy = (scores.unsqueeze(1) + sigma * noise).flatten(0, 1)  # (B * chunk, N)
            if counts is None:  # noise leaves no ties, so the faster of the two will do
                indices = noisy.topk(num_selected, sorted=False).indices.sort().values
            else:
                indices, _ = keep_top(noisy, num_selected, counts.repeat_interleave(noise.shape[1]))
            indices = _in_place_of(favourites, present, indices.unflatten(0, (batch_size, -1)), num_patches)
            share = scores.new_full(indices.shape, 1 / num_samples)
            if present is not None:
                share = share * present.unsqueeze(1)
            expected.scatter_add_(1, (indices + row).flatten(1), share.flatten(1))
            kept.append(indices.int())
        ctx.save_for_backward(scores, torch.cat(kept, dim=1), present)
        ctx.num_samples, ctx.sigma, ctx.seed = num_samples, sigma, seed
        return expected.view(batch_size, num_selected, num_patches)

    @staticmethod
    def backward(ctx, grad):
        scores, kept, present = ctx.saved_tensors
        grad = grad.float()
        # <grad, indicators of a sample>, for each sample: (B, n)
        value = grad.new_empty(kept.shape[:2])
        for sample in range(kept.shape[1]):
            picked = grad.gather(2, kept[:, sample].long().unsqueeze(-1)).squeeze(-1)  # (B, K)
            value[:, sample] = (picked if present is None else picked * present).sum(dim=-1)
        # Noise has mean 0, so a constant may be subtracted; the mean of the others is one that leaves no bias.
        num_samples = ctx.num_samples
        if num_samples > 1:
            value = (value - value.mean(dim=1, keepdim=True)) * (num_samples / (num_samples - 1))
        result, start = torch.zeros_like(scores, dtype=torch.float32), 0
        for noise in _noise_chunks(scores, num_samples, ctx.seed):
            result += torch.einsum("bs,bsn->bn", value[:, start : start + noise.shape[1]], noise)
            start += noise.shape[1]
        result = result / (num_samples * ctx.sigma)
        return result.masked_fill(scores == -torch.inf, 0).to(scores.dtype), None, None, None, None, None


def _in_place_of(
    favourites: torch.Tensor, present: torch.Tensor | None, indices: torch.Tensor, num_patches: int
) -> torch.Tensor:
    """`indices` `(B, n, K)` of samples in another order: those of the `favourites` `(B, K)` in their places.

    Args:
        present: `(B, K)` False for places that an image does not fill; None if all fill all.
    """
    favourites = favourites.unsqueeze(1).expand_as(indices)
    if present is None:
        present = torch.ones_like(favourites[:, :1], dtype=torch.bool)
    else:
        present = present.unsqueeze(1)

    def marked(places: torch.Tensor) -> torch.Tensor:
        """Which patches `(B, n, N)` are among `places`; places that are not filled mark a column that is cut off."""
        marks = places.new_zeros(*places.shape[:2], num_patches + 1, dtype=torch.bool)
        return marks.scatter(2, places.masked_fill(~present, num_patches), True)[..., :num_patches]

    stays = marked(indices).gather(2, favourites)
    is_new = ~marked(favourites).gather(2, indices) & present
    newcomers = indices.gather(2, (~is_new).int().argsort(dim=-1, stable=True))
    leaves = ~stays & present
    newcomer = newcomers.gather(2, (leaves.cumsum(dim=-1) - 1).clamp(min=0))
    return torch.where(leaves, newcomer, favourites)


def _noise_chunks(scores: torch.Tensor, num_samples: int, seed: int):
    """Gaussian noise `(B, chunk, N)` for all samples, the same for the same seed."""
    generator = torch.Generator(scores.device).manual_seed(seed)
    batch_size, num_patches = scores.shape
    chunk = max(1, NOISE_CHUNK_SIZE // (batch_size * num_patches))
    for start in range(0, num_samples, chunk):
        size = (batch_size, min(chunk, num_samples - start), num_patches)
        yield torch.randn(size, generator=generator, device=scores.device)


@strict
@dataclass(kw_only=True)
class PerturbedOptions(ScorerOptions):
    """Options of `"perturbed"`.

    Args:
        num_samples: number of samples of the noise.
        sigma: standard deviation of the noise; scores lie in [0, 1].
    """

    num_samples: int = 500
    sigma: float | int = 0.05

    def __post_init__(self):
        super().__post_init__()
        check_positive(self, "num_samples")
        check_range(self, "sigma", "above 0", 0 < self.sigma < math.inf)


class PerturbedSelector(PatchSelector):
    """A small network on the thumbnail, trained through perturbed top-K by the loss of the task itself.

    While training the encoder gets means of patches, by how often each was among the K highest; otherwise the K
    highest themselves.
    """

    Options = PerturbedOptions

    def __init__(self, config):
        super().__init__(config)
        self.scorer = ThumbnailScorer(config, self.options)
        self.num_samples = self.options.num_samples
        self.sigma = self.options.sigma

    @classmethod
    def check(cls, config, options: Options) -> None:
        check_scorer_size(config, options)

    def score(self, patches: ImagePatches, num_selected: int | torch.Tensor, scout: Scout) -> torch.Tensor:
        scores = self.scorer(patches)
        # To [0, 1], so that a sigma means the same for every image.
        present = torch.ones_like(scores, dtype=torch.bool) if patches.mask is None else patches.mask
        lowest = scores.masked_fill(~present, torch.inf).amin(dim=-1, keepdim=True)
        highest = scores.masked_fill(~present, -torch.inf).amax(dim=-1, keepdim=True)
        return (scores - lowest) / (highest - lowest).clamp(min=1e-6)

    def select(
        self, scores: torch.Tensor, num_selected: int, counts: torch.Tensor | None, sample: bool
    ) -> Selection:
        selection = super().select(scores, num_selected, counts, sample)
        if sample:
            selection.weights = perturbed_top_k(scores, num_selected, self.num_samples, self.sigma, counts)
        return selection
