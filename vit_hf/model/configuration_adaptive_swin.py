"""Configuration of the adaptive Swin Transformer."""

import math
from typing import Any, Literal

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig, SwinConfig
from transformers.utils import is_torch_available

from .budget import Budget
from .checkpoint_code import SavesCode
from .configuration_checks import CheckedFields, check_field_names, check_label_fields, drop_defaults
from .options import check_part, keep_options, type_of
from .sizes import to_pair
from .stages import StagesConfigMixin


WINDOW_ENCODINGS = ("relative_bias", "relative_bias_continuous")

# Fields of AdaptiveViTConfig that Swin cannot have, and why.
FOREIGN = {
    "token_reducer": "windows need a full grid, and reducers leave a set of tokens. Select windows with "
    "patch_selector and num_selected_windows",
    "num_selected_patches": "Swin computes on whole windows: use num_selected_windows",
    "thumbnail_context": "a window's attention sees nothing beyond it. Windows that are not selected pass on as they "  # noqa: E501
    "are",
    "num_register_tokens": "attention is that of windows, of which none has tokens beside its cells",
    "backbone_config": "a CNN before the encoder is for AdaptiveViT",
}
# Selectors that Swin cannot have, and why.
UNFIT = {
    "attention": "asks what the CLS token of a ViT attends to, and Swin has none",
    "distilled": "learns from what the CLS token of a ViT attends to, and Swin has none",
    "policy": "is rewarded for one draw of patches, and each stage and shift of Swin has windows of its own",
    "perturbed": "makes the encoder compute on means of patches, which no window is made of",
    "cross_attention": "weighs patches in one attention over all of them, and Swin attends inside windows",
}


def check_architecture(config) -> None:
    """Stages, blocks and sizes."""
    if not config.depths or min(config.depths) < 1:
        raise ValueError(f"depths={config.depths} must be a number of blocks of at least 1 for each stage.")
    if len(config.num_heads) != len(config.depths):
        raise ValueError(
            f"num_heads={config.num_heads} must be as many numbers as depths={config.depths}, one "
            "for each stage."
        )
    for stage, heads in enumerate(config.num_heads):
        channels = config.embed_dim * 2**stage
        if heads < 1 or channels % heads:
            raise ValueError(
                f"num_heads={config.num_heads}: stage {stage + 1} has embed_dim * {2**stage} = "
                f"{channels} channels, which "
                f"must be a multiple of its heads, {heads}."
            )
    for name in ("embed_dim", "num_channels", "encoder_stride"):
        if getattr(config, name) < 1:
            raise ValueError(f"{name}={getattr(config, name)} must be at least 1.")
    if not 0 < config.mlp_ratio < math.inf or int(config.embed_dim * config.mlp_ratio) < 1:
        raise ValueError(f"mlp_ratio={config.mlp_ratio} must leave at least 1 channel of embed_dim.")
    for name in ("drop_path_rate", "hidden_dropout_prob", "attention_probs_dropout_prob"):
        if not 0 <= getattr(config, name) < 1:
            raise ValueError(f"{name}={getattr(config, name)} must lie in [0, 1).")
    for name in ("image_size", "patch_size"):
        value = getattr(config, name)
        if (not isinstance(value, int) and len(value) != 2) or min(to_pair(value)) < 1:
            raise ValueError(
                f"{name}={value} must be a number of pixels of at least 1 a side, or a pair "
                "(height, width) of them."
            )
    if config.use_absolute_embeddings and any(
        side < patch
        for side, patch in zip(to_pair(config.image_size), to_pair(config.patch_size), strict=True)
    ):
        raise ValueError(
            f"image_size={config.image_size} is smaller than one patch of patch_size={config.patch_size}."
        )


def check_windows(config) -> None:
    """Windows, shifts, and positions in them."""
    if isinstance(config.window_size, int):
        if config.window_size < 1:
            raise ValueError(f"window_size={config.window_size} must be at least 1.")
    else:
        _check_per_stage(config, "window_size", least=1)
    for name in ("shift_size", "pretrained_window_sizes"):
        if getattr(config, name) is not None:
            _check_per_stage(config, name, least=0)
    for stage in range(config.num_layers):
        window, shift = config.window_of(stage), config.shift_of(stage)
        if any(step >= side for step, side in zip(shift, window, strict=True)):
            raise ValueError(
                f"shift_size={config.shift_size} shifts windows of stage {stage + 1} by {shift} "
                "cells, which must be less "
                f"than their rows and columns, {window}."
            )
    if config.position_encoding not in WINDOW_ENCODINGS:
        raise ValueError(
            f"position_encoding={config.position_encoding!r} is not for Swin, whose attention "
            "sees differences of places "
            f"inside a window: choose one of {list(WINDOW_ENCODINGS)}. "
            "use_absolute_embeddings=True adds learned "
            "positions in the image besides."
        )


