"""Adaptive Vision Transformer: patches, selection, positions, encoder, head. Shape legend: `tokens.py`."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.backbone_utils import BackboneMixin
from transformers.conversion_mapping import (
    WeightRenaming,
    get_checkpoint_conversion_mapping,
    register_checkpoint_conversion_mapping,
)
from transformers.modeling_outputs import BackboneOutput
from transformers.utils.generic import can_return_tuple
from transformers.utils.output_capturing import capture_outputs

from .attention import AdaptiveViTAttention, AttentionInputs
from .blocks import LayerScale, make_norm, normalise
from .configuration_adaptive_vit import AdaptiveViTConfig
from .embeddings import AdaptiveViTEmbeddings
from .encoder import AdaptiveViTLayer, split_prefix
from .heads import (
    POOLINGS,
    AdaptiveViTPooler,
    AttentionPooling,
    MaskedImageDecoder,
    check_labels,
    distillation_loss,
    masked_reconstruction_loss,
    reward_per_image,
    token_distillation_loss,
)
from .hybrid import HybridPatchEmbeddings
from .outputs import (
    AdaptiveViTImageClassifierOutput,
    AdaptiveViTMaskedImageModelingOutput,
    AdaptiveViTModelOutput,
    EncoderOutput,
    ScoutOutput,
)
from .patches import ImagePatches, cut_patches, to_pair
from .restoring import Stage, fill_grid
from .scout import RECORD_NOTHING, ModelScout, look
from .selection_base import Selection, count_selected
from .selection_policy import reinforce_loss
from .tokens import PatchTokens
from .user_classes import derives_from, fetch_classes, find_class, references, save_classes, user_classes


# Of `save_pretrained`, what `push_to_hub` takes as well.
UPLOAD_OPTIONS = ("commit_message", "private", "token", "revision", "create_pr", "max_shard_size", "tags")


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
        if find_class(config, "position_encoding").has_bias:
            self._supports_flash_attn = False
        super().__init__(config, *args, **kwargs)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        super()._init_weights(module)
        std = self.config.initializer_range
        if isinstance(module, nn.Linear | nn.Conv2d):
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
        elif isinstance(module, AttentionPooling):
            init.trunc_normal_(module.probe, mean=0.0, std=std)
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

    def _set_gradient_checkpointing(self, enable: bool = True, **kwargs) -> None:
        """As in transformers, but the reentrant variant is refused where it would lose gradients."""
        reentrant = getattr(kwargs.get("gradient_checkpointing_func"), "keywords", {}).get("use_reentrant")
        for field, name in (("token_reducer", "gumbel"), ("patch_selector", "perturbed")):
            if enable and reentrant and getattr(self.config, field) == name:
                raise ValueError(
                    f"{field}={name!r} has gradients beside the hidden states, which reentrant checkpointing loses: "
                    "pass {'use_reentrant': False}, which is the default."
                )
        super()._set_gradient_checkpointing(enable, **kwargs)

    def set_attn_implementation(self, attn_implementation: str | dict, *args, **kwargs) -> None:
        """As in transformers, for the encoder; the backbone of a hybrid keeps what it has."""
        backbone = self.config.backbone_config
        if backbone is not None and isinstance(attn_implementation, str):
            attn_implementation = {
                "": attn_implementation,
                "backbone_config": backbone._attn_implementation,
            }
        return super().set_attn_implementation(attn_implementation, *args, **kwargs)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, config=None, **kwargs):
        """As in transformers; `trust_remote_code=True` also lets classes load that came with the checkpoint.

        Raises:
            ValueError: if the checkpoint has such classes and is not trusted.
        """
        trust = bool(kwargs.pop("trust_remote_code", False))
        source = pretrained_model_name_or_path
        if isinstance(config, PreTrainedConfig):
            values = config.__dict__
        else:
            values, _ = cls.config_class.get_config_dict(config or source, **kwargs)
        # Fields that the caller gives himself need no trust.
        values = {name: value for name, value in values.items() if name not in kwargs}
        fetch_classes(str(source), values, trust, **kwargs)
        return super().from_pretrained(source, *args, config=config, **kwargs)

    def save_pretrained(self, save_directory, *args, push_to_hub: bool = False, **kwargs):
        """As in transformers; the configuration names every Auto class, whichever class was saved.

        The files of a user's own encoding, selector or reducer are saved, too.
        """
        # transformers would undo the renaming of stock keys (see the end of this file), and Trainer, which resumes with
        # a plain load_state_dict, would find nothing.
        kwargs.setdefault("save_original_format", False)
        classes = user_classes(self.config)
        auto_map = getattr(self.config, "auto_map", None) or {}
        if type(self).__module__ == __name__:  # a user's subclass ships another file
            auto_map = {**auto_map, **AUTO_MAP}
        if auto_map or classes:
            self.config.auto_map = {**auto_map, **references(classes)}
        if not classes:
            return super().save_pretrained(save_directory, *args, push_to_hub=push_to_hub, **kwargs)
        # The folder must be complete before it is uploaded.
        super().save_pretrained(save_directory, *args, **kwargs)
        if kwargs.get("is_main_process", True):
            save_classes(self.config, classes, save_directory)
            if push_to_hub:
                upload = {name: kwargs[name] for name in UPLOAD_OPTIONS if name in kwargs}
                self.push_to_hub(kwargs.get("repo_id", Path(save_directory).name), **upload)


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
        self.layernorm = make_norm(config) if config.final_norm != "none" else None
        self.pooler = AdaptiveViTPooler(config) if add_pooling_layer and config.use_cls_token else None
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
        selected_patches: torch.LongTensor | None = None,
        sample_selection: bool | None = None,
        restore: bool = False,
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
            selected_patches: `(B, K)` int64 raster indices of the patches to compute on, -1 for none, instead of the
                selector's choice.
            sample_selection: whether chance may play a part in selecting (a policy draws, perturbed top-K mixes,
                exploration); by default it does while training.
            restore: also return `restored_hidden_state`, for dense tasks: patches that a reducer merged have the
                state of their group and dropped ones the last state they had; those never selected have that of the
                thumbnail at their place, if it goes along, or else their embedding.

        Raises:
            ValueError: if the input has the wrong shape, is smaller than one patch, or is not finite; and with
                `backbone_config`, if patches of an image are missing or `patch_size` is not the stride.
        """
        outputs, restored = self._compute(
            pixel_values,
            bool_masked_pos,
            interpolate_pos_encoding,
            patch_coordinates,
            spatial_shapes,
            pixel_attention_mask,
            selected_patches,
            sample_selection,
            stages=(len(self.layers),) if restore else (),
            **kwargs,
        )
        if restore:
            outputs.restored_hidden_state = restored[0][1]
        return outputs

    def _compute(
        self,
        pixel_values: torch.Tensor,
        bool_masked_pos: torch.BoolTensor | None = None,
        interpolate_pos_encoding: bool | None = None,
        patch_coordinates: torch.Tensor | None = None,
        spatial_shapes: torch.LongTensor | None = None,
        pixel_attention_mask: torch.Tensor | None = None,
        selected_patches: torch.LongTensor | None = None,
        sample_selection: bool | None = None,
        stages: tuple[int, ...] = (),
        normed: bool = True,
        **kwargs,
    ) -> tuple[AdaptiveViTModelOutput, list[tuple[torch.Tensor, torch.Tensor]]]:
        """What `forward` returns, and `_restore` after each number of blocks in `stages`."""
        config = self.config
        patches = cut_patches(
            config,
            pixel_values,
            patch_coordinates,
            spatial_shapes,
            pixel_attention_mask,
            interpolate_pos_encoding,
        )
        sample = self.training if sample_selection is None else sample_selection
        selection = self._select(patches, selected_patches, sample)
        thumbnails = None
        if config.thumbnail_context:
            thumbnails = patches.thumbnail_patches(to_pair(config.scout_image_size or config.image_size))
        sequence, tokens, context = self.embeddings(
            patches, selection.indices, bool_masked_pos, selection.weights, thumbnails
        )
        tokens.mask = selection.mask
        if self.pre_layernorm is not None:
            sequence = normalise(self.pre_layernorm, sequence, tokens.mask)
        _check_finite(sequence, "pixel_values")
        outputs = self._encode(sequence, tokens, context, stages=stages, return_dict=True, **kwargs)
        losses = [loss for loss in (selection.loss, outputs.loss) if loss is not None]
        dense = None
        if any(reducer.training and reducer.learns_from_dense for reducer in self.reducers.values()):
            with torch.no_grad():
                dense = self._encode(sequence, tokens, context, reduce=False, **RECORD_NOTHING)
            dense = dense.last_hidden_state
            losses.append(
                config.gumbel_token_weight
                * token_distillation_loss(outputs.last_hidden_state, dense, outputs.token_sizes)
            )
        restored = [
            self._restore(stage, entered, patches, selection, thumbnails, normed)
            for stage, entered in outputs.stages or ()
        ]
        result = AdaptiveViTModelOutput(
            last_hidden_state=outputs.last_hidden_state,
            pooler_output=self.pooler(outputs.last_hidden_state) if self.pooler is not None else None,
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
        self, patches: ImagePatches, selected_patches: torch.Tensor | None, sample: bool
    ) -> Selection:
        if selected_patches is not None:
            return Selection(*patches.places_of(selected_patches))
        if self.selector is None:
            return Selection(None, patches.mask)
        wanted = self.config.num_selected_patches
        relaxation = self.selection_relaxation if self.training else 0.0
        num_selected, counts = count_selected(patches, wanted, relaxation)
        if patches.image is None and num_selected >= patches.num_patches:
            # The data loader selected already.
            return Selection(None, patches.mask)
        scout = ModelScout(self)
        scores = self.selector.score(patches, num_selected if counts is None else counts, scout)
        _check_finite(scores, "pixel_values, or the weights of the patch selector,")
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
            token_assignments=tuple(assignment for assignment, _ in reductions) or None,
            stages=[(restored[number], restored[number].entered(reductions)) for number in stages],
            loss=sum(losses) if losses else None,
        )

    def _final(self, hidden_states: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        if self.config.final_norm != "tokens":
            return hidden_states
        return normalise(self.layernorm, hidden_states, mask)

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
            rotation = encoding.rotation(placed, index)
            return inputs.with_positions(self.config, rotation, encoding.bias(placed, index, num_prefix))

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


class AdaptiveViTForImageClassification(AdaptiveViTPreTrainedModel):
    """The encoder with a linear classifier on the CLS token, or on what else `config.pooling` makes of the tokens."""

    _auto_class = "AutoModelForImageClassification"

    def __init__(self, config: AdaptiveViTConfig):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.vit = AdaptiveViTModel(config, add_pooling_layer=False)
        self.pooling = POOLINGS[config.pooling](config)
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
        outputs = self.vit(**inputs, return_dict=True)
        logits = self._classify(outputs)
        loss, selection_loss = None, outputs.selection_loss
        if labels is not None:
            loss = self._loss(labels, logits)
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

    def _classify(self, outputs: AdaptiveViTModelOutput) -> torch.Tensor:
        num_tokens = outputs.token_coordinates.shape[1]
        return self._answer(self.pooling(outputs.last_hidden_state, num_tokens, outputs.token_sizes))

    def _classify_dense(self, outputs: AdaptiveViTModelOutput) -> torch.Tensor:
        """The answer that all tokens which entered the encoder give."""
        weights = None if outputs.patch_mask is None else outputs.patch_mask.float()
        num_tokens = outputs.patch_coordinates.shape[1]
        return self._answer(self.pooling(outputs.dense_hidden_state, num_tokens, weights))

    def _answer(self, pooled: torch.Tensor) -> torch.Tensor:
        if self.config.final_norm == "pooled":
            pooled = self.vit.layernorm(pooled.unsqueeze(1)).squeeze(1)
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
                reward_per_image(config.policy_reward, labels, answer, config.problem_type)
                for answer in (logits.detach(), favourites)
            ]
            losses.append(config.policy_loss_weight * reinforce_loss(outputs.selection_log_prob, *rewards))
        if outputs.dense_hidden_state is not None and config.problem_type != "regression":
            with torch.no_grad():
                teacher = self._classify_dense(outputs)
            divergence = distillation_loss(logits, teacher, config.problem_type)
            losses.append(config.gumbel_distillation_weight * divergence)
        return losses

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
        if config.token_reducer is not None:
            raise ValueError(
                f"Masked image modelling reconstructs every patch, but token_reducer={config.token_reducer!r} drops or "
                "merges some. Pass token_reducer=None."
            )
        if config.thumbnail_context:
            raise ValueError(
                "Masked image modelling hides patches, but thumbnail_context=True shows all of the image. Pass "
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


class AdaptiveViTBackbone(BackboneMixin, AdaptiveViTModel):
    """Feature maps for transformers' detection and segmentation models, by `AutoBackbone`.

    The maps have the full grid whatever is selected or reduced; see `restore` of `AdaptiveViTModel.forward`.

    Args:
        config: `out_features` or `out_indices` name the stages: "stem" (0) is what enters the encoder, "stage<n>" (n)
            what leaves block n; by default the last. `apply_layernorm` and `reshape_hidden_states` as in DINOv2.
    """

    _auto_class = "AutoBackbone"

    def __init__(self, config: AdaptiveViTConfig):
        config.set_output_features_output_indices(config.out_features, config.out_indices)
        super().__init__(config, add_pooling_layer=False)
        self.num_features = [config.hidden_size] * (config.num_hidden_layers + 1)

    @can_return_tuple
    def forward(self, pixel_values: torch.Tensor, **kwargs) -> BackboneOutput:
        """
        Args:
            pixel_values: see `AdaptiveViTModel.forward`, which takes the other arguments as well.

        Returns:
            `feature_maps`, one for each of `out_features`: `(B, D, R, S)`; or, with `reshape_hidden_states=False`,
            `(B, 1 + registers + R*S, D)`. Patches that never arrived have zeros.

        Raises:
            ValueError: if the images of the batch have different grids.
        """
        stages = tuple(self.config.stage_names.index(name) for name in self.out_features)
        outputs, stages = self._compute(
            pixel_values, stages=stages, normed=self.config.apply_layernorm, **kwargs
        )
        grid = outputs.spatial_shapes
        if not torch.compiler.is_compiling() and (grid != grid[:1]).any():
            raise ValueError(
                f"Feature maps of one batch have one size, but the images have grids of {grid.tolist()} rows and "
                "columns. Give images of one size, or one at a time."
            )
        if self.config.reshape_hidden_states:
            if pixel_values.ndim == 4:
                height, width = to_pair(self.config.patch_size)
                rows, columns = pixel_values.shape[2] // height, pixel_values.shape[3] // width
            else:
                rows, columns = grid[0].tolist()
            maps = [states.transpose(1, 2).unflatten(2, (rows, columns)) for _, states in stages]
        else:
            maps = [torch.cat(parts, dim=1) for parts in stages]
        return BackboneOutput(
            feature_maps=tuple(maps), hidden_states=outputs.hidden_states, attentions=outputs.attentions
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
    "AutoBackbone": f"{_MODULE}.AdaptiveViTBackbone",
}

# Stock ViT checkpoints, with the key names of transformers 4 or 5, load into ours. Registered here and not in the
# package, because this file travels with checkpoints and the package does not.
for _name in ("AdaptiveViTModel", "AdaptiveViTBackbone"):
    register_checkpoint_conversion_mapping(
        _name,
        [
            *get_checkpoint_conversion_mapping("ViTModel"),
            WeightRenaming(
                r"embeddings\.position_embeddings", "embeddings.position_encoding.position_embeddings"
            ),
        ],
        overwrite=True,
    )


__all__ = [
    "AdaptiveViTBackbone",
    "AdaptiveViTForImageClassification",
    "AdaptiveViTForMaskedImageModeling",
    "AdaptiveViTModel",
    "AdaptiveViTPreTrainedModel",
]
