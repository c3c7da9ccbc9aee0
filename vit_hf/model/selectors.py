"""Patch selectors: score N patches before the encoder, keep K of them.

A pixel heuristic is one function and one line in `PIXEL_SCORERS` (`pixel_scorers.py`). Any other selector is
one class and one line in `PATCH_SELECTORS` at the end. The highest scores are kept.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from huggingface_hub.dataclasses import strict
from torch import nn
from transformers import initialization as init

from .layers import Initialized
from .options import Options, check_positive, check_range, type_of
from .patches import ImagePatches, PatchTokens
from .pixel_scorers import (
    LOCAL_SCORERS,
    PIXEL_SCORERS,
    VOLUME_SCORERS,
    CoverageOptions,
    RandomOptions,
    check_scorer,
    draw_uniform,
    pixel_scores,
)
from .selection import (
    ExplorationOptions,
    PatchSelector,
    Probe,
    Selection,
    SelectorOptions,
    check_cls_for_selector,
    keep_top,
)
from .sizes import (
    check_thumbnail,
    has_frames,
    native_sides,
    patch_sides,
    thumbnail_sides,
)


def sample_map(values: torch.Tensor, patches: ImagePatches) -> torch.Tensor:
    """A map `(B, r, c)` over the images, read bilinearly at the patches' places, `(B, N)`, whatever their
    grids.

    One `(B, f, r, c)` over videos is read trilinearly.
    """
    # In [-1, 1] from border to border, column first, as grid_sample wants it.
    places = ((patches.coordinates + 0.5) / patches.grid.unsqueeze(1) * 2 - 1).flip(-1)
    for _ in range(patches.num_axes - 1):
        places = places.unsqueeze(1)
    read = nn.functional.grid_sample(
        values.unsqueeze(1).float(), places, padding_mode="border", align_corners=False
    )  # (B, 1, 1, N)
    return read.flatten(1).to(values.dtype)


def as_thumbnails(patches: ImagePatches, size: tuple[int, ...]) -> ImagePatches:
    """Resizes the images to `size`, as images of their own, with the positions of that size."""
    thumbnails = patches.thumbnail_patches(size)
    return ImagePatches.from_images(thumbnails.image, patches.patch_size)


@strict
@dataclass(kw_only=True)
class ProbeOptions(SelectorOptions):
    """Options of selectors that send a thumbnail through the model's own first blocks.

    Args:
        num_layers: blocks that the thumbnail goes through.
        thumbnail_size: pixels of a side of the thumbnail, (height, width), or of a video (frames, height,
            width); by default `image_size`.
    """

    num_layers: int = 3
    thumbnail_size: int | list[int] | tuple[int, ...] | None = None


@strict
@dataclass(kw_only=True)
class AttentionOptions(ProbeOptions):
    """Options of `"attention"`.

    Args:
        reduction: how heads and blocks make a score: "mean" or "max" over heads of the CLS attention of the
            last probe block, or "rollout", attention rollout through all of them.
    """

    reduction: Literal["mean", "max", "rollout"] = "mean"


@strict
@dataclass(kw_only=True)
class DistilledOptions(ProbeOptions):
    """Options of `"distilled"`.

    Args:
        loss_weight: weight of the selector's loss, as in LookWhere (2025).
        batch_fraction: fraction in (0, 1] of a batch that this loss is computed on, for each image of which
            training pays a dense forward pass.
    """

    loss_weight: float | int = 0.1
    batch_fraction: float | int = 1.0

    def __post_init__(self):
        super().__post_init__()
        check_range(self, "loss_weight", "0 or more", 0 <= self.loss_weight < math.inf)
        check_range(self, "batch_fraction", "in (0, 1]", 0 < self.batch_fraction <= 1)


def check_probe(config, options: ProbeOptions) -> None:
    """Raises: ValueError if the probe pass does not fit the model."""
    check_cls_for_selector(config)
    if not 1 <= options.num_layers <= config.num_hidden_layers:
        raise ValueError(
            f"num_layers={options.num_layers} of the probe pass must lie between 1 and "
            f"num_hidden_layers={config.num_hidden_layers}."
        )
    check_thumbnail(config, "thumbnail_size", options.thumbnail_size, patch_sides(config))


class AttentionSelector(PatchSelector):
    """Selects by the model's own attention: a probe pass tells what the CLS token attends to in a thumbnail.

    The first `num_layers` blocks see the image resized to `thumbnail_size`; what CLS attends to is
    interpolated to the full grid. In training the pass has the model's dropout, if any.
    In the spirit of LookWhere (2025), without its training.
    """

    Options = AttentionOptions

    def __init__(self, config):
        super().__init__(config)
        self.num_layers = self.options.num_layers
        self.reduction = self.options.reduction
        self.size = thumbnail_sides(config, self.options.thumbnail_size)

    @classmethod
    def check(cls, config, options: Options) -> None:
        check_probe(config, options)

    def score(self, patches: ImagePatches, num_selected: int | torch.Tensor, probe: Probe) -> torch.Tensor:
        thumbnails = as_thumbnails(patches, self.size)
        attention = probe.attention(thumbnails, self.num_layers, self.reduction).float()
        return sample_map(attention.unflatten(1, thumbnails.full_grid), patches)


class DistilledSelector(PatchSelector):
    """Learns to foresee, from a thumbnail, what the model's last block would attend to in the whole image.

    Scores are those of a small network on the hidden states of the probe pass, `2 x 2` for each patch of the
    thumbnail; the loss is the divergence of their softmax from the CLS attention of a dense pass over the
    image, which costs training what a dense forward costs. After LookWhere (2025), whose probe is a copy of
    the first blocks that learns with it; here the blocks are the model's own and do not learn from this loss.
    """

    Options = DistilledOptions
    has_log_scores = True
    detail = 2

    def __init__(self, config):
        super().__init__(config)
        self.num_layers = self.options.num_layers
        self.last_layer = config.num_hidden_layers
        self.size = thumbnail_sides(config, self.options.thumbnail_size)
        self.weight = self.options.loss_weight
        self.share = self.options.batch_fraction
        self.norm = nn.LayerNorm(config.hidden_size)
        self.hidden = nn.Linear(config.hidden_size, config.hidden_size)
        self.activation = nn.GELU()
        self.output = nn.Linear(config.hidden_size, self.detail**2)

    @classmethod
    def check(cls, config, options: Options) -> None:
        check_probe(config, options)

    def score(self, patches: ImagePatches, num_selected: int | torch.Tensor, probe: Probe) -> torch.Tensor:
        thumbnails = as_thumbnails(patches, self.size)
        features = probe.features(thumbnails, self.num_layers)
        scores = self.output(self.activation(self.hidden(self.norm(features)))).float()  # (B, n, detail^2)
        scores = scores.transpose(1, 2).unflatten(2, thumbnails.full_grid)  # (B, detail^2, r, c)
        # Of a video a tubelet is one in time.
        detailed = nn.functional.pixel_shuffle(scores.movedim(1, -3), self.detail)
        return sample_map(detailed.squeeze(-3), patches)

    def loss(self, patches: ImagePatches, scores: torch.Tensor, probe: Probe) -> torch.Tensor | None:
        if not self.weight:
            return None
        number = math.ceil(self.share * len(scores))
        patches, scores = patches.first_images(number), scores[:number]
        target = probe.attention(patches, self.last_layer, "mean").float()
        absent = scores == -torch.inf
        target = target.masked_fill(absent, 0)
        target = target / target.sum(dim=-1, keepdim=True)
        log_scores = scores.log_softmax(dim=-1).masked_fill(absent, 0)
        divergence = torch.xlogy(target, target) - target * log_scores
        return self.weight * divergence.sum(dim=-1).mean()


@strict
@dataclass(kw_only=True)
class CrossAttentionOptions(SelectorOptions):
    """Options of `"cross_attention"`.

    Args:
        hidden_size: width of the network that makes keys of patch embeddings, which goes over every patch.
        num_heads: heads of the learned query, a divisor of the width.
    """

    hidden_size: int = 256
    num_heads: int = 8

    def __post_init__(self):
        super().__post_init__()
        check_positive(self, "hidden_size", "num_heads")
        if self.hidden_size % self.num_heads:
            raise ValueError(
                f"hidden_size={self.hidden_size} must be a multiple of num_heads={self.num_heads}."
            )


class CrossAttentionSelector(Initialized, PatchSelector):
    """Keeps the patches that a learned query attends to most, in the manner of Iterative Patch Selection.

    Bergner et al. (2023): all patches are embedded and scored without gradient, a chunk at a time if the
    image is streamed; those that are kept are scored again with gradient, and weighed by the query's
    attention, so that the loss of the task reaches it. There it pools what an encoder made of each patch
    alone. Here an encoder follows whose blocks relate the patches: each of its blocks attends to a patch so
    many times as much as the query's softmax over the kept ones says, in training and afterwards, and so does
    pooling by mean or by attention. At first these weights are nearly 1. Keys come from a small network on
    the embeddings, positions included.
    """

    Options = CrossAttentionOptions
    is_pointwise = True
    has_log_scores = True

    def __init__(self, config):
        super().__init__(config)
        width, heads = self.options.hidden_size, self.options.num_heads
        self.norm = nn.LayerNorm(config.hidden_size)
        self.hidden = nn.Linear(config.hidden_size, width)
        self.activation = nn.GELU()
        # No bias: what is added to every score changes no choice.
        self.key = nn.Linear(width, width, bias=False)
        self.query = nn.Parameter(torch.empty(heads, width // heads))

    def score(self, patches: ImagePatches, num_selected: int | torch.Tensor, probe: Probe) -> torch.Tensor:
        with torch.no_grad():
            return self.attend(probe.embed(patches))

    def token_weights(self, tokens: PatchTokens) -> torch.Tensor:
        scores = self.attend(tokens.features)
        if tokens.mask is None:
            return scores.softmax(dim=-1) * scores.shape[1]
        scores = scores.masked_fill(~tokens.mask, -torch.inf)
        return scores.softmax(dim=-1) * tokens.mask.sum(dim=-1, keepdim=True)

    def reset_parameters(self, std: float) -> None:
        init.normal_(self.query)

    def attend(self, embeddings: torch.Tensor) -> torch.Tensor:
        """Log of the mean over heads of exp(q k / sqrt(d)), `(B, N)` float32, of embeddings `(B, N, D)`.

        Not divided by its sum over patches, so that it depends on one patch alone.
        """
        keys = self.key(self.activation(self.hidden(self.norm(embeddings))))
        keys = keys.unflatten(-1, self.query.shape)  # (B, N, heads, d)
        logits = torch.einsum("bnhd,hd->bnh", keys, self.query).float() * self.query.shape[1] ** -0.5
        return logits.logsumexp(dim=-1) - math.log(logits.shape[-1])


@strict
@dataclass(kw_only=True)
class ScorerOptions(CoverageOptions):
    """Options of the network that scores a thumbnail.

    Args:
        thumbnail_size: pixels of a side of the thumbnail, (height, width), or of a video (frames, height,
            width); by default `image_size`.
        hidden_size: channels of the network.
    """

    thumbnail_size: int | list[int] | tuple[int, ...] | None = None
    hidden_size: int = 64

    def __post_init__(self):
        super().__post_init__()
        check_positive(self, "hidden_size")


def check_scorer_size(config, options: ScorerOptions) -> None:
    """Raises: ValueError for a thumbnail that is too small for the network."""
    least = [1] * len(native_sides(config))
    least[-2:] = 4, 4
    if has_frames(config):
        least[0] = config.tubelet_size
    check_thumbnail(config, "thumbnail_size", options.thumbnail_size, tuple(least))


class ThumbnailScorer(nn.Module):
    """Patches of 4 pixels, a strided convolution, two residual ones and a global mean, on the image resized
    to `thumbnail_size`.

    Its map has an eighth of the thumbnail's side. Less than 1 % of the work of a ViT-B at 224 pixels.

    For videos and volumes it reads patches of `tubelet_size` frames, and has three axes throughout.
    """

    def __init__(self, config, options: ScorerOptions):
        super().__init__()
        self.size = thumbnail_sides(config, options.thumbnail_size)
        if has_frames(config):  # whole tubelets
            frames, *sides = self.size
            self.size = (frames - frames % config.tubelet_size, *sides)
        width = options.hidden_size
        convolution, first, stride = nn.Conv2d, (4, 4), (2, 2)
        if has_frames(config):
            convolution, first, stride = nn.Conv3d, (config.tubelet_size, 4, 4), (1, 2, 2)
        self.stem = nn.ModuleList(
            [
                convolution(config.num_channels, width, kernel_size=first, stride=first),
                convolution(width, width, kernel_size=3, stride=stride, padding=1),
            ]
        )
        self.body = nn.ModuleList(convolution(width, width, kernel_size=3, padding=1) for _ in range(2))
        # One group: statistics of one image alone, so that its scores do not depend on the batch.
        self.norms = nn.ModuleList(nn.GroupNorm(1, layer.out_channels) for layer in [*self.stem, *self.body])
        self.context = nn.Linear(width, width)
        self.activation = nn.GELU()
        # No bias: what is added to every score changes no choice.
        self.output = convolution(width, 1, kernel_size=1, bias=False)

    def forward(self, patches: ImagePatches) -> torch.Tensor:
        """Raw scores `(B, N)` float32 of all patches."""
        states = patches.thumbnails(self.size).to(self.output.weight.dtype)
        for index, (layer, norm) in enumerate(zip([*self.stem, *self.body], self.norms, strict=True)):
            out = self.activation(norm(layer(states)))
            states = out if index < len(self.stem) else states + out
        context = self.context(states.mean(dim=tuple(range(2, states.ndim))))
        states = states + context.view(*context.shape, *[1] * (states.ndim - 2))
        return sample_map(self.output(self.activation(states)).squeeze(1).float(), patches)


# Noise held at once, in numbers: 64 MiB of float32. At 196 of 4096 patches, all samples of an image would be
# 8 MiB, and their indicators K x N, which are never made, 1.5 GiB.
NOISE_CHUNK_SIZE = 2**24


def perturbed_top_k(
    scores: torch.Tensor,
    num_selected: int,
    num_samples: int,
    sigma: float,
    counts: torch.Tensor | None = None,
) -> torch.Tensor:
    """Expected indicators `(B, K, N)` of the K highest of `scores` plus Gaussian noise.

    Row k is the distribution of what is kept in the place of the k-th favorite, by raster order: this
    favorite itself wherever it stays among the K highest, or one that then is instead of it (the first
    newcomer, by raster order, for the first that leaves). As `sigma` goes to 0 it becomes that of the top K.
    In the paper row k is the k-th kept patch, so that one newcomer shifts all rows behind it and the encoder
    sees few whole patches; the encoder is blind to the order of rows.

    Differentiable in the scores: "Differentiable Patch Selection for Image Recognition" (Cordonnier et al.,
    2021), after Berthet et al. (2020).

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
        greedy, present = keep_top(scores, num_selected, counts)
        row = torch.arange(num_selected, device=scores.device) * num_patches
        kept = []
        for noise in noise_chunks(scores, num_samples, seed):
            noisy = (scores.unsqueeze(1) + sigma * noise).flatten(0, 1)  # (B * chunk, N)
            if counts is None:  # noise leaves no ties, so the faster of the two will do
                indices = noisy.topk(num_selected, sorted=False).indices.sort().values
            else:
                indices, _ = keep_top(noisy, num_selected, counts.repeat_interleave(noise.shape[1]))
            indices = _in_place_of(greedy, present, indices.unflatten(0, (batch_size, -1)), num_patches)
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
        # Noise has mean 0, so a constant may be subtracted; the mean of the others is one that leaves no
        # bias.
        num_samples = ctx.num_samples
        if num_samples > 1:
            value = (value - value.mean(dim=1, keepdim=True)) * (num_samples / (num_samples - 1))
        result, start = torch.zeros_like(scores, dtype=torch.float32), 0
        for noise in noise_chunks(scores, num_samples, ctx.seed):
            result += torch.einsum("bs,bsn->bn", value[:, start : start + noise.shape[1]], noise)
            start += noise.shape[1]
        result = result / (num_samples * ctx.sigma)
        return result.masked_fill(scores == -torch.inf, 0).to(scores.dtype), None, None, None, None, None