def _check_per_stage(config, name: str, least: int) -> None:
    values = getattr(config, name)
    legal = len(values) == config.num_layers and all(
        isinstance(value, int) or (isinstance(value, list | tuple) and len(value) == 2) for value in values
    )
    if not legal or any(min(to_pair(value)) < least for value in values):
        raise ValueError(
            f"{name}={values} must be a number, or a pair (rows, columns), of at least {least} "
            "for each of the "
            f"{config.num_layers} stages."
        )


def check_foreign_fields(config) -> None:
    """Refuses fields that only a ViT has."""
    for name, reason in FOREIGN.items():
        value = getattr(config, name, None)
        if value:
            raise ValueError(f"{name}={value!r} is not for Swin: {reason}.")


def check_window_selection(config) -> None:
    """Checks the selection of windows, but for the selector itself."""
    check_part("patch_selector", config.patch_selector)
    number, name = config.num_selected_windows, type_of(config.patch_selector)
    if name in UNFIT:
        raise ValueError(
            f"patch_selector={name!r} {UNFIT[name]}. Choose a pixel heuristic such as 'saliency' "
            "or 'variance', or a class "
            "of your own that scores patches."
        )
    if name is not None and number is None:
        raise ValueError(
            f"patch_selector={name!r} needs num_selected_windows: a number of the first stage's "
            "windows >= 1, or a fraction "
            "of each stage's in (0, 1]."
        )
    if number is not None:
        Budget(number, "num_selected_windows", "windows")


