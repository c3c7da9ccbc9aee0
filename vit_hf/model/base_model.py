"""The encoder with what comes before it: patches, selection, positions, reduction. Shape legend: `tokens.py`."""

from collections.abc import Callable

import torch
from torch import nn
from transformers.utils.generic import can_return_tuple
from transformers.utils.output_capturing import capture_outputs

from .attention import AttentionInputs
from .axes import thumbnail_sides
from .blocks import make_final_norm, make_norm, normalise
from .checkpoint_code import code_writers
from .configuration_adaptive_vit import AdaptiveViTConfig
from .cutting import cut_patches
from .embeddings import AdaptiveViTEmbeddings
from .encoder import AdaptiveViTLayer, split_prefix
from .heads import AdaptiveViTPooler, make_pooler, token_distillation_loss
from .input_checks import check_tensors
from .options import type_of
from .outputs import (
    AdaptiveViTModelOutput,
    EncoderOutput,
    ScoutOutput,
)
from .patches import ImagePatches
from .pretrained import AdaptiveViTPreTrainedModel
from .reduction_base import trace_tokens
from .restoring import Stage, fill_grid
from .scout import RECORD_NOTHING, ModelScout, look
from .selection_base import Selection, count_selected
from .selection_checks import check_selected_once, warn_if_all_kept, warn_if_nothing_reduced
from .tokens import PatchTokens, check_finite
from .user_classes import find_class


