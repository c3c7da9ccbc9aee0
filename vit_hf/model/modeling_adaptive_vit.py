"""Adaptive Vision Transformer: the models that users load, and their heads."""

from dataclasses import dataclass, fields, replace

import torch
from torch import nn
from transformers import initialization as init
from transformers.modeling_outputs import (
    BackboneOutput,
    BaseModelOutputWithPooling,
    ImageClassifierOutput,
    MaskedImageModelingOutput,
    SemanticSegmenterOutput,
)
from transformers.utils import ModelOutput, logging
from transformers.utils.generic import can_return_tuple
from transformers.utils.output_capturing import capture_outputs

from .checkpoint_code import code_writers
from .configuration_adaptive_vit import AdaptiveViTConfig
from .heads import (
    POOLINGS,
    AdaptiveViTPooler,
    ImageClassifier,
    MaskedImageDecoder,
    Pooling,
    check_outputs,
    classification_loss,
    distillation_loss,
    loss_per_image,
    make_pooler,
    masked_reconstruction_loss,
    token_distillation_loss,
)
from .layers import AdaptiveViTLayer, Initialized, layer_contexts, make_final_norm, make_norm, normalize
from .mae_decoder import (
    MaskedAutoencoderDecoder,
    draw_mask,
    draw_noise,
    read_mae_options,
    reconstruction_loss,
)
from .options import type_of
from .patch_embeddings import (
    PATCH_EMBEDDINGS,
    HybridPatchEmbeddings,
)
from .patches import (
    ImagePatches,
    PatchTokens,
    TokenSequence,
    check_finite,
    check_pixel_values,
    check_tensors,
    split_tokens,
)
from .positions import POSITION_ENCODINGS
from .pretrained import AdaptiveViTPreTrainedModel
from .reducers import Stage, fill_grid, restore_tokens, trace_tokens
from .registry import find_class
from .segmentation import (
    SEGMENTATION_DECODERS,
    crop_labels,
    read_segmentation_options,
    segmentation_loss_per_image,
)
from .selection import ModelProbe, Selection, count_selected
from .selection_checks import check_selected_once, warn_if_all_kept, warn_if_nothing_reduced
from .selectors import reinforce_loss
from .sizes import thumbnail_sides, to_pair
from .stages import StagesMixin


@dataclass
class SelectionOutput(ModelOutput):
    """Selected patches: the fields that all outputs share.

    Attributes:
        selected_patches: `(B, K)` int64 raster indices of the patches computed on; -1 where an image had
            fewer.
        patch_scores: `(B, N)` the selector's scores of all patches, None without a selector.
        spatial_shapes: `(B, A)` int64 rows and columns of each image's full grid.
        selection_loss: what training a selector or reducer adds to the loss, if anything.
    """

    selected_patches: torch.LongTensor | None = None
    patch_scores: torch.FloatTensor | None = None
    spatial_shapes: torch.LongTensor | None = None
    selection_loss: torch.FloatTensor | None = None

    @classmethod
    def from_outputs(cls, outputs: ModelOutput, **values):
        """Copies the fields that `outputs` has as well; `values` override them."""
        names = [field.name for field in fields(outputs) if hasattr(cls, field.name)]
        return cls(**{**{name: getattr(outputs, name) for name in names}, **values})


@dataclass
class TokenOutput(SelectionOutput):
    """Selected patches, and where the tokens are.

    Attributes:
        patch_coordinates: `(B, K, A)` float row and column of the kept patches, in patches; of videos (time,
            row, column).
        token_coordinates: `(B, M, A)` float, where the last tokens are; of a merged one, the mean.
        token_sizes: `(B, M)` float, how many patches each stands for, 0 for padding; None if all stand for
            one. With `"cross_attention"` a kept patch stands for more the more its query attends to it, for 1
            on average.
        token_assignments: `(B, S, K)` int64, after each of the S reductions that had something to do: which
            token stands for each of the K that entered the encoder, -1 for dropped ones. None if nothing was
            reduced.
    """

    patch_coordinates: torch.FloatTensor | None = None
    token_coordinates: torch.FloatTensor | None = None
    token_sizes: torch.FloatTensor | None = None
    token_assignments: torch.LongTensor | None = None


@dataclass
class EncoderOutput(ModelOutput):
    """Output of the blocks; see `AdaptiveViTModelOutput`.

    Attributes:
        stages: a `Stage` for each number of blocks that was given, before the final norm.
        losses: of reducers, and of learning from the dense pass.
    """

    last_hidden_state: torch.FloatTensor | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None
    token_coordinates: torch.FloatTensor | None = None
    token_sizes: torch.FloatTensor | None = None
    token_assignments: torch.LongTensor | None = None
    dense_hidden_state: torch.FloatTensor | None = None
    stages: list | None = None
    losses: list | None = None


