"""What every token reducer shares. Shape legend: `tokens.py`; M tokens that stand for patches, M' after reduction."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from .attention import AttentionStates
from .options import Options, read_options, type_of
from .tokens import PatchTokens, gather_tokens


@dataclass
class Reduction:
    """What a reducer made of M tokens.

    Attributes:
        tokens: the M' tokens that go on.
        assignment: `(B, M)` int64, which of them stands for each of the old ones; -1 for those that were dropped.
        loss: what training adds to the loss; None for nothing.
    """

    tokens: PatchTokens
    assignment: torch.Tensor
    loss: torch.Tensor | None = None


class TokenReducer(nn.Module, ABC):
    """Thins the tokens that stand for patches; CLS, registers and a thumbnail's tokens are never touched.

    A reducer with `inside_block` works between the attention and the feed-forward network of a block and sees what
    the attention was computed from. Any other works before the block and gets no `states`.
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
    def forward(self, tokens: PatchTokens, states: AttentionStates | None, relaxation: float) -> Reduction:
        """
        Args:
            tokens: M tokens with their hidden states.
            states: queries, keys and values of the block's attention; the last M tokens of them are `tokens`.
            relaxation: 0 keeps what the configuration says, 1 keeps everything; see `keep_rate`.
        """

    def keep_rate(self, relaxation: float) -> float:
        """Share of the tokens that go on, in (0, 1]."""
        return self.config.keep_rate + relaxation * (1 - self.config.keep_rate)

    def keeps_all(self, relaxation: float) -> bool:
        """Whether there is nothing to do."""
        return self.keep_rate(relaxation) >= 1


def check_cls_for_reducer(config) -> None:
    """Checks that there is a CLS token for a reducer that goes by its attention.

    Raises:
        ValueError: if there is none.
    """
    if not config.use_cls_token:
        raise ValueError(
            f"token_reducer={type_of(config.token_reducer)!r} needs the CLS token, which use_cls_token=False leaves out: "
            "choose another."
        )


def num_kept(num_tokens: int, keep_rate: float) -> int:
    """ceil(keep_rate * num_tokens), without what floating point adds to a whole number."""
    return max(1, math.ceil(keep_rate * num_tokens - 1e-9))


def counts_kept(mask: torch.Tensor | None, keep_rate: float) -> torch.Tensor | None:
    """`num_kept` for each image `(B,)` of a mask `(B, M)`, 0 for one without tokens; None without a mask."""
    if mask is None:
        return None
    return ceil_share(mask.sum(dim=1), keep_rate)


def ceil_share(numbers: torch.Tensor, share: float) -> torch.Tensor:
    """ceil(share * numbers) int64, without what floating point adds to a whole number."""
    # A tensor, because the export to ONNX rounds a Python number to float32.
    share = torch.tensor(share, dtype=torch.float64, device=numbers.device)
    return (numbers.double() * share - 1e-9).ceil().long()


def new_places(indices: torch.Tensor, mask: torch.Tensor | None, num_tokens: int) -> torch.Tensor:
    """Where each of M tokens is found after gathering `indices` `(B, K)`, `(B, M)`; -1 where it is not."""
    batch_size, num_selected = indices.shape
    place = torch.arange(num_selected, device=indices.device).expand(batch_size, -1)
    if mask is not None:
        indices = indices.masked_fill(~mask, num_tokens)  # a column that is cut off
    places = indices.new_full((batch_size, num_tokens + 1), -1)
    return places.scatter(1, indices, place)[:, :num_tokens]


def trace_tokens(assignments: list[torch.Tensor]) -> torch.Tensor | None:
    """Which token stands for each of those that entered the encoder after each reduction; see `token_assignments`.

    Args:
        assignments: of each reduction, first to last, `(B, M)`; the tokens of the first are those that entered.
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
