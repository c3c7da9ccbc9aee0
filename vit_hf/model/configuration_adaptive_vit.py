"""Configuration of the adaptive Vision Transformer."""

from typing import Any, Literal

from huggingface_hub.dataclasses import strict
from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig, ViTConfig
from transformers.configuration_utils import SubConfigSpec
from transformers.utils import is_torch_available

from .checkpoint_code import SavesCode
from .configuration_checks import (
    CheckedFields,
    check_blocks,
    check_field_names,
    check_forms,
    check_label_fields,
    check_reduction,
    check_selection,
    check_sizes,
    check_volumes,
    drop_defaults,
)
from .elastic_space import check_elastic
from .options import keep_options
from .stages import StagesConfigMixin


# Of transformers' ViTHybridConfig, which version 5 does not have any more: R50+ViT-B/16.
STOCK_BACKBONE = {
    "model_type": "bit",
    "global_padding": "same",
    "layer_type": "bottleneck",
    "depths": [3, 4, 9],
    "out_features": ["stage3"],
    "embedding_dynamic_padding": True,
}


def read_backbone_config(value: dict[str, Any] | PreTrainedConfig) -> PreTrainedConfig:
    """The configuration of a backbone, given as such or as the dictionary that is in JSON files.

    Raises:
        ValueError: if its `model_type` is that of no backbone of transformers.
    """
    from transformers import MODEL_FOR_BACKBONE_MAPPING  # needs PyTorch

    is_dict = isinstance(value, dict)
    model_type = value.get("model_type") if is_dict else value.model_type
    known = sorted(config_class.model_type for config_class in MODEL_FOR_BACKBONE_MAPPING)
    if model_type not in known:
        raise ValueError(
            f"backbone_config has the model_type {model_type!r}, which is no backbone of "
            "transformers. Choose one of "
            f"{known}."
        )
    return CONFIG_MAPPING[model_type].from_dict(value) if is_dict else value


def check_backbone_config(config: PreTrainedConfig) -> None:
    """Checks `config.backbone_config` against the rest.

    Raises:
        ValueError: if it does not fit.
    """
    channels = getattr(config.backbone_config, "num_channels", config.num_channels)
    if channels != config.num_channels:
        raise ValueError(
            f"backbone_config reads num_channels={channels}, and the model "
            f"num_channels={config.num_channels}: they must "
            "be equal."
        )


def bit_stride(config: PreTrainedConfig) -> int:
    """Pixels for a cell of the last feature map of a BiT."""
    stage = config.stage_names.index(config.out_features[-1])
    return min(4 * 2 ** max(stage - 1, 0), config.output_stride)


def read_stock_hybrid(config_dict: dict[str, Any]) -> dict[str, Any]:
    """Our fields for the `config.json` of a `ViTHybridForImageClassification` of transformers 4.

    Its `patch_size` counts cells of the feature map, ours pixels.

    Raises:
        ValueError: if its patches are of several cells, or its backbone is no BiT.
    """
    if config_dict.get("backbone") is not None:
        raise ValueError(
            f"This hybrid takes its CNN from {config_dict['backbone']!r}; its config.json must "
            "describe it, as "
            "backbone_config."
        )
    unused = (
        "backbone",
        "backbone_featmap_shape",
        "backbone_kwargs",
        "use_pretrained_backbone",
        "use_timm_backbone",
    )
    config_dict = {key: value for key, value in config_dict.items() if key not in unused}
    cells = config_dict.get("patch_size", 1)
    if cells not in (1, [1, 1]):
        raise ValueError(
            f"This hybrid makes patches of patch_size={cells} cells of the CNN's map; AdaptiveViT "
            "embeds each cell "
            "(patch_size=1)."
        )
    backbone = config_dict.get("backbone_config") or STOCK_BACKBONE
    backbone = read_backbone_config({"model_type": "bit", **backbone})
    if backbone.model_type != "bit":
        raise ValueError(f"The CNN of a stock hybrid is a 'bit', not {backbone.model_type!r}.")
    stride = bit_stride(backbone)
    return {
        **config_dict,
        "backbone_config": backbone.to_dict(),
        "patch_size": stride,
        "encoder_stride": stride,
    }


# Fields that hold a name, or a name with options.
PARTS = (
    "patch_embedding",
    "position_encoding",
    "patch_selector",
    "token_reducer",
    "final_norm",
    "feed_forward",
    "segmentation_decoder",
)


# Fields that hold options alone.
GROUPS = ("layer_sizes", "attention", "masked_autoencoder", "elastic_space")