@dataclass
class AdaptiveViTModelOutput(TokenOutput, BaseModelOutputWithPooling):
    """Hidden states, and what was selected and why: see `TokenOutput` and `SelectionOutput`.

    Attributes:
        last_hidden_state: `(B, 1 + registers + thumbnail + M, D)`: CLS, registers, the tokens of the
            thumbnail with `thumbnail_context`, and the tokens that stand for patches: the K kept ones in
            raster order, or what a token reducer made of them. All of them after the last norm, unless
            `final_norm` says otherwise: also of a converted CLIP, whose original normalizes only what it
                pools (`model.post_layernorm` of it gives ours).
        pooler_output: `(B, D)`, or `(B, pooler_output_size)` of a dense layer; see `pooler` of the
            configuration.
        patch_mask: `(B, K)` bool, False where an image had fewer patches than the batch is wide; None if all
            count.
        restored_hidden_state: `(B, R*S, D)` for the full grid in raster order; see `restore` of the model.
        selection_log_prob: `(B,)` mean log-probability of the patches that a policy drew; None if none did.
        greedy_patches: `(B, K)` int64 raster indices of those it would have kept without drawing, -1 for
            none.
        dense_hidden_state: `(B, 1 + registers + thumbnail + K, D)` last hidden state without reduction and
            gradient; only while training a reducer that learns from it.
    """

    patch_mask: torch.BoolTensor | None = None
    restored_hidden_state: torch.FloatTensor | None = None
    selection_log_prob: torch.FloatTensor | None = None
    greedy_patches: torch.LongTensor | None = None
    dense_hidden_state: torch.FloatTensor | None = None


@dataclass
class AdaptiveViTImageClassifierOutput(TokenOutput, ImageClassifierOutput):
    """Logits `(B, num_labels)`, and what was selected."""


@dataclass
class AdaptiveViTMaskedImageModelingOutput(SelectionOutput, MaskedImageModelingOutput):
    """Reconstruction `(B, C, H, W)` in pixels, and the grid it was made on."""


@dataclass
class MaskedAutoencoderOutput(ModelOutput):
    """Fields of transformers' ViTMAE, in its order.

    Attributes:
        loss: mean squared error over the pixels of dropped patches.
        logits: `(B, N, P*P*C)` pixels of all patches, channel last in each.
        mask: `(B, N)` float, 1 for patches that were dropped, 0 for those that were kept (and for padding).
        ids_restore: `(B, N)` int64, where each patch is in a sequence of first the kept, then the dropped
            ones.
        hidden_states, attentions: of the encoder, whose last K tokens are the kept patches in that order.
    """

    loss: torch.FloatTensor | None = None
    logits: torch.FloatTensor | None = None
    mask: torch.FloatTensor | None = None
    ids_restore: torch.LongTensor | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None


@dataclass
class AdaptiveViTForPreTrainingOutput(SelectionOutput, MaskedAutoencoderOutput):
    """Reconstruction of the dropped patches, and the kept patches in the order in which they were drawn."""


@dataclass
class AdaptiveViTSemanticSegmenterOutput(TokenOutput, SemanticSegmenterOutput):
    """Logits `(B, num_labels, h, w)` for the whole image, and what was selected."""


@dataclass
class AdaptiveViTBackboneOutput(TokenOutput, BackboneOutput):
    """Feature maps, and what was selected."""


logger = logging.get_logger(__name__)

# For passes beside the main one, which are no part of the outputs that the caller records.
RECORD_NOTHING = {"output_hidden_states": False, "output_attentions": False, "return_dict": True}


