"""Checks of configuration fields against each other. Each function raises a ValueError that names the fault."""

import math

from .layers import ACTIVATIONS
from .mae_decoder import decoder_config
from .positions import POSITION_ENCODINGS
from .reducers import TOKEN_REDUCERS
from .registry import IMAGE_ONLY, VOLUME_TABLES, is_known, table_of
from .sizes import check_layer_sizes, has_frames, head_dim_of, to_pair


def check_class_name(config, field: str) -> None:
    """A class of a table, or of the user's own."""
    name, legal = getattr(config, field), sorted(table_of(config, field))
    if not has_frames(config) and name in VOLUME_TABLES[field]:
        raise ValueError(
            f"{field}={name!r} is for videos and volumes, and these are images: set num_frames, or choose one of {legal}."
        )
    if has_frames(config) and name in IMAGE_ONLY.get(field, {}):
        raise ValueError(
            f"{field}={name!r} is for images, and num_frames={config.num_frames} gives patches a third coordinate: use "
            f"{IMAGE_ONLY[field][name]!r}, or another of {legal}."
        )
    if not is_known(config, field):
        raise ValueError(
            f"{field}={name!r} is unknown. Choose one of {legal}, or name a class of "
            'your own as "module.Class".'
        )


def check_blocks(config) -> None:
    """Blocks and head."""
    if config.hidden_act not in ACTIVATIONS:
        raise ValueError(f"hidden_act={config.hidden_act!r} is unknown. Choose one of {sorted(ACTIVATIONS)}.")
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
            f"pooler={config.pooler!r} and pooling='map' differ, but one learned query serves both: pass pooler=None."
        )
    if not config.use_cls_token:
        for field, values in (
            ("pooling", ("cls", "cls+mean", "cls+register")),
            ("pooler", ("dense", "cls")),
            ("patch_selector", ("attention", "distilled")),
            ("token_reducer", ("attentive", "sample")),
        ):
            if getattr(config, field) in values:
                raise ValueError(
                    f"{field}={getattr(config, field)!r} needs the CLS token, which use_cls_token=False leaves out: "
                    "choose another."
                )
    if config.classifier_hidden_size is not None and config.classifier_hidden_size < 1:
        raise ValueError(
            f"classifier_hidden_size={config.classifier_hidden_size} must be at least 1, or None for no layer."
        )
    if config.pooled_norm_eps is not None and not 0 < config.pooled_norm_eps < 1:
        raise ValueError(f"pooled_norm_eps={config.pooled_norm_eps} must lie in (0, 1), or be None.")
    if config.final_norm == "pooled" and config.pooling in ("cls+mean", "cls+register"):
        raise ValueError(
            f"final_norm='pooled' norms one vector, and pooling={config.pooling!r} gives two: use final_norm='tokens'."
        )
    if config.num_register_tokens < 0:
        raise ValueError(f"num_register_tokens={config.num_register_tokens} must be 0 or more.")


def check_sizes(config) -> None:
    """Images, patches and thumbnails."""
    for name in ("image_size", "patch_size", "scout_image_size", "scorer_image_size"):
        value = getattr(config, name)
        if value is None:
            continue
        if not isinstance(value, int) and len(value) != 2:
            raise ValueError(f"{name}={value} must be a number of pixels or a pair (height, width).")
        if min(to_pair(value)) < 1:
            raise ValueError(f"{name}={value} must be at least one pixel a side.")
    patch_size = to_pair(config.patch_size)
    for name in ("image_size", "scout_image_size"):
        value = getattr(config, name) or config.image_size
        if to_pair(value)[0] < patch_size[0] or to_pair(value)[1] < patch_size[1]:
            raise ValueError(f"{name}={value} is smaller than one patch of patch_size={config.patch_size}.")


