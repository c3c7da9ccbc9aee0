"""Adaptive Vision Transformer: the models that users load, and their heads. Shape legend: `tokens.py`."""

import torch
from torch import nn
from transformers.utils import logging
from transformers.utils.generic import can_return_tuple

from .base_model import AdaptiveViTModel
from .configuration_adaptive_vit import AdaptiveViTConfig
from .cutting import cut_patches
from .elastic import ElasticClassifier
from .heads import (
    POOLINGS,
    MaskedImageDecoder,
    Pooling,
    classification_loss,
    distillation_loss,
    loss_per_image,
    masked_reconstruction_loss,
)
from .input_checks import check_pixel_values, check_tensors
from .options import type_of
from .outputs import (
    AdaptiveViTBackboneOutput,
    AdaptiveViTImageClassifierOutput,
    AdaptiveViTMaskedImageModelingOutput,
    AdaptiveViTModelOutput,
)
from .pretrained import AdaptiveViTPreTrainedModel
from .pretraining import AdaptiveViTForPreTraining
from .scout import RECORD_NOTHING
from .selection_policy import reinforce_loss
from .semantic_segmentation import AdaptiveViTForSemanticSegmentation
from .stages import StagesMixin


logger = logging.get_logger(__name__)


class AdaptiveViTForImageClassification(AdaptiveViTPreTrainedModel):
    """The encoder with a linear classifier on the CLS token, or on what else `config.pooling` makes of the tokens."""

    _auto_class = "AutoModelForImageClassification"

    def __init__(self, config: AdaptiveViTConfig):
        super().__init__(config)
        # transformers guesses it by the name of the class, and of a subclass might guess a language model's.
        self.loss_type = "ForImageClassification"
        self.num_labels = config.num_labels
        # Pooling by attention has weights, which the encoder keeps for its `pooler_output`.
        has_query = config.pooling == "map"
        self.vit = AdaptiveViTModel(config, add_pooling_layer=has_query)
        self.plain_pooling = None if has_query else POOLINGS[config.pooling](config)
        size = config.hidden_size * self.pooling.num_vectors
        self.pre_classifier = None
        if config.classifier_hidden_size is not None:
            self.pre_classifier = nn.Linear(size, config.classifier_hidden_size)
            size = config.classifier_hidden_size
        self.classifier = nn.Linear(size, config.num_labels) if config.num_labels else nn.Identity()
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
        inputs = {
            "pixel_values": pixel_values,
            "interpolate_pos_encoding": interpolate_pos_encoding,
            **kwargs,
        }
        check_tensors(labels=labels)
        outputs = self.vit(**inputs, return_dict=True)
        logits = self._classify(outputs)
        loss, selection_loss = None, outputs.selection_loss
        if labels is not None:
            loss = classification_loss(self, labels, logits)
            if self.training:
                losses = self._selection_losses(labels.to(logits.device), logits, outputs, inputs)
                if selection_loss is not None:
                    losses.append(selection_loss)
                if losses:
                    selection_loss = sum(losses)
                    loss = loss + selection_loss
        return AdaptiveViTImageClassifierOutput(
            loss=loss,
            logits=logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            selected_patches=outputs.selected_patches,
            patch_scores=outputs.patch_scores,
            patch_coordinates=outputs.patch_coordinates,
            spatial_shapes=outputs.spatial_shapes,
            token_coordinates=outputs.token_coordinates,
            token_sizes=outputs.token_sizes,
            token_assignments=outputs.token_assignments,
            selection_loss=selection_loss,
        )

    @property
    def pooling(self) -> Pooling:
        """The module that pools what the classifier reads."""
        return self.vit.pooler if self.plain_pooling is None else self.plain_pooling

    def _classify(self, outputs: AdaptiveViTModelOutput) -> torch.Tensor:
        if self.plain_pooling is None:
            return self._answer(outputs.pooler_output)
        num_tokens = outputs.token_coordinates.shape[1]
        return self._answer(self._pool(outputs.last_hidden_state, num_tokens, outputs.token_sizes))

    def _classify_dense(self, outputs: AdaptiveViTModelOutput) -> torch.Tensor:
        """The answer that all tokens which entered the encoder give."""
        weights = None if outputs.patch_mask is None else outputs.patch_mask.float()
        num_tokens = outputs.patch_coordinates.shape[1]
        return self._answer(self._pool(outputs.dense_hidden_state, num_tokens, weights))

    def _pool(
        self, hidden_states: torch.Tensor, num_tokens: int, weights: torch.Tensor | None
    ) -> torch.Tensor:
        pooled = self.pooling(hidden_states, num_tokens, weights)
        if type_of(self.config.final_norm) == "pooled":
            pooled = self.vit.layernorm(pooled.unsqueeze(1)).squeeze(1)
        return pooled

    def _answer(self, pooled: torch.Tensor) -> torch.Tensor:
        if self.pre_classifier is not None:
            pooled = self.pre_classifier(pooled).tanh()
        return self.classifier(pooled)

    def _selection_losses(
        self,
        labels: torch.Tensor,
        logits: torch.Tensor,
        outputs: AdaptiveViTModelOutput,
        inputs: dict[str, torch.Tensor],
    ) -> list[torch.Tensor]:
        """What selectors and reducers learn from the answer."""
        config, losses = self.config, []
        if outputs.selection_log_prob is not None:
            with torch.no_grad():
                kwargs = {**inputs, **RECORD_NOTHING, "selected_patches": outputs.favourite_patches}
                favourites = self._classify(self.vit(**kwargs))
            rewards = [
                -loss_per_image(labels, answer, config.problem_type)
                for answer in (logits.detach(), favourites)
            ]
            weight = self.vit.selector.policy_loss_weight
            losses.append(weight * reinforce_loss(outputs.selection_log_prob, *rewards))
        if outputs.dense_hidden_state is not None and config.problem_type != "regression":
            with torch.no_grad():
                teacher = self._classify_dense(outputs)
            divergence = distillation_loss(logits, teacher, config.problem_type)
            losses.append(self.vit.pluggable_parts()["token_reducer"].distillation_weight * divergence)
        return losses