class AdaptiveViTModel(AdaptiveViTPreTrainedModel):
    """The encoder without a head.

    Args:
        config: see `AdaptiveViTConfig`.
        add_pooling_layer: whether to have a `pooler_output`, see `pooler` of the configuration.
        use_mask_token: whether to have a mask token for masked image modelling.
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
        self.layernorm = make_final_norm(config)
        self.pooler = make_pooler(config) if add_pooling_layer else None
        self.selection_relaxation = 0.0
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
        restore: bool = False,
        **kwargs,
    ) -> AdaptiveViTModelOutput:
        """
        Args:
            pixel_values: `(B, C, H, W)` images of any size of at least one patch; or `(B, N, P*P*C)` patches that
                were cut already, channel last in each patch, together with the three arguments below. With
                `config.num_frames`, videos or volumes `(B, T, C, H, W)`, or patches `(B, N, t*P*P*C)`; what is said of
                rows and columns below then holds for time (or depth), rows and columns.
            bool_masked_pos: `(B, N)` bool, True for patches that the mask token replaces.
            interpolate_pos_encoding: False refuses images of another size than `config.image_size`, as
                transformers' ViT does; otherwise positions are evaluated for the size at hand.
            patch_coordinates: `(B, N, A)` row and column of each cut patch, A = 2; with time before them A = 3.
            spatial_shapes: `(B, A)` rows and columns of each image's full grid.
            pixel_attention_mask: `(B, N)` zero for cut patches that are padding.
            selected_patches: `(B, K)` int64 raster indices of the patches to compute on, -1 for none, instead of the
                selector's choice.
            sample_selection: whether chance may play a part in selecting (a policy draws, perturbed top-K mixes,
                exploration); by default it does while training.
            restore: also return `restored_hidden_state`, for dense tasks: patches that a reducer merged have the
                state of their group and dropped ones the last state they had; those never selected have that of the
                thumbnail at their place, if it goes along, or else their embedding.

        Raises:
            TypeError: if images were not prepared by an image processor, or another argument is no tensor.
            ValueError: if the input has the wrong shape, is smaller than one patch, or is not finite; and with
                `backbone_config`, if patches of an image are missing or `patch_size` is not the stride.
        """
        check_tensors(bool_masked_pos=bool_masked_pos, selected_patches=selected_patches)
        patches = cut_patches(
            self.config,
            pixel_values,
            patch_coordinates,
            spatial_shapes,
            pixel_attention_mask,
            interpolate_pos_encoding,
        )
        stages = (len(self.layers),) if restore else ()
        outputs, restored = self._compute(
            patches, bool_masked_pos, selected_patches, sample_selection, stages, **kwargs
        )
        if restore:
            outputs.restored_hidden_state = restored[0][1]
        return outputs

    def pluggable_parts(self) -> dict[str, nn.Module | None]:
        """The parts whose class the configuration names, by its field."""
        return {
            "position_encoding": self.embeddings.position_encoding,
            "patch_selector": self.selector,
            "token_reducer": next(iter(self.reducers.values()), None),
        }

    def _compute(
        self,
        patches: ImagePatches,
        bool_masked_pos: torch.BoolTensor | None = None,
        selected_patches: torch.LongTensor | None = None,
        sample_selection: bool | None = None,
        stages: tuple[int, ...] = (),
        normed: bool = True,
        **kwargs,
    ) -> tuple[AdaptiveViTModelOutput, list[tuple[torch.Tensor, torch.Tensor]]]:
        """What `forward` returns, and `_restore` after each number of blocks in `stages`."""
        self.check_config()
        config = self.config
        sample = self.training if sample_selection is None else sample_selection
        selection = self._select(patches, selected_patches, sample)
        thumbnails = None
        if config.thumbnail_context:
            thumbnails = patches.thumbnail_patches(thumbnail_sides(config, config.thumbnail_context))
        sequence, tokens, context = self.embeddings(
            patches, selection.indices, bool_masked_pos, selection.weights, thumbnails
        )
        tokens.mask = selection.mask
        if self.selector is not None:
            tokens.sizes = self.selector.weigh(tokens)
        if self.pre_layernorm is not None:
            sequence = normalise(self.pre_layernorm, sequence, tokens.mask)
        check_finite(sequence, "pixel_values")
        outputs = self._encode(sequence, tokens, context, stages=stages, return_dict=True, **kwargs)
        losses = [loss for loss in (selection.loss, outputs.loss) if loss is not None]
        dense = None
        if any(reducer.training and reducer.learns_from_dense for reducer in self.reducers.values()):
            with torch.no_grad():
                dense = self._encode(sequence, tokens, context, reduce=False, **RECORD_NOTHING)
            dense = dense.last_hidden_state
            losses.append(
                self.pluggable_parts()["token_reducer"].token_weight
                * token_distillation_loss(outputs.last_hidden_state, dense, outputs.token_sizes)
            )
        restored = [
            self._restore(stage, entered, patches, selection, thumbnails, normed)
            for stage, entered in outputs.stages or ()
        ]
        result = AdaptiveViTModelOutput(
            last_hidden_state=outputs.last_hidden_state,
            pooler_output=self._pool(outputs) if self.pooler is not None else None,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            selected_patches=selection.raster_indices(patches),
            patch_scores=selection.scores,
            patch_coordinates=tokens.coordinates,
            spatial_shapes=tokens.grid,
            patch_mask=selection.mask,
            token_coordinates=outputs.token_coordinates,
            token_sizes=outputs.token_sizes,
            token_assignments=outputs.token_assignments,
            selection_loss=sum(losses) if losses else None,
            selection_log_prob=selection.log_prob,
            favourite_patches=selection.favourites and selection.favourites.raster_indices(patches),
            dense_hidden_state=dense,
        )
        return result, restored

    def _select(
        self,
        patches: ImagePatches,
        selected_patches: torch.Tensor | None,
        sample: bool,
        wanted: int | float | None = None,
    ) -> Selection:
        """What `config.num_selected_patches` or `wanted` asks for; or the patches that were selected elsewhere."""
        if selected_patches is not None:
            return Selection(*patches.places_of(selected_patches))
        if self.selector is None:
            return Selection(None, patches.mask)
        by_config = wanted is None
        wanted = self.config.num_selected_patches if by_config else wanted
        relaxation = self.selection_relaxation if self.training else 0.0
        num_selected, counts = count_selected(patches, wanted, relaxation)
        if by_config and relaxation == 0:
            check_selected_once(self.config, patches)
            warn_if_all_kept(self.config, patches, num_selected)
        if not patches.is_whole and num_selected >= patches.num_patches:
            # The data loader selected already, or there is nothing to select.
            return Selection(None, patches.mask)
        scout = ModelScout(self)

        def score(patches: ImagePatches) -> torch.Tensor:
            return self.selector.score(patches, num_selected if counts is None else counts, scout)

        apart = self.selector.sees_one_patch
        scores = patches.score_apart(score, num_selected) if apart else score(patches)
        if scores.shape != patches.coordinates.shape[:2]:
            raise ValueError(
                f"{type(self.selector).__name__}.score returned the shape {tuple(scores.shape)}, and must give a score for "
                f"each patch, {tuple(patches.coordinates.shape[:2])}."
            )
        check_finite(scores, "pixel_values, or the weights of the patch selector,")
        if patches.mask is not None:
            scores = scores.masked_fill(~patches.mask, -torch.inf)
        selection = self.selector.select(scores, num_selected, counts, sample)
        if self.training and sample:
            selection.loss = self.selector.loss(patches, scores, scout)
        return selection

    @capture_outputs(tie_last_hidden_states=False)
    def _encode(
        self,
        sequence: torch.Tensor,
        tokens: PatchTokens,
        context: PatchTokens | None,
        reduce: bool = True,
        stages: tuple[int, ...] = (),
        output_attentions: bool | None = None,
        # Read by the decorator, and named here so that misspelt arguments are refused.
        output_hidden_states: bool | None = None,
    ) -> EncoderOutput:
        """Runs the blocks; hidden states and attentions are recorded if asked for."""
        if output_attentions is None:
            output_attentions = self.config.output_attentions
        relaxation = self.selection_relaxation if self.training else 0.0
        inputs = self._attention_inputs(sequence, tokens, context, output_attentions)
        reductions, losses, restored = [], [], {}

        def remember(number: int) -> None:
            if number in stages:
                restored[number] = Stage(*split_prefix(sequence, tokens), len(reductions))

        remember(0)
        for index, layer in enumerate(self.layers):
            reducer = self.reducers[str(index)] if reduce and str(index) in self.reducers else None
            if reducer is None or reducer.keeps_all(relaxation):
                sequence = layer(sequence, inputs(index))
                remember(index + 1)
                continue
            if reducer.inside_block:
                sequence, reduction, before = layer(sequence, inputs(index), reducer, tokens, relaxation)
            else:
                prefix, before = split_prefix(sequence, tokens)
                reduction = reducer(tokens.with_features(before), None, relaxation)
                reduced = reduction.tokens.features
                sequence = torch.cat((prefix.to(reduced.device), reduced), dim=1)
            tokens = reduction.tokens
            reductions.append((reduction.assignment, before if stages else None))
            if reduction.loss is not None:
                losses.append(reduction.loss)
            inputs = self._attention_inputs(sequence, tokens, context, output_attentions)
            if not reducer.inside_block:
                sequence = layer(sequence, inputs(index))
            remember(index + 1)
        sizes = tokens.sizes
        if tokens.mask is not None:
            sizes = tokens.mask.float() if sizes is None else sizes * tokens.mask
        return EncoderOutput(
            last_hidden_state=self._final(sequence, tokens.mask),
            token_coordinates=tokens.coordinates,
            token_sizes=sizes,
            token_assignments=trace_tokens([assignment for assignment, _ in reductions]),
            stages=[(restored[number], restored[number].entered(reductions)) for number in stages],
            loss=sum(losses) if losses else None,
        )

    def _final(self, hidden_states: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        if type_of(self.config.final_norm) != "tokens":
            return hidden_states
        return normalise(self.layernorm, hidden_states, mask)

    def _pool(self, outputs: EncoderOutput) -> torch.Tensor:
        pooled = self.pooler(
            outputs.last_hidden_state, outputs.token_coordinates.shape[1], outputs.token_sizes
        )
        if self.config.final_norm == "pooled" and not isinstance(self.pooler, AdaptiveViTPooler):
            pooled = self.layernorm(pooled.unsqueeze(1)).squeeze(1)
        return pooled

    def _attention_inputs(
        self,
        sequence: torch.Tensor,
        tokens: PatchTokens,
        context: PatchTokens | None,
        output_attentions: bool = False,
    ) -> Callable[[int], AttentionInputs]:
        """What the attention of each block is told beside the hidden states."""
        inputs = AttentionInputs.build(self.config, sequence, tokens.mask, tokens.sizes, output_attentions)
        coordinates, full_grid = tokens.coordinates, tokens.full_grid
        if context is not None:
            coordinates = torch.cat((context.coordinates.to(coordinates.device), coordinates), dim=1)
            full_grid = None
        num_prefix = sequence.shape[1] - coordinates.shape[1]
        placed = PatchTokens(sequence[:, num_prefix:], coordinates, tokens.grid, full_grid=full_grid)
        encoding = self.embeddings.position_encoding

        def of_block(index: int) -> AttentionInputs:
            rotation = encoding("rotation", placed, index)
            return inputs.with_positions(self.config, rotation, encoding("bias", placed, index, num_prefix))

        if encoding.per_layer:
            return of_block
        same = of_block(0)
        return lambda index: same

    # A recorder of its own keeps passes beside the main one out of what the caller records.
    @capture_outputs(tie_last_hidden_states=False)
    def _look(self, patches: ImagePatches, num_layers: int, reduction: str | None, **kwargs) -> ScoutOutput:
        return look(self, patches, num_layers, reduction)

    def _restore(
        self,
        stage: Stage,
        entered: torch.Tensor,
        patches: ImagePatches,
        selection: Selection,
        thumbnails: ImagePatches | None,
        normed: bool,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Hidden states of the tokens without a place `(B, T, D)`, and for the full grid `(B, R*S, D)`."""
        finish = self._final if normed else lambda states, mask=None: states

        def embed() -> torch.Tensor:
            unseen = self.embeddings(patches)[1].features
            if self.pre_layernorm is not None:
                unseen = normalise(self.pre_layernorm, unseen, patches.mask)
            return finish(unseen, patches.mask)

        prefix = finish(stage.prefix)
        num_context = 0 if thumbnails is None else thumbnails.num_patches
        own, context = prefix.split((prefix.shape[1] - num_context, num_context), dim=1)
        return own, fill_grid(patches, selection, finish(entered), context, thumbnails, embed)
