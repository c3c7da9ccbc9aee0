"""Loads weights that timm saved into their timm module: from a file, a state dict, or a folder as on timm's
Hub."""

import inspect
import json
import math
import pickle
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from difflib import get_close_matches
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn
from transformers.utils import cached_file

from ..model.sizes import to_pair
from .families import CannotConvert, Weights


SUFFIXES = (".safetensors", ".bin", ".pth", ".pt")
HUB_FILES = ("model.safetensors", "pytorch_model.bin")
# Buffers of Swin that older files hold, and which are computed.
COMPUTED = ("relative_position_index", "relative_coords_table", "attn_mask")
# Keys under which a training script may store the weights.
NESTED = ("state_dict_ema", "model_ema", "state_dict", "model")
# Arguments of `timm.create_model` that say where weights come from or how layers run, and nothing of the
# architecture.
NOT_ARCHITECTURE = (
    "pretrained",
    "pretrained_cfg",
    "pretrained_cfg_overlay",
    "pretrained_custom_load",
    "pretrained_filter_fn",
    "pretrained_model_args",
    "pretrained_strict",
    "checkpoint_path",
    "cache_dir",
    "scriptable",
    "exportable",
    "no_jit",
    "device",
    "dtype",
    "weight_init",
    "fix_init",
)


def is_weights_file(source: Any) -> bool:
    return isinstance(source, str | PathLike) and str(source).endswith(SUFFIXES) and not Path(source).is_dir()


def read_weights(path: str | PathLike) -> Weights:
    """Reads the tensors of a file; nothing in it is executed.

    Raises:
        CannotConvert: if it holds more than tensors, or is TorchScript.
        OSError: if there is no such file.
    """
    if str(path).endswith(".safetensors"):
        return load_file(path)
    try:
        with refusing_pickles(path):
            weights = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError) as error:
        raise CannotConvert(
            f"{path} is not a tensor file of torch.save; it may be TorchScript or cut short: save the "
            "model's state_dict()."
        ) from error
    if not isinstance(weights, dict):
        raise CannotConvert(f"{path} holds a {type(weights).__name__}, and must hold names and tensors.")
    return weights


@contextmanager
def refusing_pickles(path: str | PathLike) -> Iterator[None]:
    """Explains why `weights_only=True` refused a pickle, here or in transformers.

    Raises:
        CannotConvert: for such a pickle.
    """
    try:
        yield
    except pickle.UnpicklingError as error:
        raise CannotConvert(
            f"{path} holds more than tensors. A pickle of anything else could run any code, so it was not "
            "loaded: ask for a .safetensors file, or for one with nothing but tensors."
        ) from error