def check_volumes(config) -> None:
    """Videos and volumes, which `num_frames` says there are."""
    if not has_frames(config):
        if config.scout_num_frames is not None:
            raise ValueError(
                f"scout_num_frames={config.scout_num_frames} is for videos and volumes: set num_frames, or leave it out."
            )
        return
    if config.tubelet_size < 1:
        raise ValueError(f"tubelet_size={config.tubelet_size} must be at least 1 frame (or slice) a patch.")
    for name in ("num_frames", "scout_num_frames"):
        value = getattr(config, name)
        if value is not None and value < config.tubelet_size:
            raise ValueError(
                f"{name}={value} is less than one patch of tubelet_size={config.tubelet_size} frames (or slices)."
            )
    if config.patch_selector == "motion" and config.tubelet_size < 2:
        raise ValueError(
            "patch_selector='motion' compares frames of one patch, and tubelet_size=1 gives it one: use tubelet_size=2."
        )
    if config.backbone_config is not None:
        raise ValueError(
            f"The CNN of backbone_config reads images, and num_frames={config.num_frames} makes them videos or volumes: "
            "leave out one of them."
        )
    if config.patch_embedding != "linear":
        raise ValueError(
            f"patch_embedding={config.patch_embedding!r} reads patches of images, and num_frames={config.num_frames} "
            "makes them videos or volumes: use 'linear'."
        )


def check_positions(config) -> None:
    """Position encodings."""
    check_class_name(config, "position_encoding")
    if has_frames(config):
        check_volume_positions(config)
        return
    channels = {"sinusoidal": ("hidden_size", config.hidden_size, 2)}
    channels["sinusoidal_2d"] = channels["learned_from_sinusoidal"] = ("hidden_size", config.hidden_size, 4)
    channels["rotary"] = channels["rotary_mixed"] = channels["learned_rotary"] = (
        "the channels of a head (hidden_size / num_attention_heads, or head_dim)",
        head_dim_of(config),
        4,
    )
    if config.position_encoding in channels:
        name, size, divisor = channels[config.position_encoding]
        if size % divisor:
            raise ValueError(
                f"position_encoding={config.position_encoding!r} needs {name} to be a multiple of {divisor}, "
                f"got {size}."
            )
    check_position_options(config, 2)


def check_volume_positions(config) -> None:
    """Checks position encodings of videos. Channels beyond a third for each axis have no position."""
    name = config.position_encoding
    head_dim = head_dim_of(config)
    if name in ("rotary", "rotary_mixed", "learned_rotary") and (head_dim < 6 or head_dim % 2):
        raise ValueError(
            f"position_encoding={name!r} turns pairs of channels along three axes, and needs hidden_size / "
            f"num_attention_heads to be even and at least 6, got {head_dim}."
        )
    if name in ("sinusoidal_3d", "learned_from_sinusoidal") and config.hidden_size < 6:
        raise ValueError(
            f"position_encoding={name!r} needs a hidden_size of at least 6, got {config.hidden_size}."
        )
    if name == "sinusoidal" and config.hidden_size % 2:
        raise ValueError(
            f"position_encoding='sinusoidal' needs an even hidden_size, got {config.hidden_size}."
        )
    check_position_options(config, 3)


