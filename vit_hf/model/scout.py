"""The model's own first blocks, at the service of a selector. Shape legend: `tokens.py`."""

import copy

import torch

from .blocks import normalise
from .encoder import split_prefix
from .outputs import ScoutOutput
from .patches import ImagePatches


RECORD_NOTHING = {"output_hidden_states": False, "output_attentions": False, "return_dict": True}

# How the attention of several heads (B, heads, T) becomes one.
HEAD_REDUCTIONS = {
    "mean": lambda attention: attention.mean(dim=1),
    "max": lambda attention: attention.amax(dim=1),
}


class ModelScout:
    """See `Scout`."""

    def __init__(self, model):
        self.model = model

    def attention(self, patches: ImagePatches, num_layers: int, reduction: str) -> torch.Tensor:
        return self.model._look(patches, num_layers, reduction, **RECORD_NOTHING).attention

    def features(self, patches: ImagePatches, num_layers: int) -> torch.Tensor:
        return self.model._look(patches, num_layers, None, **RECORD_NOTHING).features

    @torch.no_grad()
    def embed(self, patches: ImagePatches) -> torch.Tensor:
        return self.model.embeddings(copy.copy(patches), alone=True)[1].features


@torch.no_grad()
def look(model, patches: ImagePatches, num_layers: int, reduction: str | None) -> ScoutOutput:
    """Runs the first `num_layers` blocks of an `AdaptiveViTModel` on `patches`.

    Without a `reduction` hidden states, else the CLS attention over patches: of the last of these blocks, its heads
    made one by `HEAD_REDUCTIONS`, or by "rollout" of them all.
    """
    # A copy: what a hybrid's CNN leaves on it has no gradient and is not for the main pass.
    sequence, tokens, _ = model.embeddings(copy.copy(patches))
    tokens.mask = patches.mask
    if model.pre_layernorm is not None:
        sequence = normalise(model.pre_layernorm, sequence, tokens.mask)
    inputs = model._attention_inputs(sequence, tokens, None)
    if reduction is None:
        for index, layer in enumerate(model.layers[:num_layers]):
            sequence = layer(sequence, inputs(index))
        return ScoutOutput(features=split_prefix(sequence, tokens)[1])
    looks = []
    for index, layer in enumerate(model.layers[: num_layers - 1]):
        if reduction == "rollout":
            looks.append(layer(sequence, inputs(index), look="all"))
        sequence = layer(sequence, inputs(index))
    last = model.layers[num_layers - 1](sequence, inputs(num_layers - 1), look="cls")
    last = last.cls_attention()  # (B, heads, T)
    if reduction == "rollout":
        # "Quantifying Attention Flow in Transformers" (Abnar & Zuidema, 2020), for the CLS row alone.
        row = last.mean(dim=1)
        cls = torch.arange(row.shape[1], device=row.device) == 0
        row = (row + cls) / 2
        for states in reversed(looks):
            row = (states.pull_back(row) + row) / 2
    else:
        row = HEAD_REDUCTIONS[reduction](last)
    return ScoutOutput(attention=row[:, -patches.num_patches :])