def _in_place_of(
    greedy: torch.Tensor, present: torch.Tensor | None, indices: torch.Tensor, num_patches: int
) -> torch.Tensor:
    """`indices` `(B, n, K)` of samples in another order: those of the `greedy` `(B, K)` in their places.

    Args:
        present: `(B, K)` False for places that an image does not fill; None if all fill all.
    """
    greedy = greedy.unsqueeze(1).expand_as(indices)
    present = torch.ones_like(greedy[:, :1], dtype=torch.bool) if present is None else present.unsqueeze(1)

    def marked(places: torch.Tensor) -> torch.Tensor:
        """Marks the patches `(B, n, N)` among `places`; unfilled ones mark a column that is cut off."""
        marks = places.new_zeros(*places.shape[:2], num_patches + 1, dtype=torch.bool)
        return marks.scatter(2, places.masked_fill(~present, num_patches), True)[..., :num_patches]

    stays = marked(indices).gather(2, greedy)
    is_new = ~marked(greedy).gather(2, indices) & present
    newcomers = indices.gather(2, (~is_new).int().argsort(dim=-1, stable=True))
    leaves = ~stays & present
    newcomer = newcomers.gather(2, (leaves.cumsum(dim=-1) - 1).clamp(min=0))
    return torch.where(leaves, newcomer, greedy)


