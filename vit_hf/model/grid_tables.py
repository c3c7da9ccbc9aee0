"""Tables sized by a grid, loaded into a model of another grid: resampled, never left random.

An encoding with such a table has `resample_table`. Encodings without a table that measure places in patches
of the native grid mean something else in another one, and refuse it.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers.utils import logging

from .options import options_of, type_of
from .registry import derives_from
from .sizes import native_grid


logger = logging.get_logger(__name__)


# Encodings of a model, as its configuration gives them.
ENCODINGS = {
    "position_encoding": lambda config: getattr(config, "position_encoding", None),
    "decoder_position_encoding": lambda config: options_of(getattr(config, "masked_autoencoder", None)).get(
        "decoder_position_encoding"
    ),
}

# (module, name of its parameter, shape in the checkpoint)
Table = tuple[nn.Module, str, tuple[int, ...]]


def tables_to_resample(model: nn.Module, mismatched: set[tuple[str, Any, Any]]) -> dict[str, Table]:
    """Parameters of position encodings, by name, whose size alone differs from the checkpoint's.

    Raises:
        ValueError: if one of them cannot be resampled, saying what to do.
    """
    tables = {}
    for name, found, needed in mismatched:
        path, _, parameter = name.rpartition(".")
        module = model.get_submodule(path)
        owner = encoding_of(model, path)
        if owner is None or len(found) != len(needed):
            continue
        if sum(one != other for one, other in zip(found, needed, strict=True)) != 1:
            continue  # another width or depth: a different model, and no other grid
        if not hasattr(module, "resample_table"):
            raise ValueError(
                f"{name} has the shape {tuple(found)} in the checkpoint, and the model needs "
                f"{tuple(needed)}, which "
                f"{type(owner).__name__} cannot resample. Load the checkpoint without changing "
                "image_size (and num_frames, "
                f"patch_size, window_size), or give {type(owner).__name__} a method "
                "resample_table(name, table, grid)."
            )
        tables[name] = (module, parameter, tuple(found))
    return tables


def encoding_of(model: nn.Module, path: str) -> nn.Module | None:
    """The position encoding at a path or above it."""
    while path:
        module = model.get_submodule(path)
        if derives_from(type(module), "PositionEncoding"):
            return module
        path = path.rpartition(".")[0]
    return None


def make_room(tables: Mapping[str, Table]) -> None:
    """Gives modules the parameters of the checkpoint's shapes, to be loaded."""
    for module, parameter, shape in tables.values():
        own = getattr(module, parameter)
        empty = nn.Parameter(own.new_empty(shape, device="meta"), own.requires_grad)
        setattr(module, parameter, empty)


@torch.no_grad()
def resample(tables: Mapping[str, Table], stored: Any) -> None:
    """Replaces loaded tables by those of the model's grid.

    Args:
        tables: of `tables_to_resample`.
        stored: configuration of the checkpoint, or None.

    Raises:
        ValueError: if a table is that of no grid.
    """
    for name, (module, parameter, shape) in tables.items():
        loaded = getattr(module, parameter)
        grid = None if stored is None else module.grid_in(stored)
        table = module.resample_table(parameter, loaded.float(), grid)
        new = nn.Parameter(table.to(loaded.dtype), loaded.requires_grad)
        new._is_hf_initialized = True  # or it would be drawn anew
        setattr(module, parameter, new)
        logger.info(f"{name} was resampled from {shape} to {tuple(new.shape)}.")


def check_measures(config, stored) -> None:
    """Refuses another native grid for encodings that measure places in its patches.

    Raises:
        ValueError: naming the fields.
    """
    if native_grid(config) == native_grid(stored):
        return
    for field, part_of in ENCODINGS.items():
        name = type_of(part_of(config))
        if name != type_of(part_of(stored)) or name not in ("fourier", "relative_bias_continuous"):
            continue
        raise ValueError(
            f"{field}={name!r} measures places in patches of the grid that "
            f"image_size={stored.image_size} and "
            f"patch_size={stored.patch_size} (and num_frames) of the checkpoint give, and another image_size "
            f"({config.image_size}) would move all of them. Leave image_size out: the model takes "
            "images of any size."
        )
