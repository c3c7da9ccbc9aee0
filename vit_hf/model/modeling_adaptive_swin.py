"""Adaptive Swin Transformer: the models that users load, and their heads. Shape legend: `swin_windows.py`."""

import torch
from torch import nn
from transformers.utils.generic import can_return_tuple

from .configuration_adaptive_swin import AdaptiveSwinConfig
from .heads import MaskedImageDecoder, MeanPooling, classification_loss, masked_reconstruction_loss
from .input_checks import check_pixel_values, check_tensors
from .stages import StagesMixin
from .swin_base_model import AdaptiveSwinModel, AdaptiveSwinPreTrainedModel, to_map
from .swin_outputs import (
    AdaptiveSwinBackboneOutput,
    AdaptiveSwinImageClassifierOutput,
    AdaptiveSwinMaskedImageModelingOutput,
)


class AdaptiveSwinForImageClassification(AdaptiveSwinPreTrainedModel):
    """The encoder with a linear classifier on the mean of its last hidden states."""

    _auto_class = "AutoModelForImageClassification"

    def __init__(self, config: AdaptiveSwinConfig):
        super().__init__(config)
        # transformers guesses it by the name of the class, and of a subclass might guess a language model's.
        self.loss_type = "ForImageClassification"
        self.num_labels = config.num_labels
        self.swin = AdaptiveSwinModel(config, add_pooling_layer=False)
        self.pooling = MeanPooling(config)
        self.classifier = (
            nn.Linear(config.hidden_size, config.num_labels) if config.num_labels else nn.Identity()
        )
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        labels: torch.Tensor | None = None,
        interpolate_pos_encoding: bool | None = None,
        **kwargs,
    ) -> AdaptiveSwinImageClassifierOutput:
        """
        Args:
            pixel_values: see `AdaptiveSwinModel.forward`, which takes the other arguments as well.
            labels: as `AdaptiveViTForImageClassification.forward` takes them.

        Raises:
            ValueError: if a label is outside the classes.
        """
        check_tensors(labels=labels)
        outputs = self.swin(
            pixel_values, interpolate_pos_encoding=interpolate_pos_encoding, return_dict=True, **kwargs
        )
        states = outputs.last_hidden_state
        logits = self.classifier(self.pooling(states, states.shape[1], None))
        loss = None
        if labels is not None:
            loss = classification_loss(self, labels, logits)
            if outputs.selection_loss is not None:
                loss = loss + outputs.selection_loss
        return AdaptiveSwinImageClassifierOutput(
            loss=loss,
            logits=logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            reshaped_hidden_states=outputs.reshaped_hidden_states,
            selected_patches=outputs.selected_patches,
            selected_windows=outputs.selected_windows,
            selected_shifted_windows=outputs.selected_shifted_windows,
            patch_scores=outputs.patch_scores,
            spatial_shapes=outputs.spatial_shapes,
            selection_loss=outputs.selection_loss,
        )


