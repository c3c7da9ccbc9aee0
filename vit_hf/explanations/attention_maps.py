"""Attention maps of a classifier: attention of the last block, and attention rollout.

Shapes: T tokens of the sequence (CLS, registers, K patches), d channels of a head. One image at a time.

Neither map needs a T x T matrix. Rollout needs a single row of a product of one matrix per block, so that row
is propagated from the last block to the first, and each block's attention is recomputed from its queries and
keys a few rows at a time: memory grows with T, not with its square.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from ..model.modeling_adaptive_vit import AdaptiveViTForImageClassification, AdaptiveViTImageClassifierOutput
from .stages import blocks_that_see_all


# Attention weights held at once, in numbers: 64 MiB of float32.
CHUNK_SIZE = 2**24


@dataclass
class AttentionMaps:
    """Attention from the classifier's input to the K kept patches of one image.

    Attributes:
        last_block: `(K,)` mean over heads of the attention that the classifier's token (the mean over patches
            for `pooling="mean"`) pays to each patch in the last block.
        rollout: `(K,)` the same traced back through all blocks; None for sequences longer than
            `max_rollout_tokens`.
        block: number of the last block, from 1; where tokens are dropped inside the encoder, of the last
            one that still sees all K patches.
    """

    last_block: torch.Tensor
    rollout: torch.Tensor | None
    block: int


@dataclass
class BlockAttention:
    """Queries and keys `(heads, T, d)` of one block, and the bias `(heads or 1, T or 1, T)` of its logits."""

    query: torch.Tensor
    key: torch.Tensor
    bias: torch.Tensor | None
    scaling: float

    def propagate_rollout(self, row: torch.Tensor) -> torch.Tensor:
        """Multiplies `row` `(T,)` by the block's attention averaged over heads, `(T,)`."""
        num_heads, num_tokens, _ = self.key.shape
        key = self.key.float().transpose(1, 2)
        result = torch.zeros_like(row)
        # The CLS token's row alone costs O(T): zeros select nothing.
        needed = row.nonzero().squeeze(-1)
        for chunk in needed.split(max(1, CHUNK_SIZE // (num_heads * num_tokens))):
            logits = self.query[:, chunk].float() @ key * self.scaling  # (heads, chunk, T)
            if self.bias is not None:
                logits = logits + (self.bias if self.bias.shape[-2] == 1 else self.bias[:, chunk])
            result += torch.einsum("c,hct->t", row[chunk], logits.softmax(dim=-1))
        return result / num_heads


@torch.no_grad()
def run_with_attention_maps(
    model: AdaptiveViTForImageClassification, inputs: dict[str, torch.Tensor], max_rollout_tokens: int
) -> tuple[AdaptiveViTImageClassifierOutput, AttentionMaps | None]:
    """Returns the outputs on one image and its attention maps; None if no block sees all kept patches.

    Works with every attention implementation, since it reads only queries and keys.

    Args:
        model: in evaluation mode.
        inputs: a batch of one image.
        max_rollout_tokens: longer sequences get no rollout, whose time grows with T squared.
    """
    # Fused or merged tokens stand for no single patch, so the maps end before the first reduction.
    modules = [layer.attention for layer in model.vit.layers[: blocks_that_see_all(model.vit)]]
    with record_attention(modules, max_rollout_tokens) as records:
        outputs = model(**inputs)
    num_patches = outputs.selected_patches.shape[1]
    lengths = [records[module].key.shape[1] if module in records else None for module in modules]
    present = [length for length in lengths if length is not None]
    if not present:
        return outputs, None
    block = max(index for index, length in enumerate(lengths, start=1) if length == present[0])
    start = readout(model.config.pooling, present[0], num_patches, outputs.logits.device)
    last_block = records[modules[block - 1]].propagate_rollout(start)
    rollout = None
    if lengths[0] is not None:
        rollout = roll_out([records[module] for module in modules[:block]], start)[-num_patches:]
    return outputs, AttentionMaps(last_block[-num_patches:], rollout, block)


@contextmanager
def record_attention(modules: list[nn.Module], max_tokens: int) -> Iterator[dict[nn.Module, BlockAttention]]:
    """Collects the queries and keys of `modules` in the latest pass, under any attention implementation.

    For sequences of more than `max_tokens` tokens only the latest block is held.
    """
    records: dict[nn.Module, BlockAttention] = {}

    def record(module: nn.Module, args: tuple, output: tuple) -> None:
        states = output[2]
        if states.query.shape[2] > max_tokens:
            records.clear()
        # A probe of the first blocks comes before the real pass, which overwrites its records.
        bias = states.logit_bias()
        records[module] = BlockAttention(
            states.query[0], states.key[0], None if bias is None else bias[0], states.scaling
        )

    handles = [module.register_forward_hook(record) for module in modules]
    try:
        yield records
    finally:
        for handle in handles:
            handle.remove()


def readout(pooling: str, num_tokens: int, num_patches: int, device: torch.device) -> torch.Tensor:
    """Returns the weight of each token in the classifier's input, `(T,)`."""
    weights = torch.zeros(num_tokens, device=device)
    if pooling in ("mean", "map"):
        weights[-num_patches:] = 1 / num_patches
    else:
        weights[0] = 1
    return weights


def roll_out(blocks: list[BlockAttention], row: torch.Tensor) -> torch.Tensor:
    """Computes attention rollout ("Quantifying Attention Flow in Transformers", Abnar & Zuidema, 2020).

    That is `row` `(T,)` times A_L ... A_2 A_1 with A = (mean over heads + identity) / 2, whose rows
    already sum to one.
    """
    for block in reversed(blocks):
        row = (block.propagate_rollout(row) + row) / 2
    return row
