"""Self-supervised pretraining by masked autoencoding. Shape legend: `tokens.py`."""

import torch
from transformers.utils.generic import can_return_tuple

from .base_model import AdaptiveViTModel
from .configuration_adaptive_vit import AdaptiveViTConfig
from .cutting import cut_patches
from .input_checks import check_tensors
from .mae_decoder import (
    MaskedAutoencoderDecoder,
    draw_mask,
    draw_noise,
    read_mae_options,
    reconstruction_loss,
)
from .options import type_of
from .outputs import AdaptiveViTForPreTrainingOutput
from .positions import POSITION_ENCODINGS
from .pretrained import AdaptiveViTPreTrainedModel


class AdaptiveViTForPreTraining(AdaptiveViTPreTrainedModel):
    """The encoder on a random few of the patches, and a light decoder that reconstructs the others.

    "Masked Autoencoders Are Scalable Vision Learners" (He et al., 2022). The encoder embeds and computes on the kept
    patches alone, all but the `mask_ratio` of `config.masked_autoencoder`, at their own coordinates, with any
    position encoding. It loads into the other classes, such as `AdaptiveViTForImageClassification`, by
    `from_pretrained`.

    Raises:
        ValueError: if the configuration selects or reduces patches, or shows what is masked.
    """

    _auto_class = "AutoModelForPreTraining"
    # The decoder has a mask token of its own.
    _no_split_modules = [*AdaptiveViTPreTrainedModel._no_split_modules, "MaskedAutoencoderDecoder"]

    def __init__(self, config: AdaptiveViTConfig):
        for name, nothing in (
            ("patch_selector", None),
            ("token_reducer", None),
            ("thumbnail_context", False),
            ("backbone_config", None),
        ):
            value = getattr(config, name)
            if value != nothing:
                value = type(value).__name__ if name == "backbone_config" else repr(value)
                raise ValueError(
                    f"Pretraining keeps random patches by mask_ratio and must not see the others, which {name}={value} "
                    f"does not go with: pass {name}={nothing}, and set it when the encoder is fine-tuned."
                )
        config.validate_architecture()  # before the decoder's encoding is looked up
        if POSITION_ENCODINGS[type_of(read_mae_options(config).decoder_position_encoding)].has_bias:
            self._supports_flash_attn = False
        super().__init__(config)
        self.vit = AdaptiveViTModel(config, add_pooling_layer=False)
        self.decoder = MaskedAutoencoderDecoder(config)
        self.options = read_mae_options(config)
        self.post_init()

    def set_attn_implementation(self, *args, **kwargs) -> None:
        """As in transformers, for encoder and decoder."""
        super().set_attn_implementation(*args, **kwargs)
        self.decoder.config._attn_implementation = self.config._attn_implementation

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        noise: torch.Tensor | None = None,
        interpolate_pos_encoding: bool | None = None,
        patch_coordinates: torch.Tensor | None = None,
        spatial_shapes: torch.LongTensor | None = None,
        pixel_attention_mask: torch.Tensor | None = None,
        **kwargs,
    ) -> AdaptiveViTForPreTrainingOutput:
        """
        Args:
            pixel_values: `(B, C, H, W)` images of any size, or `(B, N, P*P*C)` cut patches of images of mixed sizes,
                with the three arguments below: see `AdaptiveViTModel.forward`. Of cut patches those that an image
                processor selected are enough; the others are not reconstructed then.
            noise: `(B, N)` numbers, of which the least are kept. By default drawn afresh while training; in evaluation
                the same for all images of a size, so that losses can be compared.
            interpolate_pos_encoding: False refuses images of another size than `config.image_size`.

        Raises:
            ValueError: for noise of another shape, or as `AdaptiveViTModel.forward`.
        """
        check_tensors(noise=noise)
        patches = cut_patches(
            self.config,
            pixel_values,
            patch_coordinates,
            spatial_shapes,
            pixel_attention_mask,
            interpolate_pos_encoding,
        )
        if noise is None:
            noise = draw_noise(patches, None if self.training else 0)
        elif noise.shape != patches.coordinates.shape[:2]:
            raise ValueError(
                f"noise has the shape {tuple(noise.shape)}, but there are {tuple(patches.coordinates.shape[:2])} patches "
                "(images, patches of each)."
            )
        masking = draw_mask(patches, self.options.mask_ratio, noise)
        outputs = self.vit(patches, selected_patches=masking.selected, return_dict=True, **kwargs)
        logits = self.decoder(outputs.last_hidden_state, patches, masking)
        return AdaptiveViTForPreTrainingOutput(
            loss=reconstruction_loss(patches, logits, masking.mask, self.options.norm_pix_loss),
            logits=logits,
            mask=masking.mask,
            ids_restore=masking.ids_restore,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            selected_patches=outputs.selected_patches,
            spatial_shapes=outputs.spatial_shapes,
        )