def noise_chunks(scores: torch.Tensor, num_samples: int, seed: int):
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

    While training the encoder gets means of patches, by how often each was among the K highest; otherwise the
    K highest themselves.
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

    def score(self, patches: ImagePatches, num_selected: int | torch.Tensor, probe: Probe) -> torch.Tensor:
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


# Standard deviation of an image's scores. Fixed, so that a policy can neither become certain by accident,
# which would end its learning, nor stay undecided; what is rare in an image still stands out by many times
# this.
SPREAD = 1.0


def standardize(scores: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Scores `(B, N)` with mean 0 and deviation `SPREAD` over the patches of each image that `mask` `(B,
    N)` has."""
    present = torch.ones_like(scores) if mask is None else mask.to(scores.dtype)
    count = present.sum(dim=-1, keepdim=True)
    centered = scores - (scores * present).sum(dim=-1, keepdim=True) / count
    variance = (centered.square() * present).sum(dim=-1, keepdim=True) / count
    return SPREAD * centered / (variance + 1e-8).sqrt()


def draw_plackett_luce(scores: torch.Tensor) -> torch.Tensor:
    """An order `(B, N)` of patches drawn one after the other without replacement, in proportion to
    exp(score).

    Plackett-Luce by the Gumbel-top-K trick (Kool et al., 2019). Patches with a score of minus infinity come
    last.
    """
    uniform = torch.rand_like(scores).clamp(min=torch.finfo(scores.dtype).tiny)
    return (scores.detach() - (-uniform.log()).log()).argsort(dim=-1, descending=True)


def plackett_luce_log_prob(
    scores: torch.Tensor, order: torch.Tensor, num_selected: int, counts: torch.Tensor | None = None
) -> torch.Tensor:
    """Log-probability `(B,)` that the first patches of `order` `(B, N)` are drawn in that order.

    Args:
        scores: `(B, N)`, minus infinity for padding, which must come last in `order`.
        num_selected: K, how many are drawn.
        counts: `(B,)`, if images draw different numbers.
    """
    ordered = scores.gather(1, order)
    # log of what is left to draw from at each step
    remaining = ordered.flip(-1).logcumsumexp(dim=-1).flip(-1)
    steps = ordered[:, :num_selected] - remaining[:, :num_selected]
    if counts is not None:
        drawn = torch.arange(num_selected, device=scores.device) < counts[:, None]
        steps = torch.where(drawn, steps, 0)
    return steps.sum(dim=-1)


@strict
@dataclass(kw_only=True)
class PolicyOptions(ScorerOptions):
    """Options of `"policy"`.

    As the number of patches is fixed, a cost for each would be equal for every choice and change nothing.

    Args:
        loss_weight: weight of the policy's loss beside that of the task.
        entropy_weight: weight of the bonus for an undecided policy.
    """

    loss_weight: float | int = 1.0
    entropy_weight: float | int = 0.01

    def __post_init__(self):
        super().__post_init__()
        for name in ("loss_weight", "entropy_weight"):
            check_range(self, name, "0 or more", 0 <= getattr(self, name) < math.inf)


class PolicySelector(PatchSelector):
    """A small network on the thumbnail draws patches while training, and keeps its greedy otherwise.

    The head rewards what was drawn by how much better the answer is than with the greedy (REINFORCE with a
    self-critical baseline: Rennie et al., 2017; PatchDrop, Uzkent & Ermon, 2020). The entropy bonus is that
    of the first draw, as a share of the greatest possible.
    """

    Options = PolicyOptions

    def __init__(self, config):
        super().__init__(config)
        self.scorer = ThumbnailScorer(config, self.options)
        self.entropy_weight = self.options.entropy_weight
        self.policy_loss_weight = self.options.loss_weight

    @classmethod
    def check(cls, config, options: Options) -> None:
        check_scorer_size(config, options)

    def score(self, patches: ImagePatches, num_selected: int | torch.Tensor, probe: Probe) -> torch.Tensor:
        return standardize(self.scorer(patches), patches.mask)

    def select(
        self, scores: torch.Tensor, num_selected: int, counts: torch.Tensor | None, sample: bool
    ) -> Selection:
        greedy = super().select(scores, num_selected, counts, sample=False)
        # Where all are kept there is nothing to choose, and a reward would be noise.
        if not sample or (counts is None and num_selected == scores.shape[1]):
            return greedy
        order = draw_plackett_luce(scores)
        indices, mask = keep_top(-order.argsort(dim=-1).to(scores.dtype), num_selected, counts)
        log_prob = plackett_luce_log_prob(scores, order, num_selected, counts)
        # A mean over draws, so that a learning rate suits any K.
        log_prob = log_prob / (num_selected if counts is None else counts)
        return Selection(indices, mask, scores, log_prob=log_prob, greedy=greedy)

    def loss(self, patches: ImagePatches, scores: torch.Tensor, probe: Probe) -> torch.Tensor:
        present = scores != -torch.inf
        log_probs = scores.log_softmax(dim=-1).masked_fill(~present, 0)
        entropy = -(log_probs.exp() * log_probs * present).sum(dim=-1)
        greatest = present.sum(dim=-1).clamp(min=2).log()
        return -self.entropy_weight * (entropy / greatest).mean()


def reinforce_loss(log_prob: torch.Tensor, reward: torch.Tensor, baseline: torch.Tensor) -> torch.Tensor:
    """-(R - b) log pi, averaged over images; `(B,)` each. Its gradient is that of -E[R], whatever the
    baseline.

    The mean of R - b over the other images of the batch is subtracted as well, which biases nothing either:
    at first greedy are worse than chance, and a difference that all images share would be nothing but noise.
    """
    advantage = reward - baseline
    if len(advantage) > 1:
        others = (advantage.sum() - advantage) / (len(advantage) - 1)
        advantage = advantage - others
    return -(advantage.detach() * log_prob).mean()


class PixelSelector(PatchSelector):
    """A heuristic of `PIXEL_SCORERS` or `VOLUME_SCORERS`."""

    def __init__(self, config):
        super().__init__(config)
        self.name = type_of(config.patch_selector)
        self.is_pointwise = self.name in LOCAL_SCORERS
        self.uses_number = self.name == "uniform"
        self.seed = getattr(self.options, "seed", 0)

    @classmethod
    def check(cls, config, options: Options) -> None:
        check_scorer(type_of(config.patch_selector), config)

    def score(self, patches: ImagePatches, num_selected: int | torch.Tensor, probe: Probe) -> torch.Tensor:
        return pixel_scores(self.name, patches, num_selected, self.seed)


class UniformSelector(PixelSelector):
    """A regular lattice, which has no scores to sample by."""

    Options = ExplorationOptions


@strict
@dataclass(kw_only=True)
class RandomSelectorOptions(RandomOptions, ExplorationOptions):
    """Options of `"random"` in the model."""


class RandomSelector(PixelSelector):
    """Random patches: fixed per image in evaluation, fresh in training."""

    Options = RandomSelectorOptions

    def rank(
        self,
        scores: torch.Tensor,
        coordinates: torch.Tensor,
        grid: torch.Tensor,
        num_selected: int | torch.Tensor,
        sample: bool,
    ) -> torch.Tensor:
        if sample:
            scores = draw_uniform(coordinates, None).masked_fill(scores == -torch.inf, -torch.inf)
        return super().rank(scores, coordinates, grid, num_selected, sample)


PATCH_SELECTORS: dict[str, type[PatchSelector]] = {
    **dict.fromkeys(PIXEL_SCORERS, PixelSelector),
    "uniform": UniformSelector,
    "random": RandomSelector,
    "attention": AttentionSelector,
    "distilled": DistilledSelector,
    "policy": PolicySelector,
    "perturbed": PerturbedSelector,
    "cross_attention": CrossAttentionSelector,
}
# For videos and volumes alone.
VOLUME_SELECTORS: dict[str, type[PatchSelector]] = dict.fromkeys(VOLUME_SCORERS, PixelSelector)