class AdaptiveSwinForMaskedImageModeling(AdaptiveSwinPreTrainedModel):
    """The encoder with a decoder that reconstructs masked patches (SimMIM, Xie et al., 2021)."""

    _auto_class = "AutoModelForMaskedImageModeling"

    def __init__(self, config: AdaptiveSwinConfig):
        if config.patch_selector is not None:
            raise ValueError(
                f"Masked image modelling reconstructs every patch, but patch_selector={config.patch_selector!r} passes "
                "over some. Pass patch_selector=None, num_selected_windows=None."
            )
        super().__init__(config)
        self.swin = AdaptiveSwinModel(config, add_pooling_layer=False, use_mask_token=True)
        self.decoder = MaskedImageDecoder(config)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        bool_masked_pos: torch.BoolTensor | None = None,
        interpolate_pos_encoding: bool | None = None,
        **kwargs,
    ) -> AdaptiveSwinMaskedImageModelingOutput:
        """
        Args:
            pixel_values: `(B, C, H, W)` images.
            bool_masked_pos: `(B, N)` bool, True for patches to mask; the loss is computed on them.

        Raises:
            ValueError: if masks are given and `encoder_stride` is not what a cell of the last stage has of the image.
        """
        patch_size = self.swin.embeddings.patch_embeddings.patch_size
        strides = tuple(side * 2 ** (self.config.num_layers - 1) for side in patch_size)
        stride = self.config.encoder_stride
        if bool_masked_pos is not None and strides != (stride, stride):
            raise ValueError(
                f"The reconstruction must have the size of the image, so encoder_stride={stride} must be {strides[0]}, what "
                f"a cell of the last stage has of it (patch_size={self.config.patch_size}, {self.config.num_layers} stages)."
            )
        check_pixel_values(pixel_values)
        outputs = self.swin(
            pixel_values,
            bool_masked_pos=bool_masked_pos,
            interpolate_pos_encoding=interpolate_pos_encoding,
            return_dict=True,
            **kwargs,
        )
        height, width = pixel_values.shape[-2:]
        rows, columns = -(-height // patch_size[0]), -(-width // patch_size[1])
        last = tuple(-(-side // 2 ** (self.config.num_layers - 1)) for side in (rows, columns))
        # Padding is cut off again.
        reconstruction = self.decoder(to_map(outputs.last_hidden_state, last))[..., :height, :width]
        loss = None
        if bool_masked_pos is not None:
            masked = bool_masked_pos.unflatten(1, (rows, columns))
            loss = masked_reconstruction_loss(pixel_values, reconstruction, masked, patch_size)
        return AdaptiveSwinMaskedImageModelingOutput(
            loss=loss,
            reconstruction=reconstruction,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            reshaped_hidden_states=outputs.reshaped_hidden_states,
            spatial_shapes=outputs.spatial_shapes,
        )


class AdaptiveSwinBackbone(StagesMixin, AdaptiveSwinModel):
    """Feature maps for transformers' detection and segmentation models, by `AutoBackbone`.

    Windows are what they are on any grid (`always_partition`), as in transformers' backbone of Swin. Cells of windows that
    are not computed on have the state that they came with.

    Args:
        config: `out_features` or `out_indices` name the stages: "stem" (0) is what enters the first stage, "stage<n>" (n)
            what leaves the blocks of stage n, before cells are merged; by default the last.
    """

    _auto_class = "AutoBackbone"
    _keys_to_ignore_on_load_unexpected = [
        *AdaptiveSwinModel._keys_to_ignore_on_load_unexpected,
        r"^(swin\.)?layernorm\.",
        r"^classifier\.",
    ]

    def __init__(self, config: AdaptiveSwinConfig):
        super().__init__(config, add_pooling_layer=False)
        widths = [config.embed_dim * 2**stage for stage in range(config.num_layers)]
        self.num_features = [config.embed_dim, *widths]
        norms = {}
        if config.apply_layernorm:
            norms = {
                stage: nn.LayerNorm(channels)
                for stage, channels in zip(self.out_features, self.channels, strict=True)
            }
        self.hidden_states_norms = nn.ModuleDict(norms)
        # A map has a norm of its own; this one would get no gradient.
        self.layernorm = nn.Identity()
        self.post_init()

    @can_return_tuple
    def forward(
        self, pixel_values: torch.Tensor, always_partition: bool = True, **kwargs
    ) -> AdaptiveSwinBackboneOutput:
        """
        Args:
            pixel_values: `(B, C, H, W)`; `AdaptiveSwinModel.forward` takes the other arguments as well.

        Returns:
            `feature_maps`, one for each of `out_features`, `(B, D, R, S)`.
        """
        done = self._compute(pixel_values, always_partition=always_partition, **kwargs)
        states = {"stem": (done.embeddings, done.stages[0].grid)}
        for number, stage in enumerate(done.stages, start=1):
            states[f"stage{number}"] = (stage.states, stage.grid)
        maps = []
        for name in self.out_features:
            values, grid = states[name]
            if name in self.hidden_states_norms:
                values = self.hidden_states_norms[name](values)
            maps.append(to_map(values, grid))
        return AdaptiveSwinBackboneOutput(
            feature_maps=tuple(maps),
            hidden_states=done.outputs.hidden_states,
            attentions=done.outputs.attentions,
            selected_patches=done.outputs.selected_patches,
            selection_loss=done.outputs.selection_loss,
        )


__all__ = [
    "AdaptiveSwinBackbone",
    "AdaptiveSwinForImageClassification",
    "AdaptiveSwinForMaskedImageModeling",
    "AdaptiveSwinModel",
    "AdaptiveSwinPreTrainedModel",
]
