"""Checks of configuration fields against each other. Each function raises a ValueError that names the fault.

Imports no PyTorch; what the classes of parts check stands in `part_checks.py`.
"""

import math
from dataclasses import fields
from typing import Any

from transformers import PreTrainedConfig

from .budget import Budget
from .options import as_json, check_part, type_of
from .sizes import check_layer_sizes, check_thumbnail, has_frames, patch_sides, to_pair


def drop_defaults(config: PreTrainedConfig, stock: type[PreTrainedConfig]) -> dict[str, Any]:
    """Values of a configuration as they are saved.

    Args:
        config: the configuration.
        stock: configuration of transformers' model of the same family, whose fields are always saved, as
            transformers saves them.
    """
    defaults = {entry.name: as_json(entry.default) for entry in fields(config)}
    defaults |= {"out_features": None, "out_indices": None}
    kept = {entry.name for entry in fields(stock)}
    return {
        name: value
        for name, value in PreTrainedConfig.to_diff_dict(config).items()
        if name in kept or name not in defaults or value != defaults[name]
    }


def check_blocks(config) -> None:
    """Blocks and head."""
    for name in (
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "intermediate_size",
        "num_channels",
    ):
        if getattr(config, name) < 1:
            raise ValueError(f"{name}={getattr(config, name)} must be at least 1.")
    check_layer_sizes(config)
    for name in ("drop_path_rate", "hidden_dropout_prob", "attention_probs_dropout_prob"):
        if not 0 <= getattr(config, name) < 1:
            raise ValueError(f"{name}={getattr(config, name)} must lie in [0, 1).")
    if config.layerscale_value is not None and not math.isfinite(config.layerscale_value):
        raise ValueError(f"layerscale_value={config.layerscale_value} must be a finite number, or None.")
    if config.pooling == "cls+register" and config.num_register_tokens < 1:
        raise ValueError("pooling='cls+register' needs num_register_tokens of at least 1.")
    if config.pooling == "map" and config.pooler not in (None, "map"):
        raise ValueError(
            f"pooler={config.pooler!r} and pooling='map' differ, but one learned query serves "
            "both: pass pooler=None."
        )
    if not config.use_cls_token:
        for field, values in (("pooling", ("cls", "cls+mean", "cls+register")), ("pooler", ("dense", "cls"))):
            if getattr(config, field) in values:
                raise ValueError(
                    f"{field}={getattr(config, field)!r} needs the CLS token, which "
                    "use_cls_token=False leaves out: "
                    "choose another."
                )
    if config.classifier_hidden_size is not None and config.classifier_hidden_size < 1:
        raise ValueError(
            f"classifier_hidden_size={config.classifier_hidden_size} must be at least 1, or None "
            "for no layer."
        )
    if type_of(config.final_norm) == "pooled" and config.pooling in ("cls+mean", "cls+register"):
        raise ValueError(
            f"final_norm='pooled' norms one vector, and pooling={config.pooling!r} gives two: use "
            "final_norm='tokens'."
        )
    if config.num_register_tokens < 0:
        raise ValueError(f"num_register_tokens={config.num_register_tokens} must be 0 or more.")


def check_sizes(config) -> None:
    """Checks images, patches and the thumbnail that goes through the encoder."""
    for name in ("image_size", "patch_size"):
        value = getattr(config, name)
        if not isinstance(value, int) and len(value) != 2:
            raise ValueError(f"{name}={value} must be a number of pixels or a pair (height, width).")
        if min(to_pair(value)) < 1:
            raise ValueError(f"{name}={value} must be at least one pixel a side.")
    sides = zip(to_pair(config.image_size), to_pair(config.patch_size), strict=True)
    if any(side < patch for side, patch in sides):
        raise ValueError(
            f"image_size={config.image_size} is smaller than one patch of patch_size={config.patch_size}."
        )


def check_volumes(config) -> None:
    """Checks videos and volumes, which `num_frames` says there are."""
    if not has_frames(config):
        return
    if config.tubelet_size < 1:
        raise ValueError(f"tubelet_size={config.tubelet_size} must be at least 1 frame (or slice) a patch.")
    if config.num_frames < config.tubelet_size:
        raise ValueError(
            f"num_frames={config.num_frames} is less than one patch of "
            f"tubelet_size={config.tubelet_size} frames (or slices)."
        )
    if config.backbone_config is not None:
        raise ValueError(
            f"The CNN of backbone_config reads images, and num_frames={config.num_frames} makes "
            "them videos or volumes: "
            "leave out one of them."
        )


def check_selection(config) -> None:
    """Checks patch selection, before the encoder, but for the selector itself."""
    number = config.num_selected_patches
    if config.patch_selector is not None and number is None:
        raise ValueError(
            f"patch_selector={type_of(config.patch_selector)!r} needs num_selected_patches: a "
            "number of patches >= 1, or a "
            "fraction of them in (0, 1]."
        )
    if number is not None:
        Budget(number)
    if config.thumbnail_context is not False:
        check_thumbnail(config, "thumbnail_context", config.thumbnail_context, patch_sides(config))


def check_reduction(config) -> None:
    """Checks token reduction, inside the encoder, but for the reducer itself."""
    if not 0 < config.keep_rate <= 1:
        raise ValueError(f"keep_rate={config.keep_rate} is a fraction of the tokens and must lie in (0, 1].")
    if config.token_reducer is None:
        return
    layers = list(config.reduction_layers)
    if (
        not layers
        or len(set(layers)) < len(layers)
        or not all(0 <= layer < config.num_hidden_layers for layer in layers)
    ):
        raise ValueError(
            f"reduction_layers={layers} must be different blocks from 0 to {config.num_hidden_layers - 1}."
        )


def check_forms(config, parts: tuple[str, ...], groups: tuple[str, ...]) -> None:
    """Checks that fields of parts are names, or dictionaries with one, and that other groups of options
    have none."""
    for field in parts:
        check_part(field, getattr(config, field))
    for field in groups:
        if "type" in (getattr(config, field) or {}):
            raise ValueError(
                f"{field}={getattr(config, field)} has no option 'type': give its options alone."
            )