def read_hub_config(path: str | PathLike) -> dict[str, Any] | None:
    """Reads `config.json` of a folder or Hub repository that timm saved; None for any other."""
    file = cached_file(
        path,
        "config.json",
        _raise_exceptions_for_gated_repo=False,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    if file is None:
        return None
    config = json.loads(Path(file).read_text(encoding="utf-8"))
    return config if "architecture" in config and "model_type" not in config else None


def load_timm(source: Mapping[str, torch.Tensor] | str | PathLike, architecture: str | None) -> nn.Module:
    """Builds a timm model with the given weights, in evaluation mode and of their dtype.

    Args:
        source: a state dict, or a file with one.
        architecture: the name by which `timm.create_model` knows it, such as "vit_small_patch16_224". The
            number of classes and the image size are those of the weights; where their table of positions is
            not as long as that of the architecture, it is taken for that of a square.

    Raises:
        CannotConvert: for an architecture that is not named, that timm does not know, or that has other
            weights.
        ImportError: without timm.
    """
    if architecture is None:
        raise CannotConvert(
            "Weights alone do not say of what model they are: pass architecture='vit_small_patch16_224' or "
            "whatever else timm calls it."
        )
    weights = dict(source) if isinstance(source, Mapping) else read_weights(source)
    return build(architecture, weights, {})


def load_timm_folder(path: str | PathLike, config: dict[str, Any]) -> nn.Module:
    """Builds the model of a folder or Hub repository that timm saved, with its preprocessing and class names.

    Raises:
        CannotConvert, ImportError: see `load_timm`.
        OSError: without weights.
    """
    files = [cached_file(path, name, _raise_exceptions_for_missing_entries=False) for name in HUB_FILES]
    found = next((file for file in files if file is not None), None)
    if found is None:
        raise OSError(f"{path} has a config.json of timm and none of {', '.join(HUB_FILES)}.")
    model = build(config["architecture"], read_weights(found), config.get("model_args") or {})
    said = config.get("pretrained_cfg") or {}
    said |= {name: config[name] for name in ("label_names", "label_descriptions") if name in config}
    model.pretrained_cfg = {**model.pretrained_cfg, **said}
    return model


def build(architecture: str, weights: Weights, model_args: dict[str, Any]) -> nn.Module:
    try:
        import timm
    except ImportError as error:
        raise ImportError(
            "Weights of timm need timm, which knows the architectures: pip install timm."
        ) from error
    if not timm.is_model(architecture):
        near = get_close_matches(architecture, timm.list_models(), n=3) or ["see timm.list_models()"]
        raise CannotConvert(f"timm has no architecture {architecture!r}. Near it: {', '.join(near)}.")
    weights = next((weights[name] for name in NESTED if isinstance(weights.get(name), dict)), weights)
    weights = {
        name.removeprefix("module."): value for name, value in weights.items() if not name.endswith(COMPUTED)
    }
    head = weights.get("head.weight", weights.get("head.fc.weight"))
    options = {"num_classes": 0 if head is None else len(head)} | architecture_args(model_args)
    model = create(architecture, options)
    size = None if "img_size" in options else infer_image_size(weights, model)
    if size is not None:
        model = create(architecture, options | {"img_size": size})
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise CannotConvert(
            f"These are not weights of {architecture!r}. If they are of a variant of it, or of images that "
            f"are not square, build that with timm.create_model, load them, and convert the module. {error}"
        ) from error
    if size is not None or "img_size" in options:
        channels = model.pretrained_cfg.get("input_size", (3,))[0]
        native = to_pair(size or options["img_size"])
        model.pretrained_cfg = {**model.pretrained_cfg, "input_size": (channels, *native)}
    dtype = next(value.dtype for value in weights.values() if value.is_floating_point())
    return model.to(dtype).eval()


def create(architecture: str, options: dict[str, Any]) -> nn.Module:
    """Raises: CannotConvert if timm cannot build it so."""
    import timm

    try:
        return timm.create_model(architecture, pretrained=False, **options)
    except (TypeError, ValueError, AssertionError, RuntimeError) as error:
        raise CannotConvert(
            f"timm cannot build {architecture!r} with the model_args {options} of config.json: {error}"
        ) from error


def architecture_args(model_args: dict[str, Any]) -> dict[str, Any]:
    """Selects the `model_args` that describe an architecture. A file must not make timm open another one.

    Raises:
        CannotConvert: for an argument that is none of timm's Vision Transformers.
    """
    from timm.models.eva import Eva
    from timm.models.swin_transformer import SwinTransformer
    from timm.models.swin_transformer_v2 import SwinTransformerV2
    from timm.models.vision_transformer import VisionTransformer

    classes = (VisionTransformer, Eva, SwinTransformer, SwinTransformerV2)
    known = {name for model_class in classes for name in inspect.signature(model_class).parameters}
    said = {
        name: value
        for name, value in model_args.items()
        if name not in NOT_ARCHITECTURE and value not in (None, False)
    }
    unknown = sorted(said.keys() - known)
    if unknown:
        raise CannotConvert(
            f"config.json has model_args {unknown}, which are not arguments of timm's VisionTransformer, Eva "
            "or SwinTransformer. If the architecture does not depend on them, delete them there."
        )
    return {name: model_args[name] for name in model_args if name in known and name not in NOT_ARCHITECTURE}


def infer_image_size(weights: Weights, model: nn.Module) -> int | None:
    """Infers the side in pixels if the table of positions is a square other than the model's own; else
    None."""
    table, own = weights.get("pos_embed"), getattr(model, "pos_embed", None)
    patches = weights.get("patch_embed.proj.weight")
    if table is None or own is None or patches is None or table.ndim != 3 or patches.ndim != 4:
        return None
    if any(name.startswith("patch_embed.backbone.") for name in weights):
        return None  # weights do not tell the stride of a hybrid's CNN
    if table.shape[1] == own.shape[1]:
        return None
    length = table.shape[1] - (0 if getattr(model, "no_embed_class", False) else model.num_prefix_tokens)
    side = math.isqrt(max(length, 0))
    if side and side * side == length and patches.shape[2] == patches.shape[3]:
        return side * patches.shape[2]
    return None