class AdaptiveViTEmbeddings(Initialized, nn.Module):
    """Patch embeddings with their positions, and the tokens that have no place in the image."""

    def __init__(self, config, use_mask_token: bool = False):
        super().__init__()
        stem = PATCH_EMBEDDINGS[type_of(config.patch_embedding)]
        if config.backbone_config is not None:
            stem = HybridPatchEmbeddings
        self.patch_embeddings = stem(config)
        self.position_encoding = find_class(config, "position_encoding")(config)
        self.cls_token = nn.Parameter(torch.empty(1, 1, config.hidden_size)) if config.use_cls_token else None
        self.register_tokens = (
            nn.Parameter(torch.empty(1, config.num_register_tokens, config.hidden_size))
            if config.num_register_tokens
            else None
        )
        self.mask_token = nn.Parameter(torch.empty(1, 1, config.hidden_size)) if use_mask_token else None
        # Tells a thumbnail's tokens from those of patches. It starts at zero: nothing changes until it is
        # trained.
        self.scale_embedding = (
            nn.Parameter(torch.empty(1, 1, config.hidden_size)) if config.thumbnail_context else None
        )
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(
        self,
        patches: ImagePatches,
        selection: Selection | None = None,
        bool_masked_pos: torch.BoolTensor | None = None,
        thumbnails: ImagePatches | None = None,
    ) -> TokenSequence:
        """CLS, registers, the tokens of thumbnails and those of the selected patches, with positions added.

        Args:
            patches: all patches of the batch.
            selection: which of them to embed, or means of them; None for all.
            bool_masked_pos: `(B, N)` True for patches that the mask token replaces.
            thumbnails: patches of the images made small, which serve as context.
        """
        selection = Selection(None, patches.mask) if selection is None else selection
        tokens = self.patch_embeddings(patches, selection.indices, selection.weights)
        if bool_masked_pos is not None:
            if selection.indices is not None:
                bool_masked_pos = bool_masked_pos.gather(1, selection.indices)
            tokens = self._mask(tokens, bool_masked_pos)
        # By name, as torch cannot count the FLOPs of a module that is given a parameter by place.
        positions = self.position_encoding(tokens, cls_token=self.cls_token)
        parts = [part for part in (positions.cls_token, self.register_tokens) if part is not None]
        parts = [part.expand(tokens.features.shape[0], -1, -1) for part in parts]
        context = context_grid = None
        if thumbnails is not None:
            context, context_grid = thumbnails.coordinates, thumbnails.view_grid
            parts.append(self.embed_patches(thumbnails).features + self.scale_embedding)
        hidden_states = self.dropout(torch.cat((*parts, positions.features), dim=1))
        tokens = replace(tokens, features=positions.features, mask=selection.mask)
        return TokenSequence(hidden_states, tokens, context, context_grid)

    def embed_patches(self, patches: ImagePatches) -> PatchTokens:
        """All patches with their positions, without CLS, registers and dropout."""
        tokens = self.patch_embeddings(patches)
        return tokens.with_features(self.position_encoding(tokens).features)

    def reset_parameters(self, std: float) -> None:
        for tokens in (self.cls_token, self.register_tokens):
            if tokens is not None:
                init.trunc_normal_(tokens, mean=0.0, std=std)
        for tokens in (self.mask_token, self.scale_embedding):
            if tokens is not None:
                init.zeros_(tokens)

    def _mask(self, tokens: PatchTokens, masked: torch.Tensor) -> PatchTokens:
        if masked.shape != tokens.features.shape[:2]:
            raise ValueError(
                f"bool_masked_pos has the shape {tuple(masked.shape)}, but there are "
                f"{tuple(tokens.features.shape[:2])} "
                "patches (images, patches of each)."
            )
        if self.mask_token is None:
            raise ValueError(
                "bool_masked_pos needs a mask token: use AdaptiveViTForMaskedImageModeling, or build "
                "AdaptiveViTModel(config, use_mask_token=True)."
            )
        return tokens.with_features(
            torch.where(masked.bool().unsqueeze(-1), self.mask_token, tokens.features)
        )


