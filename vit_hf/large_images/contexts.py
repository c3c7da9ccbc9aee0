"""What reading a large image with a model leaves as it was."""

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import numpy as np
import PIL.Image
import torch
from torch import nn

from .sources import ImageSource, open_image


AnyImage = ImageSource | str | os.PathLike | PIL.Image.Image | np.ndarray | torch.Tensor


def as_source(image: AnyImage) -> AbstractContextManager[ImageSource]:
    """An open image, closed afterwards if it was not open before."""
    return nullcontext(image) if isinstance(image, ImageSource) else open_image(image)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Each part as in evaluation, and as it was afterwards."""
    trained = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in trained:
            module.training = True
