"""Floating point operations of an image: counted as they run, and by the formula.

Both count 2 for a multiply-add, and neither what is no matrix product: norms, softmax, the scores of heuristics.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ...model.modeling_adaptive_vit import AdaptiveViTForImageClassification


@dataclass
class Tally:
    """What went through an adaptive ViT.

    Attributes:
        formula: FLOPs of embedding, encoder and head. Of each block for N tokens of D channels, in multiply-adds,
            4ND^2 + 2N^2D for attention and 2NDM for a feed-forward network of width M; of an embedding of patches of
            P^2 C numbers P^2 C D for each. Not of a convolutional stem, nor of what selects.
        tokens, tokens_out: patches that entered the encoder, and that left it.
    """

    formula: int = 0
    tokens: int = 0
    tokens_out: int = 0


@contextmanager
def tallying(model: AdaptiveViTForImageClassification) -> Iterator[Tally]:
    """Sums up over all calls of a model."""
    tally, vit, is_selecting = Tally(), model.vit, False

    def begin_selecting(module: nn.Module, args: tuple) -> None:
        nonlocal is_selecting
        is_selecting = True

    def end_selecting(module: nn.Module, args: tuple, output: object) -> None:
        nonlocal is_selecting
        is_selecting = False

    def add(multiply_adds: int) -> None:
        # Selectors look through the same layers, and embed patches for themselves.
        if not is_selecting:
            tally.formula += 2 * multiply_adds

    def attention(module: nn.Module, args: tuple) -> None:
        batch, length, _ = args[0].shape
        width = module.num_attention_heads * module.head_dim
        add(batch * (length * weights_of(module) + 2 * length**2 * width))

    def linear(module: nn.Module, args: tuple) -> None:
        add(args[0].shape[:-1].numel() * weights_of(module))

    def embedding(module: nn.Module, args: tuple, output: object) -> None:
        add(output.features.shape[:2].numel() * module.projection.weight.numel())

    def result(module: nn.Module, args: tuple, output: object) -> None:
        tally.tokens += output.patch_coordinates.shape[:2].numel()
        tally.tokens_out += output.token_coordinates.shape[:2].numel()

    handles = [model.register_forward_hook(result), model.classifier.register_forward_pre_hook(linear)]
    handles.append(vit.embeddings.patch_embeddings.register_forward_hook(embedding))
    for layer in vit.layers:
        handles.append(layer.attention.register_forward_pre_hook(attention))
        handles.append(layer.mlp.register_forward_pre_hook(linear))
    if vit.selector is not None:
        handles.append(vit.selector.register_forward_pre_hook(begin_selecting))
        handles.append(vit.selector.register_forward_hook(end_selecting, always_call=True))
    try:
        yield tally
    finally:
        for handle in handles:
            handle.remove()


def weights_of(module: nn.Module) -> int:
    """Multiply-adds of a token: 4D^2 of an attention's projections, 2DM of a feed-forward network."""
    return sum(part.weight.numel() for part in module.modules() if isinstance(part, nn.Linear))


def count_flops(call: Callable[[], object]) -> int:
    """FLOPs of matrix products, convolutions and attention while `call` runs, by torch's counter."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()
