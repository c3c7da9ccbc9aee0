"""Adaptive Vision Transformer: patches, selection, positions, encoder, head. Shape legend: `tokens.py`."""

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.conversion_mapping import (
    WeightRenaming,
    get_checkpoint_conversion_mapping,
    register_checkpoint_conversion_mapping,
)
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_outputs import BaseModelOutput
from transformers.utils.generic import can_return_tuple
from transformers.utils.output_capturing import capture_outputs

from .configuration_adaptive_vit import AdaptiveViTConfig
from .embeddings import AdaptiveViTEmbeddings
from .encoder import AdaptiveViTAttention, AdaptiveViTLayer, LayerScale, make_norm
from .heads import (
    POOLINGS,
    AdaptiveViTPooler,
    MaskedImageDecoder,
    check_labels,
    masked_reconstruction_loss,
)
from .outputs import (
    AdaptiveViTImageClassifierOutput,
    AdaptiveViTMaskedImageModelingOutput,
    AdaptiveViTModelOutput,
    ScoutOutput,
)
from .patches import ImagePatches, to_pair
from .positions import PositionEncoding
from .selection import PATCH_SELECTORS, keep_top, resolve_num_selected
from .tokens import PatchTokens


class AdaptiveViTPreTrainedModel(PreTrainedModel):
    """Loading, saving and initialisation."""

    config: AdaptiveViTConfig
    config_class = AdaptiveViTConfig
    base_model_prefix = "vit"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    _no_split_modules = ["AdaptiveViTEmbeddings", "AdaptiveViTLayer"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _can_record_outputs = {
        "hidden_states": AdaptiveViTLayer,
        "attentions": AdaptiveViTAttention,
    }
    _input_embed_layer = "patch_embeddings"
    # The loss is a mean over the batch. Without this, Trainer takes `**kwargs` for a promise to divide by
    # `num_items_in_batch` and does not scale for gradient accumulation.
    accepts_loss_kwargs = False

    def __init__(self, config: AdaptiveViTConfig, *args, **kwargs):
        # from_pretrained(..., field=value) sets fields one by one after the configuration was checked.
        config.validate_architecture()
        super().__init__(config, *args, **kwargs)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        super()._init_weights(module)
        std = self.config.initializer_range
        if isinstance(module, AdaptiveViTEmbeddings):
            init.trunc_normal_(module.cls_token, mean=0.0, std=std)
            if module.register_tokens is not None:
                init.trunc_normal_(module.register_tokens, mean=0.0, std=std)
            if module.mask_token is not None:
                init.zeros_(module.mask_token)
        elif isinstance(module, PositionEncoding):
            module.reset_parameters(std)
        elif isinstance(module, LayerScale):
            init.constant_(module.lambda1, self.config.layerscale_value)

    def set_selection_relaxation(self, relaxation: float) -> None:
        """Loosens selection while training: 0 keeps what the configuration says, 1 keeps everything.

        In between the number of patches is K + relaxation * (N - K). Evaluation always measures the target.

        Raises:
            ValueError: if `relaxation` is outside [0, 1].
        """
        if not 0 <= relaxation <= 1:
            raise ValueError(f"relaxation={relaxation} must lie in [0, 1].")
        for module in self.modules():
            if isinstance(module, AdaptiveViTModel):
                module.selection_relaxation = relaxation

    def save_pretrained(self, save_directory, *args, **kwargs):
        """As in transformers; the configuration names every Auto class, whichever class was saved."""
        # transformers would undo the renaming of stock keys (see the end of this file), and Trainer, which resumes with
        # a plain load_state_dict, would find nothing.
        kwargs.setdefault("save_original_format", False)
        if type(self).__module__ == __name__:  # a user's subclass ships another file
            self.config.auto_map = {**(getattr(self.config, "auto_map", None) or {}), **AUTO_MAP}
        return super().save_pretrained(save_directory, *args, **kwargs)


class AdaptiveViTModel(AdaptiveViTPreTrainedModel):
    """The encoder without a head.

    Args:
        config: see `AdaptiveViTConfig`.
        add_pooling_layer: whether to add a dense layer on the CLS token, as ViT does.
        use_mask_token: whether to have a mask token for masked image modelling.
    """

    _auto_class = "AutoModel"

    def __init__(
        self, config: AdaptiveViTConfig, add_pooling_layer: bool = True, use_mask_token: bool = False
    ):
        super().__init__(config)
        self.embeddings = AdaptiveViTEmbeddings(config, use_mask_token=use_mask_token)
        self.selector = PATCH_SELECTORS[config.patch_selector](config) if config.patch_selector else None
        self.layers = nn.ModuleList(
            AdaptiveViTLayer(config, index) for index in range(config.num_hidden_layers)
        )
        self.layernorm = make_norm(config)
        self.pooler = AdaptiveViTPooler(config) if add_pooling_layer else None
        self.selection_relaxation = 0.0
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        bool_masked_pos: torch.BoolTensor | None = None,
        interpolate_pos_encoding: bool | None = None,
        patch_coordinates: torch.Tensor | None = None,
        spatial_shapes: torch.LongTensor | None = None,
        pixel_attention_mask: torch.Tensor | None = None,
        **kwargs,
    ) -> AdaptiveViTModelOutput:
        """
        Args:
            pixel_values: `(B, C, H, W)` images of any size of at least one patch; or `(B, N, P*P*C)` patches that
                were cut already, channel last in each patch, together with the three arguments below.
            bool_masked_pos: `(B, N)` bool, True for patches that the mask token replaces.
            interpolate_pos_encoding: False refuses images of another size than `config.image_size`, as
                transformers' ViT does; otherwise positions are evaluated for the size at hand.
            patch_coordinates: `(B, N, 2)` row and column of each cut patch.
            spatial_shapes: `(B, 2)` rows and columns of each image's full grid.
            pixel_attention_mask: `(B, N)` zero for cut patches that are padding.

        Raises:
            ValueError: if the input has the wrong shape, is smaller than one patch, or is not finite.
        """
        patches = self._cut(
            pixel_values, patch_coordinates, spatial_shapes, pixel_attention_mask, interpolate_pos_encoding
        )
        indices, mask, scores = self._select(patches)
        sequence, tokens = self.embeddings(patches, indices, bool_masked_pos)
        tokens.mask = mask
        _check_finite(sequence, "pixel_values")
        outputs = self._encode(sequence, tokens, return_dict=True, **kwargs)
        selected = tokens.raster_indices()
        return AdaptiveViTModelOutput(
            last_hidden_state=outputs.last_hidden_state,
            pooler_output=self.pooler(outputs.last_hidden_state) if self.pooler is not None else None,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            selected_patches=selected if mask is None else selected.masked_fill(~mask, -1),
            patch_scores=scores,
            patch_coordinates=tokens.coordinates,
            spatial_shapes=tokens.grid,
            patch_mask=mask,
        )

    def _cut(
        self,
        pixel_values: torch.Tensor,
        patch_coordinates: torch.Tensor | None,
        spatial_shapes: torch.Tensor | None,
        pixel_attention_mask: torch.Tensor | None,
        interpolate_pos_encoding: bool | None,
    ) -> ImagePatches:
        config = self.config
        if pixel_values.ndim == 3:
            if patch_coordinates is None or spatial_shapes is None:
                raise ValueError(
                    f"pixel_values of shape {tuple(pixel_values.shape)} are cut patches and need patch_coordinates "
                    "(B, N, 2) and spatial_shapes (B, 2). One whole image needs a batch dimension: (1, C, H, W)."
                )
            return ImagePatches.from_flat(
                pixel_values,
                patch_coordinates,
                spatial_shapes,
                pixel_attention_mask,
                config.patch_size,
                config.num_channels,
            )
        if pixel_values.ndim != 4:
            raise ValueError(
                f"pixel_values must be images (B, C, H, W) or cut patches (B, N, P*P*C), got shape "
                f"{tuple(pixel_values.shape)}."
            )
        if pixel_values.shape[1] != config.num_channels:
            raise ValueError(
                f"pixel_values have {pixel_values.shape[1]} channels, the model was built for "
                f"num_channels={config.num_channels}. Shape got: {tuple(pixel_values.shape)}, expected (B, C, H, W)."
            )
        if interpolate_pos_encoding is False and pixel_values.shape[-2:] != to_pair(config.image_size):
            raise ValueError(
                f"Images of {pixel_values.shape[-2]}x{pixel_values.shape[-1]} pixels do not match "
                f"image_size={config.image_size}, and interpolate_pos_encoding=False forbids other sizes."
            )
        return ImagePatches.from_images(pixel_values, config.patch_size)

    def _select(
        self, patches: ImagePatches
    ) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
        """Indices `(B, K)` of the patches to keep (None: all), their mask `(B, K)`, scores of all `(B, N)`."""
        if self.selector is None:
            return None, patches.mask, None
        counts, num_selected = self._num_selected(patches)
        if patches.image is None and num_selected >= patches.num_patches:
            # The data loader selected already.
            return None, patches.mask, None
        scores = self.selector.score(patches, num_selected if counts is None else counts, self._scout)
        _check_finite(scores, "pixel_values")
        if patches.mask is not None:
            scores = scores.masked_fill(~patches.mask, -torch.inf)
        indices, mask = keep_top(scores, num_selected, counts)
        return indices, mask, scores

    def _num_selected(self, patches: ImagePatches) -> tuple[torch.Tensor | None, int]:
        """How many patches each image keeps, `(B,)` or None if all keep the same, and the largest of them."""
        wanted = self.config.num_selected_patches
        relaxation = self.selection_relaxation if self.training else 0.0
        if patches.image is not None:
            target = resolve_num_selected(wanted, patches.num_patches)
            return None, target + round(relaxation * (patches.num_patches - target))
        # Where there may be fewer than K patches, the image processor says so by a mask.
        resolve_num_selected(wanted, patches.num_patches if patches.mask is None else max(1, wanted))
        present = patches.grid.prod(dim=1)  # (B,)
        target = (
            (present.double() * wanted).round().clamp(min=1).long() if isinstance(wanted, float) else wanted
        )
        counts = target + ((present - target).clamp(min=0) * relaxation).round().long()
        if patches.mask is not None:
            counts = counts.minimum(patches.mask.sum(dim=1))
        if isinstance(wanted, int) and relaxation == 0:
            return (None if patches.mask is None else counts), wanted
        return counts, int(counts.max())

    @capture_outputs(tie_last_hidden_states=False)
    def _encode(
        self,
        sequence: torch.Tensor,
        tokens: PatchTokens,
        output_attentions: bool | None = None,
        # Read by the decorator, and named here so that misspelt arguments are refused.
        output_hidden_states: bool | None = None,
    ) -> BaseModelOutput:
        """Runs the blocks; hidden states and attentions are recorded if asked for."""
        if output_attentions is None:
            output_attentions = self.config.output_attentions
        attention_mask = self._attention_mask(sequence, tokens.mask, output_attentions)
        rotation = self.embeddings.position_encoding.rotation(tokens)
        for layer in self.layers:
            sequence = layer(sequence, attention_mask, rotation, output_attentions)
        return BaseModelOutput(last_hidden_state=self.layernorm(sequence))

    def _attention_mask(
        self, sequence: torch.Tensor, patch_mask: torch.Tensor | None, output_attentions: bool
    ) -> torch.Tensor | None:
        """The mask of padded patches in the form that the attention implementation wants; None without padding."""
        if patch_mask is None:
            return None
        prefix = patch_mask.new_ones(patch_mask.shape[0], sequence.shape[1] - patch_mask.shape[1])
        mask = torch.cat((prefix, patch_mask), dim=1)
        if output_attentions:
            return mask[:, None, None]  # for the eager implementation, see AdaptiveViTAttention
        return create_bidirectional_mask(config=self.config, inputs_embeds=sequence, attention_mask=mask)

    def _scout(self, thumbnails: torch.Tensor, num_layers: int) -> torch.Tensor:
        """CLS attention over thumbnails `(B, C, h, w)` in block `num_layers`, `(B, rows, columns)`."""
        patches = ImagePatches.from_images(thumbnails, self.config.patch_size)
        record_nothing = {"output_hidden_states": False, "output_attentions": False, "return_dict": True}
        attention = self._run_scout(patches, num_layers, **record_nothing).attention
        return attention.unflatten(1, patches.pixels.shape[1:3])

    # A recorder of its own keeps the scout's pass through the blocks out of what the caller records.
    @capture_outputs(tie_last_hidden_states=False)
    @torch.no_grad()
    def _run_scout(self, patches: ImagePatches, num_layers: int, **kwargs) -> ScoutOutput:
        sequence, tokens = self.embeddings(patches)
        rotation = self.embeddings.position_encoding.rotation(tokens)
        for layer in self.layers[: num_layers - 1]:
            sequence = layer(sequence, None, rotation)
        attention = self.layers[num_layers - 1](sequence, None, rotation, cls_attention_only=True)
        return ScoutOutput(attention=attention[:, -patches.num_patches :])


