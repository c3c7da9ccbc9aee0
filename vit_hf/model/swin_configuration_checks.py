"""Checks of a Swin's configuration. Each function raises a ValueError that says what does not fit. Imports no PyTorch."""

import math

from .axes import to_pair
from .budget import Budget
from .options import check_part, type_of


WINDOW_ENCODINGS = ("relative_bias", "relative_bias_continuous")

# Fields of AdaptiveViTConfig that Swin cannot have, and why.
FOREIGN = {
    "token_reducer": "windows need a full grid, and reducers leave a set of tokens. Select windows with "
    "patch_selector and num_selected_windows",
    "num_selected_patches": "Swin computes on whole windows: use num_selected_windows",
    "thumbnail_context": "a window's attention sees nothing beyond it. Windows that are not selected pass on as they are",
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
            f"num_heads={config.num_heads} must be as many numbers as depths={config.depths}, one for each stage."
        )
    for stage, heads in enumerate(config.num_heads):
        channels = config.embed_dim * 2**stage
        if heads < 1 or channels % heads:
            raise ValueError(
                f"num_heads={config.num_heads}: stage {stage + 1} has embed_dim * {2**stage} = {channels} channels, which "
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
                f"{name}={value} must be a number of pixels of at least 1 a side, or a pair (height, width) of them."
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
                f"shift_size={config.shift_size} shifts windows of stage {stage + 1} by {shift} cells, which must be less "
                f"than their rows and columns, {window}."
            )
    if config.position_encoding not in WINDOW_ENCODINGS:
        raise ValueError(
            f"position_encoding={config.position_encoding!r} is not for Swin, whose attention sees differences of places "
            f"inside a window: choose one of {list(WINDOW_ENCODINGS)}. use_absolute_embeddings=True adds learned "
            "positions in the image besides."
        )


def _check_per_stage(config, name: str, least: int) -> None:
    values = getattr(config, name)
    legal = len(values) == config.num_layers and all(
        isinstance(value, int) or (isinstance(value, list | tuple) and len(value) == 2) for value in values
    )
    if not legal or any(min(to_pair(value)) < least for value in values):
        raise ValueError(
            f"{name}={values} must be a number, or a pair (rows, columns), of at least {least} for each of the "
            f"{config.num_layers} stages."
        )


def check_foreign_fields(config) -> None:
    """What only a ViT has."""
    for name, reason in FOREIGN.items():
        value = getattr(config, name, None)
        if value:
            raise ValueError(f"{name}={value!r} is not for Swin: {reason}.")


def check_window_selection(config) -> None:
    """Checks what computes on fewer windows, but for the selector itself."""
    check_part("patch_selector", config.patch_selector)
    number, name = config.num_selected_windows, type_of(config.patch_selector)
    if name in UNFIT:
        raise ValueError(
            f"patch_selector={name!r} {UNFIT[name]}. Choose a pixel heuristic such as 'saliency' or 'variance', or a class "
            "of your own that scores patches."
        )
    if name is not None and number is None:
        raise ValueError(
            f"patch_selector={name!r} needs num_selected_windows: a number of the first stage's windows >= 1, or a fraction "
            "of each stage's in (0, 1]."
        )
    if number is not None:
        Budget(number, "num_selected_windows", "windows")
