"""The ResNet of google-research/vision_transformer's hybrids (`models_resnet.py`), such as
`R50+ViT-B_16.npz`.

Computed as transformers and timm do: their norms divide by the root of variance + 1e-5 and their standardized
weights by that of variance + 1e-8, where the original has 1e-6, and adds 1e-5 to the deviation.
"""

import re
from typing import Any

import numpy as np
from transformers import BitConfig, PreTrainedConfig

from ..model.configuration_adaptive_vit import bit_stride
from .families import CannotConvert


BACKBONE = "vit.embeddings.patch_embeddings.backbone.bit"
UNIT = r"block(\d+)/unit(\d+)/"
# Parts of a unit: theirs, ours. Only the first of a block has the last two.
PARTS = {f"conv{index}": f"conv{index}" for index in (1, 2, 3)}
PARTS |= {f"gn{index}": f"norm{index}" for index in (1, 2, 3)}
SHORTCUT = {"conv_proj": "downsample.conv", "gn_proj": "downsample.norm"}
# Options of `BitConfig` that all their files share.
THEIRS = {
    "layer_type": "bottleneck",
    "global_padding": "SAME",
    "embedding_dynamic_padding": True,
    "hidden_act": "relu",
    "num_groups": 32,
    "width_factor": 1,
    "output_stride": 32,
}


def is_hybrid(arrays: dict[str, np.ndarray]) -> bool:
    return "conv_root/kernel" in arrays


def hybrid_fields(arrays: dict[str, np.ndarray], fields: dict[str, Any]) -> dict[str, Any]:
    """Infers fields of `AdaptiveViTConfig`; the rest of the file gave `fields` in cells of the feature map.

    Raises:
        CannotConvert: for a ResNet without stages, or patches of several cells.
    """
    units = [(int(found[1]), int(found[2])) for name in arrays if (found := re.match(UNIT, name))]
    if not units:
        raise CannotConvert(
            "This is a hybrid with the root of a ResNet and none of its stages; only those with stages can "
            "be read."
        )
    if fields["patch_size"] != 1:
        raise CannotConvert(
            f"This is a hybrid with patches of {fields['patch_size']} cells; AdaptiveViT embeds each cell."
        )
    num_stages = max(stage for stage, _ in units)
    depths = [
        max([unit for of, unit in units if of == stage], default=0) for stage in range(1, num_stages + 1)
    ]
    names = (f"block{stage}/unit1/conv3/kernel" for stage in range(1, num_stages + 1))
    root = arrays["conv_root/kernel"]
    config = BitConfig(
        **THEIRS,
        num_channels=root.shape[2],
        embedding_size=root.shape[3],
        hidden_sizes=[_get(arrays, name).shape[3] for name in names],
        depths=depths,
        out_features=[f"stage{num_stages}"],
    )
    stride = bit_stride(config)
    hybrid = {
        "backbone_config": config,
        "num_channels": root.shape[2],
        "patch_size": stride,
        "encoder_stride": stride,
    }
    if "image_size" in fields:
        hybrid["image_size"] = fields["image_size"] * stride
    return hybrid


def to_ours(arrays: dict[str, np.ndarray], config: PreTrainedConfig) -> dict[str, np.ndarray]:
    """Returns the ResNet's weights with our names and shapes.

    Raises:
        CannotConvert: if one is missing.
    """
    weights = {}
    for theirs, ours in _modules(config.depths).items():
        if "conv" in theirs:
            weights[f"{BACKBONE}.{ours}.weight"] = _get(arrays, f"{theirs}/kernel").transpose(3, 2, 0, 1)
        else:
            # Older files have (1, 1, 1, channels).
            weights[f"{BACKBONE}.{ours}.weight"] = _get(arrays, f"{theirs}/scale").ravel()
            weights[f"{BACKBONE}.{ours}.bias"] = _get(arrays, f"{theirs}/bias").ravel()
    return weights


def to_theirs(weights: dict[str, np.ndarray], config: PreTrainedConfig) -> dict[str, np.ndarray]:
    """Returns the file's arrays for the ResNet of a model with all `weights`.

    Args:
        config: the backbone's.

    Raises:
        CannotConvert: for a CNN that they do not have.
    """
    width = config.embedding_size if config.model_type == "bit" else 0
    required = {
        "model_type": "bit",
        **THEIRS,
        "hidden_sizes": [4 * width * 2**index for index in range(len(getattr(config, "depths", ())))],
        "out_features": [f"stage{len(getattr(config, 'depths', ()))}"],
    }
    for name, value in required.items():
        if getattr(config, name, None) != value:
            raise CannotConvert(
                f"The CNN has {name}={getattr(config, name, None)!r} in backbone_config, and a .npz of a "
                f"hybrid needs {value!r}."
            )
    arrays = {}
    for theirs, ours in _modules(config.depths).items():
        weight = weights[f"{BACKBONE}.{ours}.weight"]
        if "conv" in theirs:
            arrays[f"{theirs}/kernel"] = weight.transpose(2, 3, 1, 0)
        else:
            arrays |= {f"{theirs}/scale": weight, f"{theirs}/bias": weights[f"{BACKBONE}.{ours}.bias"]}
    return arrays


def _modules(depths: list[int]) -> dict[str, str]:
    """Maps their names of convolutions and norms to ours."""
    names = {"conv_root": "embedder.convolution", "gn_root": "embedder.norm"}
    for stage, depth in enumerate(depths):
        for unit in range(depth):
            for theirs, ours in (PARTS if unit else PARTS | SHORTCUT).items():
                names[f"block{stage + 1}/unit{unit + 1}/{theirs}"] = (
                    f"encoder.stages.{stage}.layers.{unit}.{ours}"
                )
    return names


def _get(arrays: dict[str, np.ndarray], name: str) -> np.ndarray:
    if name not in arrays:
        raise CannotConvert(f"This hybrid is incomplete: it lacks {name}.")
    return arrays[name]
