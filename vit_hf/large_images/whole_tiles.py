"""Tiles through an image processor, none of which may lose its borders."""

from typing import Any

import numpy as np
import PIL.Image
import torch
from transformers import AutoImageProcessor, PreTrainedModel
from transformers.image_processing_utils import BaseImageProcessor
from transformers.image_utils import SizeDict

from ..model.image_processing_pil_adaptive_vit import AdaptiveViTImageProcessorPil
from ..training.images import is_timm_processor


class TilePreparation:
    """Prepares batches of tiles of one size.

    Each is resized to what the model takes, aspect and all: to `crop_size` where the processor would crop to that, and
    to a square of the shortest edge where it would keep the aspect. Nothing is cropped, as what is cut from a tile
    would be missing from the image; so an object appears somewhat larger or smaller than in a picture that is cropped.
    A processor that does not resize, caps the longest edge or fits to `max_num_patches` does so here as well.

    Args:
        image_processor: of the model.
        num_channels: 3, or 1 for grey (ITU-R 601, as Pillow computes it).

    Raises:
        TypeError: if it is none that can be told not to crop.
    """

    def __init__(self, image_processor: BaseImageProcessor, num_channels: int = 3):
        image_processor = with_options(image_processor)
        if not hasattr(image_processor, "do_resize"):
            raise TypeError(
                f"image_processor is a {type(image_processor).__name__}, which cannot be told not to crop, so borders of "
                "tiles would be lost. Give one of transformers or vit_hf with the same size, mean and std."
            )
        self.image_processor = image_processor
        self.num_channels = num_channels
        self.options: dict[str, Any] = {}
        self.size = self._fixed_size()
        if getattr(image_processor, "do_center_crop", None):
            self.options["do_center_crop"] = False
        # Those with crop_pct, of ConvNeXt and PoolFormer, crop or magnify as part of resizing.
        self.resizes_first = self.size is not None and hasattr(image_processor, "crop_pct")
        if self.resizes_first:
            self.options["do_resize"] = False
        elif self.size is not None:
            self.options["size"] = {"height": self.size[0], "width": self.size[1]}

    def __call__(self, tiles: list[np.ndarray]) -> dict[str, torch.Tensor]:
        """The model's inputs for tiles `(h, w, 3)` uint8."""
        # Sources may give read-only memory, of which torch warns.
        tiles = [np.require(tile, requirements=["C", "W"]) for tile in tiles]
        if self.resizes_first:
            tiles = [self._resize(tile) for tile in tiles]
        if self.num_channels == 1:
            tiles = [np.array(PIL.Image.fromarray(tile).convert("L"))[..., None] for tile in tiles]
        inputs = self.image_processor(
            images=tiles, return_tensors="pt", input_data_format="channels_last", **self.options
        )
        return dict(inputs)

    def _fixed_size(self) -> tuple[int, int] | None:
        """Height and width that all tiles get, or None if that is for the processor to find out."""
        processor = self.image_processor
        if not processor.do_resize or getattr(processor, "max_num_patches", None) is not None:
            return None
        if getattr(processor, "do_center_crop", None):
            crop = SizeDict(**dict(processor.crop_size))
            return crop.height, crop.width
        size = SizeDict(**dict(processor.size))
        # ConvNeXt's resizes without cropping from 384 on.
        if hasattr(processor, "crop_pct") and (size.shortest_edge or 0) >= 384:
            return None
        if size.height and size.width:
            return size.height, size.width
        if size.shortest_edge:
            return size.shortest_edge, size.shortest_edge
        return None

    def _resize(self, tile: np.ndarray) -> np.ndarray:
        image = PIL.Image.fromarray(tile)
        return np.array(image.resize(self.size[::-1], self.image_processor.resample))


def with_options(image_processor: BaseImageProcessor) -> BaseImageProcessor:
    """The processor; for timm's transformations, one with their size, mean, std and resampling that does not crop."""
    if not is_timm_processor(image_processor):
        return image_processor
    config = image_processor.data_config
    channels, height, width = config["input_size"]
    resample = PIL.Image.Resampling.__members__.get(str(config["interpolation"]).upper())
    return AdaptiveViTImageProcessorPil(
        size={"height": height, "width": width},
        image_mean=list(config["mean"]),
        image_std=list(config["std"]),
        # "random" is for training.
        resample=PIL.Image.Resampling.BICUBIC if resample is None else resample,
        do_convert_rgb=channels == 3,
    )


def find_image_processor(
    model: PreTrainedModel, image_processor: BaseImageProcessor | None
) -> BaseImageProcessor:
    """The one that is given, or else that of the model's checkpoint.

    Raises:
        ValueError: if there is neither.
    """
    if image_processor is not None:
        return image_processor
    path = model.config.name_or_path
    try:
        return AutoImageProcessor.from_pretrained(path)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"There is no image processor beside the model, whose checkpoint is {path!r}: give image_processor."
        ) from error
