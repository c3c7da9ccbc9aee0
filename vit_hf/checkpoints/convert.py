"""Converts a Vision Transformer of a family in `FAMILIES` to an AdaptiveViT with the same outputs, and a Swin
to an AdaptiveSwin."""

import re
from collections.abc import Mapping
from difflib import get_close_matches
from os import PathLike
from typing import Any

import torch
import transformers
from torch import nn
from transformers import AutoConfig, AutoImageProcessor, AutoModel, PretrainedConfig, PreTrainedModel
from transformers.image_processing_utils import BaseImageProcessor
from transformers.utils import logging
from transformers.video_processing_utils import BaseVideoProcessor

from ..model.configuration_adaptive_swin import AdaptiveSwinConfig
from ..model.configuration_adaptive_vit import AdaptiveViTConfig
from ..model.image_processing_adaptive_vit import AdaptiveViTImageProcessor
from ..model.modeling_adaptive_vit import (
    AdaptiveViTForImageClassification,
    AdaptiveViTForVideoClassification,
    AdaptiveViTModel,
)
from ..model.pretrained import AdaptiveViTPreTrainedModel
from ..model.sizes import to_pair
from .families import (
    FAMILIES,
    LABELS,
    SHARED,
    VIDEO_FAMILIES,
    CannotConvert,
    Family,
    convert_autoencoder,
    convert_video_processor,
    decoder_fields,
    has_decoder,
    load_state,
)
from .loading import check_path, is_image_processor_saved
from .npz import load_npz
from .stock_hybrid import is_stock_hybrid, load_stock_hybrid
from .swin import SWIN_FAMILIES, convert_swin
from .timm_files import is_weights_file, load_timm, load_timm_folder, read_hub_config, refusing_pickles
from .timm_models import SWINS, convert_timm, is_timm


logger = logging.get_logger(__name__)

# Weights of selectors and reducers start at random.
ADDED = ("selector.", "reducers.", "embeddings.scale_embedding")
# Options of image processors that ours supports.
PREPARATION = (
    "do_resize",
    "size",
    "resample",
    "do_center_crop",
    "crop_size",
    "do_rescale",
    "rescale_factor",
    "do_normalize",
    "image_mean",
    "image_std",
    "do_convert_rgb",
    "max_num_patches",
)


