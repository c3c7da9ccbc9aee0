"""Configuration of the adaptive Vision Transformer."""

from typing import Any, Literal

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig
from transformers.activations import ACT2FN

from .patches import to_pair
from .positions import POSITION_ENCODINGS
from .selection import PATCH_SELECTORS


@strict
class AdaptiveViTConfig(PreTrainedConfig):
    """Everything an adaptive Vision Transformer is built from; all of it plain JSON.

    Fields that transformers' `ViTConfig` has keep its name, default and meaning. The others:

    Args:
        position_encoding (`str`, defaults to `"learned"`): a key of `POSITION_ENCODINGS`.
        rotary_base (`float`, defaults to 100.0): base of the frequencies of `"rotary"`; the slowest has a
            wavelength of about 2 pi times the base, in patches.
        patch_selector (`str`, *optional*): a key of `PATCH_SELECTORS`; None computes on every patch.
        num_selected_patches (`int` or `float`, *optional*): how many patches the selector keeps, as a number K >= 1
            or as a share in (0, 1] of an image's patches.
        random_selector_seed (`int`, defaults to 0): which patches `"random"` keeps outside training.
        scout_num_layers (`int`, defaults to 3): blocks that the scout pass of `"attention"` goes through; the CLS
            attention of the last of them scores the patches.
        scout_image_size (`int` or pair, *optional*): pixels of the scout's thumbnail, default `image_size`.
        pooling (`"cls"` or `"mean"`, defaults to `"cls"`): what the classifier reads: the CLS token, or the mean
            over patches.
        num_register_tokens (`int`, defaults to 0): extra learned tokens without a place in the image
            ("Vision Transformers Need Registers", Darcet et al., 2023).
        norm_type (`"layernorm"` or `"rmsnorm"`, defaults to `"layernorm"`): normalisation of the blocks.
        layerscale_value (`float`, *optional*): initial value of a learned scale of each residual branch (CaiT,
            Touvron et al., 2021); None for no scale.
        drop_path_rate (`float`, defaults to 0.0): stochastic depth of the last block, rising linearly from 0.

    Raises:
        huggingface_hub.errors.StrictDataclassError: for values of a wrong type, or that do not fit together; the
            message names the legal ones.
    """

    model_type = "adaptive_vit"
    _auto_class = "AutoConfig"
    # What Trainer should not gather over an evaluation: per-image maps, not predictions.
    keys_to_ignore_at_inference = [
        "selected_patches",
        "patch_scores",
        "patch_coordinates",
        "spatial_shapes",
        "selection_loss",
    ]

    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    hidden_dropout_prob: float | int = 0.0
    attention_probs_dropout_prob: float | int = 0.0
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-12
    image_size: int | list[int] | tuple[int, int] = 224
    patch_size: int | list[int] | tuple[int, int] = 16
    num_channels: int = 3
    qkv_bias: bool = True
    encoder_stride: int = 16
    pooler_output_size: int | None = None
    pooler_act: str = "tanh"

    position_encoding: str = "learned"
    rotary_base: float | int = 100.0
    patch_selector: str | None = None
    num_selected_patches: int | float | None = None
    random_selector_seed: int = 0
    scout_num_layers: int = 3
    scout_image_size: int | list[int] | tuple[int, int] | None = None
    pooling: Literal["cls", "mean"] = "cls"
    num_register_tokens: int = 0
    norm_type: Literal["layernorm", "rmsnorm"] = "layernorm"
    layerscale_value: float | int | None = None
    drop_path_rate: float | int = 0.0

    def __post_init__(self, **kwargs):
        self.pooler_output_size = self.pooler_output_size or self.hidden_size
        super().__post_init__(**kwargs)

    def validate_architecture(self):
        """Checks fields against each other. Runs at construction, and again when a model is built."""
        _check_choice("position_encoding", self.position_encoding, POSITION_ENCODINGS)
        _check_choice("hidden_act", self.hidden_act, ACT2FN)
        for name in (
            "hidden_size",
            "num_hidden_layers",
            "num_attention_heads",
            "intermediate_size",
            "num_channels",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1.")
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size={self.hidden_size} must be a multiple of num_attention_heads={self.num_attention_heads}."
            )
        channels = {"sinusoidal": ("hidden_size", self.hidden_size, 2)}
        channels["sinusoidal_2d"] = channels["learned_from_sinusoidal"] = ("hidden_size", self.hidden_size, 4)
        channels["rotary"] = (
            "hidden_size / num_attention_heads",
            self.hidden_size // self.num_attention_heads,
            4,
        )
        if self.position_encoding in channels:
            name, size, divisor = channels[self.position_encoding]
            if size % divisor:
                raise ValueError(
                    f"position_encoding={self.position_encoding!r} needs {name} to be a multiple of {divisor}, "
                    f"got {size}."
                )
        self._validate_sizes()
        self._validate_selection()
        for name in ("drop_path_rate", "hidden_dropout_prob", "attention_probs_dropout_prob"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must lie in [0, 1).")
        if self.rotary_base <= 0:
            raise ValueError(f"rotary_base={self.rotary_base} must be above 0.")
        if self.num_register_tokens < 0:
            raise ValueError(f"num_register_tokens={self.num_register_tokens} must be 0 or more.")

    def _validate_sizes(self):
        for name in ("image_size", "patch_size", "scout_image_size"):
            value = getattr(self, name)
            if value is None:
                continue
            if not isinstance(value, int) and len(value) != 2:
                raise ValueError(f"{name}={value} must be a number of pixels or a pair (height, width).")
            if min(to_pair(value)) < 1:
                raise ValueError(f"{name}={value} must be at least one pixel a side.")
        patch_size = to_pair(self.patch_size)
        for name in ("image_size", "scout_image_size"):
            value = getattr(self, name) or self.image_size
            if to_pair(value)[0] < patch_size[0] or to_pair(value)[1] < patch_size[1]:
                raise ValueError(f"{name}={value} is smaller than one patch of patch_size={self.patch_size}.")

    def _validate_selection(self):
        number = self.num_selected_patches
        if self.patch_selector is None:
            if number is not None:
                raise ValueError(
                    f"num_selected_patches={number} needs a patch_selector: choose one of {sorted(PATCH_SELECTORS)}."
                )
            return
        _check_choice("patch_selector", self.patch_selector, PATCH_SELECTORS)
        if number is None:
            raise ValueError(
                f"patch_selector={self.patch_selector!r} needs num_selected_patches: a number of patches >= 1, or a "
                "share of them in (0, 1]."
            )
        if isinstance(number, float) and not 0 < number <= 1:
            raise ValueError(
                f"num_selected_patches={number} as a float is a share of the patches and must lie in (0, 1]. "
                "For a number of patches give an int."
            )
        if isinstance(number, int) and number < 1:
            raise ValueError(f"num_selected_patches={number} must be at least 1, or a share in (0, 1].")
        if self.patch_selector == "attention" and not 1 <= self.scout_num_layers <= self.num_hidden_layers:
            raise ValueError(
                f"scout_num_layers={self.scout_num_layers} must lie between 1 and "
                f"num_hidden_layers={self.num_hidden_layers}."
            )

    @classmethod
    def get_config_dict(
        cls, pretrained_model_name_or_path, **kwargs
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Reads also the configuration of a stock transformers ViT, whose fields are all ours."""
        config_dict, kwargs = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        model_type = config_dict.get("model_type", cls.model_type)
        if model_type not in (cls.model_type, "vit"):
            raise ValueError(
                f"{pretrained_model_name_or_path} holds a {model_type!r} model; AdaptiveViT loads {cls.model_type!r} "
                "and 'vit' checkpoints."
            )
        if model_type == "vit":
            config_dict = {key: value for key, value in config_dict.items() if key != "architectures"}
            config_dict["model_type"] = cls.model_type
        return config_dict, kwargs


def _check_choice(field: str, value: str, table: dict[str, Any]) -> None:
    if value not in table:
        raise ValueError(f"{field}={value!r} is unknown. Choose one of {sorted(table)}.")


__all__ = ["AdaptiveViTConfig"]
