"""Reducers beside a plain model."""

import math

import torch

from tests.helpers.models import tiny_config
from vit_hf import AdaptiveViTForImageClassification


REGISTERS = 2
PREFIX = 1 + REGISTERS


def make(reducer, layers=(0, 1), keep_rate=0.6, **fields) -> AdaptiveViTForImageClassification:
    """Images of 48 pixels are native: 36 patches, to which the learned positions are simply added."""
    config = tiny_config(
        token_reducer=reducer,
        reduction_layers=list(layers),
        keep_rate=keep_rate,
        num_register_tokens=REGISTERS,
        **{"image_size": 48, **fields},
    )
    return AdaptiveViTForImageClassification(config).eval()


def plain_logits(model, image, before=None, inside=None) -> torch.Tensor:
    """Logits `(labels,)` of one image `(3, 48, 48)` in plain torch.

    `before(index, x, log_sizes)` a block and `inside(index, x, log_sizes, weights, key, value)` it, after
    attention, return other tokens `(T, D)` and what to add to the logits of keys `(T,)`.
    """
    vit = model.vit
    embeddings = vit.embeddings
    kernel, positions = (
        embeddings.patch_embeddings.projection,
        embeddings.position_encoding.position_embeddings[0],
    )
    patches = torch.conv2d(image[None], kernel.weight, kernel.bias, stride=8)[0].flatten(1).T
    x = torch.cat(
        (embeddings.cls_token[0] + positions[:1], embeddings.register_tokens[0], patches + positions[1:])
    )
    log_sizes = torch.zeros(len(x))
    for index, layer in enumerate(vit.layers):
        if before:
            x, log_sizes = before(index, x, log_sizes)
        attention = layer.attention
        normed = layer.layernorm_before(x)
        query, key, value = (
            project(normed).view(len(x), 4, 8).transpose(0, 1)
            for project in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        weights = (query @ key.transpose(1, 2) / math.sqrt(8) + log_sizes).softmax(-1)  # (heads, T, T)
        x = x + attention.o_proj((weights @ value).transpose(0, 1).reshape(len(x), 32))
        if inside:
            x, log_sizes = inside(index, x, log_sizes, weights, key, value)
        x = x + layer.mlp(layer.layernorm_after(x))
    return model.classifier(vit.layernorm(x)[0])
