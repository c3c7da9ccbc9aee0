"""Activation checkpointing of blocks whose arguments and results hold tensors inside of dataclasses."""

from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from functools import partial
from typing import Any

import torch
from transformers.modeling_layers import GradientCheckpointingLayer


class CheckpointedBlock(GradientCheckpointingLayer):
    """A block that trains the same with reentrant checkpointing, see `checkpoint_nested`."""

    @property
    def _gradient_checkpointing_func(self) -> Callable:
        return self._checkpoint

    @_gradient_checkpointing_func.setter
    def _gradient_checkpointing_func(self, checkpoint: Callable) -> None:
        # Set by whichever model of transformers holds the block, such as a detector.
        self._checkpoint = partial(checkpoint_nested, checkpoint)

    @_gradient_checkpointing_func.deleter
    def _gradient_checkpointing_func(self) -> None:
        del self._checkpoint


def checkpoint_nested(checkpoint: Callable, function: Callable, *args: Any) -> Any:
    """Checkpoints `function(*args)`; the reentrant variant, too, passes on the gradient of every tensor.

    That variant knows only of tensors that are arguments or results by themselves. Those inside of
    dataclasses (the bias of a position encoding, sizes of tokens) would keep their graph, which a second
    block cannot go through.

    Args:
        checkpoint: `torch.utils.checkpoint.checkpoint` with its options.
    """
    if getattr(checkpoint, "keywords", {}).get("use_reentrant") is False:
        return checkpoint(function, *args)
    tensors: list[torch.Tensor] = []
    shape = _take(args, tensors)
    result_shape = None

    def flat(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        nonlocal result_shape
        results: list[torch.Tensor] = []
        result_shape = _take(function(*_put(shape, tensors)), results)
        return tuple(results)

    results = checkpoint(flat, *tensors)
    return _put(result_shape, results)


class _Slot(int):
    """Stands for the tensor of that number."""


def _take(value: Any, tensors: list[torch.Tensor]) -> Any:
    """`value` with a `_Slot` for each tensor in it, which is appended to `tensors`."""
    if isinstance(value, torch.Tensor):
        tensors.append(value)
        return _Slot(len(tensors) - 1)
    if type(value) in (tuple, list):
        return type(value)(_take(item, tensors) for item in value)
    if is_dataclass(value) and not isinstance(value, type):
        items = {field.name: _take(getattr(value, field.name), tensors) for field in fields(value)}
        return replace(value, **items)
    return value


def _put(value: Any, tensors: tuple[torch.Tensor, ...]) -> Any:
    """`value` with the tensors in the places of their slots."""
    if isinstance(value, _Slot):
        return tensors[value]
    if type(value) in (tuple, list):
        return type(value)(_put(item, tensors) for item in value)
    if is_dataclass(value) and not isinstance(value, type):
        items = {field.name: _put(getattr(value, field.name), tensors) for field in fields(value)}
        return replace(value, **items)
    return value