def check_position_options(config, num_axes: int) -> None:
    """Options of encodings, which may stand there while another is used."""
    if config.rotary_shift is not None and not 0 <= config.rotary_shift < math.inf:
        raise ValueError(f"rotary_shift={config.rotary_shift} must be 0 or more, or None.")
    for name in ("rotary_jitter", "rotary_rescale"):
        if getattr(config, name) is not None and not 1 <= getattr(config, name) < math.inf:
            raise ValueError(f"{name}={getattr(config, name)} is a factor and must be at least 1, or None.")
    reference = config.rotary_reference_grid
    sides = [reference] * 2 if isinstance(reference, int) else reference
    if reference is not None and (len(sides) != num_axes or min(sides) < 1):
        legal = "a number of at least 1 patch a side or a pair (rows, columns) of them"
        if num_axes == 3:
            legal = "three numbers of at least 1 patch (time, rows, columns)"
        raise ValueError(
            f"rotary_reference_grid={reference} must be {legal}, or None for those of image_size."
        )
    if not 0 < config.fourier_scale < math.inf:
        raise ValueError(f"fourier_scale={config.fourier_scale} must be above 0.")
    if config.fourier_num_features < 2 or config.fourier_num_features % 2:
        raise ValueError(f"fourier_num_features={config.fourier_num_features} must be even and at least 2.")
    if not 0 <= config.position_scale_offset < 1:
        raise ValueError(f"position_scale_offset={config.position_scale_offset} must lie in [0, 1).")
    if not 0 < config.rotary_base < math.inf:
        raise ValueError(f"rotary_base={config.rotary_base} must be above 0.")


def check_selection(config) -> None:
    """Checks patch selection, before the encoder."""
    number = config.num_selected_patches
    if config.patch_selector is None:
        for name, value in (("num_selected_patches", number), ("exploration", config.exploration or None)):
            if value is not None:
                raise ValueError(
                    f"{name}={value} needs a patch_selector: choose one of {sorted(table_of(config, 'patch_selector'))}."
                )
        return
    check_class_name(config, "patch_selector")
    if number is None:
        raise ValueError(
            f"patch_selector={config.patch_selector!r} needs num_selected_patches: a number of patches >= 1, or a "
            "share of them in (0, 1]."
        )
    if isinstance(number, float) and not 0 < number <= 1:
        raise ValueError(
            f"num_selected_patches={number} as a float is a share of the patches and must lie in (0, 1]. "
            "For a number of patches give an int."
        )
    if isinstance(number, int) and number < 1:
        raise ValueError(f"num_selected_patches={number} must be at least 1, or a share in (0, 1].")
    if (
        config.patch_selector in ("attention", "distilled")
        and not 1 <= config.scout_num_layers <= config.num_hidden_layers
    ):
        raise ValueError(
            f"scout_num_layers={config.scout_num_layers} must lie between 1 and "
            f"num_hidden_layers={config.num_hidden_layers}."
        )


def check_selection_options(config) -> None:
    """Options of selectors, which may stand there while there is none."""
    if not 0 <= config.exploration <= 1:
        raise ValueError(f"exploration={config.exploration} is a share and must lie in [0, 1].")
    if config.exploration and config.patch_selector in ("policy", "perturbed"):
        raise ValueError(
            f"exploration={config.exploration} is not for patch_selector={config.patch_selector!r}, whose choice is "
            "random while training as it is: set it to 0."
        )
    for name in (
        "distilled_loss_weight",
        "policy_loss_weight",
        "policy_entropy_weight",
        "gumbel_ratio_weight",
        "gumbel_distillation_weight",
        "gumbel_token_weight",
    ):
        if not 0 <= getattr(config, name) < math.inf:
            raise ValueError(f"{name}={getattr(config, name)} must be 0 or more.")
    if (
        config.patch_selector == "policy"
        and config.policy_reward == "correctness"
        and config.problem_type == "regression"
    ):
        raise ValueError(
            "policy_reward='correctness' needs classes, and problem_type is 'regression': use 'cross_entropy'."
        )
    if config.patch_selector == "gradient" and min(to_pair(config.patch_size)) < 3:
        raise ValueError(
            f"patch_selector='gradient' looks at 3x3 pixels; patch_size={config.patch_size} is smaller."
        )
    if not 0 < config.distilled_share <= 1:
        raise ValueError(f"distilled_share={config.distilled_share} must lie in (0, 1].")
    if config.perturbed_num_samples < 1 or not 0 < config.perturbed_sigma < math.inf:
        raise ValueError(
            f"perturbed_num_samples={config.perturbed_num_samples} must be at least 1, and "
            f"perturbed_sigma={config.perturbed_sigma} above 0."
        )
    if config.scorer_hidden_size < 1:
        raise ValueError(f"scorer_hidden_size={config.scorer_hidden_size} must be at least 1.")
    width, heads = config.cross_attention_hidden_size, config.cross_attention_num_heads
    if heads < 1 or width < 1 or width % heads:
        raise ValueError(
            f"cross_attention_hidden_size={width} must be a multiple of cross_attention_num_heads={heads}, and both at "
            "least 1."
        )
    scorer_size = to_pair(config.scorer_image_size or config.image_size)
    if config.patch_selector in ("policy", "perturbed") and min(scorer_size) < 4:
        raise ValueError(f"scorer_image_size={scorer_size} must be at least 4 pixels a side.")


