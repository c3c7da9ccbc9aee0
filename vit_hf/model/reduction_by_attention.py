"""Reduction by what CLS attends to: fuse the rest, or sample. Shape legend: `reduction_base.py`."""

import torch

from .attention import AttentionStates
from .options import Options
from .reduction_base import Reduction, TokenReducer, check_cls_for_reducer, counts_kept, new_places, num_kept
from .selection_base import keep_top
from .tokens import PatchTokens


class AttentiveReducer(TokenReducer):
    """Keeps the tokens that CLS attends to most and fuses the others into one, the sum of them by their attention.

    EViT (Liang et al., 2022, "Not All Patches are What You Need"), section 3.
    """

    @classmethod
    def check(cls, config, options: Options) -> None:
        check_cls_for_reducer(config)

    def forward(self, tokens: PatchTokens, states: AttentionStates | None, relaxation: float) -> Reduction:
        keep_rate = self.keep_rate(relaxation)
        num_tokens = tokens.features.shape[1]
        num_selected = num_kept(num_tokens, keep_rate)
        attention = states.cls_attention().mean(dim=1)[:, -num_tokens:]  # (B, M)
        if num_selected == num_tokens:  # nothing is left to fuse
            places = torch.arange(num_tokens, device=attention.device).expand(attention.shape)
            return Reduction(tokens, places)
        counts = counts_kept(tokens.mask, keep_rate)
        if tokens.mask is not None:
            attention = attention.masked_fill(~tokens.mask, 0)
        ranks = attention if tokens.mask is None else attention.masked_fill(~tokens.mask, -torch.inf)
        indices, mask = keep_top(ranks, num_selected, counts)
        assignment = new_places(indices, mask, num_tokens)
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
    """Samples tokens by the inverse of the cumulated significance: attention of CLS times the norm of the value.

    ATS (Fayyaz et al., 2022, "Adaptive Token Sampling for Efficient Vision Transformers"). What is drawn twice counts
    once, so an image may keep fewer tokens than the keep rate says; the places left over are padding.
    """

    @classmethod
    def check(cls, config, options: Options) -> None:
        check_cls_for_reducer(config)

    def forward(self, tokens: PatchTokens, states: AttentionStates | None, relaxation: float) -> Reduction:
        keep_rate = self.keep_rate(relaxation)
        num_tokens = tokens.features.shape[1]
        num_selected = num_kept(num_tokens, keep_rate)
        norms = torch.linalg.vector_norm(states.value[:, :, -num_tokens:].float(), dim=-1)  # (B, heads, M)
        significance = (states.cls_attention()[..., -num_tokens:] * norms).sum(dim=1)  # (B, M)
        counts = counts_kept(tokens.mask, keep_rate)
        if tokens.mask is not None:
            significance = significance.masked_fill(~tokens.mask, 0)
        # The only sort of ONNX is stable, and its exporters refuse to be asked for it.
        stable = {} if torch.compiler.is_exporting() else {"stable": True}
        ascending, order = significance.sort(dim=-1, **stable)
        cumulated = ascending.double().cumsum(dim=-1)
        cumulated = cumulated / cumulated[:, -1:]
        wanted = (
            torch.full_like(cumulated[:, :1], num_selected) if counts is None else counts[:, None].double()
        )
        points = (torch.arange(num_selected, device=order.device) + 0.5) / wanted  # (B, K)
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
        return Reduction(reduced, new_places(indices, mask, num_tokens))
