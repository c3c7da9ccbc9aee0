"""Token reducers: thin M tokens to M' inside the encoder, and give each patch its state afterwards.

One class and one line in `TOKEN_REDUCERS` at the end.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from huggingface_hub.dataclasses import strict
from torch import nn

from .layers import AttentionProjections
from .options import Options, check_positive, check_range, read_options, type_of
from .patches import (
    ImagePatches,
    PatchTokens,
    gather_tokens,
    raster_indices,
    scatter_into,
    scatter_tokens,
    split_tokens,
)
from .positions import interpolation_weights
from .selection import Selection, keep_top


@dataclass
class Reduction:
    """Result of a reduction of M tokens.

    Attributes:
        tokens: the M' tokens that go on.
        assignment: `(B, M)` int64, which of them stands for each of the old ones; -1 for those that were
            dropped.
        loss: what training adds to the loss; None for nothing.
    """

    tokens: PatchTokens
    assignment: torch.Tensor
    loss: torch.Tensor | None = None


class TokenReducer(nn.Module, ABC):
    """Reduces the number of patch tokens; CLS, registers and a thumbnail's tokens are kept.

    A reducer with `inside_block` works between the attention and the feed-forward network of a block and sees
    what the attention was computed from. Any other works before the block and gets no `projections`.
    """

    inside_block = True
    # Whether training needs the model's own dense pass as a teacher.
    learns_from_dense = False

    # Weights of what such training adds to the loss: distance of hidden states, and divergence of answers.
    token_weight = 0.5
    distillation_weight = 0.5

    # Dataclass of the options that `token_reducer={"type": ..., ...}` may give.
    Options: ClassVar[type] = Options

    def __init__(self, config, layer_index: int):
        """Reads the options from `config.token_reducer`."""
        super().__init__()
        self.config = config
        self.options = read_options(self.Options, "token_reducer", config.token_reducer)

    @classmethod
    def check(cls, config, options: Options) -> None:
        """Raises: ValueError if the reducer or its options do not fit the rest of the configuration."""

    @abstractmethod
    def forward(
        self, tokens: PatchTokens, projections: AttentionProjections | None, dense_fraction: float
    ) -> Reduction:
        """
        Args:
            tokens: M tokens with their hidden states.
            projections: queries, keys and values of the block's attention; the last M tokens of them are
                `tokens`.
            dense_fraction: 0 keeps what the configuration says, 1 keeps everything; see `keep_rate`.
        """

    def reduce_sequence(
        self,
        hidden_states: torch.Tensor,
        tokens: PatchTokens,
        projections: AttentionProjections | None,
        dense_fraction: float,
    ) -> tuple[torch.Tensor, Reduction, torch.Tensor]:
        """Reduces the last tokens of a sequence.

        Args:
            hidden_states: `(B, T, D)`.
            tokens: where the last M of them are.
            projections, dense_fraction: see `forward`.

        Returns:
            Hidden states `(B, T', D)`; the reduction; and hidden states `(B, M, D)` of the tokens before it.
        """
        prefix, before = split_tokens(hidden_states, tokens)
        reduction = self(tokens.with_features(before), projections, dense_fraction)
        reduced = reduction.tokens.features
        return torch.cat((prefix.to(reduced.device), reduced), dim=1), reduction, before

    def keep_rate(self, dense_fraction: float) -> float:
        """Share of the tokens that go on, in (0, 1]."""
        return self.config.keep_rate + dense_fraction * (1 - self.config.keep_rate)

    def keeps_all(self, dense_fraction: float) -> bool:
        """Tells whether there is nothing to do."""
        return self.keep_rate(dense_fraction) >= 1


def check_cls_for_reducer(config) -> None:
    """Checks that there is a CLS token for a reducer that goes by its attention.

    Raises:
        ValueError: if there is none.
    """
    if not config.use_cls_token:
        raise ValueError(
            f"token_reducer={type_of(config.token_reducer)!r} needs the CLS token, which "
            "use_cls_token=False leaves out: "
            "choose another."
        )


def num_kept(num_tokens: int, keep_rate: float) -> int:
    """ceil(keep_rate * num_tokens), without what floating point adds to a whole number."""
    return max(1, math.ceil(keep_rate * num_tokens - 1e-9))


def counts_kept(mask: torch.Tensor | None, keep_rate: float) -> torch.Tensor | None:
    """`num_kept` for each image `(B,)` of a mask `(B, M)`, 0 for one without tokens; None without a mask."""
    if mask is None:
        return None
    return ceil_fraction(mask.sum(dim=1), keep_rate)


def ceil_fraction(numbers: torch.Tensor, share: float) -> torch.Tensor:
    """ceil(share * numbers) int64, without what floating point adds to a whole number."""
    # A tensor, because the export to ONNX rounds a Python number to float32.
    share = torch.tensor(share, dtype=torch.float64, device=numbers.device)
    return (numbers.double() * share - 1e-9).ceil().long()


def new_indices(indices: torch.Tensor, mask: torch.Tensor | None, num_tokens: int) -> torch.Tensor:
    """Index of each of M tokens after gathering `indices` `(B, K)`, `(B, M)`; -1 for one that was not
    gathered."""
    batch_size, num_selected = indices.shape
    place = torch.arange(num_selected, device=indices.device).expand(batch_size, -1)
    if mask is not None:
        indices = indices.masked_fill(~mask, num_tokens)  # a column that is cut off
    places = indices.new_full((batch_size, num_tokens + 1), -1)
    return places.scatter(1, indices, place)[:, :num_tokens]


def trace_tokens(assignments: list[torch.Tensor]) -> torch.Tensor | None:
    """Traces the token that stands for each of those that entered, after each reduction; see
    `token_assignments`.

    Args:
        assignments: of each reduction, first to last, `(B, M)`; the tokens of the first are those that
            entered.
    """
    if not assignments:
        return None
    places = [assignments[0]]
    for assignment in assignments[1:]:
        place = places[-1].to(assignment.device)
        places.append(torch.where(place < 0, -1, assignment.gather(1, place.clamp(min=0))))
    return torch.stack([place.to(places[-1].device) for place in places], dim=1)


def restore_tokens(states: torch.Tensor, reductions: list[tuple[torch.Tensor, torch.Tensor]]) -> torch.Tensor:
    """Hidden states `(B, K, D)` of all patches that entered the encoder.

    A patch that was merged gets the state of its group, one that was dropped keeps the last state it had.

    Args:
        states: `(B, M, D)` of the tokens at the end.
        reductions: for each reduction, first to last, the assignment and the states `(B, M, D)` before it.
    """
    for assignment, before in reversed(reductions):
        after = gather_tokens(states, assignment.clamp(min=0))
        states = torch.where((assignment < 0).unsqueeze(-1), before, after)
    return states


class AttentiveReducer(TokenReducer):
    """Keeps the tokens that CLS attends to most and fuses the others into one (EViT).

    The fused token is their sum weighted by attention.

    EViT (Liang et al., 2022, "Not All Patches are What You Need"), section 3.
    """

    @classmethod
    def check(cls, config, options: Options) -> None:
        check_cls_for_reducer(config)

    def forward(
        self, tokens: PatchTokens, projections: AttentionProjections | None, dense_fraction: float
    ) -> Reduction:
        keep_rate = self.keep_rate(dense_fraction)
        num_tokens = tokens.features.shape[1]
        num_selected = num_kept(num_tokens, keep_rate)
        attention = projections.cls_attention().mean(dim=1)[:, -num_tokens:]  # (B, M)
        if num_selected == num_tokens:  # nothing is left to fuse
            places = torch.arange(num_tokens, device=attention.device).expand(attention.shape)
            return Reduction(tokens, places)
        counts = counts_kept(tokens.mask, keep_rate)
        if tokens.mask is not None:
            attention = attention.masked_fill(~tokens.mask, 0)
        ranks = attention if tokens.mask is None else attention.masked_fill(~tokens.mask, -torch.inf)
        indices, mask = keep_top(ranks, num_selected, counts)
        assignment = new_indices(indices, mask, num_tokens)
        kept = tokens.gather(indices)
        dropped = torch.where(assignment < 0, attention, 0)  # (B, M)
        fused = dropped.to(tokens.features.dtype).unsqueeze(1) @ tokens.features  # (B, 1, D)
        total = dropped.sum(dim=1, keepdim=True)
        # Not a matrix product, which mixed precision would round to whole patches.
        shares = (dropped / total.clamp(min=1e-12)).unsqueeze(-1)  # (B, M, 1)
        place = (shares * tokens.coordinates).sum(dim=1, keepdim=True)  # (B, 1, A)
        if mask is not None:
            # Not where an image has dropped nothing.
            mask = torch.cat((mask, (tokens.mask.sum(dim=1) > counts)[:, None]), dim=1)
        reduced = PatchTokens(
            features=torch.cat((kept.features, fused), dim=1),
            coordinates=torch.cat((kept.coordinates, place), dim=1),
            grid=tokens.grid,
            mask=mask,
        )
        return Reduction(reduced, assignment)


class SamplingReducer(TokenReducer):
    """Samples tokens by their significance, without training (ATS).

    Significance is the attention of CLS times the norm of the value, sampled by its inverse cumulative
    distribution. ATS (Fayyaz et al., 2022, "Adaptive Token Sampling for Efficient Vision Transformers"). What
    is drawn twice counts once, so an image may keep fewer tokens than the keep rate says; the rest is
    padding.
    """

    @classmethod
    def check(cls, config, options: Options) -> None:
        check_cls_for_reducer(config)

    def forward(
        self, tokens: PatchTokens, projections: AttentionProjections | None, dense_fraction: float
    ) -> Reduction:
        keep_rate = self.keep_rate(dense_fraction)
        num_tokens = tokens.features.shape[1]
        num_selected = num_kept(num_tokens, keep_rate)
        norms = torch.linalg.vector_norm(
            projections.value[:, :, -num_tokens:].float(), dim=-1
        )  # (B, heads, M)
        significance = (projections.cls_attention()[..., -num_tokens:] * norms).sum(dim=1)  # (B, M)
        counts = counts_kept(tokens.mask, keep_rate)
        if tokens.mask is not None:
            significance = significance.masked_fill(~tokens.mask, 0)
        # The only sort of ONNX is stable, and its exporters refuse to be asked for it.
        stable = {} if torch.compiler.is_exporting() else {"stable": True}
        ascending, order = significance.sort(dim=-1, **stable)
        cumulated = ascending.double().cumsum(dim=-1)
        cumulated = cumulated / cumulated[:, -1:]
        number = (
            torch.full_like(cumulated[:, :1], num_selected) if counts is None else counts[:, None].double()
        )
        points = (torch.arange(num_selected, device=order.device) + 0.5) / number  # (B, K)
        # Where an image keeps fewer than K, the points beyond draw again what the first one drew.
        points = torch.where(points < 1, points, points[:, :1])
        drawn = torch.searchsorted(cumulated, points)
        drawn = order.gather(1, drawn.clamp(max=num_tokens - 1))
        is_drawn = torch.zeros_like(significance).scatter(1, drawn, 1.0)
        if tokens.mask is not None:
            is_drawn = is_drawn * tokens.mask  # nothing of an image without patches
        # In raster order, with the padding at the end.
        indices, mask = keep_top(is_drawn, num_selected, is_drawn.sum(dim=1).long())
        reduced = tokens.gather(indices)
        reduced.mask = mask
        return Reduction(reduced, new_indices(indices, mask, num_tokens))


@strict
@dataclass(kw_only=True)
class GumbelOptions(Options):
    """Weights of the losses of `"gumbel"`, as in DynamicViT (2021).

    Args:
        ratio_weight: of the distance from the keep rate.
        distillation_weight: of the divergence from the model's own dense prediction.
        token_weight: of the distance of hidden states from those of the dense pass.
    """

    ratio_weight: float | int = 2.0
    distillation_weight: float | int = 0.5
    token_weight: float | int = 0.5

    def __post_init__(self):
        for name in ("ratio_weight", "distillation_weight", "token_weight"):
            check_range(self, name, "0 or more", 0 <= getattr(self, name) < math.inf)


class GumbelReducer(TokenReducer):
    """Keeps the tokens that trained predictors rank highest (DynamicViT).

    Each stage predicts a probability of keeping a token, from the token and the mean of those present.
    DynamicViT (Rao et al., 2021), sections 3.2 and 3.3. Training draws with hard Gumbel-softmax and hides
    what was dropped from the others (a size of 0 hides a token from attention and pooling), so that the
    choice has a gradient; otherwise the likeliest are gathered. The loss here is that of the keep rate; those
    of distillation are added by the model.
    """

    inside_block = False
    learns_from_dense = True
    Options = GumbelOptions

    def __init__(self, config, layer_index: int):
        super().__init__(config, layer_index)
        dim = config.hidden_size
        self.stage = sorted(config.reduction_layers).index(layer_index) + 1
        self.ratio_weight = self.options.ratio_weight / len(config.reduction_layers)
        self.distillation_weight = self.options.distillation_weight
        self.token_weight = self.options.token_weight
        self.norm = nn.LayerNorm(dim)
        self.input = nn.Linear(dim, dim)
        self.hidden1 = nn.Linear(dim, dim // 2)
        self.hidden2 = nn.Linear(dim // 2, max(1, dim // 4))
        self.output = nn.Linear(max(1, dim // 4), 2)
        self.activation = nn.GELU()

    @classmethod
    def check(cls, config, options: Options) -> None:
        if config.hidden_size % 2:
            raise ValueError(f"token_reducer='gumbel' needs an even hidden_size, got {config.hidden_size}.")

    def forward(
        self, tokens: PatchTokens, projections: AttentionProjections | None, dense_fraction: float
    ) -> Reduction:
        keep_rate = self.keep_rate(dense_fraction)
        logits = self.predict(tokens)  # (B, M, 2)
        if self.training:
            return self._draw(tokens, logits, keep_rate)
        num_tokens = logits.shape[1]
        scores = logits[..., 0] - logits[..., 1]
        if tokens.mask is not None:
            scores = scores.masked_fill(~tokens.mask, -torch.inf)
        indices, mask = keep_top(scores, num_kept(num_tokens, keep_rate), counts_kept(tokens.mask, keep_rate))
        reduced = tokens.gather(indices)
        reduced.mask = mask
        return Reduction(reduced, new_indices(indices, mask, num_tokens))

    def keeps_all(self, dense_fraction: float) -> bool:
        # While training the predictor learns, even that all may stay.
        return not self.training and super().keeps_all(dense_fraction)

    def predict(self, tokens: PatchTokens) -> torch.Tensor:
        """Logits `(B, M, 2)` float32 of staying and of going."""
        states = self.activation(self.input(self.norm(tokens.features)))
        local, context = states.chunk(2, dim=-1)
        weights = torch.ones_like(states[..., :1])
        if tokens.mask is not None:
            weights = weights * tokens.mask.unsqueeze(-1)
        if tokens.sizes is not None:
            weights = weights * tokens.sizes.unsqueeze(-1).to(weights.dtype)
        context = (context * weights).sum(dim=1, keepdim=True) / weights.sum(dim=1, keepdim=True).clamp(min=1)
        states = torch.cat((local, context.expand_as(local)), dim=-1)
        states = self.activation(self.hidden2(self.activation(self.hidden1(states))))
        return self.output(states).float()

    def _draw(self, tokens: PatchTokens, logits: torch.Tensor, keep_rate: float) -> Reduction:
        kept = nn.functional.gumbel_softmax(logits, tau=1.0, hard=True)[..., 0]  # (B, M)
        if tokens.sizes is not None:
            kept = kept * tokens.sizes  # gone once is gone for good
        present = torch.ones_like(kept) if tokens.mask is None else tokens.mask.to(kept.dtype)
        # (B,) of the tokens that entered the encoder
        share = (kept * present).sum(dim=1) / present.sum(dim=1).clamp(min=1)
        loss = self.ratio_weight * (share - keep_rate**self.stage).square().mean()
        place = torch.arange(logits.shape[1], device=logits.device).expand(logits.shape[:2])
        reduced = PatchTokens(
            tokens.features, tokens.coordinates, tokens.grid, tokens.mask, kept, tokens.full_grid
        )
        return Reduction(reduced, place, loss)


# Similarities of an image held at once, in numbers: 16 MiB of float32, those of about 4000 tokens.
MERGE_CHUNK_SIZE = 2**22


def best_partners(metric: torch.Tensor, mask: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    """For every other token (A: the first, third, ...) the most alike of the rest (B), and how alike, `(B,
    |A|)`.

    Args:
        metric: `(B, M, d)`, compared by cosine.
        mask: `(B, M)`, False for padding, which is nobody's partner and must be at the end.
    """
    metric = _normalize(metric)
    first, second = metric[:, ::2], metric[:, 1::2].transpose(1, 2)
    chunk = max(1, MERGE_CHUNK_SIZE // second.shape[2])
    similarity, partner = [], []
    for rows in first.split(chunk, dim=1):
        scores = (rows @ second).float()
        if mask is not None:
            scores = scores.masked_fill(~mask[:, None, 1::2], -torch.inf)
        best = scores.max(dim=-1)
        similarity.append(best.values)
        partner.append(best.indices)
    similarity, partner = torch.cat(similarity, dim=1), torch.cat(partner, dim=1)
    if mask is not None:
        similarity = similarity.masked_fill(~mask[:, ::2], -torch.inf)
    return similarity, partner


def _normalize(metric: torch.Tensor) -> torch.Tensor:
    return metric / torch.linalg.vector_norm(metric, dim=-1, keepdim=True).clamp(min=1e-6)


@strict
@dataclass(kw_only=True)
class MergeOptions(Options):
    """Options of `"merge"`.

    Args:
        r: tokens that are merged away at each of `reduction_layers`, instead of a `keep_rate`; ToMe (2023)
            takes 13 to 16 of 196 in every block.
    """

    r: int | None = None

    def __post_init__(self):
        check_positive(self, "r")


class MergeReducer(TokenReducer):
    """Merges the most similar pairs of tokens into their mean (ToMe).

    Means are weighted by the number of patches that a token stands for. ToMe (Bolya et al., 2023, "Token
    Merging: Your ViT But Faster"), section 3: bipartite soft matching on the keys averaged over heads (before
    rotation, if there is one), with sizes for proportional attention. Tokens keep the raster order of those
    that others were merged into.
    """

    Options = MergeOptions

    @classmethod
    def check(cls, config, options: Options) -> None:
        if options.r is not None and config.keep_rate != 1:
            raise ValueError(
                f"r={options.r} and keep_rate={config.keep_rate} exclude each other: pass no r, "
                "or keep_rate=1.0."
            )
        if config.keep_rate < 0.5:
            raise ValueError(
                f"keep_rate={config.keep_rate} is too low for token_reducer='merge', which merges "
                "pairs: at least 0.5. "
                "Merge at more reduction_layers instead."
            )

    def forward(
        self, tokens: PatchTokens, projections: AttentionProjections | None, dense_fraction: float
    ) -> Reduction:
        batch_size, num_tokens, _ = tokens.features.shape
        num_merged = self._num_merged(num_tokens, dense_fraction)
        if num_merged == 0:
            same = torch.arange(num_tokens, device=tokens.features.device).expand(batch_size, -1)
            return Reduction(tokens, same)
        metric = projections.unrotated_key[:, :, -num_tokens:].mean(dim=1)  # (B, M, d)
        mask, raster = tokens.mask, None
        if mask is not None:
            # Padding may be anywhere, and must not decide who is in A and who in B.
            raster = mask.int().argsort(dim=1, descending=True, stable=True)
            metric, mask = gather_tokens(metric, raster), mask.gather(1, raster)
        similarity, partner = best_partners(metric, mask)
        to_merge, counts = None, None
        if tokens.mask is not None:
            present = tokens.mask.sum(dim=1)  # (B,)
            to_merge = self._counts_merged(present, dense_fraction)
            counts = present - to_merge
        order, merged = keep_top(similarity, num_merged, to_merge)  # (B, r) among A, and which of them count
        source, target = 2 * order, 2 * partner.gather(1, order) + 1  # (B, r) among all
        if raster is not None:
            source = source + ~merged  # what does not count is the first of B, which stays
            source, target = raster.gather(1, source), raster.gather(1, target)
        stays = torch.ones_like(tokens.features[..., 0], dtype=torch.float32)
        stays = stays.scatter(1, source, 0.0 if merged is None else (~merged).float())
        if tokens.mask is not None:
            stays = stays.masked_fill(~tokens.mask, -torch.inf)
        indices, mask = keep_top(stays, num_tokens - num_merged, counts)

        place = torch.zeros_like(stays, dtype=torch.long)
        new = torch.arange(indices.shape[1], device=indices.device).expand(batch_size, -1)
        if mask is not None:
            # Padding has index 0: let it write where nobody reads.
            place = torch.cat((place, place[:, :1]), dim=1)
            place = place.scatter(1, indices.masked_fill(~mask, num_tokens), new)[:, :num_tokens]
        else:
            place = place.scatter(1, indices, new)
        assignment = place.scatter(1, source, self._where(merged, place.gather(1, target), place, source))
        reduced = self._merge(tokens, indices, source, place.gather(1, target), merged)
        reduced.mask = mask
        if tokens.mask is not None:
            assignment = assignment.masked_fill(~tokens.mask, -1)
        return Reduction(reduced, assignment)

    def keeps_all(self, dense_fraction: float) -> bool:
        return (
            self._num_to_merge(dense_fraction) == 0 if self.options.r else super().keeps_all(dense_fraction)
        )

    def _num_to_merge(self, dense_fraction: float) -> int:
        return round(self.options.r * (1 - dense_fraction))

    def _num_merged(self, num_tokens: int, dense_fraction: float) -> int:
        if self.options.r:
            return min(self._num_to_merge(dense_fraction), num_tokens // 2)
        return min(num_tokens - num_kept(num_tokens, self.keep_rate(dense_fraction)), num_tokens // 2)

    def _counts_merged(self, present: torch.Tensor, dense_fraction: float) -> torch.Tensor:
        """`_num_merged` for images of `present` `(B,)` tokens."""
        if self.options.r:
            number = torch.full_like(present, self._num_to_merge(dense_fraction))
        else:
            number = present - ceil_fraction(present, self.keep_rate(dense_fraction))
        return number.minimum(present // 2)

    @staticmethod
    def _where(
        merged: torch.Tensor | None, target: torch.Tensor, place: torch.Tensor, source: torch.Tensor
    ) -> torch.Tensor:
        return target if merged is None else torch.where(merged, target, place.gather(1, source))

    @staticmethod
    def _merge(
        tokens: PatchTokens,
        indices: torch.Tensor,
        source: torch.Tensor,
        target: torch.Tensor,
        merged: torch.Tensor | None,
    ) -> PatchTokens:
        """Weighted means of what came together, at their mean coordinates."""
        sizes = tokens.sizes
        if sizes is None:
            sizes = torch.ones_like(tokens.features[..., 0], dtype=torch.float32)
        incoming = sizes.gather(1, source)  # (B, r)
        if merged is not None:
            incoming = incoming * merged
        own = sizes.gather(1, indices)  # (B, M')
        total = own.scatter_add(1, target, incoming)

        def mean(values: torch.Tensor) -> torch.Tensor:
            dtype, length = values.dtype, indices.shape[1]
            weights = [
                (weight / total_).to(dtype).unsqueeze(-1)
                for weight, total_ in ((own, total), (incoming, total.gather(1, target)))
            ]
            kept = gather_tokens(values, indices) * weights[0]
            return kept + scatter_tokens(gather_tokens(values, source) * weights[1], target, length)

        return PatchTokens(mean(tokens.features), mean(tokens.coordinates), tokens.grid, sizes=total)


@dataclass
class Stage:
    """Hidden states after some number of blocks.

    Attributes:
        prefix: `(B, T - M, D)` CLS, registers, and the tokens of a thumbnail.
        states: `(B, K, D)` of all patches that entered the encoder; see `restore_tokens`.
    """

    prefix: torch.Tensor
    states: torch.Tensor


def fill_grid(
    patches: ImagePatches,
    selection: Selection,
    entered: torch.Tensor,
    context: torch.Tensor | None,
    context_grid: tuple[int, ...] | None,
    embed: Callable[[], torch.Tensor],
) -> torch.Tensor:
    """Hidden states `(B, R*S, D)` for the full grid; patches that never arrived have zeros.

    Args:
        patches: all that arrived.
        selection: which of them entered.
        entered: `(B, K, D)` their states.
        context: `(B, T, D)` states of the thumbnail's tokens, which stand for patches that were not selected.
        context_grid: rows and columns of the thumbnail; None if there is none.
        embed: what stands for them otherwise, `(B, N, D)`.
    """
    states, mask = entered, patches.mask
    if selection.indices is not None:
        if context_grid is None:
            unseen = embed()
        else:
            weights = interpolation_weights(patches.coordinates, patches.grid, context_grid, "linear")
            unseen = weights.to(context.dtype) @ context
        states = scatter_into(unseen, selection.indices, states, selection.mask)
    if patches.is_whole:
        return states
    nothing = states.new_zeros(states.shape[0], int(patches.grid.prod(dim=1).max()), states.shape[2])
    return scatter_into(nothing, raster_indices(patches.coordinates, patches.grid), states, mask)


TOKEN_REDUCERS: dict[str, type[TokenReducer]] = {
    "attentive": AttentiveReducer,
    "merge": MergeReducer,
    "gumbel": GumbelReducer,
    "sample": SamplingReducer,
}
