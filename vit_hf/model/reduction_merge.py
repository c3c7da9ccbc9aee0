"""Reduction by merging tokens that are alike. Shape legend: `reduction_base.py`."""

from dataclasses import dataclass

import torch
from huggingface_hub.dataclasses import strict

from .attention import AttentionStates
from .options import Options, check_positive
from .reduction_base import Reduction, TokenReducer, ceil_share, num_kept
from .selection_base import keep_top
from .tokens import PatchTokens, gather_tokens, scatter_tokens


# Similarities of an image held at once, in numbers: 16 MiB of float32, those of about 4000 tokens.
MERGE_CHUNK_SIZE = 2**22


def best_partners(metric: torch.Tensor, mask: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    """For every other token (A: the first, third, ...) the most alike of the rest (B), and how alike, `(B, |A|)`.

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
    """Merges the most alike pairs of tokens into their mean, weighted by how many patches each stands for.

    ToMe (Bolya et al., 2023, "Token Merging: Your ViT But Faster"), section 3: bipartite soft matching on the keys
    averaged over heads (before rotation, if there is one), with sizes for proportional attention. Tokens keep the
    raster order of those that others were merged into.
    """

    Options = MergeOptions

    @classmethod
    def check(cls, config, options: Options) -> None:
        if options.r is not None and config.keep_rate != 1:
            raise ValueError(
                f"r={options.r} and keep_rate={config.keep_rate} exclude each other: pass no r, or keep_rate=1.0."
            )
        if config.keep_rate < 0.5:
            raise ValueError(
                f"keep_rate={config.keep_rate} is too low for token_reducer='merge', which merges pairs: at least 0.5. "
                "Merge at more reduction_layers instead."
            )

    def forward(self, tokens: PatchTokens, states: AttentionStates | None, relaxation: float) -> Reduction:
        batch_size, num_tokens, _ = tokens.features.shape
        num_merged = self._num_merged(num_tokens, relaxation)
        if num_merged == 0:
            same = torch.arange(num_tokens, device=tokens.features.device).expand(batch_size, -1)
            return Reduction(tokens, same)
        metric = states.unrotated_key[:, :, -num_tokens:].mean(dim=1)  # (B, M, d)
        mask, raster = tokens.mask, None
        if mask is not None:
            # Padding may be anywhere, and must not decide who is in A and who in B.
            raster = mask.int().argsort(dim=1, descending=True, stable=True)
            metric, mask = gather_tokens(metric, raster), mask.gather(1, raster)
        similarity, partner = best_partners(metric, mask)
        wanted, counts = None, None
        if tokens.mask is not None:
            present = tokens.mask.sum(dim=1)  # (B,)
            wanted = self._counts_merged(present, relaxation)
            counts = present - wanted
        order, merged = keep_top(similarity, num_merged, wanted)  # (B, r) among A, and which of them count
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

    def keeps_all(self, relaxation: float) -> bool:
        return self._num_to_merge(relaxation) == 0 if self.options.r else super().keeps_all(relaxation)

    def _num_to_merge(self, relaxation: float) -> int:
        return round(self.options.r * (1 - relaxation))

    def _num_merged(self, num_tokens: int, relaxation: float) -> int:
        if self.options.r:
            return min(self._num_to_merge(relaxation), num_tokens // 2)
        return min(num_tokens - num_kept(num_tokens, self.keep_rate(relaxation)), num_tokens // 2)

    def _counts_merged(self, present: torch.Tensor, relaxation: float) -> torch.Tensor:
        """`_num_merged` for images of `present` `(B,)` tokens."""
        if self.options.r:
            wanted = torch.full_like(present, self._num_to_merge(relaxation))
        else:
            wanted = present - ceil_share(present, self.keep_rate(relaxation))
        return wanted.minimum(present // 2)

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
