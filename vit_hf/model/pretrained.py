"""What all models with the encoder of ViT share: initialisation, and loading of stock checkpoints."""

from typing import Any, ClassVar

import torch
from torch import nn
from transformers import initialization as init
from transformers.conversion_mapping import (
    WeightRenaming,
    get_checkpoint_conversion_mapping,
    register_checkpoint_conversion_mapping,
)

from .attention import AdaptiveViTAttention
from .axes import has_frames, native_grid
from .blocks import LayerScale
from .configuration_adaptive_vit import AdaptiveViTConfig
from .convolutional import ConvolutionalPatchEmbeddings, PatchConvolution
from .embeddings import AdaptiveViTEmbeddings
from .encoder import AdaptiveViTLayer
from .grid_tables import check_measures
from .heads import AttentionPooling
from .hybrid import HybridPatchEmbeddings
from .mae_decoder import MaskedAutoencoderDecoder
from .options import options_of, type_of
from .pretrained_base import AdaptivePreTrainedModel
from .segmentation_decoders import Upsampling
from .selection_cross_attention import CrossAttentionSelector
from .user_classes import derives_from, find_class


VIDEOS = "videos and volumes"


class AdaptiveViTPreTrainedModel(AdaptivePreTrainedModel):
    """Loading, saving and initialisation."""

    # Whether a class is for videos and volumes alone; None for images as well.
    _videos: ClassVar[bool | None] = False
    config: AdaptiveViTConfig
    config_class = AdaptiveViTConfig
    base_model_prefix = "vit"
    # Not the embeddings: they hold what blocks ask of the position encoding, and Accelerate's FSDP2 shards the patch
    # embeddings by themselves.
    _no_split_modules = ["AdaptiveViTLayer"]
    _supports_flash_attn = True
    # Of an elastic classifier, which is an ordinary one otherwise.
    _keys_to_ignore_on_load_unexpected = [r"^elastic_steps$"]
    _supports_flex_attn = True
    _can_record_outputs = {
        "hidden_states": AdaptiveViTLayer,
        "attentions": AdaptiveViTAttention,
    }

    def __init__(self, config: AdaptiveViTConfig, *args, **kwargs):
        # from_pretrained(..., field=value) sets fields one by one after the configuration was checked.
        config.validate_architecture()
        if self._videos is not None and self._videos != has_frames(config):
            raise ValueError(
                f"{type(self).__name__} is for {VIDEOS if self._videos else 'images'}, and num_frames={config.num_frames}. "
                + (
                    "Set num_frames, and give (B, T, C, H, W)."
                    if self._videos
                    else f"For {VIDEOS} there are AdaptiveViTForVideoClassification, AdaptiveViTModel and AdaptiveViTBackbone."
                )
            )
        if find_class(config, "position_encoding").has_bias:
            self._supports_flash_attn = False
        super().__init__(config, *args, **kwargs)

    @classmethod
    def _fields_to_keep(cls, wanted: AdaptiveViTConfig, stored: AdaptiveViTConfig) -> dict[str, Any]:
        check_measures(wanted, stored)
        rotates = type_of(wanted.position_encoding) in ("rotary", "rotary_mixed", "learned_rotary")
        options = options_of(wanted.position_encoding)
        if not rotates or options.get("coordinates") != "native" or options.get("reference_grid") is not None:
            return {}
        # Positions are spread over the grid of pretraining, as EVA-02 does.
        return {"position_encoding": wanted.position_encoding | {"reference_grid": list(native_grid(stored))}}

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        super()._init_weights(module)
        std = self.config.initializer_range
        if isinstance(module, PatchConvolution):
            init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")  # as ResNet
        elif isinstance(module, nn.Linear | nn.Conv2d | nn.Conv3d):
            if self.config.initializer == "xavier_uniform":
                # A convolution with the stride of its kernel is a matrix.
                bound = (6 / (module.weight[0].numel() + module.weight.shape[0])) ** 0.5
                init.uniform_(module.weight, -bound, bound)
            elif self.config.initializer == "truncated_normal":
                init.trunc_normal_(module.weight, mean=0.0, std=std, a=-2 * std, b=2 * std)
        if isinstance(module, AdaptiveViTEmbeddings):
            if module.cls_token is not None:
                init.trunc_normal_(module.cls_token, mean=0.0, std=std)
            if module.register_tokens is not None:
                init.trunc_normal_(module.register_tokens, mean=0.0, std=std)
            if module.mask_token is not None:
                init.zeros_(module.mask_token)
            if module.scale_embedding is not None:
                init.zeros_(module.scale_embedding)
        elif isinstance(module, ConvolutionalPatchEmbeddings):
            # From few channels, a deviation of `initializer_range` would leave hardly anything beside sinusoids.
            init.normal_(module.projection.weight, std=module.projection.in_channels**-0.5)
        elif isinstance(module, AttentionPooling):
            init.trunc_normal_(module.probe, mean=0.0, std=std)
        elif isinstance(module, MaskedAutoencoderDecoder):
            init.trunc_normal_(module.mask_token, mean=0.0, std=std)
        elif isinstance(module, Upsampling):
            # From few channels, a deviation of `initializer_range` would leave hardly anything of a map.
            init.normal_(module.weight, std=(2 / module.in_channels) ** 0.5)
        elif isinstance(module, CrossAttentionSelector):
            init.normal_(module.query)
        elif derives_from(type(module), "PositionEncoding"):
            module.reset_parameters(std)
        elif isinstance(module, LayerScale):
            init.constant_(module.lambda1, self.config.layerscale_value)

    @torch.no_grad()
    def _initialize_missing_keys(self, *args, **kwargs) -> None:
        super()._initialize_missing_keys(*args, **kwargs)
        for module in self.modules():
            if isinstance(module, HybridPatchEmbeddings):
                with init.guard_torch_init_functions():
                    module.reset_missing()

    def set_attn_implementation(self, attn_implementation: str | dict, *args, **kwargs) -> None:
        """As in transformers, for the encoder; the backbone of a hybrid keeps what it has."""
        backbone = self.config.backbone_config
        if backbone is not None and isinstance(attn_implementation, str):
            attn_implementation = {
                "": attn_implementation,
                "backbone_config": backbone._attn_implementation,
            }
        return super().set_attn_implementation(attn_implementation, *args, **kwargs)


# Stock ViT checkpoints, with the key names of transformers 4 or 5, load into ours, and ours are saved with the former,
# as stock ViT's are. Registered here and not in the package, because this code is saved with checkpoints and the package
# is not.
for _model in ("AdaptiveViTModel", "AdaptiveViTBackbone"):
    register_checkpoint_conversion_mapping(
        _model,
        [
            *get_checkpoint_conversion_mapping("ViTModel"),
            WeightRenaming(
                r"embeddings\.position_embeddings", "embeddings.position_encoding.position_embeddings"
            ),
        ],
        overwrite=True,
    )