class AdaptiveViTForVideoClassification(AdaptiveViTForImageClassification):
    """The same for videos `(B, T, C, H, W)`, and for volumes, whose slices are their frames: `config.num_frames` is set."""

    _auto_class = "AutoModelForVideoClassification"
    _videos = True
    input_modalities = ("video",)


class AdaptiveViTForElasticImageClassification(ElasticClassifier, AdaptiveViTForImageClassification):
    """A classifier that is many: every training step runs sub-networks of it, which share their weights.

    AutoFormer (Chen et al., 2021); with `"distillation"` in `config.elastic_space` as "Universally Slimmable
    Networks" (Yu & Huang, 2019) and BigNAS (Yu et al., 2020). `config.elastic_space` says what may differ
    between sub-networks. In evaluation it is the largest, or what `set_subnetwork` says. Its checkpoint is
    that of the largest as an ordinary `AdaptiveViTForImageClassification` as well, and `extract` makes one of
    any other.

    With DistributedDataParallel all processes run the same sub-networks; without distillation some parameters
    get no gradient in a step, so that it needs `ddp_find_unused_parameters=True`. FSDP, which shards
    parameters, and activation checkpointing are not for it; a class of the user's own must take its first
    channels for a narrower one.
    """

    _ordinary_class = AdaptiveViTForImageClassification


class AdaptiveViTForMaskedImageModeling(AdaptiveViTPreTrainedModel):
    """The encoder with a decoder that reconstructs masked patches (SimMIM, Xie et al., 2021)."""

    _auto_class = "AutoModelForMaskedImageModeling"

    def __init__(self, config: AdaptiveViTConfig):
        if config.patch_selector is not None:
            raise ValueError(
                f"Masked image modelling reconstructs every patch, but patch_selector={config.patch_selector!r} drops "
                "some. Pass patch_selector=None, num_selected_patches=None."
            )
        if config.token_reducer is not None:
            raise ValueError(
                f"Masked image modelling reconstructs every patch, but token_reducer={config.token_reducer!r} drops or "
                "merges some. Pass token_reducer=None."
            )
        if config.thumbnail_context:
            raise ValueError(
                "Masked image modelling hides patches, but thumbnail_context shows all of the image. Pass "
                "thumbnail_context=False."
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
        check_pixel_values(pixel_values)
        check_tensors(bool_masked_pos=bool_masked_pos)
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
                whole, reconstruction, bool_masked_pos.unflatten(1, (rows, columns)), patch_size
            )
        return AdaptiveViTMaskedImageModelingOutput(
            loss=loss,
            reconstruction=reconstruction,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            spatial_shapes=outputs.spatial_shapes,
        )


