"""What a model makes of each patch, whichever model it is.

Shapes: B tiles; r, s rows and columns of patches in a tile; D channels.
"""

import torch
from transformers import PreTrainedModel
from transformers.backbone_utils import BackboneMixin
from transformers.utils import ModelOutput

from ..model.axes import to_pair
from ..model.configuration_adaptive_vit import AdaptiveViTConfig


def run_with_patch_states(
    model: PreTrainedModel, inputs: dict[str, torch.Tensor]
) -> tuple[ModelOutput, torch.Tensor]:
    """The outputs of a model, and `(B, D, r, s)` of its patches.

    That is the last feature map of a backbone; `restored_hidden_state` of an AdaptiveViT, with or without a head, which
    has all patches whatever is selected or reduced; and `last_hidden_state` of others, less CLS and register tokens.

    Raises:
        TypeError: if the model has no such state, or none that is one for each place of the image.
    """
    if isinstance(model, BackboneMixin):
        outputs = model(**inputs)
        return outputs, _check(model, outputs.feature_maps[-1])
    recorded = []
    hook = model.base_model.register_forward_hook(lambda module, args, output: recorded.append(output))
    is_adaptive = model.config.model_type == AdaptiveViTConfig.model_type
    try:
        outputs = model(**inputs, **({"restore": True} if is_adaptive else {}))
    finally:
        hook.remove()
    if is_adaptive:
        rows, columns = recorded[-1].spatial_shapes[0].tolist()
        states = recorded[-1].restored_hidden_state.transpose(1, 2).unflatten(2, (rows, columns))
        return outputs, states
    states = getattr(recorded[-1], "last_hidden_state", None) if recorded else None
    if isinstance(states, torch.Tensor) and states.ndim == 3:
        states = _to_map(states, model.config, inputs["pixel_values"].shape[-2:])
    return outputs, _check(model, states)


def _to_map(states: torch.Tensor, config: object, input_size: tuple[int, int]) -> torch.Tensor | None:
    """`(B, prefix + r*s, D)` to `(B, D, r, s)`; None if it is not known what r and s are."""
    patch_size = getattr(config, "patch_size", None)
    if patch_size is None:
        return None
    rows, columns = (side // patch for side, patch in zip(input_size, to_pair(patch_size), strict=True))
    # Stages of hierarchical models, such as Swin, halve the grid.
    while rows * columns > states.shape[1]:
        rows, columns = -(-rows // 2), -(-columns // 2)
    num_prefix = states.shape[1] - rows * columns
    return states[:, num_prefix:].transpose(1, 2).unflatten(2, (rows, columns))


def _check(model: PreTrainedModel, states: torch.Tensor | None) -> torch.Tensor:
    if not isinstance(states, torch.Tensor) or states.ndim != 4:
        raise TypeError(
            f"{type(model).__name__} has no states of patches in a grid, of which feature maps are made. Give a model "
            "whose base has last_hidden_state, as ViT, Swin and ResNet have, or an AutoBackbone; or feature_maps=False."
        )
    return states
