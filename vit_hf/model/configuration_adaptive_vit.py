"""Configuration of the adaptive Vision Transformer."""

from typing import Any, Literal

from huggingface_hub.dataclasses import strict
from transformers import CONFIG_MAPPING, MODEL_FOR_BACKBONE_MAPPING, AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

from .checked_fields import CheckedFields, check_label_fields
from .checkpoint_code import SavesCode
from .configuration_checks import (
    check_blocks,
    check_decoder,
    check_positions,
    check_reduction,
    check_selection,
    check_selection_options,
    check_sizes,
    check_volumes,
)
from .elastic_space import CHOICES, check_elastic
from .field_names import check_field_names
from .patch_embeddings import check_convolutional
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
    is_dict = isinstance(value, dict)
    model_type = value.get("model_type") if is_dict else value.model_type
    known = sorted(config_class.model_type for config_class in MODEL_FOR_BACKBONE_MAPPING)
    if model_type not in known:
        raise ValueError(
            f"backbone_config has the model_type {model_type!r}, which is no backbone of transformers. Choose one of "
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
            f"backbone_config reads num_channels={channels}, and the model num_channels={config.num_channels}: they must "
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
            f"This hybrid takes its CNN from {config_dict['backbone']!r}; its config.json must describe it, as "
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
            f"This hybrid makes patches of patch_size={cells} cells of the CNN's map; AdaptiveViT embeds each cell "
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


@strict
class AdaptiveViTConfig(SavesCode, CheckedFields, StagesConfigMixin, PreTrainedConfig):
    """Everything an adaptive Vision Transformer is built from; all of it plain JSON.

    Fields that transformers' `ViTConfig` has keep its name, default and meaning. The others:

    Args:
        num_frames (`int`, *optional*): frames of a video, or slices of a volume, that the model is made for, as in
            transformers' VideoMAE and ViViT; None for images. Inputs are then `(B, T, C, H, W)` of any T of at least
            `tubelet_size`, and patches have three coordinates. Not with `backbone_config`, a convolutional
            `patch_embedding`, nor for pretraining and segmentation.
        tubelet_size (`int`, defaults to 2): frames (or slices) that a patch of a video (or volume) spans.
        head_dim (`int`, *optional*): channels of a head, default hidden_size / num_attention_heads; all heads together may
            be wider or narrower than `hidden_size` (AutoFormer, Chen et al., 2021, has 64 throughout).
        layer_num_attention_heads, layer_intermediate_sizes (lists of `int`, *optional*): heads and width of the feed-forward
            network of each block, where they differ. A block with fewer than `num_attention_heads` has the first of those
            that the position encoding counts.
        patch_embedding (`"linear"` or `"convolutional"`, defaults to `"linear"`): what makes a token of a patch: a matrix, or
            a small residual CNN that reads the pixels of each patch embedded, for large patches (IPS, Bergner et al., 2023).
        convolutional_hidden_sizes, convolutional_depths (lists of `int`, default to [64, 128] and [2, 2]): channels and
            residual blocks of that CNN's stages, named as in transformers' ResNet. The stem leaves a quarter of a patch's
            side, and each stage but the first half of that. The defaults are those of the first half of ResNet-18 (IPS).
        convolutional_num_groups (`int`, defaults to 32): groups of its group norms; each width is a multiple of it.
        position_encoding (`str`, defaults to `"learned"`): a key of `POSITION_ENCODINGS` (for videos and volumes
            `"sinusoidal_3d"` instead of `"sinusoidal_2d"`), or as
            `"my_positions.MyEncoding"` a class of your own; so are `patch_selector` and `token_reducer`.
        position_interpolation (`"bicubic"` or `"bilinear"`, defaults to `"bicubic"`): how `"learned"` is resized.
        position_antialias (`bool`, defaults to False): whether it is shrunk with antialiasing, as DINOv2 with
            registers, and SigLIP 2 (which is bilinear).
        position_scale_offset (`float`, defaults to 0.0): 0.1 interpolates `"learned"` as DINOv2's first code did.
        rotary_base (`float`, defaults to 100.0): base of the frequencies of `"rotary"`; the slowest has a
            wavelength of about 2 pi times the base, in `rotary_coordinates`. DINOv3 has 100, EVA-02 10000, RoPE-Mixed 10.
        rotary_coordinates (`"patches"`, `"native"` or `"normalized"`, defaults to `"patches"`): what `"rotary"` counts
            in: patches; patches of the native grid, over which the image is spread (EVA-02); from -1 to 1 over the
            image, times 2 pi (DINOv3).
        rotary_shift, rotary_jitter, rotary_rescale (`float`, *optional*): while training coordinates are shifted by up
            to so much, and multiplied by a factor up to so much for each axis, and for both (DINOv3).
        rotary_reference_grid (`int` or pair, *optional*): rows and columns that `"native"` spreads over an image, default
            those of `image_size`. EVA-02 pretrained at 16 counts 16 at 448 pixels too. Of videos three numbers.
        relative_bias_shared (`bool`, defaults to True): whether all blocks share one `"relative_bias"`.
        fourier_num_features, fourier_scale (`int` and `float`, default to 128 and 10.0): learned features of
            `"fourier"`, and in patches how far apart they reach at first.
        patch_selector (`str`, *optional*): a key of `PATCH_SELECTORS`, or `"motion"` for videos; None computes on every patch.
        num_selected_patches (`int` or `float`, *optional*): how many patches the selector keeps, as a number K >= 1
            or as a share in (0, 1] of an image's patches.
        random_selector_seed (`int`, defaults to 0): which patches `"random"` keeps outside training.
        exploration (`float`, defaults to 0.0): share in [0, 1] of the kept patches that are random while training; not
            for `"policy"` and `"perturbed"`, whose choice is random then anyway.
        scout_num_layers (`int`, defaults to 3): blocks that the probe pass of `"attention"` and `"distilled"` goes
            through.
        scout_image_size (`int` or pair, *optional*): pixels of the probe's thumbnail, default `image_size`.
        scout_num_frames (`int`, *optional*): frames of that thumbnail of a video, default `num_frames`.
        scout_reduction (`"mean"`, `"max"`, `"min"` or `"rollout"`, defaults to `"mean"`): what the scores of
            `"attention"` are: the CLS attention of the last probe block over heads, or attention rollout through all.
        thumbnail_context (`bool`, defaults to False): whether the patches of a thumbnail of `scout_image_size` go
            through the encoder beside the selected ones, so that nothing of the image is wholly unseen.
        scorer_image_size (`int` or pair, *optional*): pixels of the thumbnail that the network of `"policy"` and
            `"perturbed"` sees, default `image_size`.
        scorer_hidden_size (`int`, defaults to 64): channels of that network.
        distilled_loss_weight (`float`, defaults to 0.1): of the loss of `"distilled"`, as in LookWhere (2025).
        distilled_share (`float`, defaults to 1.0): share in (0, 1] of a batch that this loss is computed on, for each of
            which training pays a dense forward pass.
        policy_reward (`"cross_entropy"` or `"correctness"`, defaults to `"cross_entropy"`): what `"policy"` is
            rewarded for: that the loss falls, or a right answer. (As the number of patches is fixed, a cost for each
            would be the same for every choice and change nothing.)
        policy_loss_weight (`float`, defaults to 1.0): of the policy's loss beside that of the task.
        policy_entropy_weight (`float`, defaults to 0.01): of the bonus for an undecided policy.
        perturbed_num_samples (`int`, defaults to 500): of the noise of `"perturbed"`.
        perturbed_sigma (`float`, defaults to 0.05): standard deviation of that noise; scores lie in [0, 1].
        cross_attention_hidden_size (`int`, defaults to 256): width of the network that makes keys of patch embeddings for
            the learned query of `"cross_attention"`, which goes over every patch.
        cross_attention_num_heads (`int`, defaults to 8): heads of that query, a divisor of the width.
        token_reducer (`str`, *optional*): a key of `TOKEN_REDUCERS`, which thins tokens inside the encoder.
        keep_rate (`float`, defaults to 1.0): share in (0, 1] of the tokens that go on at each of `reduction_layers`.
        reduction_layers (list of `int`, defaults to [3, 6, 9]): blocks, from 0, at which the reducer works.
        merge_r (`int`, *optional*): tokens that `"merge"` merges away at each of `reduction_layers`, instead of a
            share; ToMe (2023) takes 13 to 16 of 196 in every block.
        gumbel_ratio_weight, gumbel_distillation_weight, gumbel_token_weight (`float`, default to 2.0, 0.5, 0.5): of
            the losses of `"gumbel"`: keep rate, divergence from the model's own dense answer, and distance of its
            hidden states, as in DynamicViT (2021).
        pooling (`"cls"`, `"mean"`, `"cls+mean"`, `"cls+register"` or `"map"`, defaults to `"cls"`): what the classifier
            reads: the CLS token, the mean over patches, both beside each other (DINOv2), CLS and the first register
            (DeiT's distillation token), or what a learned query finds in the patches (SigLIP).
        pooler (`"dense"`, `"cls"`, `"mean"` or `"map"`, *optional*): `pooler_output` of `AdaptiveViTModel`: a dense layer on
            the CLS token (ViT), the CLS token itself (DINOv2, CLIP), the mean over patches (BEiT), or the answer of a learned
            query (SigLIP). Default `"map"` with `pooling="map"`, otherwise `"dense"` if there is a CLS token.
        classifier_hidden_size (`int`, *optional*): width of a dense layer with tanh before the classifier, the
            `pre_logits` of the first ViT's pretraining (Dosovitskiy et al., 2020, section 3.1); None for none.
        use_cls_token (`bool`, defaults to True): SigLIP and I-JEPA have none, and so nothing that asks what CLS attends to.
        num_register_tokens (`int`, defaults to 0): extra learned tokens without a place in the image
            ("Vision Transformers Need Registers", Darcet et al., 2023).
        norm_type (`"layernorm"`, `"rmsnorm"` or `"batchnorm"`, defaults to `"layernorm"`): normalization of the blocks;
            `"batchnorm"` over all tokens of a batch, for comparison.
        pre_layernorm (`bool`, defaults to False): whether tokens are normalized before the first block as well (CLIP).
        final_norm (`"tokens"`, `"pooled"` or `"none"`, defaults to `"tokens"`): whether the last norm is that of the
            tokens, or of what the classifier pools from them (BEiT).
        pooled_norm_eps (`float`, *optional*): epsilon of that last norm with `final_norm="pooled"`, default
            `layer_norm_eps`; VideoMAE has 1e-5 there.
        mlp_type (`"mlp"` or `"gated"`, defaults to `"mlp"`): two dense layers, or three of which one is a gate, SwiGLU
            with `hidden_act="silu"`.
        mlp_norm, attention_norm (`bool`, default to False): whether a layer norm stands before the last dense layer of
            the feed-forward network, and of attention (EVA-02 base and large, and its CLIP variant).
        patch_bias, key_bias, projection_bias, mlp_bias (`bool`, default to True): whether the patch embedding, the keys
            (if `qkv_bias`), the output of attention, and the feed-forward network have biases.
        initializer (`"normal"`, `"truncated_normal"` or `"xavier_uniform"`, defaults to `"normal"`): of dense layers and
            patch embedding; the first two with a deviation of `initializer_range`, as transformers' ViT and timm, the
            third as the first ViT (Dosovitskiy et al., 2020).
        layerscale_value (`float`, *optional*): initial value of a learned scale of each residual branch (CaiT,
            Touvron et al., 2021); None for no scale.
        drop_path_rate (`float`, defaults to 0.0): stochastic depth of the last block, rising linearly from 0.
        out_features, out_indices (lists of `str` and `int`, *optional*): stages whose feature maps
            `AdaptiveViTBackbone` returns, of "stem", "stage1", ...; default the last.
        apply_layernorm, reshape_hidden_states (`bool`, default to True): whether these maps go through the last norm,
            and have the shape of an image, as in DINOv2.
        backbone_config (configuration of a backbone of transformers, or its dictionary, *optional*): of a CNN that
            reads the images; cells of its last feature map are embedded instead of pixels. `patch_size` must be its
            stride. With `BitConfig` and `"same"` padding the hybrid of Dosovitskiy et al. (2020). Of a model built from a
            configuration its weights are random, whatever `use_pretrained_backbone` says there; `from_pretrained` reads
            them from the checkpoint.
        decoder_hidden_size, decoder_num_hidden_layers, decoder_num_attention_heads, decoder_intermediate_size (`int`,
            default to 512, 8, 16 and 2048): of the decoder of `AdaptiveViTForPreTraining`, as in transformers' `ViTMAEConfig`.
        decoder_position_encoding (`str`, defaults to `"sinusoidal_2d"`): of that decoder, a key of `POSITION_ENCODINGS`.
        mask_ratio (`float`, defaults to 0.75): share in (0, 1) of the patches that pretraining drops.
        norm_pix_loss (`bool`, defaults to False): whether pretraining reconstructs patches of mean 0 and variance 1.
        segmentation_decoder (`"linear"` or `"convolutional"`, defaults to `"linear"`): of
            `AdaptiveViTForSemanticSegmentation`: a classifier on each patch, or transposed convolutions to 4 times as many
            rows and columns.
        semantic_loss_ignore_index (`int`, defaults to 255): label of pixels that do not count in its loss.
        elastic_hidden_sizes, elastic_depths, elastic_num_attention_heads, elastic_mlp_ratios, elastic_keep_rates (lists of
            numbers, *optional*): what sub-networks of `AdaptiveViTForElasticImageClassification` choose from, as AutoFormer
            (Chen et al., 2021): hidden sizes; numbers of blocks; of each block by itself, heads, and widths of the
            feed-forward network as multiples of the hidden size; and shares of the patches that the selector keeps, or
            without one `keep_rate`. The largest of each is what the configuration says. None for no choice.
        elastic_distillation (`bool`, defaults to False): whether each training step runs the largest sub-network, which
            learns from the labels, and the smallest and others, which learn from its answers (Yu & Huang, 2019, "Universally
            Slimmable Networks"); otherwise it runs one, which learns from the labels.
        elastic_num_sampled (`int`, defaults to 2): how many others.
        elastic_seed (`int`, defaults to 0): of drawing them.

    Raises:
        huggingface_hub.errors.StrictDataclassError: for values of a wrong type, or that do not fit together; the
            message names the legal ones.
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
    head_dim: int | None = None
    layer_num_attention_heads: list[int] | tuple[int, ...] | None = None
    layer_intermediate_sizes: list[int] | tuple[int, ...] | None = None
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
    patch_embedding: Literal["linear", "convolutional"] = "linear"
    convolutional_hidden_sizes: list[int] | tuple[int, ...] = (64, 128)
    convolutional_depths: list[int] | tuple[int, ...] = (2, 2)
    convolutional_num_groups: int = 32
    position_encoding: str = "learned"
    position_interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    position_antialias: bool = False
    position_scale_offset: float | int = 0.0
    rotary_base: float | int = 100.0
    rotary_coordinates: Literal["patches", "native", "normalized"] = "patches"
    rotary_shift: float | int | None = None
    rotary_jitter: float | int | None = None
    rotary_rescale: float | int | None = None
    rotary_reference_grid: int | list[int] | tuple[int, ...] | None = None
    relative_bias_shared: bool = True
    fourier_num_features: int = 128
    fourier_scale: float | int = 10.0
    patch_selector: str | None = None
    num_selected_patches: int | float | None = None
    random_selector_seed: int = 0
    exploration: float | int = 0.0
    scout_num_layers: int = 3
    scout_image_size: int | list[int] | tuple[int, int] | None = None
    scout_num_frames: int | None = None
    scout_reduction: Literal["mean", "max", "min", "rollout"] = "mean"
    thumbnail_context: bool = False
    scorer_image_size: int | list[int] | tuple[int, int] | None = None
    scorer_hidden_size: int = 64
    distilled_loss_weight: float | int = 0.1
    distilled_share: float | int = 1.0
    policy_reward: Literal["cross_entropy", "correctness"] = "cross_entropy"
    policy_loss_weight: float | int = 1.0
    policy_entropy_weight: float | int = 0.01
    perturbed_num_samples: int = 500
    perturbed_sigma: float | int = 0.05
    cross_attention_hidden_size: int = 256
    cross_attention_num_heads: int = 8
    token_reducer: str | None = None
    keep_rate: float | int = 1.0
    reduction_layers: list[int] | tuple[int, ...] = (3, 6, 9)
    merge_r: int | None = None
    gumbel_ratio_weight: float | int = 2.0
    gumbel_distillation_weight: float | int = 0.5
    gumbel_token_weight: float | int = 0.5
    pooling: Literal["cls", "mean", "cls+mean", "cls+register", "map"] = "cls"
    classifier_hidden_size: int | None = None
    use_cls_token: bool = True
    num_register_tokens: int = 0
    norm_type: Literal["layernorm", "rmsnorm", "batchnorm"] = "layernorm"
    pre_layernorm: bool = False
    final_norm: Literal["tokens", "pooled", "none"] = "tokens"
    pooled_norm_eps: float | None = None
    mlp_type: Literal["mlp", "gated"] = "mlp"
    mlp_norm: bool = False
    attention_norm: bool = False
    patch_bias: bool = True
    key_bias: bool = True
    projection_bias: bool = True
    mlp_bias: bool = True
    initializer: Literal["normal", "truncated_normal", "xavier_uniform"] = "normal"
    layerscale_value: float | int | None = None
    drop_path_rate: float | int = 0.0
    _out_features: list[str] | None = None
    _out_indices: list[int] | None = None
    apply_layernorm: bool = True
    reshape_hidden_states: bool = True
    backbone_config: dict[str, Any] | PreTrainedConfig | None = None
    decoder_hidden_size: int = 512
    decoder_num_hidden_layers: int = 8
    decoder_num_attention_heads: int = 16
    decoder_intermediate_size: int = 2048
    decoder_position_encoding: str = "sinusoidal_2d"
    mask_ratio: float = 0.75
    norm_pix_loss: bool = False
    segmentation_decoder: Literal["linear", "convolutional"] = "linear"
    semantic_loss_ignore_index: int = 255
    elastic_hidden_sizes: list[int] | tuple[int, ...] | None = None
    elastic_depths: list[int] | tuple[int, ...] | None = None
    elastic_num_attention_heads: list[int] | tuple[int, ...] | None = None
    elastic_mlp_ratios: list[float | int] | tuple[float | int, ...] | None = None
    elastic_keep_rates: list[float | int] | tuple[float | int, ...] | None = None
    elastic_distillation: bool = False
    elastic_num_sampled: int = 2
    elastic_seed: int = 0

    def __post_init__(self, **kwargs):
        stages = {name: kwargs.pop(name, None) for name in ("out_features", "out_indices")}
        if any(value is not None for value in stages.values()):
            self._set_stages(**stages)
        self.pooler_output_size = self.pooler_output_size or self.hidden_size
        for name in ("reduction_layers", "convolutional_hidden_sizes", "convolutional_depths"):
            setattr(self, name, list(getattr(self, name)))
        for name in ("layer_num_attention_heads", "layer_intermediate_sizes", *CHOICES):
            if getattr(self, name) is not None:
                setattr(self, name, list(getattr(self, name)))
        if self.backbone_config is not None:
            self.backbone_config = read_backbone_config(self.backbone_config)
        super().__post_init__(**kwargs)

    @property
    def stage_names(self) -> list[str]:
        """Names of what a backbone can return: what enters the encoder, and what leaves each block."""
        return ["stem", *(f"stage{number}" for number in range(1, self.num_hidden_layers + 1))]

    def to_diff_dict(self) -> dict[str, Any]:
        """Fields of a saved configuration, which transformers' ViT reads, too: it cannot do with a `head_dim` of None."""
        fields = super().to_diff_dict()
        if self.head_dim is None:
            fields.pop("head_dim", None)
        return fields

    def validate_architecture(self):
        """Checks fields against each other: at construction, when a model is built, and before it runs on changed fields."""
        check_field_names(self, vars(self))
        check_label_fields(self)
        self.verify_out_features_out_indices()
        if self.backbone_config is not None:
            # A dictionary again if it was set after construction.
            self.backbone_config = read_backbone_config(self.backbone_config)
            check_backbone_config(self)
        check_blocks(self)
        check_sizes(self)
        check_volumes(self)
        check_convolutional(self)
        check_positions(self)
        check_selection(self)
        check_selection_options(self)
        check_reduction(self)
        check_decoder(self)
        check_elastic(self)

    @classmethod
    def get_config_dict(
        cls, pretrained_model_name_or_path, **kwargs
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Reads also the configuration of a stock ViT, whose fields are all ours, or ViT-hybrid of transformers 4."""
        config_dict, kwargs = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        if kwargs.get("backbone_config") is not None:  # transformers sets it as it is
            kwargs["backbone_config"] = read_backbone_config(kwargs["backbone_config"])
        model_type = config_dict.get("model_type", cls.model_type)
        if model_type not in (cls.model_type, "vit", "vit-hybrid"):
            raise ValueError(
                f"{pretrained_model_name_or_path} holds a {model_type!r} model; AdaptiveViT loads {cls.model_type!r}, "
                "'vit' and 'vit-hybrid' checkpoints, AdaptiveSwin those of Swin. Others become one by vit_hf.convert or "
                "scripts/convert.py."
            )
        if model_type == "vit-hybrid":
            config_dict = read_stock_hybrid(config_dict)
        if model_type != cls.model_type:
            config_dict = {key: value for key, value in config_dict.items() if key != "architectures"}
            config_dict["model_type"] = cls.model_type
        return config_dict, kwargs


__all__ = ["AdaptiveViTConfig"]