class AdaptiveViTModel(AdaptiveViTPreTrainedModel):
    """The encoder without a head.

    Args:
        config: see `AdaptiveViTConfig`.
        add_pooling_layer: whether to have a `pooler_output`, see `pooler` of the configuration.
        use_mask_token: whether to have a mask token for masked image modeling.
    """

    _auto_class = "AutoModel"
    _videos = None

    def __init__(
        self, config: AdaptiveViTConfig, add_pooling_layer: bool = True, use_mask_token: bool = False
    ):
        super().__init__(config)
        self.embeddings = AdaptiveViTEmbeddings(config, use_mask_token=use_mask_token)
        selector, reducer = find_class(config, "patch_selector"), find_class(config, "token_reducer")
        self.selector = selector(config) if selector else None
        self.reducers = nn.ModuleDict()
        if reducer:
            for index in config.reduction_layers:
                self.reducers[str(index)] = reducer(config, index)
        self.layers = nn.ModuleList(
            AdaptiveViTLayer(config, index) for index in range(config.num_hidden_layers)
        )
        self.pre_layernorm = make_norm(config) if config.pre_layernorm else None
        self.layernorm, self.final_norm = make_final_norm(config), type_of(config.final_norm)
        self.pooler = make_pooler(config) if add_pooling_layer else None
        self.dense_fraction = 0.0
        warn_if_nothing_reduced(config, self.reducers.values())
        code_writers[-1].check(self)
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
        selected_patches: torch.LongTensor | None = None,
        sample_selection: bool | None = None,
        dense_fraction: float | None = None,
        restore: bool = False,
        **kwargs,
    ) -> AdaptiveViTModelOutput:
        """
        Args:
            pixel_values: `(B, C, H, W)` images of any size of at least one patch; or `(B, N, P*P*C)` patches
                that were cut before, channel last in each patch, together with `patch_coordinates`,
                `spatial_shapes` and `pixel_attention_mask`.
                With `config.num_frames`, videos or volumes `(B, T, C, H, W)`, or patches `(B, N, t*P*P*C)`;
                what is said of rows and columns below then holds for time (or depth), rows and columns.
            bool_masked_pos: `(B, N)` bool, True for patches that the mask token replaces.
            interpolate_pos_encoding: False refuses images of another size than `config.image_size`, as
                transformers' ViT does; otherwise positions are evaluated for the size at hand.
            patch_coordinates: `(B, N, A)` row and column of each cut patch, A = 2; with time before them A =
                3.
            spatial_shapes: `(B, A)` rows and columns of each image's full grid.
            pixel_attention_mask: `(B, N)` zero for cut patches that are padding.
            selected_patches: `(B, K)` int64 raster indices of the patches to compute on, -1 for none, instead
                of the selector's choice.
            sample_selection: whether chance may play a part in selecting (a policy draws, perturbed top-K
                mixes, exploration); by default it does while training.
            dense_fraction: how far selection and reduction are loosened, from 0 (as configured) to 1
                (everything is kept); by default `dense_fraction` while training, and 0 otherwise.
            restore: also return `restored_hidden_state`, for dense tasks: patches that a reducer merged have
                the state of their group and dropped ones the last state they had; those never selected have
                that of the thumbnail at their position, if there is one, or else their embedding.

        Raises:
            TypeError: if images were not prepared by an image processor, or another argument is no tensor.
            ValueError: if the input has the wrong shape, is smaller than one patch, or is not finite; and
                with `backbone_config`, if patches of an image are missing or `patch_size` is not the stride.
        """
        check_tensors(bool_masked_pos=bool_masked_pos, selected_patches=selected_patches)
        patches = ImagePatches.from_inputs(
            self.config,
            pixel_values,
            patch_coordinates,
            spatial_shapes,
            pixel_attention_mask,
            interpolate_pos_encoding,
        )
        selection = self.select(patches, selected_patches, sample_selection, dense_fraction)
        sequence = self.embed(patches, selection, bool_masked_pos)
        encoded = self.encode(sequence, dense_fraction, (len(self.layers),) if restore else (), **kwargs)
        outputs = self.outputs(patches, selection, sequence, encoded)
        if restore:
            _, outputs.restored_hidden_state = self.restore(encoded.stages[0], patches, selection, sequence)
        return outputs

    def pluggable_parts(self) -> dict[str, nn.Module | None]:
        """Parts whose class the configuration names, by field."""
        return {
            "position_encoding": self.embeddings.position_encoding,
            "patch_selector": self.selector,
            "token_reducer": next(iter(self.reducers.values()), None),
        }

    def select(
        self,
        patches: ImagePatches,
        selected_patches: torch.Tensor | None = None,
        sample: bool | None = None,
        dense_fraction: float | None = None,
        num_selected: int | float | None = None,
    ) -> Selection:
        """Chooses the patches that the encoder gets.

        Args:
            patches: all patches of the batch.
            selected_patches, sample, dense_fraction: see `forward`, where `sample` is `sample_selection`.
            num_selected: a number or fraction of patches, instead of `config.num_selected_patches`.
        """
        self.check_config()
        if selected_patches is not None:
            return Selection(*patches.find_indices(selected_patches))
        if self.selector is None:
            return Selection(None, patches.mask)
        budget = self.config.num_selected_patches if num_selected is None else num_selected
        dense_fraction = self._dense_fraction(dense_fraction)
        number, counts = count_selected(patches, budget, dense_fraction)
        if num_selected is None and dense_fraction == 0:
            check_selected_once(self.config, patches)
            warn_if_all_kept(self.config, patches, number)
        if not patches.is_whole and number >= patches.num_patches:
            # The data loader selected already, or there is nothing to select.
            return Selection(None, patches.mask)
        sample = self.training if sample is None else sample
        return self.selector(patches, number, counts, ModelProbe(self), sample, self.training and sample)

    def embed(
        self,
        patches: ImagePatches,
        selection: Selection,
        bool_masked_pos: torch.BoolTensor | None = None,
    ) -> TokenSequence:
        """Embeds the selected patches, as the sequence that the first block reads."""
        thumbnails = None
        if self.config.thumbnail_context:
            thumbnails = patches.thumbnail_patches(
                thumbnail_sides(self.config, self.config.thumbnail_context)
            )
        sequence = self.embeddings(patches, selection, bool_masked_pos, thumbnails)
        if self.selector is not None:
            sequence.patches.sizes = self.selector.token_weights(sequence.patches)
        sequence = self.pre_normalize(sequence)
        check_finite(sequence.hidden_states, "pixel_values")
        return sequence

    def pre_normalize(self, sequence: TokenSequence) -> TokenSequence:
        """Normalizes the tokens before the first block, in models that do (`config.pre_layernorm`)."""
        if self.pre_layernorm is None:
            return sequence
        states = normalize(self.pre_layernorm, sequence.hidden_states, sequence.patches.mask)
        return replace(sequence, hidden_states=states)

    def encode(
        self,
        sequence: TokenSequence,
        dense_fraction: float | None = None,
        stages: tuple[int, ...] = (),
        **kwargs,
    ) -> EncoderOutput:
        """Runs the blocks, which may reduce tokens.

        Args:
            sequence: from `embed`.
            dense_fraction: see `forward`.
            stages: numbers of blocks after which the states of all tokens that entered are returned.
            kwargs: `output_hidden_states` and `output_attentions`.
        """
        encoded = self._run_blocks(
            sequence, self._dense_fraction(dense_fraction), stages, return_dict=True, **kwargs
        )
        if any(reducer.training and reducer.learns_from_dense for reducer in self.reducers.values()):
            with torch.no_grad():
                teacher = self._run_blocks(sequence, reduce=False, **RECORD_NOTHING).last_hidden_state
            distance = token_distillation_loss(encoded.last_hidden_state, teacher, encoded.token_sizes)
            encoded.losses.append(self.pluggable_parts()["token_reducer"].token_weight * distance)
            encoded.dense_hidden_state = teacher
        return encoded

    def outputs(
        self, patches: ImagePatches, selection: Selection, sequence: TokenSequence, encoded: EncoderOutput
    ) -> AdaptiveViTModelOutput:
        """Collects what the model returns."""
        greedy = selection.greedy
        losses = [loss for loss in (selection.loss, *encoded.losses) if loss is not None]
        return AdaptiveViTModelOutput.from_outputs(
            encoded,
            pooler_output=self._pool(encoded) if self.pooler is not None else None,
            selected_patches=patches.raster_indices(selection.indices, selection.mask),
            patch_scores=selection.scores,
            patch_coordinates=sequence.patches.coordinates,
            spatial_shapes=sequence.patches.grid,
            patch_mask=selection.mask,
            selection_loss=sum(losses) if losses else None,
            selection_log_prob=selection.log_prob,
            greedy_patches=greedy and patches.raster_indices(greedy.indices, greedy.mask),
        )

    def restore(
        self,
        stage: Stage,
        patches: ImagePatches,
        selection: Selection,
        sequence: TokenSequence,
        norm: bool = True,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Hidden states of CLS and registers `(B, T, D)`, and of the full grid `(B, R*S, D)`, after a stage.

        Args:
            stage: from `encode`.
            patches, selection, sequence: as they entered the encoder.
            norm: whether the last norm is applied.
        """
        finish = self._final if norm else lambda states, mask=None: states

        def embed() -> torch.Tensor:
            unseen = self.embeddings.embed_patches(patches).features
            if self.pre_layernorm is not None:
                unseen = normalize(self.pre_layernorm, unseen, patches.mask)
            return finish(unseen, patches.mask)

        prefix = finish(stage.prefix)
        num_context = 0 if sequence.context is None else sequence.context.shape[1]
        own, context = prefix.split((prefix.shape[1] - num_context, num_context), dim=1)
        return own, fill_grid(patches, selection, finish(stage.states), context, sequence.context_grid, embed)

    # A recorder of its own, so that the passes of a probe before it are not in what the caller records.
    @capture_outputs(tie_last_hidden_states=False)
    def _run_blocks(
        self,
        sequence: TokenSequence,
        dense_fraction: float = 0.0,
        stages: tuple[int, ...] = (),
        reduce: bool = True,
        output_attentions: bool | None = None,
        # Read by the decorator, and named here so that misspelt arguments are refused.
        output_hidden_states: bool | None = None,
    ) -> EncoderOutput:
        if output_attentions is None:
            output_attentions = self.config.output_attentions
        encoding = self.embeddings.position_encoding
        contexts = layer_contexts(self.config, encoding, sequence, output_attentions)
        hidden_states, tokens = sequence.hidden_states, sequence.patches
        reductions, losses, kept = [], [], {}
        for index, layer in enumerate(self.layers):
            if index in stages:
                kept[index] = (*split_tokens(hidden_states, tokens), len(reductions))
            reducer = self.reducers[str(index)] if reduce and str(index) in self.reducers else None
            if reducer is None or reducer.keeps_all(dense_fraction):
                hidden_states = layer(hidden_states, contexts[index])
                continue
            if reducer.inside_block:
                hidden_states, reduction, before = layer.reduce(
                    hidden_states, contexts[index], reducer, tokens, dense_fraction
                )
            else:
                hidden_states, reduction, before = reducer.reduce_sequence(
                    hidden_states, tokens, None, dense_fraction
                )
            # States of what was dropped are for stages alone.
            reductions.append((reduction.assignment, before if stages else None))
            if reduction.loss is not None:
                losses.append(reduction.loss)
            tokens = reduction.tokens
            sequence = replace(sequence, hidden_states=hidden_states, patches=tokens)
            contexts = layer_contexts(self.config, encoding, sequence, output_attentions)
            if not reducer.inside_block:
                hidden_states = layer(hidden_states, contexts[index])
        if len(self.layers) in stages:
            kept[len(self.layers)] = (*split_tokens(hidden_states, tokens), len(reductions))
        sizes = tokens.sizes
        if tokens.mask is not None:
            sizes = tokens.mask.float() if sizes is None else sizes * tokens.mask
        return EncoderOutput(
            last_hidden_state=self._final(hidden_states, tokens.mask),
            token_coordinates=tokens.coordinates,
            token_sizes=sizes,
            token_assignments=trace_tokens([assignment for assignment, _ in reductions])
            if reductions
            else None,
            stages=[
                Stage(prefix, restore_tokens(states, reductions[:number]))
                for prefix, states, number in (kept[stage] for stage in stages)
            ],
            losses=[sum(losses)] if losses else [],
        )

    def _dense_fraction(self, dense_fraction: float | None) -> float:
        if dense_fraction is not None:
            return dense_fraction
        return self.dense_fraction if self.training else 0.0

    def _final(self, hidden_states: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        if self.final_norm != "tokens":
            return hidden_states
        return normalize(self.layernorm, hidden_states, mask)

    def _pool(self, outputs: EncoderOutput) -> torch.Tensor:
        pooled = self.pooler(
            outputs.last_hidden_state, outputs.token_coordinates.shape[1], outputs.token_sizes
        )
        if self.final_norm == "pooled" and not isinstance(self.pooler, AdaptiveViTPooler):
            pooled = self.layernorm(pooled.unsqueeze(1)).squeeze(1)
        return pooled


class AdaptiveViTForImageClassification(ImageClassifier, AdaptiveViTPreTrainedModel):
    """The encoder with a linear classifier on its tokens, pooled by `config.pooling`."""

    _auto_class = "AutoModelForImageClassification"

    def __init__(self, config: AdaptiveViTConfig):
        super().__init__(config)
        # Pooling by attention has weights, which the encoder keeps for its `pooler_output`.
        has_query = config.pooling == "map"
        self.vit = AdaptiveViTModel(config, add_pooling_layer=has_query)
        self.plain_pooling = None if has_query else POOLINGS[config.pooling](config)
        self.add_classifier(config, self.pooling.num_vectors, config.classifier_hidden_size)
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
                "multi_label_classification", `(B, num_labels)` numbers from 0 to 1, to "regression", `(B,)`
                or `(B, num_labels)` numbers. Where it is not set, the first labels decide, as in
                transformers.

        Raises:
            ValueError: if a label is outside the classes.
        """
        inputs = {
            "pixel_values": pixel_values,
            "interpolate_pos_encoding": interpolate_pos_encoding,
            **kwargs,
        }
        if labels is not None:
            check_tensors(labels=labels)
        outputs = self.vit(**inputs, return_dict=True)
        logits = self._logits_of(outputs)
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
        return AdaptiveViTImageClassifierOutput.from_outputs(
            outputs, loss=loss, logits=logits, selection_loss=selection_loss
        )

    @property
    def pooling(self) -> Pooling:
        """The module that pools what the classifier reads."""
        return self.vit.pooler if self.plain_pooling is None else self.plain_pooling

    def _logits(
        self, hidden_states: torch.Tensor, num_tokens: int, weights: torch.Tensor | None
    ) -> torch.Tensor:
        """Logits of a sequence whose last `num_tokens` stand for patches, by their `weights`."""
        pooled = self.pooling(hidden_states, num_tokens, weights)
        if self.vit.final_norm == "pooled":
            pooled = self.vit.layernorm(pooled.unsqueeze(1)).squeeze(1)
        return self.classify(pooled)

    def _logits_of(self, outputs: AdaptiveViTModelOutput) -> torch.Tensor:
        if self.plain_pooling is None:
            return self.classify(outputs.pooler_output)
        num_tokens = outputs.token_coordinates.shape[1]
        return self._logits(outputs.last_hidden_state, num_tokens, outputs.token_sizes)

    def _selection_losses(
        self,
        labels: torch.Tensor,
        logits: torch.Tensor,
        outputs: AdaptiveViTModelOutput,
        inputs: dict[str, torch.Tensor],
    ) -> list[torch.Tensor]:
        """Losses by which selectors and reducers learn from the prediction."""
        config, losses = self.config, []
        if outputs.selection_log_prob is not None:
            with torch.no_grad():
                kwargs = {**inputs, **RECORD_NOTHING, "selected_patches": outputs.greedy_patches}
                greedy = self._logits_of(self.vit(**kwargs))
            rewards = [
                -loss_per_image(labels, answer, config.problem_type) for answer in (logits.detach(), greedy)
            ]
            weight = self.vit.selector.policy_loss_weight
            losses.append(weight * reinforce_loss(outputs.selection_log_prob, *rewards))
        if outputs.dense_hidden_state is not None and config.problem_type != "regression":
            with torch.no_grad():
                weights = None if outputs.patch_mask is None else outputs.patch_mask.float()
                num_tokens = outputs.patch_coordinates.shape[1]
                teacher = self._logits(outputs.dense_hidden_state, num_tokens, weights)
            divergence = distillation_loss(logits, teacher, config.problem_type)
            losses.append(self.vit.pluggable_parts()["token_reducer"].distillation_weight * divergence)
        return losses


class AdaptiveViTForVideoClassification(AdaptiveViTForImageClassification):
    """A classifier of videos `(B, T, C, H, W)`, and of volumes, whose slices are frames; needs
    `config.num_frames`."""

    _auto_class = "AutoModelForVideoClassification"
    _videos = True
    input_modalities = ("video",)


class AdaptiveViTForSemanticSegmentation(AdaptiveViTPreTrainedModel):
    """The encoder with a linear or a small convolutional decoder: `config.segmentation_decoder`.

    Whatever is selected or reduced, logits cover the whole image: the patches that were kept are computed on
    finely, the others have what `restore` of `AdaptiveViTModel.forward` fills in.
    """

    _auto_class = "AutoModelForSemanticSegmentation"

    def __init__(self, config: AdaptiveViTConfig):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.vit = AdaptiveViTModel(config, add_pooling_layer=False)
        self.decode_head = SEGMENTATION_DECODERS[type_of(config.segmentation_decoder)](config)
        self.ignore_index = read_segmentation_options(config).ignore_index
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        labels: torch.LongTensor | None = None,
        interpolate_pos_encoding: bool | None = None,
        **kwargs,
    ) -> AdaptiveViTSemanticSegmenterOutput:
        """
        Args:
            pixel_values: see `AdaptiveViTModel.forward`, which takes the other arguments as well. The images
                of a batch have one grid.
            labels: `(B, H, W)` int64 class of each pixel, `ignore_index` of `config.segmentation_decoder` to
                ignore.

        Returns:
            `logits` `(B, num_labels, R, S)`, one for each patch, of the linear decoder, four times as many
            rows and columns of the convolutional one. The image processors make class maps of them:
            `post_process_semantic_segmentation`.

        Raises:
            ValueError: if the images have different grids, or labels do not fit them or are outside the
                classes.
        """
        inputs = {
            "pixel_values": pixel_values,
            "interpolate_pos_encoding": interpolate_pos_encoding,
            **kwargs,
        }
        check_tensors(labels=labels)
        outputs = self.vit(**inputs, restore=True, return_dict=True)
        grid = self._grid(pixel_values, outputs)
        logits = self._segment(outputs, grid)
        loss, selection_loss = None, outputs.selection_loss
        if labels is not None:
            ignored = self.ignore_index
            patch_size = to_pair(self.config.patch_size)
            check_outputs(self.config, self.num_labels)
            labels = crop_labels(labels.to(logits.device), grid, patch_size, self.num_labels, ignored)
            losses, counts = segmentation_loss_per_image(labels, logits, ignored)
            loss = losses.sum() / counts.sum().clamp(min=1)
            if self.training and outputs.selection_log_prob is not None:
                rewards = [-losses.detach() / counts.clamp(min=1)]
                with torch.no_grad():
                    kwargs = {**inputs, **RECORD_NOTHING, "selected_patches": outputs.greedy_patches}
                    greedy = self._segment(self.vit(**kwargs, restore=True), grid)
                    losses, _ = segmentation_loss_per_image(labels, greedy, ignored)
                    rewards.append(-losses / counts.clamp(min=1))
                policy_loss = reinforce_loss(outputs.selection_log_prob, *rewards)
                policy_loss = self.vit.selector.policy_loss_weight * policy_loss
                selection_loss = policy_loss if selection_loss is None else selection_loss + policy_loss
            if self.training and selection_loss is not None:
                loss = loss + selection_loss
        return AdaptiveViTSemanticSegmenterOutput.from_outputs(
            outputs, loss=loss, logits=logits, selection_loss=selection_loss
        )

    def _segment(self, outputs: AdaptiveViTModelOutput, grid: tuple[int, int]) -> torch.Tensor:
        maps = outputs.restored_hidden_state.transpose(1, 2).unflatten(2, grid)  # (B, D, R, S)
        return self.decode_head(maps)

    def _grid(self, pixel_values: torch.Tensor, outputs: AdaptiveViTModelOutput) -> tuple[int, int]:
        """Rows and columns that all images have."""
        height, width = to_pair(self.config.patch_size)
        if pixel_values.ndim == 4:
            return pixel_values.shape[-2] // height, pixel_values.shape[-1] // width
        grids = outputs.spatial_shapes
        if (grids != grids[:1]).any():
            raise ValueError(
                "Logits of one batch have one size, but the images have grids of "
                f"{grids.tolist()} rows and columns. "
                "Give images of one size, or one at a time."
            )
        return tuple(grids[0].tolist())


