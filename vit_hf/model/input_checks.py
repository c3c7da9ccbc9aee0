"""What a model is given, refused early if it is not prepared."""

from collections.abc import Mapping
from typing import Any

import torch


PREPARE = (
    "Prepare images with the image processor: inputs = AdaptiveViTImageProcessor.from_pretrained(...)(images, "
    'return_tensors="pt"); model(**inputs)'
)


def check_pixel_values(pixel_values: Any) -> None:
    """Refuses images that no image processor has prepared.

    Raises:
        TypeError: for anything but a tensor of floating-point numbers.
    """
    if isinstance(pixel_values, Mapping):
        raise TypeError(
            f"pixel_values is the {type(pixel_values).__name__} of an image processor: unpack it, model(**inputs)."
        )
    if not isinstance(pixel_values, torch.Tensor):
        raise TypeError(f"pixel_values must be a tensor, got {_describe(pixel_values)}. {PREPARE}.")
    if not pixel_values.is_floating_point():
        raise TypeError(
            f"pixel_values of dtype {pixel_values.dtype} are not normalized; floating-point numbers are needed. {PREPARE}."
        )


def check_tensors(**values: Any) -> None:
    """Refuses arguments that are neither tensors nor None, such as lists.

    Raises:
        TypeError: naming the argument.
    """
    for name, value in values.items():
        if value is not None and not isinstance(value, torch.Tensor):
            raise TypeError(f"{name} must be a tensor, got {_describe(value)}. Use torch.tensor({name}).")


def _describe(value: Any) -> str:
    kind = type(value)
    name = kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__name__}"
    if isinstance(value, list | tuple) and value:
        return f"a {name} of {type(value[0]).__name__}"
    return f"a {name}"
