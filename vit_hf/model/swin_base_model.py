"""Swin without a head: patches, stages of windows, and the choice of windows. Shape legend: `swin_windows.py`."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import initialization as init
from transformers.conversion_mapping import WeightRenaming, register_checkpoint_conversion_mapping
from transformers.utils.generic import can_return_tuple

from .checkpoint_code import code_writers
from .configuration_adaptive_swin import AdaptiveSwinConfig
from .cutting import cut_patches
from .input_checks import check_pixel_values, check_tensors
from .patch_embeddings import PatchEmbeddings
from .patches import ImagePatches
from .positions import Learned, LearnedOptions
from .pretrained_base import AdaptivePreTrainedModel
from .swin_blocks import AdaptiveSwinAttention, AdaptiveSwinStage, Choose, StageConfig, StageResult
from .swin_outputs import AdaptiveSwinModelOutput
from .swin_selection import WindowChooser
from .tokens import check_finite
from .user_classes import derives_from, find_class


class AdaptiveSwinEmbeddings(nn.Module):
    """Patch embeddings, normalised, with learned positions if the configuration wants them."""

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
        """Embeddings `(B, N, D)`, of which the mask token replaces those with a True in `bool_masked_pos` `(B, N)`."""
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
            embeddings = self.position_encoding("add", tokens.with_features(embeddings)).features
        return self.dropout(embeddings)


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
        show_weights: bool,
    ) -> list[StageResult]:
        results = []
        for stage in self.layers:
            results.append(stage(hidden_states, grid, choose, always_partition, show_weights))
            hidden_states, grid = results[-1].merged, results[-1].merged_grid
        return results


class AdaptiveSwinPreTrainedModel(AdaptivePreTrainedModel):
    """Loading, saving and initialisation."""

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
        """As `AdaptivePreTrainedModel.from_pretrained`, also of a stock SwinV2, which has a prefix of its own."""
        key_mapping = {r"^swinv2\.": "swin.", **(key_mapping or {})}
        return super().from_pretrained(
            pretrained_model_name_or_path, *args, key_mapping=key_mapping, **kwargs
        )

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        super()._init_weights(module)
        if isinstance(module, AdaptiveSwinEmbeddings) and module.mask_token is not None:
            init.zeros_(module.mask_token)
        elif isinstance(module, AdaptiveSwinAttention):
            module.reset_parameters()
        elif derives_from(type(module), "PositionEncoding"):
            module.reset_parameters(self.config.initializer_range)


@dataclass
class SwinPass:
    """What a pass through the model left: embeddings `(B, N, D)`, stages, and what chose their windows."""

    embeddings: torch.Tensor
    stages: list[StageResult]
    chooser: WindowChooser
    outputs: AdaptiveSwinModelOutput


class AdaptiveSwinModel(AdaptiveSwinPreTrainedModel):
    """The encoder without a head.

    Args:
        config: see `AdaptiveSwinConfig`.
        add_pooling_layer: whether outputs have the mean of the last hidden states, as Swin's do.
        use_mask_token: whether to have a mask token for masked image modelling.
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
        self.selection_relaxation = 0.0
        code_writers[-1].check(self)
        self.post_init()

    def pluggable_parts(self) -> dict[str, nn.Module | None]:
        """The parts whose class the configuration names, by its field."""
        return {"patch_selector": self.selector}

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        bool_masked_pos: torch.BoolTensor | None = None,
        interpolate_pos_encoding: bool | None = None,
        always_partition: bool = False,
        sample_selection: bool | None = None,
        **kwargs,
    ) -> AdaptiveSwinModelOutput:
        """
        Args:
            pixel_values: `(B, C, H, W)` images of any size, which are padded with zeros to whole patches.
            bool_masked_pos: `(B, N)` bool, True for patches that the mask token replaces.
            interpolate_pos_encoding: False refuses images of another size than `config.image_size`, where there are
                learned positions in the image; otherwise these are evaluated for the size at hand.
            always_partition: as `window_fit="fixed"` of the configuration.
            sample_selection: whether chance may play a part in selecting; by default it does while training.

        Raises:
            TypeError: if images were not prepared by an image processor.
            ValueError: if the input has the wrong shape, or is not finite.
        """
        return self._compute(
            pixel_values,
            bool_masked_pos,
            interpolate_pos_encoding,
            always_partition,
            sample_selection,
            **kwargs,
        ).outputs

    def _compute(
        self,
        pixel_values: torch.Tensor,
        bool_masked_pos: torch.BoolTensor | None = None,
        interpolate_pos_encoding: bool | None = None,
        always_partition: bool = False,
        sample_selection: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
    ) -> SwinPass:
        self.check_config()
        config = self.config
        if output_attentions is None:
            output_attentions = config.output_attentions
        if output_hidden_states is None:
            output_hidden_states = config.output_hidden_states
        check_tensors(bool_masked_pos=bool_masked_pos)
        patches = self._cut(pixel_values, interpolate_pos_encoding)
        embeddings = self.embeddings(patches, bool_masked_pos)
        check_finite(embeddings, "pixel_values")
        sample = self.training if sample_selection is None else sample_selection
        relaxation = self.selection_relaxation if self.training else 0.0
        chooser = WindowChooser(config, self.selector, patches, relaxation, sample)
        stages = self.encoder(embeddings, patches.full_grid, chooser, always_partition, output_attentions)
        last = self.layernorm(stages[-1].states)
        outputs = AdaptiveSwinModelOutput(
            last_hidden_state=last,
            pooler_output=last.mean(dim=1) if self.add_pooling_layer else None,
            attentions=tuple(stage.weights for stage in stages) if output_attentions else None,
            patch_scores=chooser.scores,
            spatial_shapes=patches.grid,
            selected_patches=_selected_patches(stages[0], patches),
            selection_loss=chooser.loss() if self.training and sample else None,
        )
        if output_hidden_states:
            states = [(embeddings, patches.full_grid)] + [
                (stage.merged, stage.merged_grid) for stage in stages
            ]
            outputs.hidden_states = tuple(values for values, _ in states)
            outputs.reshaped_hidden_states = tuple(to_map(*state) for state in states)
        if self.selector is not None:
            number = patches.grid.shape[0]
            outputs.selected_windows = tuple(_chosen(stage, 0, number) for stage in stages)
            outputs.selected_shifted_windows = tuple(_chosen(stage, -1, number) for stage in stages)
        return SwinPass(embeddings, stages, chooser, outputs)

    def _cut(self, pixel_values: torch.Tensor, interpolate_pos_encoding: bool | None) -> ImagePatches:
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
                f"Swin computes on whole images (B, C, H, W), got {shape}. One image needs a batch dimension; an image "
                "processor that cuts patches needs return_patches=False."
            )
        interpolate = interpolate_pos_encoding if self.config.use_absolute_embeddings else None
        return cut_patches(self.config, pixel_values, None, None, None, interpolate)


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


# Stock checkpoints of Swin and SwinV2, with the key names of transformers 4 or 5, load into ours, and ours are saved with
# the former.
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
