"""Converts a plain AdaptiveViT to transformers' ViT."""

from transformers import (
    PreTrainedConfig,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
    ViTModel,
)
from transformers.activations import ACT2FN
from transformers.image_processing_utils import BaseImageProcessor

from ..model.configuration_adaptive_vit import AdaptiveViTConfig
from ..model.elastic import active_subnetwork
from ..model.modeling_adaptive_vit import AdaptiveViTForImageClassification, AdaptiveViTModel
from ..model.pretrained import AdaptiveViTPreTrainedModel
from ..model.sizes import head_dim_of
from .families import CannotConvert


# Fields without effect on a model's outputs: those of training and of backbones, ...
ELSEWHERE = (
    "initializer",
    "drop_path_rate",
    "auto_map",
    "vit_hf_version",
    "out_features",
    "out_indices",
    "apply_layernorm",
    "reshape_hidden_states",
)
# ... and those of reducers and other heads, none of which a plain model has.
OPTIONS = ("reduction_layers", "masked_autoencoder", "segmentation_decoder", "elastic_space")
# How to leave out what a model can do without, by field.
_DENSE = (
    " To convert it without, load it with patch_selector=None and num_selected_patches=None; on the command "
    "line, "
    """--fields '{"patch_selector": null, "num_selected_patches": null}'."""
)
REMEDIES = {"patch_selector": _DENSE, "num_selected_patches": _DENSE}
# Options of image processors that transformers' ViT lacks.
PREPARATION = ("max_num_patches", "patch_selector", "return_patches", "rescale_before_resize")


def check_plain(config: AdaptiveViTConfig, what: str, keeps: tuple[str, ...] = ()) -> None:
    """Refuses fields unknown to transformers' `ViTConfig`, unless they have their default or no effect.

    Args:
        what: name of the target format, for the message.
        keeps: further fields that the target supports.

    Raises:
        CannotConvert: naming the field.
    """
    # Fields of every configuration, and of every ViT.
    fits = {*PreTrainedConfig().to_dict(), *ViTConfig().to_dict(), *ELSEWHERE, *keeps}
    if head_dim_of(config) * config.num_attention_heads == config.hidden_size:
        fits.add("head_dim")
    plain = AdaptiveViTConfig().to_dict()
    for name, value in config.to_dict().items():
        if name in fits or name in OPTIONS or name not in plain:
            continue
        if value != plain[name]:
            remedy = REMEDIES.get(name, "")
            raise CannotConvert(f"{name}={value!r} cannot be stored in {what}.{remedy}")


def to_transformers(model: AdaptiveViTPreTrainedModel) -> ViTForImageClassification | ViTModel:
    """Converts a plain AdaptiveViT to transformers' ViT with the same outputs; `convert` is the inverse.

    Other sizes than the native need `interpolate_pos_encoding=True` there, and square patches in a square
    grid. timm resizes tables with antialiasing, which ViT does not: `convert(model,
    position_encoding="learned")` a model of timm first, for outputs that are the same at its native size.

    Args:
        model: an `AdaptiveViTForImageClassification`, or an `AdaptiveViTModel`, which becomes a `ViTModel`.

    Returns:
        The model, in evaluation mode and of the same dtype.

    Raises:
        CannotConvert: naming a feature that transformers' ViT lacks, such as a patch selector.
    """
    if not isinstance(model, AdaptiveViTForImageClassification | AdaptiveViTModel):
        raise CannotConvert(
            f"{type(model).__name__} has no counterpart: give an AdaptiveViTForImageClassification or an "
            "AdaptiveViTModel."
        )
    model = active_subnetwork(model)
    config = model.config
    check_plain(config, "transformers' ViT")
    if config.hidden_act not in ACT2FN:
        raise CannotConvert(f"hidden_act={config.hidden_act!r} is not an activation of transformers.")
    fields = {name: value for name, value in config.to_dict().items() if name in ViTConfig().to_dict()}
    for name in ("model_type", "architectures", "transformers_version", "dtype"):
        fields.pop(name, None)
    stock = ViTConfig(**fields)
    if isinstance(model, AdaptiveViTModel):
        masks = model.embeddings.mask_token is not None
        result = ViTModel(stock, add_pooling_layer=model.pooler is not None, use_mask_token=masks)
    else:
        result = ViTForImageClassification(stock)
    result.load_state_dict(
        {
            name.replace("position_encoding.position_embeddings", "position_embeddings"): value
            for name, value in model.state_dict().items()
        }
    )
    return result.to(model.dtype).eval()


def processor_to_transformers(processor: BaseImageProcessor) -> ViTImageProcessor:
    """Converts our image processor to a transformers `ViTImageProcessor` with the same output.

    Raises:
        CannotConvert: for an option that it has not.
    """
    options = processor.to_dict()
    for name in PREPARATION:
        if options.get(name):
            raise CannotConvert(
                f"{name}={options[name]!r} is not supported by transformers' ViTImageProcessor."
            )
    if options.get("do_resize") and set(options["size"]) == {"longest_edge"}:
        raise CannotConvert(
            f"size={options['size']} as a cap is not supported by transformers' ViTImageProcessor."
        )
    names = set(ViTImageProcessor.valid_kwargs.__annotations__)
    return ViTImageProcessor(**{name: value for name, value in options.items() if name in names})
