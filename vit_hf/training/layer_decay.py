"""A learning rate for each layer: head and predictors learn fastest, the embeddings slowest."""

import math
import re
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from .freezing import part_of


# Learned vectors that are not weights of a map: shrinking them to zero means nothing.
UNDECAYED = re.compile(r"(cls|mask|distillation)_token|register_tokens|position_embeddings|_embedding$|bias")


def layerwise_parameter_groups(
    model: PreTrainedModel,
    learning_rate: float,
    weight_decay: float = 0.0,
    layer_decay: float = 1.0,
    backbone_lr_factor: float = 1.0,
) -> list[dict[str, Any]]:
    """Parameter groups for a torch optimizer, with the learning rates of BEiT (Bao et al. 2022, appendix).

    Of L encoder layers (of a Swin its blocks, and what merges patches behind those of a stage), layer i learns at
    `learning_rate * layer_decay ** (L - i)` (i counts from 0), the embeddings at `layer_decay ** (L + 1)`, and everything else (final norm, head, trained patch selectors and token
    reducers) at the full rate. What is in the base model and is no selector or reducer has all that times
    `backbone_lr_factor`. Biases, norms, layer scales, tokens and position embeddings are not decayed.

        from transformers import Trainer
        optimizer, options = Trainer.get_optimizer_cls_and_kwargs(args, model)
        groups = layerwise_parameter_groups(model, args.learning_rate, args.weight_decay, layer_decay=0.75)
        Trainer(..., optimizer_cls_and_kwargs=(optimizer, options | {"params": groups}))

    Args:
        model: whose layers are named `layers.<i>`, as in transformers' ViT, or `encoder.layers.<stage>.blocks.<i>`, as in
            its Swin; frozen parameters are left out.
        learning_rate: of the head.
        weight_decay: of the parameters that are decayed.
        layer_decay: factor from one layer to the one below, in (0, 1]; 1 gives all the same rate.
        backbone_lr_factor: of the backbone's learning rates, in (0, 1]; DynamicViT (Rao et al. 2021) takes 0.01
            beside predictors that begin at random.

    Returns:
        Groups with `params`, `lr` and `weight_decay`, the full rate first, in an order that depends on the
        model (and on whether `backbone_lr_factor` is 1) alone, so that an optimizer's saved state fits.

    Raises:
        ValueError: for a factor out of range, or a model without numbered layers.
    """
    if not 0 < layer_decay <= 1:
        raise ValueError(f"layer_decay is {layer_decay}; it must be above 0 and at most 1 (1: no decay)")
    if not 0 < backbone_lr_factor <= 1:
        raise ValueError(
            f"backbone_lr_factor is {backbone_lr_factor}; it must be above 0 and at most 1. To hold the backbone still, "
            "set freeze_backbone_ratio"
        )
    layers = {name: _layer(name, model.base_model_prefix) for name, _ in model.named_parameters()}
    order = sorted({layer for layer in layers.values() if layer is not None})
    if not any(order):
        raise ValueError(
            f"layer_decay needs encoder layers named layers.0, layers.1, ...; {type(model).__name__} has none"
        )
    depths = {layer: depth for depth, layer in enumerate(order)}
    top = len(order)

    groups: dict[tuple[bool, int, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        depth = depths.get(layers[name], top)
        decayed = parameter.ndim > 1 and not UNDECAYED.search(name)
        full_rate = backbone_lr_factor == 1 or part_of(model, name) != "backbone"
        groups.setdefault((full_rate, depth, decayed), []).append(parameter)
    return [
        {
            "params": parameters,
            "lr": learning_rate * layer_decay ** (top - depth) * (1 if full_rate else backbone_lr_factor),
            "weight_decay": weight_decay if decayed else 0.0,
        }
        for (full_rate, depth, decayed), parameters in sorted(
            groups.items(), key=lambda item: item[0], reverse=True
        )
    ]


def _layer(name: str, prefix: str) -> tuple[float, ...] | None:
    """What sorts as layers follow each other: () for the embeddings, None for what stands beside or above the layers."""
    name = name.removeprefix(f"{prefix}.")
    if name.startswith("embeddings."):
        return ()
    layer = re.match(r"(?:encoder\.)?layers\.(\d+)\.(?:blocks\.(\d+)\.|(downsample)\.)?", name)
    if layer is None:
        return None
    stage, block, merging = layer.groups()
    if merging:
        return (int(stage), math.inf)
    return (int(stage),) if block is None else (int(stage), int(block))
