"""Positions along each axis."""

import torch

from vit_hf.model.patches import PatchTokens


def tell(encoding, tokens: PatchTokens, layer: int = 0, num_prefix: int = 2) -> dict[str, torch.Tensor]:
    """Outputs of an encoding, with patches along the axes that `AXES` names."""
    told = {"added": encoding.add(tokens).features}
    rotation = encoding.rotation(tokens, layer)
    if rotation is not None:
        told |= {"cosine": rotation[0], "sine": rotation[1]}
    bias = encoding.bias(tokens, layer, num_prefix)
    if bias is not None:
        told["bias"] = bias.expand(len(tokens.features), -1, -1, -1)
    return told


AXES = {"added": [1], "cosine": [2], "sine": [2], "bias": [2, 3]}