@strict
class AdaptiveSwinConfig(SavesCode, CheckedFields, StagesConfigMixin, PreTrainedConfig):
    """Everything an adaptive Swin Transformer is built from; all of it plain JSON.

    Fields that transformers' `SwinConfig` and `Swinv2Config` have keep their name, default and meaning. By
    default a Swin (Liu et al., 2021); a SwinV2 (Liu et al., 2022) has
    `position_encoding="relative_bias_continuous"`, `cosine_attention=True`, `post_norm=True` and
    `key_bias=False`. The others:

    Args:
        window_size (`int`, or list of `int` or pairs for each stage, defaults to 7): cells of a window's
            side, or rows and columns of it.
        shift_size (list of `int` or pairs for each stage, *optional*): by how many cells the windows of every
            other block are shifted; default half a window.
        window_fit (`"input"` or `"fixed"`, defaults to `"input"`): what a stage does whose grid is not larger
            than a window. As transformers' Swin has it, one side of the grid that is not larger makes windows
            as large as the smaller side, without shift; or windows are what they are on any grid, and padded,
            as transformers' backbone of Swin has it, SwinV2, and timm.
        pad_before_shift (`bool`, defaults to True): whether grids are padded to whole windows before they are
            shifted, as in transformers, or after, as in timm. Without padding both are the same.
        pretrained_window_sizes (list of `int`, *optional*): window's sides in pretraining, over which
            `"relative_bias_continuous"` spreads differences; 0 or None for those of `window_size`.
        position_encoding (`"relative_bias"` or `"relative_bias_continuous"`, defaults to `"relative_bias"`):
            what is added to attention for the difference of places in a window: a table, or the network of
            SwinV2.
        cosine_attention (`bool`, defaults to False): whether attention compares directions of queries and
            keys, at a learned temperature of each head.
        post_norm (`bool`, defaults to False): whether a block normalizes what its branches give, instead of
            what they get.
        key_bias (`bool`, defaults to True): whether keys have a bias, if `qkv_bias`.
        apply_layernorm (`bool`, defaults to True): whether `AdaptiveSwinBackbone` normalizes its feature
            maps, each by a norm of its own, as transformers' backbone of Swin does, and not that of SwinV2.
        patch_selector (`str`, or `dict` of the name as `type` and options, *optional*): a pixel heuristic of
            `PATCH_SELECTORS`, or a class of your own; windows of the highest scores are computed on. None
            computes on every window.
        num_selected_windows (`int` or `float`, *optional*): how many, as a fraction in (0, 1] of each stage's
            windows, or as a number K >= 1 of the first stage's. A window of the next stage covers four of
            them, so there ceil(K / 4) are computed on, and so on: as many as of an image that has K windows
                in
            its first stage.
        window_score (`"max"` or `"mean"`, defaults to `"max"`): what a window's score is of those of its
            patches.
        token_reducer (*optional*): None, as windows need a full grid.
        out_features, out_indices (lists of `str` and `int`, *optional*): stages whose feature maps
            `AdaptiveSwinBackbone` returns, of "stem", "stage1", ...; default the last.

    Raises:
        huggingface_hub.errors.StrictDataclassError: for values of a wrong type, or that do not fit together;
            the message names the legal ones.
    """

    model_type = "adaptive_swin"
    _refused_fields = frozenset(FOREIGN)  # `check_foreign_fields` says why
    # Name of the file that a checkpoint carries, and what it holds.
    code_file = "modeling_adaptive_swin"
    auto_classes = {
        "AutoConfig": "AdaptiveSwinConfig",
        "AutoModel": "AdaptiveSwinModel",
        "AutoModelForImageClassification": "AdaptiveSwinForImageClassification",
        "AutoModelForMaskedImageModeling": "AdaptiveSwinForMaskedImageModeling",
        "AutoBackbone": "AdaptiveSwinBackbone",
    }
    attribute_map = {"num_attention_heads": "num_heads", "num_hidden_layers": "num_layers"}
    # What Trainer should not gather over an evaluation: per-image maps, not predictions.
    keys_to_ignore_at_inference = [
        "reshaped_hidden_states",
        "selected_patches",
        "selected_windows",
        "selected_shifted_windows",
        "patch_scores",
        "spatial_shapes",
        "selection_loss",
    ]

    image_size: int | list[int] | tuple[int, int] = 224
    patch_size: int | list[int] | tuple[int, int] = 4
    num_channels: int = 3
    embed_dim: int = 96
    depths: list[int] | tuple[int, ...] = (2, 2, 6, 2)
    num_heads: list[int] | tuple[int, ...] = (3, 6, 12, 24)
    window_size: int | list[Any] | tuple[Any, ...] = 7
    mlp_ratio: float | int = 4.0
    qkv_bias: bool = True
    hidden_dropout_prob: float | int = 0.0
    attention_probs_dropout_prob: float | int = 0.0
    drop_path_rate: float | int = 0.1
    hidden_act: str = "gelu"
    use_absolute_embeddings: bool = False
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-5
    encoder_stride: int = 32

    shift_size: list[Any] | tuple[Any, ...] | None = None
    window_fit: Literal["input", "fixed"] = "input"
    pad_before_shift: bool = True
    pretrained_window_sizes: list[Any] | tuple[Any, ...] | None = None
    position_encoding: str = "relative_bias"
    cosine_attention: bool = False
    post_norm: bool = False
    key_bias: bool = True
    apply_layernorm: bool = True
    patch_selector: str | dict[str, Any] | None = None
    num_selected_windows: int | float | None = None
    window_score: Literal["max", "mean"] = "max"
    token_reducer: str | None = None
    _out_features: list[str] | None = None
    _out_indices: list[int] | None = None

    def __post_init__(self, **kwargs):
        stages = {name: kwargs.pop(name, None) for name in ("out_features", "out_indices")}
        if any(value is not None for value in stages.values()):
            self._set_stages(**stages)
        for name in ("hidden_size", "num_layers", "stage_names"):
            kwargs.pop(name, None)  # which transformers stores, and which follow from others
        for name in ("depths", "num_heads"):
            setattr(self, name, list(getattr(self, name)))
        super().__post_init__(**kwargs)

    @property
    def num_layers(self) -> int:
        """Stages."""
        return len(self.depths)

    @property
    def hidden_size(self) -> int:
        """Channels of the last stage."""
        return self.embed_dim * 2 ** (self.num_layers - 1)

    @property
    def stage_names(self) -> list[str]:
        """Names of what a backbone can return: what enters the encoder, and what leaves the blocks of each
        stage."""
        return ["stem", *(f"stage{number}" for number in range(1, self.num_layers + 1))]

    def window_of(self, stage: int) -> tuple[int, int]:
        """Rows and columns of a window in a stage, from 0."""
        return to_pair(self.window_size if isinstance(self.window_size, int) else self.window_size[stage])

    def shift_of(self, stage: int) -> tuple[int, int]:
        """By how many rows and columns windows of a stage are shifted in every other block."""
        if self.shift_size is not None:
            return to_pair(self.shift_size[stage])
        rows, columns = self.window_of(stage)
        return rows // 2, columns // 2

    def pretrained_window_of(self, stage: int) -> tuple[int, int]:
        """Rows and columns that the network of `"relative_bias_continuous"` spreads differences over."""
        sizes = self.pretrained_window_sizes
        pretrained = (0, 0) if sizes is None else to_pair(sizes[stage])
        return pretrained if pretrained[0] > 0 else self.window_of(stage)

    def validate_architecture(self):
        """Checks fields against each other: at construction, when a model is built, and before it runs on
        changed fields."""
        check_field_names(self, vars(self))
        check_label_fields(self)
        check_architecture(self)
        self.verify_out_features_out_indices()
        check_windows(self)
        check_foreign_fields(self)
        check_window_selection(self)
        if is_torch_available():
            from .part_checks import check_swin_parts

            check_swin_parts(self)

    def to_diff_dict(self) -> dict[str, Any]:
        """Values that are saved: those of a stock Swin, and of the other fields those that differ from
        their defaults."""
        return drop_defaults(self, SwinConfig)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs):
        """As in transformers; a selector that is named alone keeps the options that it has in
        `config_dict`."""
        return super().from_dict(config_dict, **keep_options(config_dict, kwargs, ("patch_selector",)))

    @classmethod
    def get_config_dict(
        cls, pretrained_model_name_or_path, **kwargs
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Reads also the configuration of a stock Swin or SwinV2."""
        config_dict, kwargs = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        model_type = config_dict.get("model_type", cls.model_type)
        if model_type not in (cls.model_type, "swin", "swinv2"):
            raise ValueError(
                f"{pretrained_model_name_or_path} holds a {model_type!r} model; AdaptiveSwin "
                f"loads {cls.model_type!r}, "
                "'swin' and 'swinv2' checkpoints. Models of timm become one by vit_hf.convert or "
                "vit-hf convert, and "
                "Vision Transformers an AdaptiveViT."
            )
        if model_type != cls.model_type:
            config_dict = {key: value for key, value in config_dict.items() if key != "architectures"}
            if model_type == "swinv2":
                config_dict |= read_swinv2(config_dict)
            config_dict["model_type"] = cls.model_type
        return config_dict, kwargs


def read_swinv2(values: dict[str, Any]) -> dict[str, Any]:
    """Translates a configuration of transformers' SwinV2 to our fields.

    There the native size decides on windows and shifts, once and for all sizes.

    Raises:
        ValueError: if rows decide there on columns that would have other windows, and for learned positions,
            whose table has a row too many there.
    """
    if values.get("use_absolute_embeddings"):
        raise ValueError(
            "use_absolute_embeddings=True of a SwinV2 of transformers does not fit its patches "
            "there, and is not supported."
        )
    defaults = {name: getattr(AdaptiveSwinConfig, name) for name in ("image_size", "patch_size", "depths")}
    image_size, patch_size, depths = (values.get(name, default) for name, default in defaults.items())
    grid = [side // patch for side, patch in zip(to_pair(image_size), to_pair(patch_size), strict=True)]
    window = values.get("window_size", 7)
    windows, shifts = [], []
    for stage in range(len(depths)):
        sides = [side // 2**stage for side in grid]
        fits = [(min(side, window), 0 if side <= window else window // 2) for side in sides]
        if fits[0] != fits[1]:
            raise ValueError(
                f"image_size={image_size} gives stage {stage + 1} of this SwinV2 a grid of "
                f"{sides[0]}x{sides[1]} cells, "
                f"smaller than a window of {window} on one side alone, and there windows are "
                "square: not supported."
            )
        windows.append(fits[0][0])
        shifts.append(fits[0][1])
    pretrained = values.get("pretrained_window_sizes") or [0] * len(depths)
    return {
        "window_size": windows,
        "shift_size": shifts,
        "window_fit": "fixed",
        "pretrained_window_sizes": list(pretrained)[: len(depths)],
        "position_encoding": "relative_bias_continuous",
        "cosine_attention": True,
        "post_norm": True,
        "key_bias": False,
        "apply_layernorm": False,
    }


def num_windows_selected(
    budget: int | float, stage: int, num_windows: int, dense_fraction: float = 0.0
) -> int:
    """How many of a stage's windows a model computes on, see `num_selected_windows`.

    Args:
        budget: a number of the first stage's windows, or a fraction of each stage's.
        stage: from 0.
        num_windows: of the stage.
        dense_fraction: 0 for the budget, 1 for all windows, linear between.
    """
    first = Budget(budget, "num_selected_windows", "windows")
    # A window of the next stage covers four.
    number = first.coarsened(4**stage).capped(num_windows).resolve(num_windows)
    return number + round(dense_fraction * (num_windows - number))


__all__ = ["AdaptiveSwinConfig"]