class AdaptiveViTForImageClassification(AdaptiveViTPreTrainedModel):
    """The encoder with a linear classifier on the CLS token, or on the mean over patches (`config.pooling`)."""

    _auto_class = "AutoModelForImageClassification"

    def __init__(self, config: AdaptiveViTConfig):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.vit = AdaptiveViTModel(config, add_pooling_layer=False)
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
    ) -> AdaptiveViTImageClassifierOutput:
        """
        Args:
            pixel_values: see `AdaptiveViTModel.forward`, which takes the other arguments as well.
            labels: `(B,)` class indices (-100 to ignore); or, with `config.problem_type` set to
                "single_label_classification", `(B, num_labels)` class probabilities, to
                "multi_label_classification", `(B, num_labels)` numbers from 0 to 1, to "regression", `(B,)` or
                `(B, num_labels)` numbers. Where it is not set, the first labels decide, as in transformers.

        Raises:
            ValueError: if a label is outside the classes.
        """
        outputs = self.vit(
            pixel_values, interpolate_pos_encoding=interpolate_pos_encoding, return_dict=True, **kwargs
        )
        pooled = POOLINGS[self.config.pooling](
            outputs.last_hidden_state, outputs.selected_patches.shape[1], outputs.patch_mask
        )
        logits = self.classifier(pooled)
        return AdaptiveViTImageClassifierOutput(
            loss=None if labels is None else self._loss(labels, logits),
            logits=logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            selected_patches=outputs.selected_patches,
            patch_scores=outputs.patch_scores,
            patch_coordinates=outputs.patch_coordinates,
            spatial_shapes=outputs.spatial_shapes,
        )

    def _loss(self, labels: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        problem = self.config.problem_type
        labels = labels.to(logits.device)
        if problem in ("multi_label_classification", "regression"):
            labels = labels.to(logits.dtype)
        if not torch.compiler.is_compiling():
            check_labels(labels, self.num_labels, problem)
        if problem == "single_label_classification" and labels.is_floating_point():
            return nn.functional.cross_entropy(logits.float(), labels.float())
        return self.loss_function(labels, logits, self.config)


class AdaptiveViTForMaskedImageModeling(AdaptiveViTPreTrainedModel):
    """The encoder with a decoder that reconstructs masked patches (SimMIM, Xie et al., 2021)."""

    _auto_class = "AutoModelForMaskedImageModeling"

    def __init__(self, config: AdaptiveViTConfig):
        if config.patch_selector is not None:
            raise ValueError(
                f"Masked image modelling reconstructs every patch, but patch_selector={config.patch_selector!r} drops "
                "some. Pass patch_selector=None, num_selected_patches=None."
            )
        super().__init__(config)
        self.vit = AdaptiveViTModel(config, add_pooling_layer=False, use_mask_token=True)
        self.decoder = MaskedImageDecoder(config)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        bool_masked_pos: torch.BoolTensor | None = None,
        interpolate_pos_encoding: bool | None = None,
        **kwargs,
    ) -> AdaptiveViTMaskedImageModelingOutput:
        """
        Args:
            pixel_values: `(B, C, H, W)` images.
            bool_masked_pos: `(B, N)` bool, True for patches to mask; the loss is computed on them.

        Raises:
            ValueError: if masks are given and `encoder_stride` differs from `patch_size`.
        """
        patch_size, stride = self.vit.embeddings.patch_embeddings.patch_size, self.config.encoder_stride
        if bool_masked_pos is not None and patch_size != (stride, stride):
            raise ValueError(
                f"The reconstruction must have the size of the image, so encoder_stride={stride} must equal "
                f"patch_size={self.config.patch_size}."
            )
        if pixel_values.ndim != 4:
            raise ValueError(f"Whole images (B, C, H, W) are needed, got shape {tuple(pixel_values.shape)}.")
        outputs = self.vit(
            pixel_values,
            bool_masked_pos=bool_masked_pos,
            interpolate_pos_encoding=interpolate_pos_encoding,
            return_dict=True,
            **kwargs,
        )
        rows, columns = pixel_values.shape[-2] // patch_size[0], pixel_values.shape[-1] // patch_size[1]
        patches = outputs.last_hidden_state[:, -rows * columns :]
        reconstruction = self.decoder(patches.transpose(1, 2).unflatten(2, (rows, columns)))
        loss = None
        if bool_masked_pos is not None:
            whole = pixel_values[:, :, : rows * stride, : columns * stride]
            loss = masked_reconstruction_loss(
                whole, reconstruction, bool_masked_pos.unflatten(1, (rows, columns))
            )
        return AdaptiveViTMaskedImageModelingOutput(
            loss=loss,
            reconstruction=reconstruction,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            spatial_shapes=outputs.spatial_shapes,
        )


