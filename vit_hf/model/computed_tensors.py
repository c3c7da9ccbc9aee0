"""Tensors that a user's own class computes when it is built, restored after loading.

transformers builds models without storage and fills in what a checkpoint has. Non-persistent buffers, and
tensors that are plain attributes, are in no checkpoint: they are computed again here, by building the class
once more.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import nn
from transformers.utils import logging

from .registry import classes_of


logger = logging.get_logger(__name__)
# Whose classes restore their own buffers, or have none.
OURS = ("torch", "transformers", "timm", __package__.partition(".")[0])


def versions(model: nn.Module) -> dict[str, tuple[int, int]]:
    """Identity and version of each non-persistent buffer, which change where it is filled."""
    return {name: _version(buffer) for name, buffer in model.named_non_persistent_buffers()}


def _version(tensor: torch.Tensor) -> tuple[int, int]:
    return id(tensor), 0 if tensor.is_inference() else tensor._version


def own_parts(model: nn.Module) -> list[tuple[str, nn.Module, Callable[[], nn.Module]]]:
    """Name, module and builder of each part of a model whose class is the user's own."""
    config, own, parts = model.base_model.config, tuple(classes_of(model.base_model).values()), []
    for name, module in model.named_modules():
        if isinstance(module, own):
            parent, _, index = name.rpartition(".")
            arguments = (int(index),) if parent.endswith("reducers") else ()
            parts.append((name, module, partial(type(module), config, *arguments)))
    return parts


@torch.no_grad()
def restore(model: nn.Module, before: dict[str, tuple[int, int]]) -> None:
    """Computes again what loading left empty; warns of what cannot be.

    Args:
        before: `versions` of when the buffers were empty.
    """
    empty = {name for name, version in versions(model).items() if before.get(name) == version}
    random = set()
    for prefix, part, build in own_parts(model):
        inside = {name for name in empty if name.startswith(f"{prefix}.")}
        attributes = _plain_tensors(part)
        if not inside and not attributes:
            continue
        first, second = (_built(build, seed) for seed in (0, 1))
        for name in inside:
            path = name.removeprefix(f"{prefix}.")
            value, again = first.get_buffer(path), second.get_buffer(path)
            part.get_buffer(path).copy_(value)
            if not torch.equal(value, again):
                random.add(name)
        for path, attribute in attributes:
            setattr(part.get_submodule(path), attribute, getattr(first.get_submodule(path), attribute))
        empty -= inside
    if random:
        logger.warning(
            f"The non-persistent buffers {sorted(random)} are random and were not saved: the "
            "loaded model has other numbers "
            "than the saved one. Register them with persistent=True, or draw them from a "
            "generator with a fixed seed."
        )
    unknown = {name for name in empty if _is_foreign(model, name)}
    if unknown:
        logger.warning(
            f"The non-persistent buffers {sorted(unknown)} are in no checkpoint and hold garbage "
            "now. Register them with "
            "persistent=True, compute them in forward, or fill them in _init_weights of your class."
        )


def _built(build: Callable[[], nn.Module], seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.manual_seed(seed)
        return build()


def _plain_tensors(part: nn.Module) -> list[tuple[str, str]]:
    """Path of the submodule and name of each tensor without storage that is a plain attribute."""
    return [
        (path, name)
        for path, module in part.named_modules()
        for name, value in vars(module).items()
        if isinstance(value, torch.Tensor) and value.is_meta
    ]


def _is_foreign(model: nn.Module, name: str) -> bool:
    owner = type(model.get_submodule(name.rpartition(".")[0]))
    return owner.__module__.partition(".")[0] not in OURS