def convert(
    source: PreTrainedModel | nn.Module | Mapping[str, torch.Tensor] | str | PathLike,
    architecture: str | None = None,
    **fields: Any,
) -> tuple[AdaptiveViTPreTrainedModel, BaseImageProcessor | BaseVideoProcessor]:
    """Converts a model of another family to one of ours with the same outputs, with a matching image
    processor.

    Args:
        source: a model of transformers, whose `model_type` must be one of `FAMILIES`, "swin", "swinv2",
            "vivit", "videomae", or the `"vit-hybrid"` of transformers 4; one of timm (see `convert_timm`);
            the name of a checkpoint of either, local or on the Hub; a state dict of timm, or a file with one
            (`.safetensors`, `.bin`, `.pth`); or a `.npz` file of google-research/vision_transformer (see
            `load_npz`). A model with a classifier becomes an `AdaptiveViTForImageClassification`, a
            `ViTMAEForPreTraining` an `AdaptiveViTForPreTraining` (its encoder alone where `fields` select or
            reduce), any other an `AdaptiveViTModel`, with the `pooler_output` of the original (where that has
            none, to be loaded again with `add_pooling_layer=False`); a ViViT or VideoMAE with a classifier an
            `AdaptiveViTForVideoClassification`; a Swin or SwinV2 the `AdaptiveSwin...` of the same kind.
            Of files only safetensors, arrays and pickles of nothing but tensors are loaded: no code in them
            runs.
        architecture: timm's name of the model of a state dict, such as "vit_small_patch16_224".
        fields: fields of `AdaptiveViTConfig` to set, such as `patch_selector="variance",
            num_selected_patches=196`; for a Swin, of `AdaptiveSwinConfig`.

    Returns:
        The model, in evaluation mode and of the source's dtype, and the image processor, for videos
        transformers' own video processor; that of the family's defaults if the source is a model without a
        path.

    Raises:
        CannotConvert: a ValueError with the reason, for a family or an option that ours cannot represent.
        OSError: if there is no such checkpoint.
        ImportError: for a checkpoint of timm where timm is not installed.
    """
    if is_timm(source):
        check_fields(fields, is_swin=type(source).__name__ in SWINS)
        return convert_timm(source, **fields)
    if not isinstance(source, PreTrainedModel | Mapping | str | PathLike):
        raise ValueError(
            "convert takes a model of transformers or timm, a state dict, or the name of a checkpoint, not "
            f"a {type(source).__name__}."
        )
    if (
        isinstance(source, str | PathLike)
        and not is_weights_file(source)
        and not str(source).endswith(".npz")
    ):
        check_path(str(source))
    if architecture is not None or isinstance(source, Mapping) or is_weights_file(source):
        return convert(load_timm(source, architecture), **fields)
    if not isinstance(source, PreTrainedModel):
        if str(source).endswith(".npz"):
            check_fields(fields)
            return load_npz(source, **fields)
        hub_config = read_hub_config(source)
        if hub_config is not None:
            return convert(load_timm_folder(source, hub_config), **fields)
        if is_stock_hybrid(source):
            check_fields(fields)
            with refusing_pickles(source):
                return load_stock_hybrid(source, **fields)
    model = source if isinstance(source, PreTrainedModel) else load_source(source)
    is_swin = model.config.model_type in SWIN_FAMILIES
    check_fields(fields, is_swin)
    if is_swin:
        return convert_swin(model, **fields), convert_processor(source, model)
    config, family = family_of(model)
    base, head = getattr(model, family.prefix, model), family.head(model)
    weights = rename_weights(base, family)
    if head is not None:
        weights |= family.pooled(model)
    options = convert_config(config, family, model if head is not None else None)
    if "layernorm.weight" not in weights:
        options["final_norm"] = "none"
    if head is not None:
        if head["weight"].shape[1] == 2 * config.hidden_size and config.model_type == "deit":
            options["pooling"] = "cls+register"
        unread = ["head.", *(["layernorm."] if options.get("final_norm") == "none" else [])]
        weights = {name: value for name, value in weights.items() if not name.startswith(tuple(unread))}
    pretrains = has_decoder(model, fields)
    if pretrains:
        options |= decoder_fields(config)
    if any(name.startswith("head.") for name in weights):  # of SigLIP, which pools by attention
        options["pooling"] = "map"
        weights = {re.sub(r"^head\.", "pooler.", name): value for name, value in weights.items()}
    ours = AdaptiveViTConfig(**options | fields)
    if pretrains:
        result, weights = convert_autoencoder(ours, weights, model)
    elif head is not None:
        is_video = ours.num_frames is not None
        result = (AdaptiveViTForVideoClassification if is_video else AdaptiveViTForImageClassification)(ours)
        weights = {f"vit.{name}": value for name, value in weights.items() if not name.startswith("pooler.")}
        weights |= {f"classifier.{name}": value for name, value in head.items()}
    else:
        has_pooler = any(name.startswith("pooler.") for name in weights)
        if ours.pooler in ("cls", "mean"):  # without weights
            has_pooler = getattr(base, "pooler", base) is not None
        result = AdaptiveViTModel(ours, add_pooling_layer=has_pooler)
    load_weights(result, weights, config.model_type)
    return result.to(model.dtype).eval(), convert_processor(source, model)


def check_fields(fields: Mapping[str, Any], is_swin: bool = False) -> None:
    """Raises: ValueError for a field that our configuration does not have."""
    config_class = AdaptiveSwinConfig if is_swin else AdaptiveViTConfig
    known = config_class().to_dict().keys() | {"num_labels", "attn_implementation"}
    unknown = fields.keys() - known
    if unknown:
        raise ValueError(
            f"{config_class.__name__} has no {', '.join(sorted(unknown))}. Did you mean "
            f"{' or '.join(get_close_matches(min(unknown), known, 2, 0)) or 'something else'}?"
        )


def load_source(path: str | PathLike) -> PreTrainedModel:
    """Loads a checkpoint as the class that its configuration names, or as the bare encoder."""
    config = AutoConfig.from_pretrained(path)
    if config.model_type not in SWIN_FAMILIES:
        check_family(getattr(config, "vision_config", config))
    name = (config.architectures or [None])[0]
    model_class = getattr(transformers, name, None) if name else None
    with refusing_pickles(path):
        return (model_class or AutoModel).from_pretrained(path)


def check_family(config: PretrainedConfig) -> Family:
    families = FAMILIES | VIDEO_FAMILIES
    if config.model_type not in families:
        raise CannotConvert(
            f"model_type {config.model_type!r} cannot be converted. Choose from "
            f"{', '.join(sorted([*families, *SWIN_FAMILIES]))}."
        )
    return families[config.model_type]


