"""Reads and writes the files of google-research/vision_transformer (JAX) with numpy only.

Names and shapes are those of `models_vit.py` there (Dosovitskiy et al., 2020): kernels have inputs first;
those of attention are `(D, heads, d)`, and of its output `(heads, d, D)`.
"""

import math
import re
from os import PathLike
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel
from transformers.utils import logging

from ..model.configuration_adaptive_vit import AdaptiveViTConfig
from ..model.elastic import active_subnetwork
from ..model.image_processing_adaptive_vit import AdaptiveViTImageProcessor
from ..model.modeling_adaptive_vit import AdaptiveViTForImageClassification
from ..model.options import type_of
from ..model.pretrained import AdaptiveViTPreTrainedModel
from . import npz_hybrid
from .families import CannotConvert, load_state
from .plain import check_plain


logger = logging.get_logger(__name__)

# Flax' defaults.
ACTIVATION, EPSILON = "gelu_pytorch_tanh", 1e-6
# Fields that a file determines; resizing of the table is left to its readers.
KEPT = ("backbone_config", "classifier_hidden_size", "position_encoding")
POSITIONS = "Transformer/posembed_input/pos_embedding"
BLOCK = r"Transformer/encoderblock_(\d+)/"
# Parts of a block: theirs, ours.
NORMS = {"LayerNorm_0": "layernorm_before", "LayerNorm_2": "layernorm_after"}
ATTENTION = "MultiHeadDotProductAttention_1"
PROJECTIONS = {"query": "q_proj", "key": "k_proj", "value": "v_proj"}
# Entries of training in a file, in addition to the weights.
LEFTOVERS = ("opt/state/", "extra/")
DENSE = {"MlpBlock_3/Dense_0": "mlp.fc1", "MlpBlock_3/Dense_1": "mlp.fc2"}


class Arrays(dict[str, np.ndarray]):
    """Arrays of a file by name, with a record of which were read.

    Raises:
        CannotConvert: when an array is read that is missing or not of real numbers.
    """

    def __init__(self, arrays: dict[str, np.ndarray]):
        super().__init__(arrays)
        self.read: set[str] = set()

    def __missing__(self, name: str) -> np.ndarray:
        raise CannotConvert(f"This file is incomplete: it lacks {name}.")

    def __getitem__(self, name: str) -> np.ndarray:
        value = super().__getitem__(name)
        if value.dtype.kind not in "fiu":
            raise CannotConvert(
                f"{name} is of {value.dtype}, and must be of real numbers: save it as float32."
            )
        self.read.add(name)
        return value


def load_npz(
    path: str | PathLike, **fields: Any
) -> tuple[AdaptiveViTForImageClassification, AdaptiveViTImageProcessor]:
    """Loads a ViT of google-research/vision_transformer, with an image processor that prepares as in its
    training.

    Args:
        path: the `.npz` file. Nothing in it is executed: arrays of objects are refused.
        fields: of `AdaptiveViTConfig`, to be set at once. `image_size` is needed where the grid is not
            square.

    Raises:
        CannotConvert: for a file of another architecture, naming what does not fit.
        ValueError: from numpy, for a file that holds anything but numbers.
    """
    with np.load(path, allow_pickle=False) as file:
        names = [name for name in file.files if not name.startswith(LEFTOVERS)]
        arrays = Arrays({name.removeprefix("opt/target/"): file[name] for name in names})
    options = read_config(arrays) | fields
    if "image_size" not in options:
        patches = arrays[POSITIONS].shape[1] - 1
        raise CannotConvert(
            f"The grid of {patches} patches is not square, and {path} does not say what it is: pass "
            "image_size=[height, width] in pixels."
        )
    config = AdaptiveViTConfig(**options)
    model = AdaptiveViTForImageClassification(config)
    weights = to_ours(arrays, config.num_hidden_layers)
    if npz_hybrid.is_hybrid(arrays):
        cnn = npz_hybrid.to_ours(arrays, config.backbone_config)
        weights |= {name: torch.from_numpy(np.array(value, dtype=np.float32)) for name, value in cnn.items()}
    unread = sorted(arrays.keys() - arrays.read)
    if unread:
        raise CannotConvert(
            f"{path} has arrays unknown to the ViT of google-research/vision_transformer: {unread[:5]}. If "
            "they mean nothing to the model's outputs, save the file without them."
        )
    report = load_state(model, weights)
    missing = [name for name in report.missing_keys if not re.match(r"vit\.(selector|reducers)\.", name)]
    if missing or report.unexpected_keys:
        raise CannotConvert(f"{path} lacks {missing[:5]} or has too much: {report.unexpected_keys[:5]}.")
    half = [0.5] * config.num_channels
    size = config.image_size
    height, width = (size, size) if isinstance(size, int) else size
    processor = AdaptiveViTImageProcessor(
        size={"height": height, "width": width},
        image_mean=half,
        image_std=half,
        do_convert_rgb=config.num_channels == 3,
        patch_size=config.patch_size,
    )
    return model.eval(), processor


