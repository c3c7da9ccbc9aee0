"""The encoder with what comes before it: patches, selection, positions, reduction. Shape legend: `tokens.py`."""

from dataclasses import replace

import torch
from torch import nn
from transformers.utils.generic import can_return_tuple
from transformers.utils.output_capturing import capture_outputs

from .attention import LayerInputs
from .axes import scout_sides
from .blocks import make_norm, normalise
from .configuration_adaptive_vit import AdaptiveViTConfig
from .embeddings import AdaptiveViTEmbeddings
from .encoder import AdaptiveViTLayer
from .heads import AdaptiveViTPooler, token_distillation_loss
from .outputs import AdaptiveViTModelOutput, EncoderOutput
from .patches import ImagePatches
from .pretrained import AdaptiveViTPreTrainedModel
from .probe import ModelScout
from .reduction_base import ReductionStep, restore_tokens, trace_tokens
from .restoring import Stage, fill_grid
from .selection_base import Selection, count_selected
from .shipping import check_travel
from .tokens import TokenSequence, check_finite, split_tokens
from .user_classes import classes_of, find_class


RECORD_NOTHING = {"output_hidden_states": False, "output_attentions": False, "return_dict": True}


class AdaptiveViTModel(AdaptiveViTPreTrainedModel):
    """The encoder without a head.

    Args:
        config: see `AdaptiveViTConfig`.
        add_pooling_layer: whether to add a dense layer on the CLS token, as ViT does.
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
        eps = config.pooled_norm_eps if config.final_norm == "pooled" else None
        self.layernorm = make_norm(config, eps) if config.final_norm != "none" else None
        self.pooler = AdaptiveViTPooler(config) if add_pooling_layer and config.use_cls_token else None
        self.selection_relaxation = 0.0
        check_travel(classes_of(self))
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
        relaxation: float | None = None,
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
            relaxation: how far selection and reduction are loosened, from 0 (as configured) to 1 (everything is kept);
                by default `selection_relaxation` while training, and 0 otherwise.
            restore: also return `restored_hidden_state`, for dense tasks: patches that a reducer merged have the
                state of their group and dropped ones the last state they had; those never selected have that of the
                thumbnail at their place, if it goes along, or else their embedding.

        Raises:
            ValueError: if the input has the wrong shape, is smaller than one patch, or is not finite; and with
                `backbone_config`, if patches of an image are missing or `patch_size` is not the stride.
        """
        patches = ImagePatches.from_inputs(
            self.config,
            pixel_values,
            patch_coordinates,
            spatial_shapes,
            pixel_attention_mask,
            interpolate_pos_encoding,
        )
        selection = self.select(patches, selected_patches, sample_selection, relaxation)
        sequence = self.embed(patches, selection, bool_masked_pos)
        encoded = self.encode(sequence, relaxation, (len(self.layers),) if restore else (), **kwargs)
        outputs = self.outputs(patches, selection, sequence, encoded)
        if restore:
            _, outputs.restored_hidden_state = self.restore(encoded.stages[0], patches, selection, sequence)
        return outputs

    def pluggable_parts(self) -> dict[str, nn.Module | None]:
        """The parts whose class the configuration names, by its field."""
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
        relaxation: float | None = None,
        num_selected: int | float | None = None,
    ) -> Selection:
        """Chooses the patches that the encoder gets.

        Args:
            patches: all patches of the batch.
            selected_patches, sample, relaxation: see `forward`, where `sample` is `sample_selection`.
            num_selected: a number or fraction of patches, instead of `config.num_selected_patches`.
        """
        if selected_patches is not None:
            return Selection(*patches.places_of(selected_patches))
        if self.selector is None:
            return Selection(None, patches.mask)
        budget = self.config.num_selected_patches if num_selected is None else num_selected
        number, counts = count_selected(patches, budget, self._relaxation(relaxation))
        if not patches.is_whole and number >= patches.num_patches:
            # The data loader selected already.
            return Selection(None, patches.mask)
        sample = self.training if sample is None else sample
        return self.selector(patches, number, counts, ModelScout(self), sample, self.training and sample)

    def embed(
        self,
        patches: ImagePatches,
        selection: Selection,
        bool_masked_pos: torch.BoolTensor | None = None,
    ) -> TokenSequence:
        """Embeds the selected patches, as the sequence that the first block reads."""
        thumbnails = None
        if self.config.thumbnail_context:
            thumbnails = patches.thumbnail_patches(scout_sides(self.config))
        sequence = self.embeddings(patches, selection, bool_masked_pos, thumbnails)
        if self.selector is not None:
            sequence.patches.sizes = self.selector.weigh(sequence.patches)
        sequence = self.pre_normalize(sequence)
        check_finite(sequence.hidden_states, "pixel_values")
        return sequence

    def pre_normalize(self, sequence: TokenSequence) -> TokenSequence:
        """Normalizes the tokens before the first block, in models that do (`config.pre_layernorm`)."""
        if self.pre_layernorm is None:
            return sequence
        states = normalise(self.pre_layernorm, sequence.hidden_states, sequence.patches.mask)
        return replace(sequence, hidden_states=states)

    def encode(
        self,
        sequence: TokenSequence,
        relaxation: float | None = None,
        stages: tuple[int, ...] = (),
        **kwargs,
    ) -> EncoderOutput:
        """Runs the blocks, which may reduce tokens.

        Args:
            sequence: from `embed`.
            relaxation: see `forward`.
            stages: numbers of blocks after which the states of all tokens that entered are returned.
            kwargs: `output_hidden_states` and `output_attentions`.
        """
        encoded = self._run_blocks(sequence, self._relaxation(relaxation), stages, return_dict=True, **kwargs)
        if any(reducer.training and reducer.learns_from_dense for reducer in self.reducers.values()):
            with torch.no_grad():
                teacher = self._run_blocks(sequence, reduce=False, **RECORD_NOTHING).last_hidden_state
            distance = token_distillation_loss(encoded.last_hidden_state, teacher, encoded.token_sizes)
            encoded.losses.append(self.config.gumbel_token_weight * distance)
            encoded.dense_hidden_state = teacher
        return encoded

    def outputs(
        self, patches: ImagePatches, selection: Selection, sequence: TokenSequence, encoded: EncoderOutput
    ) -> AdaptiveViTModelOutput:
        """Collects what the model returns."""
        greedy = selection.favourites
        losses = [loss for loss in (selection.loss, *encoded.losses) if loss is not None]
        return AdaptiveViTModelOutput.from_outputs(
            encoded,
            pooler_output=self.pooler(encoded.last_hidden_state) if self.pooler is not None else None,
            selected_patches=patches.raster_indices(selection.indices, selection.mask),
            patch_scores=selection.scores,
            patch_coordinates=sequence.patches.coordinates,
            spatial_shapes=sequence.patches.grid,
            patch_mask=selection.mask,
            selection_loss=sum(losses) if losses else None,
            selection_log_prob=selection.log_prob,
            favourite_patches=greedy and patches.raster_indices(greedy.indices, greedy.mask),
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
                unseen = normalise(self.pre_layernorm, unseen, patches.mask)
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
        relaxation: float = 0.0,
        stages: tuple[int, ...] = (),
        reduce: bool = True,
        output_attentions: bool | None = None,
        # Read by the decorator, and named here so that misspelt arguments are refused.
        output_hidden_states: bool | None = None,
    ) -> EncoderOutput:
        if output_attentions is None:
            output_attentions = self.config.output_attentions
        encoding = self.embeddings.position_encoding
        inputs = LayerInputs(self.config, encoding, sequence, output_attentions)
        hidden_states, tokens, steps, kept = sequence.hidden_states, sequence.patches, [], {}
        for index, layer in enumerate(self.layers):
            if index in stages:
                kept[index] = (*split_tokens(hidden_states, tokens), len(steps))
            reducer = self.reducers[str(index)] if reduce and str(index) in self.reducers else None
            if reducer is None or reducer.keeps_all(relaxation):
                hidden_states = layer(hidden_states, inputs[index])
                continue
            step = ReductionStep(reducer, tokens, relaxation)
            steps.append(step)
            if reducer.inside_block:
                hidden_states = layer(hidden_states, inputs[index], step)
            else:
                hidden_states, _ = step(hidden_states)
            if not stages:
                step.before = None  # nobody asks for the states of what was dropped
            tokens = step.result.tokens
            sequence = replace(sequence, hidden_states=hidden_states, patches=tokens)
            inputs = LayerInputs(self.config, encoding, sequence, output_attentions)
            if not reducer.inside_block:
                hidden_states = layer(hidden_states, inputs[index])
        if len(self.layers) in stages:
            kept[len(self.layers)] = (*split_tokens(hidden_states, tokens), len(steps))
        sizes = tokens.sizes
        if tokens.mask is not None:
            sizes = tokens.mask.float() if sizes is None else sizes * tokens.mask
        losses = [step.result.loss for step in steps if step.result.loss is not None]
        reductions = [(step.result.assignment, step.before) for step in steps]
        return EncoderOutput(
            last_hidden_state=self._final(hidden_states, tokens.mask),
            token_coordinates=tokens.coordinates,
            token_sizes=sizes,
            token_assignments=trace_tokens([assignment for assignment, _ in reductions]) if steps else None,
            stages=[
                Stage(prefix, restore_tokens(states, reductions[:number]))
                for prefix, states, number in (kept[stage] for stage in stages)
            ],
            losses=[sum(losses)] if losses else [],
        )

    def _relaxation(self, relaxation: float | None) -> float:
        if relaxation is not None:
            return relaxation
        return self.selection_relaxation if self.training else 0.0

    def _final(self, hidden_states: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        if self.config.final_norm != "tokens":
            return hidden_states
        return normalise(self.layernorm, hidden_states, mask)