def family_of(model: PreTrainedModel) -> tuple[PretrainedConfig, Family]:
    """Returns the configuration of the image encoder, and its family."""
    config = getattr(model.config, "vision_config", model.config)
    return config, check_family(config)


def convert_config(
    config: PretrainedConfig, family: Family, classifier: PreTrainedModel | None
) -> dict[str, Any]:
    """Converts the configuration of another family to fields of `AdaptiveViTConfig`, with or without a
    classifier."""
    fields = {name: getattr(config, name) for name in SHARED if hasattr(config, name)}
    fields |= family.fields(config)
    if classifier is not None:
        labels = {name: getattr(classifier.config, name, None) for name in LABELS}
        fields |= family.with_head | {name: value for name, value in labels.items() if value}
    fields["encoder_stride"] = getattr(config, "encoder_stride", None) or fields["patch_size"]
    if not isinstance(fields["encoder_stride"], int):
        fields["encoder_stride"] = fields["encoder_stride"][0]
    for name in ("pooler_output_size", "pooler_act"):
        if getattr(config, name, None) is not None:
            fields[name] = getattr(config, name)
    return fields


def rename_weights(base: PreTrainedModel, family: Family) -> dict[str, torch.Tensor]:
    """Returns the encoder's weights with our names and shapes."""
    weights = {}
    for name, value in base.state_dict().items():
        ours = family.name(name)
        if ours is None:
            continue
        if ours == "embeddings.cls_token":
            value = value.view(1, 1, -1)
        elif ours == "embeddings.position_encoding.position_embeddings":
            value = value.view(1, *value.shape[-2:])
        elif ours == "embeddings.register_tokens" and not value.shape[1]:
            continue
        weights[ours] = value
    if any(".mlp.gate_proj." in name for name in weights):
        # Families without gates name their two layers as those with gates do.
        weights = {
            name.replace(".mlp.fc1.", ".mlp.up_proj.").replace(".mlp.fc2.", ".mlp.down_proj."): value
            for name, value in weights.items()
        }
    return family.finish(weights, base.config)


def load_weights(
    model: AdaptiveViTPreTrainedModel, weights: dict[str, torch.Tensor], model_type: str
) -> None:
    """Copies weights; no weight may be left over or missing.

    Raises:
        CannotConvert: naming those that do not.
    """
    report = load_state(model, weights)
    prefix = model.base_model_prefix + "."
    missing = [name for name in report.missing_keys if not name.removeprefix(prefix).startswith(ADDED)]
    if missing or report.unexpected_keys:
        raise CannotConvert(
            f"This {model_type} has weights unknown to AdaptiveViT, {report.unexpected_keys[:5]}, or lacks "
            f"some, {missing[:5]}."
        )


def processor_name(model_type: str) -> str:
    """Name of the image processor in transformers that a family uses by default."""
    return SWIN_FAMILIES.get(model_type) or FAMILIES[model_type].processor


def convert_processor(
    source: PreTrainedModel | str | PathLike, model: PreTrainedModel
) -> BaseImageProcessor | BaseVideoProcessor:
    """Makes an image processor that prepares images like the source's; video processors are kept.

    Of a model without one it is the default of its family, at the model's size.
    """
    path = model.name_or_path if isinstance(source, PreTrainedModel) else str(source)
    config = getattr(model.config, "vision_config", model.config)
    if config.model_type in VIDEO_FAMILIES:
        return convert_video_processor(path, model)
    saved = path and is_image_processor_saved(path)
    if saved:
        theirs = AutoImageProcessor.from_pretrained(path)
    else:
        theirs = getattr(transformers, processor_name(config.model_type))()
    options = {name: getattr(theirs, name) for name in PREPARATION if getattr(theirs, name, None) is not None}
    if not saved and "max_num_patches" not in options:
        if path:
            logger.warning(
                f"No image processor is saved with {path}: ours prepares as {type(theirs).__name__} does by "
                f"default, at {config.image_size} pixels. Check mean, std and size against the training of "
                "the model."
            )
        height, width = to_pair(config.image_size)
        options |= {"size": {"height": height, "width": width}, "do_center_crop": False}
        options.pop("crop_size", None)
    if type(theirs).__name__ == "DINOv3ViTImageProcessor":
        options["rescale_before_resize"] = True
    if "max_num_patches" in options:
        options["return_patches"] = True  # of images of mixed sizes, as theirs
    return AdaptiveViTImageProcessor(patch_size=config.patch_size, **options)