class AdaptiveViTForMaskedImageModeling(AdaptiveViTPreTrainedModel):
    """The encoder with a decoder that reconstructs masked patches (SimMIM, Xie et al., 2021)."""

    _auto_class = "AutoModelForMaskedImageModeling"

    def __init__(self, config: AdaptiveViTConfig):
        if config.patch_selector is not None:
            raise ValueError(
                "Masked image modeling reconstructs every patch, but "
                f"patch_selector={config.patch_selector!r} drops "
                "some. Pass patch_selector=None, num_selected_patches=None."
            )
        if config.token_reducer is not None:
            raise ValueError(
                "Masked image modeling reconstructs every patch, but "
                f"token_reducer={config.token_reducer!r} drops or "
                "merges some. Pass token_reducer=None."
            )
        if config.thumbnail_context:
            raise ValueError(
                "Masked image modeling hides patches, but thumbnail_context shows all of the image. Pass "
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
            masked = bool_masked_pos.unflatten(1, (rows, columns))
            loss = masked_reconstruction_loss(pixel_values, reconstruction, masked, patch_size)
        return AdaptiveViTMaskedImageModelingOutput.from_outputs(
            outputs, loss=loss, reconstruction=reconstruction
        )


class AdaptiveViTForPreTraining(AdaptiveViTPreTrainedModel):
    """The encoder on a random few of the patches, and a light decoder that reconstructs the others.

    "Masked Autoencoders Are Scalable Vision Learners" (He et al., 2022). The encoder embeds and computes on
    the kept patches alone, all but the `mask_ratio` of `config.masked_autoencoder`, at their own coordinates,
    with any position encoding. It loads into the other classes, such as `AdaptiveViTForImageClassification`,
    by `from_pretrained`.

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
                    "Pretraining keeps random patches by mask_ratio and must not see the others, "
                    f"which {name}={value} "
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
        """Sets the attention of encoder and decoder, as in transformers."""
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
            pixel_values: `(B, C, H, W)` images of any size, or `(B, N, P*P*C)` cut patches of images of mixed
                sizes, with the three arguments below: see `AdaptiveViTModel.forward`. Of cut patches those
                    that an image
                processor selected are enough; the others are not reconstructed then.
            noise: `(B, N)` numbers, of which the least are kept. By default drawn afresh while training; in
                evaluation the same for all images of a size, so that losses can be compared.
            interpolate_pos_encoding: False refuses images of another size than `config.image_size`.

        Raises:
            ValueError: for noise of another shape, or as `AdaptiveViTModel.forward`.
        """
        check_tensors(noise=noise)
        patches = ImagePatches.from_inputs(
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
                f"noise has the shape {tuple(noise.shape)}, but there are "
                f"{tuple(patches.coordinates.shape[:2])} patches "
                "(images, patches of each)."
            )
        masking = draw_mask(patches, self.options.mask_ratio, noise)
        outputs = self.vit(patches, selected_patches=masking.selected, return_dict=True, **kwargs)
        logits = self.decoder(outputs.last_hidden_state, patches, masking)
        return AdaptiveViTForPreTrainingOutput.from_outputs(
            outputs,
            loss=reconstruction_loss(patches, logits, masking.mask, self.options.norm_pix_loss),
            logits=logits,
            mask=masking.mask,
            ids_restore=masking.ids_restore,
        )


class AdaptiveViTBackbone(StagesMixin, AdaptiveViTModel):
    """Feature maps for transformers' detection and segmentation models, by `AutoBackbone`.

    The maps have the full grid whatever is selected or reduced; see `restore` of `AdaptiveViTModel.forward`.

    Args:
        config: `out_features` or `out_indices` name the stages: "stem" (0) is what enters the encoder,
            "stage<n>" (n) what leaves block n; by default the last. `apply_layernorm` and
            `reshape_hidden_states` as in DINOv2.

    What learns to select or reduce learns under a classifier; a decoder of transformers does not add
    `selection_loss`.
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
                f"{learning.pop()!r} learns from a loss that transformers' decoders do not add. "
                "Train it under "
                "AdaptiveViTForImageClassification first, or add selection_loss of this model's "
                "outputs yourself."
            )
        self.num_features = [config.hidden_size] * (config.num_hidden_layers + 1)

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        patch_coordinates: torch.Tensor | None = None,
        spatial_shapes: torch.LongTensor | None = None,
        pixel_attention_mask: torch.Tensor | None = None,
        selected_patches: torch.LongTensor | None = None,
        sample_selection: bool | None = None,
        dense_fraction: float | None = None,
        **kwargs,
    ) -> AdaptiveViTBackboneOutput:
        """
        Args:
            pixel_values, patch_coordinates, spatial_shapes: see `AdaptiveViTModel.forward`.
            pixel_attention_mask, selected_patches, sample_selection, dense_fraction: see there.

        Returns:
            `feature_maps`, one for each of `out_features`: `(B, D, R, S)`, of videos `(B, D, T', R, S)`; or,
                with `reshape_hidden_states=False`,
            `(B, 1 + registers + R*S, D)`. Patches that never arrived have zeros.

        Raises:
            ValueError: if the images of the batch have different grids.
        """
        numbers = tuple(self.config.stage_names.index(name) for name in self.out_features)
        patches = ImagePatches.from_inputs(
            self.config, pixel_values, patch_coordinates, spatial_shapes, pixel_attention_mask
        )
        selection = self.select(patches, selected_patches, sample_selection, dense_fraction)
        sequence = self.embed(patches, selection)
        encoded = self.encode(sequence, dense_fraction, numbers, **kwargs)
        outputs = self.outputs(patches, selection, sequence, encoded)
        norm = self.config.apply_layernorm
        stages = [self.restore(stage, patches, selection, sequence, norm) for stage in encoded.stages]
        grid = outputs.spatial_shapes
        if not torch.compiler.is_compiling() and (grid != grid[:1]).any():
            raise ValueError(
                "Feature maps of one batch have one size, but the images have grids of "
                f"{grid.tolist()} rows and "
                "columns. Give images of one size, or one at a time."
            )
        if self.config.reshape_hidden_states:
            cells = patches.full_grid or grid[0].tolist()
            maps = [states.transpose(1, 2).unflatten(2, cells) for _, states in stages]
        else:
            maps = [torch.cat(parts, dim=1) for parts in stages]
        return AdaptiveViTBackboneOutput.from_outputs(outputs, feature_maps=tuple(maps))


__all__ = [
    "AdaptiveViTBackbone",
    "AdaptiveViTForImageClassification",
    "AdaptiveViTForMaskedImageModeling",
    "AdaptiveViTForPreTraining",
    "AdaptiveViTForSemanticSegmentation",
    "AdaptiveViTForVideoClassification",
    "AdaptiveViTModel",
    "AdaptiveViTPreTrainedModel",
]