def _check_finite(values: torch.Tensor, source: str) -> None:
    """Refuses NaN and infinity where they enter, rather than in the loss; traced graphs go without."""
    if not torch.compiler.is_compiling() and not torch.isfinite(values).all():
        raise ValueError(
            f"{source} hold NaN or infinite values, or values too large for {values.dtype}. Check the image files "
            "and the normalisation."
        )


_MODULE = "modeling_adaptive_vit"
AUTO_MAP = {
    "AutoConfig": "configuration_adaptive_vit.AdaptiveViTConfig",
    "AutoModel": f"{_MODULE}.AdaptiveViTModel",
    "AutoModelForImageClassification": f"{_MODULE}.AdaptiveViTForImageClassification",
    "AutoModelForMaskedImageModeling": f"{_MODULE}.AdaptiveViTForMaskedImageModeling",
}

# Stock ViT checkpoints, with the key names of transformers 4 or 5, load into ours. Registered here and not in the
# package, because this file travels with checkpoints and the package does not.
register_checkpoint_conversion_mapping(
    "AdaptiveViTModel",
    [
        *get_checkpoint_conversion_mapping("ViTModel"),
        WeightRenaming(
            r"embeddings\.position_embeddings", "embeddings.position_encoding.position_embeddings"
        ),
    ],
    overwrite=True,
)


__all__ = [
    "AdaptiveViTForImageClassification",
    "AdaptiveViTForMaskedImageModeling",
    "AdaptiveViTModel",
    "AdaptiveViTPreTrainedModel",
]
