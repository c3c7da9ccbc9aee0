"""A pass through the model's own first blocks, for selectors that ask what the model attends to."""

import copy

import torch
from transformers.utils.output_capturing import capture_outputs

from .layers import layer_contexts
from .patches import ImagePatches, TokenSequence


# How the attention of several heads (B, heads, T) becomes one.
HEAD_REDUCTIONS = {
    "mean": lambda attention: attention.mean(dim=1),
    "max": lambda attention: attention.amax(dim=1),
}


class ModelProbe:
    """Runs the first blocks of an `AdaptiveViTModel`, without gradient; see `Probe`."""

    # `capture_outputs` reads it, and finds nothing to record: outputs that the caller of the model records do
    # not include those of this pass.
    config = None

    def __init__(self, model):
        self.model = model

    @torch.no_grad()
    @capture_outputs
    def attention(self, patches: ImagePatches, num_layers: int, reduction: str) -> torch.Tensor:
        """CLS attention `(B, N)` in block `num_layers`, its heads reduced to one; or "rollout" through
        all."""
        layers, contexts, states = self._start(patches, num_layers)
        for index, layer in enumerate(layers[:-1]):
            states.append(layer(states[-1], contexts[index]))
        attention = layers[-1].cls_attention(states[-1], contexts[num_layers - 1])  # (B, heads, T)
        if reduction != "rollout":
            return HEAD_REDUCTIONS[reduction](attention)[:, -patches.num_patches :]
        # "Quantifying Attention Flow in Transformers" (Abnar & Zuidema, 2020), for the CLS row alone.
        row = attention.mean(dim=1)
        cls = torch.arange(row.shape[1], device=row.device) == 0
        row = (row + cls) / 2
        for index in reversed(range(num_layers - 1)):
            row = layers[index].propagate_rollout(states[index], contexts[index], row)
        return row[:, -patches.num_patches :]

    @torch.no_grad()
    @capture_outputs
    def features(self, patches: ImagePatches, num_layers: int) -> torch.Tensor:
        """Hidden states `(B, N, D)` of `patches` after `num_layers` blocks."""
        layers, contexts, (states,) = self._start(patches, num_layers)
        for index, layer in enumerate(layers):
            states = layer(states, contexts[index])
        return states[:, -patches.num_patches :]

    @torch.no_grad()
    def embed(self, patches: ImagePatches) -> torch.Tensor:
        """Embeddings `(B, N, D)` of `patches` with their positions."""
        return self.model.embeddings.embed_patches(copy.copy(patches)).features

    def _start(self, patches: ImagePatches, num_layers: int):
        """The blocks, their contexts and what enters the first."""
        model = self.model
        # A copy: what a hybrid's CNN leaves on it has no gradient and is not for the main pass.
        sequence: TokenSequence = model.pre_normalize(model.embeddings(copy.copy(patches)))
        contexts = layer_contexts(model.config, model.embeddings.position_encoding, sequence)
        return model.layers[:num_layers], contexts, [sequence.hidden_states]
