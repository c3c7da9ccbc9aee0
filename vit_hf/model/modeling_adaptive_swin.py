"""Adaptive Swin Transformer: the models that users load, and their heads."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import initialization as init
from transformers.conversion_mapping import WeightRenaming, register_checkpoint_conversion_mapping
from transformers.modeling_outputs import (
    BackboneOutput,
    BaseModelOutputWithPooling,
    ImageClassifierOutput,
    MaskedImageModelingOutput,
)
from transformers.utils.generic import can_return_tuple

from .checkpoint_code import code_writers
from .configuration_adaptive_swin import AdaptiveSwinConfig
from .heads import (
    ImageClassifier,
    MaskedImageDecoder,
    MeanPooling,
    classification_loss,
    masked_reconstruction_loss,
)
from .layers import Initialized
from .modeling_adaptive_vit import SelectionOutput
from .patch_embeddings import PatchEmbeddings
from .patches import ImagePatches, check_finite, check_pixel_values, check_tensors
from .positions import Learned, LearnedOptions
from .pretrained import AdaptivePreTrainedModel, initialize_own
from .registry import find_class
from .stages import StagesMixin
from .swin_layers import AdaptiveSwinStage, Choose, StageConfig, StageResult, WindowChooser


@dataclass
class WindowOutput(SelectionOutput):
    """Selected windows.

    Attributes:
        selected_patches: `(B, K * L)` int64 raster indices of the patches in the windows that the first block
            computed on, -1 for padding; all patches in raster order where it computed on all.
        reshaped_hidden_states: `hidden_states` as `(B, D, R, S)`.
        selected_windows: for each stage, `(B, K)` int64 raster indices of the windows that blocks without
            shift computed on; None without a selector.
        selected_shifted_windows: the same for blocks with shift, of windows of the rolled grid.
    """

    reshaped_hidden_states: tuple[torch.FloatTensor, ...] | None = None
    selected_windows: tuple[torch.LongTensor, ...] | None = None
    selected_shifted_windows: tuple[torch.LongTensor, ...] | None = None


@dataclass
class AdaptiveSwinModelOutput(WindowOutput, BaseModelOutputWithPooling):
    """Hidden states, and what was selected and why: see `WindowOutput` and `SelectionOutput`.

    Attributes:
        last_hidden_state: `(B, N, D)` of the last stage's grid, in raster order.
        pooler_output: `(B, D)` their mean.
        hidden_states: what enters the first stage and what each stage gives to the next, `(B, N, D)` of their
            grids.
        attentions: of each stage the last block's, `(B * K, heads, L, L)`, windows of one image after
            another.
    """


@dataclass
class AdaptiveSwinImageClassifierOutput(WindowOutput, ImageClassifierOutput):
    """Logits `(B, num_labels)`, and what was selected."""


@dataclass
class AdaptiveSwinMaskedImageModelingOutput(WindowOutput, MaskedImageModelingOutput):
    """Reconstruction `(B, C, H, W)` in pixels, and what was selected."""


@dataclass
class AdaptiveSwinBackboneOutput(WindowOutput, BackboneOutput):
    """Feature maps, and what was selected."""


class AdaptiveSwinEmbeddings(Initialized, nn.Module):
    """Patch embeddings, normalized, with learned positions if the configuration wants them."""

    def __init__(self, config: AdaptiveSwinConfig, use_mask_token: bool = False):
        super().__init__()
        stage_config = StageConfig(config, 0)
        self.patch_embeddings = PatchEmbeddings(stage_config)
        self.norm = nn.LayerNorm(config.embed_dim)
        self.position_encoding = (
            Learned(stage_config, LearnedOptions()) if config.use_absolute_embeddings else None
        )
        self.mask_token = nn.Parameter(torch.empty(1, 1, config.embed_dim)) if use_mask_token else None
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, patches: ImagePatches, bool_masked_pos: torch.BoolTensor | None = None) -> torch.Tensor:
        """Embeddings `(B, N, D)`, of which the mask token replaces those with a True in `bool_masked_pos`
        `(B, N)`."""
        tokens = self.patch_embeddings(patches)
        embeddings = self.norm(tokens.features)
        if bool_masked_pos is not None:
            if bool_masked_pos.shape != embeddings.shape[:2]:
                raise ValueError(
                    f"bool_masked_pos has the shape {tuple(bool_masked_pos.shape)}, but there are "
                    f"{tuple(embeddings.shape[:2])} patches (images, patches of each)."
                )
            if self.mask_token is None:
                raise ValueError(
                    "bool_masked_pos needs a mask token: use AdaptiveSwinForMaskedImageModeling, or build "
                    "AdaptiveSwinModel(config, use_mask_token=True)."
                )
            embeddings = torch.where(bool_masked_pos.bool().unsqueeze(-1), self.mask_token, embeddings)
        if self.position_encoding is not None:
            embeddings = self.position_encoding(tokens.with_features(embeddings)).features
        return self.dropout(embeddings)

    def reset_parameters(self, std: float) -> None:
        if self.mask_token is not None:
            init.zeros_(self.mask_token)


class AdaptiveSwinEncoder(nn.Module):
    """The stages."""

    def __init__(self, config: AdaptiveSwinConfig):
        super().__init__()
        number = sum(config.depths)
        rates = [config.drop_path_rate * index / max(number - 1, 1) for index in range(number)]
        ends = [sum(config.depths[: stage + 1]) for stage in range(config.num_layers)]
        self.layers = nn.ModuleList(
            AdaptiveSwinStage(config, stage, rates[end - depth : end])
            for stage, (end, depth) in enumerate(zip(ends, config.depths, strict=True))
        )

    def forward(
        self,
        hidden_states: torch.Tensor,
        grid: tuple[int, int],
        choose: Choose,
        always_partition: bool,
        output_attentions: bool,
    ) -> list[StageResult]:
        results = []
        for stage in self.layers:
            results.append(stage(hidden_states, grid, choose, always_partition, output_attentions))
            hidden_states, grid = results[-1].merged, results[-1].merged_grid
        return results


class AdaptiveSwinPreTrainedModel(AdaptivePreTrainedModel):
    """Loading, saving and initialization."""

    config: AdaptiveSwinConfig
    config_class = AdaptiveSwinConfig
    base_model_prefix = "swin"
    # A stage hands its blocks where its windows are.
    _no_split_modules = ["AdaptiveSwinEmbeddings", "AdaptiveSwinStage"]
    # Both lack the bias that positions are here.
    _supports_flash_attn = False
    _supports_flex_attn = False
    # Buffers that Microsoft's and older checkpoints of transformers hold: ours are computed.
    _keys_to_ignore_on_load_unexpected = [
        r"relative_position_index$",
        r"relative_coords_table$",
        r"attn_mask$",
    ]

    def __init__(self, config: AdaptiveSwinConfig, *args, **kwargs):
        # from_pretrained(..., field=value) sets fields one by one after the configuration was checked.
        config.validate_architecture()
        super().__init__(config, *args, **kwargs)
        self._checked_fields = dict(vars(self.config))

    @classmethod
    def _fields_to_keep(cls, wanted: AdaptiveSwinConfig, stored: AdaptiveSwinConfig) -> dict[str, Any]:
        if wanted.position_encoding != "relative_bias_continuous" or wanted.num_layers != stored.num_layers:
            return {}
        # Differences are spread over the windows of pretraining.
        return {
            "pretrained_window_sizes": [
                list(stored.pretrained_window_of(stage)) for stage in range(stored.num_layers)
            ]
        }

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, key_mapping=None, **kwargs):
        """As `AdaptivePreTrainedModel.from_pretrained`, also of a stock SwinV2, which has a prefix of its
        own."""
        key_mapping = {r"^swinv2\.": "swin.", **(key_mapping or {})}
        return super().from_pretrained(
            pretrained_model_name_or_path, *args, key_mapping=key_mapping, **kwargs
        )

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        super()._init_weights(module)
        initialize_own(module, self.config.initializer_range)


class AdaptiveSwinModel(AdaptiveSwinPreTrainedModel):
    """The encoder without a head.

    Args:
        config: see `AdaptiveSwinConfig`.
        add_pooling_layer: whether outputs have the mean of the last hidden states, as Swin's do.
        use_mask_token: whether to have a mask token for masked image modeling.
    """

    _auto_class = "AutoModel"

    def __init__(
        self, config: AdaptiveSwinConfig, add_pooling_layer: bool = True, use_mask_token: bool = False
    ):
        super().__init__(config)
        self.embeddings = AdaptiveSwinEmbeddings(config, use_mask_token=use_mask_token)
        selector = find_class(config, "patch_selector")
        self.selector = selector(config) if selector else None
        self.encoder = AdaptiveSwinEncoder(config)
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.add_pooling_layer = add_pooling_layer
        self.dense_fraction = 0.0
        code_writers[-1].check(self)
        self.post_init()

    def pluggable_parts(self) -> dict[str, nn.Module | None]:
        """Parts whose class the configuration names, by field."""
        return {"patch_selector": self.selector}

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        bool_masked_pos: torch.BoolTensor | None = None,
        interpolate_pos_encoding: bool | None = None,
        always_partition: bool = False,
        sample_selection: bool | None = None,
        dense_fraction: float | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
    ) -> AdaptiveSwinModelOutput:
        """
        Args:
            pixel_values: `(B, C, H, W)` images of any size, which are padded with zeros to whole patches.
            bool_masked_pos: `(B, N)` bool, True for patches that the mask token replaces.
            interpolate_pos_encoding: False refuses images of another size than `config.image_size`, where
                there are learned positions in the image; otherwise these are evaluated for the size at hand.
            always_partition: as `window_fit="fixed"` of the configuration.
            sample_selection: whether chance may play a part in selecting; by default it does while training.
            dense_fraction: how far selection is loosened, from 0 (as configured) to 1 (all windows); by
                default `dense_fraction` while training, and 0 otherwise.

        Raises:
            TypeError: if images were not prepared by an image processor.
            ValueError: if the input has the wrong shape, or is not finite.
        """
        check_tensors(bool_masked_pos=bool_masked_pos)
        patches = self.to_patches(pixel_values, interpolate_pos_encoding)
        embeddings = self.embed(patches, bool_masked_pos)
        chooser = self.window_chooser(patches, sample_selection, dense_fraction)
        stages = self.encode(embeddings, patches, chooser, always_partition, output_attentions)
        return self.outputs(patches, embeddings, stages, chooser, output_hidden_states)

    def embed(self, patches: ImagePatches, bool_masked_pos: torch.BoolTensor | None = None) -> torch.Tensor:
        """Embeds all patches, `(B, N, D)`."""
        embeddings = self.embeddings(patches, bool_masked_pos)
        check_finite(embeddings, "pixel_values")
        return embeddings

    def window_chooser(
        self, patches: ImagePatches, sample: bool | None = None, dense_fraction: float | None = None
    ) -> WindowChooser:
        """Chooses windows for each stage as it begins; arguments as of `forward`."""
        sample = self.training if sample is None else sample
        if dense_fraction is None:
            dense_fraction = self.dense_fraction if self.training else 0.0
        return WindowChooser(self.config, self.selector, patches, dense_fraction, sample)

    def encode(
        self,
        embeddings: torch.Tensor,
        patches: ImagePatches,
        chooser: WindowChooser,
        always_partition: bool = False,
        output_attentions: bool | None = None,
    ) -> list[StageResult]:
        """Runs the stages."""
        if output_attentions is None:
            output_attentions = self.config.output_attentions
        return self.encoder(embeddings, patches.full_grid, chooser, always_partition, output_attentions)

    def outputs(
        self,
        patches: ImagePatches,
        embeddings: torch.Tensor,
        stages: list[StageResult],
        chooser: WindowChooser,
        output_hidden_states: bool | None = None,
    ) -> AdaptiveSwinModelOutput:
        """Collects what the model returns."""
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        last = self.layernorm(stages[-1].states)
        has_weights = stages[0].weights is not None
        outputs = AdaptiveSwinModelOutput(
            last_hidden_state=last,
            pooler_output=last.mean(dim=1) if self.add_pooling_layer else None,
            attentions=tuple(stage.weights for stage in stages) if has_weights else None,
            patch_scores=chooser.scores,
            spatial_shapes=patches.grid,
            selected_patches=_selected_patches(stages[0], patches),
            selection_loss=chooser.loss() if self.training and chooser.sample else None,
        )
        if output_hidden_states:
            states = [(embeddings, patches.full_grid)]
            states += [(stage.merged, stage.merged_grid) for stage in stages]
            outputs.hidden_states = tuple(values for values, _ in states)
            outputs.reshaped_hidden_states = tuple(to_map(*state) for state in states)
        if self.selector is not None:
            number = patches.grid.shape[0]
            outputs.selected_windows = tuple(_chosen(stage, 0, number) for stage in stages)
            outputs.selected_shifted_windows = tuple(_chosen(stage, -1, number) for stage in stages)
        return outputs

    def to_patches(
        self, pixel_values: torch.Tensor, interpolate_pos_encoding: bool | None = None
    ) -> ImagePatches:
        """Cuts images, padded with zeros, to patches; see `forward`."""
        self.check_config()
        if not isinstance(pixel_values, ImagePatches):
            check_pixel_values(pixel_values)
        if isinstance(pixel_values, torch.Tensor) and pixel_values.ndim == 4:
            height, width = self.embeddings.patch_embeddings.patch_size
            missing = (0, -pixel_values.shape[3] % width, 0, -pixel_values.shape[2] % height)
            if any(missing):  # by nothing it would copy, too
                pixel_values = nn.functional.pad(pixel_values, missing)
        elif not isinstance(pixel_values, ImagePatches) or pixel_values.full_grid is None:
            shape = (
                tuple(pixel_values.shape)
                if isinstance(pixel_values, torch.Tensor)
                else "patches of some images"
            )
            raise ValueError(
                f"Swin computes on whole images (B, C, H, W), got {shape}. One image needs a "
                "batch dimension; an image "
                "processor that cuts patches needs return_patches=False."
            )
        interpolate = interpolate_pos_encoding if self.config.use_absolute_embeddings else None
        return ImagePatches.from_inputs(self.config, pixel_values, interpolate_pos_encoding=interpolate)


def to_map(states: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """`(B, D, R, S)` of states `(B, N, D)` in raster order."""
    return states.transpose(1, 2).unflatten(2, grid)


def _selected_patches(first: StageResult, patches: ImagePatches) -> torch.Tensor:
    if first.chosen[0] is not None:
        return first.layouts[0].cells_of(first.chosen[0])
    places = torch.arange(patches.num_patches, device=patches.grid.device)
    return places.expand(patches.grid.shape[0], -1)


def _chosen(stage: StageResult, which: int, batch_size: int) -> torch.Tensor:
    if stage.chosen[which] is not None:
        return stage.chosen[which]
    layout = stage.layouts[which]
    return torch.arange(layout.num_windows, device=layout.cells.device).expand(batch_size, -1)


# Stock checkpoints of Swin and SwinV2, with the key names of transformers 4 or 5, load into ours, and ours
# are saved with the former.
RENAMED = (
    (r"embeddings\.position_embeddings", "embeddings.position_encoding.position_embeddings"),
    (r"attention\.self\.query", "attention.self.q_proj"),
    (r"attention\.self\.key", "attention.self.k_proj"),
    (r"attention\.self\.value", "attention.self.v_proj"),
    # Of Swin, and of SwinV2.
    (
        r"attention\.self\.(relative_position_bias_table|continuous_position_bias_mlp)",
        r"attention.relative_position_bias.\1",
    ),
    # With names of files in the list, as transformers' tests want each renaming to match some.
    (r"attention\.self\.(query|q_proj|k_proj|v_proj|logit_scale)", r"attention.\1"),
    (r"attention\.output\.dense", "attention.o_proj"),
    (r"intermediate\.dense", "mlp.fc1"),
    (r"output\.dense", "mlp.fc2"),
)
for _name in ("Model", "Backbone"):
    register_checkpoint_conversion_mapping(
        f"AdaptiveSwin{_name}", [WeightRenaming(*pair) for pair in RENAMED], overwrite=True
    )


class AdaptiveSwinForImageClassification(ImageClassifier, AdaptiveSwinPreTrainedModel):
    """The encoder with a linear classifier on the mean of its last hidden states."""

    _auto_class = "AutoModelForImageClassification"

    def __init__(self, config: AdaptiveSwinConfig):
        super().__init__(config)
        self.swin = AdaptiveSwinModel(config, add_pooling_layer=False)
        self.pooling = MeanPooling(config)
        self.add_classifier(config)
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
        logits = self.classify(self.pooling(states, states.shape[1], None))
        loss = None
        if labels is not None:
            loss = classification_loss(self, labels, logits)
            if outputs.selection_loss is not None:
                loss = loss + outputs.selection_loss
        return AdaptiveSwinImageClassifierOutput.from_outputs(outputs, loss=loss, logits=logits)


class AdaptiveSwinForMaskedImageModeling(AdaptiveSwinPreTrainedModel):
    """The encoder with a decoder that reconstructs masked patches (SimMIM, Xie et al., 2021)."""

    _auto_class = "AutoModelForMaskedImageModeling"

    def __init__(self, config: AdaptiveSwinConfig):
        if config.patch_selector is not None:
            raise ValueError(
                "Masked image modeling reconstructs every patch, but "
                f"patch_selector={config.patch_selector!r} passes "
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
            ValueError: if masks are given and `encoder_stride` is not what a cell of the last stage has of
                the image.
        """
        patch_size = self.swin.embeddings.patch_embeddings.patch_size
        strides = tuple(side * 2 ** (self.config.num_layers - 1) for side in patch_size)
        stride = self.config.encoder_stride
        if bool_masked_pos is not None and strides != (stride, stride):
            raise ValueError(
                f"The reconstruction must have the size of the image, so encoder_stride={stride} "
                f"must be {strides[0]}, what "
                f"a cell of the last stage has of it (patch_size={self.config.patch_size}, "
                f"{self.config.num_layers} stages)."
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
        return AdaptiveSwinMaskedImageModelingOutput.from_outputs(
            outputs, loss=loss, reconstruction=reconstruction
        )


class AdaptiveSwinBackbone(StagesMixin, AdaptiveSwinModel):
    """Feature maps for transformers' detection and segmentation models, by `AutoBackbone`.

    Windows are what they are on any grid (`always_partition`), as in transformers' backbone of Swin. Cells of
    windows that are not computed on have the state that they came with.

    Args:
        config: `out_features` or `out_indices` name the stages: "stem" (0) is what enters the first stage,
            "stage<n>" (n) what leaves the blocks of stage n, before cells are merged; by default the last.
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
        self,
        pixel_values: torch.Tensor,
        interpolate_pos_encoding: bool | None = None,
        always_partition: bool = True,
        sample_selection: bool | None = None,
        dense_fraction: float | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
    ) -> AdaptiveSwinBackboneOutput:
        """
        Args:
            pixel_values: `(B, C, H, W)`.
            interpolate_pos_encoding, always_partition, sample_selection, dense_fraction: see
                `AdaptiveSwinModel.forward`.

        Returns:
            `feature_maps`, one for each of `out_features`, `(B, D, R, S)`.
        """
        patches = self.to_patches(pixel_values, interpolate_pos_encoding)
        embeddings = self.embed(patches)
        chooser = self.window_chooser(patches, sample_selection, dense_fraction)
        stages = self.encode(embeddings, patches, chooser, always_partition, output_attentions)
        outputs = self.outputs(patches, embeddings, stages, chooser, output_hidden_states)
        states = {"stem": (embeddings, stages[0].grid)}
        for number, stage in enumerate(stages, start=1):
            states[f"stage{number}"] = (stage.states, stage.grid)
        maps = []
        for name in self.out_features:
            values, grid = states[name]
            if name in self.hidden_states_norms:
                values = self.hidden_states_norms[name](values)
            maps.append(to_map(values, grid))
        return AdaptiveSwinBackboneOutput.from_outputs(outputs, feature_maps=tuple(maps))


__all__ = [
    "AdaptiveSwinBackbone",
    "AdaptiveSwinForImageClassification",
    "AdaptiveSwinForMaskedImageModeling",
    "AdaptiveSwinModel",
    "AdaptiveSwinPreTrainedModel",
]