def read_config(arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    """Infers fields of `AdaptiveViTConfig` from array shapes.

    Raises:
        CannotConvert: for a mixer, a hybrid without the stages of a ResNet, or whatever else has not the
            arrays of a ViT.
    """
    needed = ("embedding/kernel", POSITIONS, "cls", "Transformer/encoder_norm/scale")
    missing = [name for name in needed if name not in arrays]
    blocks = {int(found[1]) for name in arrays if (found := re.match(BLOCK, name))}
    if missing or not blocks:
        raise CannotConvert(
            f"This is not a ViT of google-research/vision_transformer: there is no {missing or BLOCK}."
        )
    if blocks != set(range(len(blocks))):
        gap = min(set(range(len(blocks))) - blocks)
        raise CannotConvert(f"This file is incomplete: it lacks Transformer/encoderblock_{gap}.")
    height, width, channels, hidden_size = arrays["embedding/kernel"].shape
    heads = arrays[f"Transformer/encoderblock_0/{ATTENTION}/query/kernel"].shape[1]
    patches = arrays[POSITIONS].shape[1] - 1
    side = math.isqrt(patches)
    fields = {
        "hidden_size": hidden_size,
        "num_hidden_layers": len(blocks),
        "num_attention_heads": heads,
        "intermediate_size": arrays["Transformer/encoderblock_0/MlpBlock_3/Dense_0/kernel"].shape[1],
        "patch_size": height if height == width else [height, width],
        "encoder_stride": height,
        "num_channels": channels,
        "num_labels": arrays["head/kernel"].shape[1] if "head/kernel" in arrays else 0,
        "hidden_act": ACTIVATION,
        "layer_norm_eps": EPSILON,
    }
    if "pre_logits/kernel" in arrays:
        fields["classifier_hidden_size"] = arrays["pre_logits/kernel"].shape[1]
    if side * side == patches:
        fields["image_size"] = [side * height, side * width] if height != width else side * height
    if npz_hybrid.is_hybrid(arrays):
        fields |= npz_hybrid.hybrid_fields(arrays, fields)
    return fields


def to_ours(arrays: dict[str, np.ndarray], num_blocks: int) -> dict[str, torch.Tensor]:
    """Returns the weights with our names and shapes."""
    ours: dict[str, np.ndarray] = {
        "vit.embeddings.cls_token": arrays["cls"],
        "vit.embeddings.position_encoding.position_embeddings": arrays[POSITIONS],
        "vit.embeddings.patch_embeddings.projection.weight": arrays["embedding/kernel"].transpose(3, 2, 0, 1),
        "vit.embeddings.patch_embeddings.projection.bias": arrays["embedding/bias"],
        "vit.layernorm.weight": arrays["Transformer/encoder_norm/scale"],
        "vit.layernorm.bias": arrays["Transformer/encoder_norm/bias"],
    }
    if "pre_logits/kernel" in arrays:
        kernel, bias = arrays["pre_logits/kernel"], arrays["pre_logits/bias"]
        ours |= {"pre_classifier.weight": kernel.T, "pre_classifier.bias": bias}
    if "head/kernel" in arrays:
        ours |= {"classifier.weight": arrays["head/kernel"].T, "classifier.bias": arrays["head/bias"]}
    for index in range(num_blocks):
        theirs, block = f"Transformer/encoderblock_{index}", f"vit.layers.{index}"
        for name, ours_name in NORMS.items():
            ours[f"{block}.{ours_name}.weight"] = arrays[f"{theirs}/{name}/scale"]
            ours[f"{block}.{ours_name}.bias"] = arrays[f"{theirs}/{name}/bias"]
        for name, ours_name in PROJECTIONS.items():
            kernel = arrays[f"{theirs}/{ATTENTION}/{name}/kernel"]
            ours[f"{block}.attention.{ours_name}.weight"] = kernel.reshape(len(kernel), -1).T
            ours[f"{block}.attention.{ours_name}.bias"] = arrays[f"{theirs}/{ATTENTION}/{name}/bias"].ravel()
        kernel = arrays[f"{theirs}/{ATTENTION}/out/kernel"]
        ours[f"{block}.attention.o_proj.weight"] = kernel.reshape(-1, kernel.shape[-1]).T
        ours[f"{block}.attention.o_proj.bias"] = arrays[f"{theirs}/{ATTENTION}/out/bias"]
        for name, ours_name in DENSE.items():
            ours[f"{block}.{ours_name}.weight"] = arrays[f"{theirs}/{name}/kernel"].T
            ours[f"{block}.{ours_name}.bias"] = arrays[f"{theirs}/{name}/bias"]
    return {
        name: torch.from_numpy(np.ascontiguousarray(value, dtype=np.float32)) for name, value in ours.items()
    }


def save_npz(model: PreTrainedModel, path: str | PathLike) -> None:
    """Writes a plain ViT classifier, or a hybrid with their ResNet, as a file of
    google-research/vision_transformer.

    The file has no place for `hidden_act` and `layer_norm_eps`: its readers take "gelu_pytorch_tanh" and
    1e-6. A model with others is written with a warning; `load_npz(path, hidden_act=..., layer_norm_eps=...)`
    has its outputs again.

    Args:
        model: an `AdaptiveViTForImageClassification`, or what `convert` makes one of, such as transformers'
            `ViTForImageClassification`.

    Raises:
        CannotConvert: for an architecture that they do not have.
    """
    if not isinstance(model, AdaptiveViTPreTrainedModel):
        from .convert import convert  # which imports this file

        model, _ = convert(model)
    if not isinstance(model, AdaptiveViTForImageClassification):
        raise CannotConvert(f"A .npz of ViT holds an image classifier, and this is {type(model).__name__}.")
    model = active_subnetwork(model)
    config = model.config
    check_plain(config, "a .npz of ViT", keeps=KEPT)
    if type_of(config.position_encoding) != "learned":
        raise CannotConvert(
            f"position_encoding={config.position_encoding!r} cannot be stored in a .npz of ViT."
        )
    if not config.qkv_bias:
        raise CannotConvert("qkv_bias=False cannot be stored in a .npz of ViT.")
    if (config.hidden_act, config.layer_norm_eps) != (ACTIVATION, EPSILON):
        logger.warning(
            f"{path} cannot say hidden_act={config.hidden_act!r} and layer_norm_eps={config.layer_norm_eps}: "
            f"pass both to load_npz, which else takes {ACTIVATION!r} and {EPSILON}."
        )
    weights = {name: value.detach().float().cpu().numpy() for name, value in model.state_dict().items()}
    heads, channels = config.num_attention_heads, config.hidden_size // config.num_attention_heads
    arrays = {
        "cls": weights["vit.embeddings.cls_token"],
        POSITIONS: weights["vit.embeddings.position_encoding.position_embeddings"],
        "embedding/kernel": weights["vit.embeddings.patch_embeddings.projection.weight"].transpose(
            2, 3, 1, 0
        ),
        "embedding/bias": weights["vit.embeddings.patch_embeddings.projection.bias"],
        "Transformer/encoder_norm/scale": weights["vit.layernorm.weight"],
        "Transformer/encoder_norm/bias": weights["vit.layernorm.bias"],
    }
    if config.classifier_hidden_size is not None:
        kernel, bias = weights["pre_classifier.weight"].T, weights["pre_classifier.bias"]
        arrays |= {"pre_logits/kernel": kernel, "pre_logits/bias": bias}
    if config.backbone_config is not None:
        arrays |= npz_hybrid.to_theirs(weights, config.backbone_config)
    if config.num_labels:
        arrays |= {"head/kernel": weights["classifier.weight"].T, "head/bias": weights["classifier.bias"]}
    for index in range(config.num_hidden_layers):
        theirs, block = f"Transformer/encoderblock_{index}", f"vit.layers.{index}"
        for name, ours_name in NORMS.items():
            arrays[f"{theirs}/{name}/scale"] = weights[f"{block}.{ours_name}.weight"]
            arrays[f"{theirs}/{name}/bias"] = weights[f"{block}.{ours_name}.bias"]
        for name, ours_name in PROJECTIONS.items():
            weight = weights[f"{block}.attention.{ours_name}.weight"]
            arrays[f"{theirs}/{ATTENTION}/{name}/kernel"] = weight.T.reshape(-1, heads, channels)
            bias = weights[f"{block}.attention.{ours_name}.bias"]
            arrays[f"{theirs}/{ATTENTION}/{name}/bias"] = bias.reshape(heads, channels)
        weight = weights[f"{block}.attention.o_proj.weight"]
        arrays[f"{theirs}/{ATTENTION}/out/kernel"] = weight.T.reshape(heads, channels, -1)
        arrays[f"{theirs}/{ATTENTION}/out/bias"] = weights[f"{block}.attention.o_proj.bias"]
        for name, ours_name in DENSE.items():
            arrays[f"{theirs}/{name}/kernel"] = weights[f"{block}.{ours_name}.weight"].T
            arrays[f"{theirs}/{name}/bias"] = weights[f"{block}.{ours_name}.bias"]
    with open(path, "wb") as file:  # np.savez would add a suffix of its own
        np.savez(file, **arrays)