@strict
class AdaptiveViTConfig(SavesCode, CheckedFields, StagesConfigMixin, PreTrainedConfig):
    """Everything an adaptive Vision Transformer is built from; all of it plain JSON.

    Fields that transformers' `ViTConfig` has keep its name, default and meaning. The others:

    A part with options is a name, or a dictionary of the name and options: `position_encoding="rotary"`, or
    `{"type": "rotary", "base": 10.0}`. Options stand, with their defaults, in the dataclass beside the class
    that reads them. `from_pretrained(name, patch_selector="attention")` keeps the options of a checkpoint
    that has this selector; `{"type": "attention"}` has the defaults.

    Args:
        num_frames (`int`, *optional*): frames of a video, or slices of a volume, that the model is made for,
            as in transformers' VideoMAE and ViViT; None for images. Inputs are then `(B, T, C, H, W)` of any
            T of at least `tubelet_size`, and patches have three coordinates. Not with `backbone_config`, a
            convolutional `patch_embedding`, nor for pretraining and segmentation.
        tubelet_size (`int`, defaults to 2): frames (or slices) that a patch of a video (or volume) spans.
        head_dim (`int`, *optional*): channels of a head, default hidden_size / num_attention_heads; all heads
            together may be wider or narrower than `hidden_size` (AutoFormer, Chen et al., 2021, has 64
            throughout).
        layer_sizes (`dict`, *optional*): heads and width of the feed-forward network of each block, where
            they differ; see `LayerSizes`.
        patch_embedding (`str` or `dict`, defaults to `"linear"`): what makes a token of a patch: a matrix
            (`PatchEmbeddingOptions`), or with `"convolutional"` a small residual CNN that reads the pixels of
            each patch embedded, for large patches (IPS, Bergner et al., 2023; `ConvolutionalOptions`).
        position_encoding (`str` or `dict`, defaults to `"learned"`): a key of `POSITION_ENCODINGS` (for
            videos and volumes `"sinusoidal_3d"` instead of `"sinusoidal_2d"`), or as
            `"my_positions.MyEncoding"` a class of your own; so are `patch_selector` and `token_reducer`.
        patch_selector (`str` or `dict`, *optional*): a key of `PATCH_SELECTORS`, or `"motion"` for videos;
            None computes on every patch.
        num_selected_patches (`int` or `float`, *optional*): how many patches the selector keeps, as a number
            K >= 1 or as a fraction in (0, 1] of an image's patches.
        thumbnail_context (`bool`, `int`, pair, or triple with frames; defaults to False): whether the patches
            of a thumbnail go through the encoder as well as the selected ones, so that nothing of the image
            is wholly unseen; True for one of `image_size`, or its size in pixels.
        token_reducer (`str` or `dict`, *optional*): a key of `TOKEN_REDUCERS`, which thins tokens inside the
            encoder.
        keep_rate (`float`, defaults to 1.0): fraction in (0, 1] of the tokens that go on at each of
            `reduction_layers`.
        reduction_layers (list of `int`, defaults to [3, 6, 9]): blocks, from 0, at which the reducer works.
        pooling (`"cls"`, `"mean"`, `"cls+mean"`, `"cls+register"` or `"map"`, defaults to `"cls"`): what the
            classifier reads: the CLS token, the mean over patches, both next to each other (DINOv2), CLS and
                the first
            register (DeiT's distillation token), or what a learned query finds in the patches (SigLIP).
        pooler (`"dense"`, `"cls"`, `"mean"` or `"map"`, *optional*): `pooler_output` of `AdaptiveViTModel`: a
            dense layer on the CLS token (ViT), the CLS token itself (DINOv2, CLIP), the mean over patches
            (BEiT), or the answer of a learned query (SigLIP). Default `"map"` with `pooling="map"`, otherwise
            `"dense"` if there is a CLS token.
        classifier_hidden_size (`int`, *optional*): width of a dense layer with tanh before the classifier,
            the `pre_logits` of the first ViT's pretraining (Dosovitskiy et al., 2020, section 3.1); None for
            none.
        use_cls_token (`bool`, defaults to True): SigLIP and I-JEPA have none, and so nothing that asks what
            CLS attends to.
        num_register_tokens (`int`, defaults to 0): extra learned tokens without a place in the image
            ("Vision Transformers Need Registers", Darcet et al., 2023).
        norm_type (`"layernorm"`, `"rmsnorm"` or `"batchnorm"`, defaults to `"layernorm"`): normalization of
            the blocks; `"batchnorm"` over all tokens of a batch, for comparison.
        pre_layernorm (`bool`, defaults to False): whether tokens are normalized before the first block as
            well (CLIP).
        final_norm (`str` or `dict`, defaults to `"tokens"`): `"tokens"` if the last norm is that of the
            tokens, `"pooled"` of what the classifier pools from them (BEiT; `FinalNormOptions`), `"none"` for
            none.
        feed_forward (`str` or `dict`, defaults to `"mlp"`): `"mlp"`, two dense layers, or `"gated"`, three of
            which one is a gate, SwiGLU with `hidden_act="silu"`; see `FeedForwardOptions`.
        attention (`dict`, *optional*): norm and bias of the last dense layer of attention; see
            `AttentionLayerOptions`.
        key_bias (`bool`, defaults to True): whether the keys have biases, if `qkv_bias`.
        initializer (`"normal"`, `"truncated_normal"` or `"xavier_uniform"`, defaults to `"normal"`): of dense
            layers and patch embedding; the first two with a deviation of `initializer_range`, as
            transformers' ViT and timm, the third as the first ViT (Dosovitskiy et al., 2020).
        layerscale_value (`float`, *optional*): initial value of a learned scale of each residual branch
            (CaiT, Touvron et al., 2021); None for no scale.
        drop_path_rate (`float`, defaults to 0.0): stochastic depth of the last block, rising linearly from 0.
        out_features, out_indices (lists of `str` and `int`, *optional*): stages whose feature maps
            `AdaptiveViTBackbone` returns, of "stem", "stage1", ...; default the last.
        apply_layernorm, reshape_hidden_states (`bool`, default to True): whether these maps go through the
            last norm, and have the shape of an image, as in DINOv2.
        backbone_config (configuration of a backbone of transformers, or its dictionary, *optional*): a CNN
            that reads the images; cells of its last feature map are embedded instead of pixels. `patch_size`
            must be its stride. With `BitConfig` and `"same"` padding the hybrid of Dosovitskiy et al. (2020).
            A model built from a configuration has random weights there, whatever `use_pretrained_backbone`
            says; `from_pretrained` reads them from the checkpoint.
        masked_autoencoder (`dict`, *optional*): masking and decoder of `AdaptiveViTForPreTraining`; see
            `MaskedAutoencoderOptions`.
        segmentation_decoder (`str` or `dict`, defaults to `"linear"`): decoder of
            `AdaptiveViTForSemanticSegmentation`: `"linear"`, a classifier on each patch, or
            `"convolutional"`, transposed convolutions to 4 times as many rows and columns; see
            `SegmentationOptions`.
        elastic_space (`dict`, *optional*): what sub-networks of `AdaptiveViTForElasticImageClassification`
            choose from; see `ElasticOptions`.

    Raises:
        huggingface_hub.errors.StrictDataclassError: for values of a wrong type, or that do not fit together;
            the message names the legal ones.
    """

    model_type = "adaptive_vit"
    # Name of the file that a checkpoint carries, and what it holds.
    code_file = "modeling_adaptive_vit"
    auto_classes = {
        "AutoConfig": "AdaptiveViTConfig",
        "AutoModel": "AdaptiveViTModel",
        "AutoModelForImageClassification": "AdaptiveViTForImageClassification",
        "AutoModelForMaskedImageModeling": "AdaptiveViTForMaskedImageModeling",
        "AutoModelForPreTraining": "AdaptiveViTForPreTraining",
        "AutoModelForSemanticSegmentation": "AdaptiveViTForSemanticSegmentation",
        "AutoModelForVideoClassification": "AdaptiveViTForVideoClassification",
        "AutoBackbone": "AdaptiveViTBackbone",
    }
    sub_configs_defaults = {
        "backbone_config": SubConfigSpec(config_class=AutoConfig, model_type="bit", optional=True)
    }
    # What Trainer should not gather over an evaluation: per-image maps, not predictions.
    keys_to_ignore_at_inference = [
        "selected_patches",
        "patch_scores",
        "patch_coordinates",
        "spatial_shapes",
        "token_coordinates",
        "token_sizes",
        "token_assignments",
        "selection_loss",
        "ids_restore",
        "mask",
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
    pooler: Literal["dense", "cls", "mean", "map"] | None = None

    num_frames: int | None = None
    tubelet_size: int = 2
    head_dim: int | None = None
    layer_sizes: dict[str, Any] | None = None
    patch_embedding: str | dict[str, Any] = "linear"
    position_encoding: str | dict[str, Any] = "learned"
    patch_selector: str | dict[str, Any] | None = None
    num_selected_patches: int | float | None = None
    thumbnail_context: bool | int | list[int] | tuple[int, ...] = False
    token_reducer: str | dict[str, Any] | None = None
    keep_rate: float | int = 1.0
    reduction_layers: list[int] | tuple[int, ...] = (3, 6, 9)
    pooling: Literal["cls", "mean", "cls+mean", "cls+register", "map"] = "cls"
    classifier_hidden_size: int | None = None
    use_cls_token: bool = True
    num_register_tokens: int = 0
    norm_type: Literal["layernorm", "rmsnorm", "batchnorm"] = "layernorm"
    pre_layernorm: bool = False
    final_norm: str | dict[str, Any] = "tokens"
    feed_forward: str | dict[str, Any] = "mlp"
    attention: dict[str, Any] | None = None
    key_bias: bool = True
    initializer: Literal["normal", "truncated_normal", "xavier_uniform"] = "normal"
    layerscale_value: float | int | None = None
    drop_path_rate: float | int = 0.0
    _out_features: list[str] | None = None
    _out_indices: list[int] | None = None
    apply_layernorm: bool = True
    reshape_hidden_states: bool = True
    backbone_config: dict[str, Any] | PreTrainedConfig | None = None
    masked_autoencoder: dict[str, Any] | None = None
    segmentation_decoder: str | dict[str, Any] = "linear"
    elastic_space: dict[str, Any] | None = None

    def __post_init__(self, **kwargs):
        stages = {name: kwargs.pop(name, None) for name in ("out_features", "out_indices")}
        if any(value is not None for value in stages.values()):
            self._set_stages(**stages)
        self.pooler_output_size = self.pooler_output_size or self.hidden_size
        self.reduction_layers = list(self.reduction_layers)
        if self.backbone_config is not None:
            self.backbone_config = read_backbone_config(self.backbone_config)
        super().__post_init__(**kwargs)

    @property
    def stage_names(self) -> list[str]:
        """Names of what a backbone can return: what enters the encoder, and what leaves each block."""
        return ["stem", *(f"stage{number}" for number in range(1, self.num_hidden_layers + 1))]

    def validate_architecture(self):
        """Checks fields against each other: at construction, when a model is built, and before it runs on
        changed fields."""
        check_field_names(self, vars(self))
        check_label_fields(self)
        self.verify_out_features_out_indices()
        if self.backbone_config is not None:
            # A dictionary again if it was set after construction.
            self.backbone_config = read_backbone_config(self.backbone_config)
            check_backbone_config(self)
        check_forms(self, PARTS, GROUPS)
        check_blocks(self)
        check_sizes(self)
        check_volumes(self)
        if is_torch_available():
            # The classes of parts know their options, and need PyTorch; whoever has none builds no model.
            from .part_checks import check_parts

            check_parts(self)
        check_selection(self)
        check_reduction(self)
        check_elastic(self)

    def to_diff_dict(self) -> dict[str, Any]:
        """Values that are saved: those of a stock ViT, and of the other fields those that differ from
        their defaults."""
        return drop_defaults(self, ViTConfig)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs):
        """As in transformers; a part that is named alone keeps the options that it has in `config_dict`."""
        return super().from_dict(config_dict, **keep_options(config_dict, kwargs, PARTS))

    @classmethod
    def get_config_dict(
        cls, pretrained_model_name_or_path, **kwargs
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Reads also the configuration of a stock ViT, whose fields are all ours, or ViT-hybrid of
        transformers 4."""
        config_dict, kwargs = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        if kwargs.get("backbone_config") is not None:  # transformers sets it as it is
            kwargs["backbone_config"] = read_backbone_config(kwargs["backbone_config"])
        model_type = config_dict.get("model_type", cls.model_type)
        if model_type not in (cls.model_type, "vit", "vit-hybrid"):
            raise ValueError(
                f"{pretrained_model_name_or_path} holds a {model_type!r} model; AdaptiveViT loads "
                f"{cls.model_type!r}, "
                "'vit' and 'vit-hybrid' checkpoints, AdaptiveSwin those of Swin. Others become "
                "one by vit_hf.convert or "
                "vit-hf convert."
            )
        if model_type == "vit-hybrid":
            config_dict = read_stock_hybrid(config_dict)
        if model_type != cls.model_type:
            config_dict = {key: value for key, value in config_dict.items() if key != "architectures"}
            config_dict["model_type"] = cls.model_type
        return config_dict, kwargs


__all__ = ["AdaptiveViTConfig"]