class AdaptiveViTBackbone(StagesMixin, AdaptiveViTModel):
    """Feature maps for transformers' detection and segmentation models, by `AutoBackbone`.

    The maps have the full grid whatever is selected or reduced; see `restore` of `AdaptiveViTModel.forward`.

    Args:
        config: `out_features` or `out_indices` name the stages: "stem" (0) is what enters the encoder, "stage<n>" (n)
            what leaves block n; by default the last. `apply_layernorm` and `reshape_hidden_states` as in DINOv2.

    What learns to select or reduce learns under a classifier; a decoder of transformers does not add `selection_loss`.
    """

    _auto_class = "AutoBackbone"
    _videos = None

    def __init__(self, config: AdaptiveViTConfig):
        super().__init__(config, add_pooling_layer=False)
        learning = {"policy", "distilled", "gumbel"} & {
            type_of(config.patch_selector),
            type_of(config.token_reducer),
        }
        if learning:
            logger.warning_once(
                f"{learning.pop()!r} learns from a loss that transformers' decoders do not add. Train it under "
                "AdaptiveViTForImageClassification first, or add selection_loss of this model's outputs yourself."
            )
        self.num_features = [config.hidden_size] * (config.num_hidden_layers + 1)

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        patch_coordinates: torch.Tensor | None = None,
        spatial_shapes: torch.LongTensor | None = None,
        pixel_attention_mask: torch.Tensor | None = None,
        **kwargs,
    ) -> AdaptiveViTBackboneOutput:
        """
        Args:
            pixel_values, patch_coordinates, spatial_shapes, pixel_attention_mask: see `AdaptiveViTModel.forward`, which
                takes `selected_patches` and `sample_selection` as well.

        Returns:
            `feature_maps`, one for each of `out_features`: `(B, D, R, S)`, of videos `(B, D, T', R, S)`; or, with `reshape_hidden_states=False`,
            `(B, 1 + registers + R*S, D)`. Patches that never arrived have zeros.

        Raises:
            ValueError: if the images of the batch have different grids.
        """
        stages = tuple(self.config.stage_names.index(name) for name in self.out_features)
        patches = cut_patches(
            self.config, pixel_values, patch_coordinates, spatial_shapes, pixel_attention_mask, None
        )
        outputs, stages = self._compute(patches, stages=stages, normed=self.config.apply_layernorm, **kwargs)
        grid = outputs.spatial_shapes
        if not torch.compiler.is_compiling() and (grid != grid[:1]).any():
            raise ValueError(
                f"Feature maps of one batch have one size, but the images have grids of {grid.tolist()} rows and "
                "columns. Give images of one size, or one at a time."
            )
        if self.config.reshape_hidden_states:
            cells = patches.full_grid or grid[0].tolist()
            maps = [states.transpose(1, 2).unflatten(2, cells) for _, states in stages]
        else:
            maps = [torch.cat(parts, dim=1) for parts in stages]
        return AdaptiveViTBackboneOutput(
            feature_maps=tuple(maps),
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            selected_patches=outputs.selected_patches,
            selection_loss=outputs.selection_loss,
        )


__all__ = [
    "AdaptiveViTBackbone",
    "AdaptiveViTForElasticImageClassification",
    "AdaptiveViTForImageClassification",
    "AdaptiveViTForMaskedImageModeling",
    "AdaptiveViTForPreTraining",
    "AdaptiveViTForSemanticSegmentation",
    "AdaptiveViTForVideoClassification",
    "AdaptiveViTModel",
    "AdaptiveViTPreTrainedModel",
]
