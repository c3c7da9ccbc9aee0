"""transformers' ViTMAE with its decoder."""

from typing import Any

import torch
from transformers import ViTMAEConfig, ViTMAEForPreTraining

from ..model.configuration_adaptive_vit import AdaptiveViTConfig
from ..model.modeling_adaptive_vit import AdaptiveViTForPreTraining
from .families import Weights


# Of our configuration, what needs the encoder alone.
NOT_PRETRAINED_WITH = ("patch_selector", "token_reducer", "thumbnail_context")
DECODER_FIELDS = (
    "decoder_hidden_size",
    "decoder_num_hidden_layers",
    "decoder_num_attention_heads",
    "decoder_intermediate_size",
    "mask_ratio",
    "norm_pix_loss",
)


def has_decoder(model: torch.nn.Module, fields: dict[str, Any]) -> bool:
    """Whether a model has a decoder that is wanted: what selects goes with the encoder alone."""
    return isinstance(model, ViTMAEForPreTraining) and not any(map(fields.get, NOT_PRETRAINED_WITH))


def decoder_fields(config: ViTMAEConfig) -> dict[str, Any]:
    """Fields of `AdaptiveViTConfig`. The fixed table of positions has the same values as a learned one."""
    options = {name: getattr(config, name) for name in DECODER_FIELDS}
    return {"masked_autoencoder": options | {"decoder_position_encoding": "learned"}}


def convert_autoencoder(
    config: AdaptiveViTConfig, encoder: Weights, model: ViTMAEForPreTraining
) -> tuple[AdaptiveViTForPreTraining, Weights]:
    """A model of ours, and its weights by our names, those of the encoder given."""
    decoder = {
        f"decoder.{name}": value
        for name, value in model.decoder.state_dict().items()
        if name != "decoder_pos_embed"
    }
    decoder["decoder.position_encoding.position_embeddings"] = model.decoder.decoder_pos_embed.detach()
    return AdaptiveViTForPreTraining(config), {
        f"vit.{name}": value for name, value in encoder.items()
    } | decoder
