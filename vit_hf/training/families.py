"""What a run may begin with: a ViT or a Swin, and what is asked for in the terms of each."""

import math
from typing import Any

from transformers import PreTrainedConfig

from ..model.budget import Budget
from ..model.configuration_adaptive_swin import FOREIGN, AdaptiveSwinConfig
from ..model.configuration_adaptive_vit import AdaptiveViTConfig
from ..model.modeling_adaptive_swin import AdaptiveSwinForImageClassification
from ..model.modeling_adaptive_vit import AdaptiveViTForImageClassification


# By `model_type` of the configuration.
CLASSIFIERS = {
    AdaptiveViTConfig.model_type: AdaptiveViTForImageClassification,
    AdaptiveSwinConfig.model_type: AdaptiveSwinForImageClassification,
}
# What a field of AdaptiveViTConfig says where there is no selection and no reduction.
NOTHING_SELECTED = {"num_selected_patches": None, "token_reducer": None, "keep_rate": 1.0}


def model_type_of(path: str) -> str:
    """The key of `CLASSIFIERS` for a checkpoint, local or on the Hub; that of the ViT for all that is no Swin."""
    model_type = PreTrainedConfig.get_config_dict(path)[0].get("model_type")
    is_swin = model_type in (AdaptiveSwinConfig.model_type, "swin", "swinv2")
    return AdaptiveSwinConfig.model_type if is_swin else AdaptiveViTConfig.model_type


def is_swin(path: str) -> bool:
    """Whether a checkpoint is one that `AdaptiveSwinForImageClassification` loads."""
    return model_type_of(path) == AdaptiveSwinConfig.model_type


def swin_fields(fields: dict[str, Any], path: str | None = None) -> dict[str, Any]:
    """Fields of `AdaptiveViTConfig` as those of a Swin.

    A number of patches becomes that of as many windows of the first stage as have these, a share of them the same share
    of the windows. Fields that say that no token is to be thinned, which a Swin does not have, are left out.

    Args:
        fields: some of either configuration.
        path: of the checkpoint that they are to change; None for a model from scratch.

    Raises:
        ValueError: for others that it does not have, naming the reason.
    """
    left = {
        name: value
        for name, value in fields.items()
        if name not in NOTHING_SELECTED or value != NOTHING_SELECTED[name]
    }
    number = left.pop("num_selected_patches", None)
    known = AdaptiveSwinConfig().to_dict().keys() - FOREIGN.keys()
    unknown = [name for name in (*FOREIGN, *left) if name in left and name not in known]
    if unknown:
        reason = FOREIGN.get(unknown[0], "AdaptiveSwinConfig has no such field")
        raise ValueError(f"{unknown[0]}={left[unknown[0]]!r} is not for Swin: {reason}.")
    if "num_selected_patches" not in fields:
        return left
    if number is not None and not Budget(number).is_fraction:
        sizes = {
            name: left[name] for name in ("window_size", "depths", "num_heads", "embed_dim") if name in left
        }
        config = (
            AdaptiveSwinConfig(**sizes) if path is None else AdaptiveSwinConfig.from_pretrained(path, **sizes)
        )
        number = Budget(number).coarsened(math.prod(config.window_of(0))).value
    return {"num_selected_windows": number} | left