def check_reduction(config) -> None:
    """Checks token reduction, inside the encoder."""
    if not 0 < config.keep_rate <= 1:
        raise ValueError(f"keep_rate={config.keep_rate} is a share of the tokens and must lie in (0, 1].")
    if config.token_reducer is None:
        if config.keep_rate != 1 or config.merge_r is not None:
            raise ValueError(
                f"keep_rate={config.keep_rate} and merge_r={config.merge_r} need a token_reducer: choose one of "
                f"{sorted(TOKEN_REDUCERS)}."
            )
        return
    check_class_name(config, "token_reducer")
    layers = list(config.reduction_layers)
    if (
        not layers
        or len(set(layers)) < len(layers)
        or not all(0 <= layer < config.num_hidden_layers for layer in layers)
    ):
        raise ValueError(
            f"reduction_layers={layers} must be different blocks from 0 to {config.num_hidden_layers - 1}."
        )
    if config.token_reducer == "gumbel" and config.hidden_size % 2:
        raise ValueError(f"token_reducer='gumbel' needs an even hidden_size, got {config.hidden_size}.")
    if config.token_reducer == "merge" and config.keep_rate < 0.5:
        raise ValueError(
            f"keep_rate={config.keep_rate} is too low for token_reducer='merge', which merges pairs: at least 0.5. "
            "Merge at more reduction_layers instead."
        )
    if config.merge_r is not None and config.keep_rate != 1:
        raise ValueError(
            f"merge_r={config.merge_r} and keep_rate={config.keep_rate} exclude each other: pass merge_r=None or "
            "keep_rate=1.0."
        )
    if config.merge_r is not None and (config.token_reducer != "merge" or config.merge_r < 1):
        raise ValueError(
            f"merge_r={config.merge_r} must be at least 1, and is for token_reducer='merge', not "
            f"{config.token_reducer!r}, which goes by keep_rate."
        )


def check_decoder(config) -> None:
    """Checks the MAE decoder's options (images only)."""
    if has_frames(config):
        return
    if not 0 < config.mask_ratio < 1:
        raise ValueError(f"mask_ratio={config.mask_ratio} is a share of the patches and must lie in (0, 1).")
    for name in (
        "decoder_hidden_size",
        "decoder_num_hidden_layers",
        "decoder_num_attention_heads",
        "decoder_intermediate_size",
    ):
        if getattr(config, name) < 1:
            raise ValueError(f"{name}={getattr(config, name)} must be at least 1.")
    if config.decoder_hidden_size % config.decoder_num_attention_heads:
        raise ValueError(
            f"decoder_hidden_size={config.decoder_hidden_size} must be a multiple of "
            f"decoder_num_attention_heads={config.decoder_num_attention_heads}."
        )
    if config.decoder_position_encoding not in POSITION_ENCODINGS:
        raise ValueError(
            f"decoder_position_encoding={config.decoder_position_encoding!r} is unknown. Choose one of "
            f"{sorted(POSITION_ENCODINGS)}."
        )
    try:
        check_positions(decoder_config(config))
    except ValueError as error:
        raise ValueError(f"Of the decoder (decoder_hidden_size and so on): {error}") from error
