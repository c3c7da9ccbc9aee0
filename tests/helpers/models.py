"""Small models of every kind, and what they select and reduce."""

import pytest
import torch
from transformers import ViTConfig, ViTForImageClassification

from vit_hf import (
    PATCH_SELECTORS,
    TOKEN_REDUCERS,
    AdaptiveSwinConfig,
    AdaptiveViTConfig,
    AdaptiveViTForImageClassification,
)
from vit_hf.model.patches import ImagePatches, flatten_channels_last


TINY = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "image_size": 32,
    "patch_size": 8,
    "num_labels": 5,
    "encoder_stride": 8,
    "masked_autoencoder": {
        "decoder_hidden_size": 16,
        "decoder_num_hidden_layers": 2,
        "decoder_num_attention_heads": 2,
        "decoder_intermediate_size": 24,
    },
    # Large enough that differences between inputs show in the logits.
    "initializer_range": 0.2,
}


# Options of selectors in tiny models.
TINY_SELECTORS = {
    "attention": {"num_layers": 2},
    "distilled": {"num_layers": 2},
    "policy": {"hidden_size": 8},
    "perturbed": {"hidden_size": 8, "num_samples": 20},
    "cross_attention": {"hidden_size": 32},
}


def tiny_selector(name: str, **options) -> dict:
    """A selector for a tiny model; `options` override."""
    return {"type": name, **TINY_SELECTORS.get(name, {}), **options}


# Everything that selects or reduces, by a name for the test and the fields of the configuration.
SELECTIONS = {
    "dense": {},
    **{name: {"patch_selector": name} for name in PATCH_SELECTORS},
    **{
        name: {"token_reducer": name, "keep_rate": 0.6, "reduction_layers": [0, 1]} for name in TOKEN_REDUCERS
    },
    "merge_r": {"token_reducer": {"type": "merge", "r": 3}, "reduction_layers": [0, 1, 2]},
    "context": {"patch_selector": "variance", "thumbnail_context": True},
    **{
        f"both_{name}": {
            "patch_selector": "attention",
            "thumbnail_context": True,
            "token_reducer": name,
            "keep_rate": 0.6,
            "reduction_layers": [1],
        }
        for name in TOKEN_REDUCERS
    },
}


every_selection = pytest.mark.parametrize("selection", SELECTIONS.values(), ids=SELECTIONS)


def tiny_config(**fields) -> AdaptiveViTConfig:
    """A model that runs in milliseconds; `fields` override, one by one those of `masked_autoencoder`."""
    fields = {**TINY, **fields}
    if fields.get("patch_selector") is not None:
        fields.setdefault("num_selected_patches", 6)
    if isinstance(fields.get("patch_selector"), str):
        fields["patch_selector"] = tiny_selector(fields["patch_selector"])
    fields["masked_autoencoder"] = {**TINY["masked_autoencoder"], **(fields["masked_autoencoder"] or {})}
    return AdaptiveViTConfig(**fields)


TINY_SWIN = {
    "image_size": 32,
    "patch_size": 4,
    "embed_dim": 16,
    "depths": [2, 1, 2],
    "num_heads": [2, 2, 4],
    "window_size": 4,
    "mlp_ratio": 2.0,
    "drop_path_rate": 0.0,
    "num_labels": 5,
    "encoder_stride": 16,
    "initializer_range": 0.2,
}


V2 = {
    "position_encoding": "relative_bias_continuous",
    "cosine_attention": True,
    "post_norm": True,
    "key_bias": False,
}


# Every kind of Swin, by a name for the test and the fields of the configuration.
SWINS = {
    "swin": {"use_absolute_embeddings": True},
    "swinv2": V2,
    "swin_fixed": {"window_size": [4, [2, 4], 3], "window_fit": "fixed", "pad_before_shift": False},
    "swin_selected": {"patch_selector": "variance", "num_selected_windows": 3},
    "swinv2_selected": {**V2, "patch_selector": "saliency", "num_selected_windows": 0.5},
}


every_swin = pytest.mark.parametrize("swin", SWINS.values(), ids=SWINS)


def tiny_swin_config(**fields) -> AdaptiveSwinConfig:
    """A Swin that runs in milliseconds; `fields` override."""
    return AdaptiveSwinConfig(**{**TINY_SWIN, **fields})


def stock(**fields) -> ViTForImageClassification:
    fields = {key: value for key, value in {**TINY, **fields}.items() if key != "masked_autoencoder"}
    return ViTForImageClassification(ViTConfig(**fields)).eval()


def ours_from(model, tmp_path, **fields) -> AdaptiveViTForImageClassification:
    model.save_pretrained(tmp_path)
    if fields.get("patch_selector") is not None:
        fields["patch_selector"] = tiny_selector(fields["patch_selector"])
    return AdaptiveViTForImageClassification.from_pretrained(tmp_path, **fields)


def cut(images: list[torch.Tensor], patch_size: int = 8) -> dict[str, torch.Tensor]:
    """Images (C, H, W) of any sizes as one padded batch of cut patches."""
    taken = [ImagePatches.from_images(image[None], patch_size).gather() for image in images]
    longest = max(tokens.features.shape[1] for tokens in taken)

    def pad(values):
        return torch.nn.functional.pad(values[0], (0, 0, 0, longest - values.shape[1]))

    return {
        "pixel_values": torch.stack(
            [pad(flatten_channels_last(tokens.features, patch_size)) for tokens in taken]
        ),
        "patch_coordinates": torch.stack([pad(tokens.coordinates) for tokens in taken]),
        "spatial_shapes": torch.cat([tokens.grid for tokens in taken]),
        "pixel_attention_mask": torch.stack(
            [torch.arange(longest) < tokens.features.shape[1] for tokens in taken]
        ).long(),
    }
