"""Predictors: from images to logits, and to a picture of what was computed on.

Shapes: B images, L labels; h, w of a picture.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
import PIL.Image
import PIL.ImageDraw
import torch
from transformers import PreTrainedModel
from transformers.image_processing_utils import BaseImageProcessor

from ..data.images import prepare_images
from ..explanations.model_view import load_upright, shrink, to_picture
from ..explanations.stages import record_reductions, to_stages
from ..inference.aggregation import AggregationOptions, aggregate_tiles, problem_type_of
from ..inference.tile_grid import TileGrid
from ..inference.tiles import predict_tiled, with_options
from ..model.budget import Budget
from ..model.modeling_adaptive_vit import AdaptiveViTForImageClassification
from ..model.options import type_of
from ..model.pixel_scorers import PIXEL_SCORERS
from ..model.sizes import to_pair
from ..overlays import color_groups, dim_dropped


# Pixels of the longer side of a picture.
PICTURE_SIZE = 384
GRID_LINE = (0, 217, 255)


class Predictor(ABC):
    """Interface of predictions by a model and its image processor."""

    def __init__(self, model: PreTrainedModel, image_processor: BaseImageProcessor):
        self.model, self.image_processor = model, image_processor

    @abstractmethod
    def __call__(self, images: Sequence[PIL.Image.Image]) -> dict[str, torch.Tensor]:
        """Returns logits `(B, L)`, float32 on the CPU, by the name of the output; "" for a single one."""

    @abstractmethod
    def picture(self, image: PIL.Image.Image) -> np.ndarray:
        """Draws `(h, w, 3)` uint8, the parts of an image that are computed on."""


class WholeImages(Predictor):
    """Predicts a whole image at once, resized or not, from all or some patches."""

    def __init__(self, model: PreTrainedModel, image_processor: BaseImageProcessor):
        super().__init__(model, image_processor)
        self.cuts = self._let_processor_select()

    @torch.inference_mode()
    def __call__(self, images: Sequence[PIL.Image.Image]) -> dict[str, torch.Tensor]:
        logits: list[torch.Tensor | None] = [None] * len(images)
        for indices in self._groups(images):
            inputs = self._inputs([images[index] for index in indices])
            answers = self.model(**inputs).logits.float().cpu()
            for index, answer in zip(indices, answers, strict=True):
                logits[index] = answer
        return {"": torch.stack(logits)}

    @torch.inference_mode()
    def picture(self, image: PIL.Image.Image) -> np.ndarray:
        upright = load_upright(image, as_rgb=False)
        inputs = self._inputs([upright])
        if getattr(self.image_processor, "do_resize", True):
            # At the resolution of the model's input.
            return np.asarray(
                to_picture(
                    inputs["pixel_values"][0], inputs["pixel_values"][0], _Cropped(self.image_processor)
                )
            )
        shown = shrink(upright.convert("RGB"), PICTURE_SIZE)
        if not isinstance(self.model, AdaptiveViTForImageClassification):
            return shown
        with record_reductions(self.model.vit) as records:
            outputs = self.model(**inputs)
        grid = tuple(outputs.spatial_shapes[0].tolist())
        patch = to_pair(self.model.config.patch_size)
        span = (upright.height / patch[0], upright.width / patch[1])
        kept = outputs.selected_patches[0].cpu().numpy()
        kept = kept[kept >= 0]
        if records:
            return color_groups(shown, to_stages(records, kept, grid)[-1].groups, span)
        mask = np.zeros(grid[0] * grid[1], dtype=bool)
        mask[kept] = True
        return dim_dropped(shown, mask.reshape(grid), span)

    def _let_processor_select(self) -> bool:
        """Lets the image processor select if it can; returns True if batches may then mix sizes."""
        config, processor = self.model.config, self.image_processor
        if not hasattr(processor, "return_patches"):
            return False
        selector = type_of(getattr(config, "patch_selector", None))
        # A thumbnail needs every patch, and so does the CNN of a hybrid.
        needs_all = getattr(config, "thumbnail_context", False) or getattr(config, "backbone_config", None)
        # So does Swin, whose windows are whole.
        cuts = selector in PIXEL_SCORERS and not needs_all and hasattr(config, "num_selected_patches")
        processor.return_patches = cuts
        processor.patch_selector = selector if cuts else None
        if cuts and selector == "random":  # different patches for each image
            processor.patch_selector = {"type": "random", "seed": None}
        processor.num_selected_patches = config.num_selected_patches if cuts else None
        return cuts

    def _groups(self, images: Sequence[PIL.Image.Image]) -> list[list[int]]:
        """Groups the indices of images into batches: all images, or those of one size."""
        if self.cuts or getattr(self.image_processor, "do_resize", True):
            return [list(range(len(images)))]
        groups: dict[tuple[int, int], list[int]] = {}
        for index, image in enumerate(images):
            groups.setdefault(image.size, []).append(index)
        return list(groups.values())

    def _inputs(self, images: list[PIL.Image.Image]) -> dict[str, torch.Tensor]:
        inputs = prepare_images(self.image_processor, images)
        budget = getattr(self.model.config, "num_selected_patches", None)
        if not self.cuts and budget is not None and not Budget(budget).is_fraction:
            height, width = to_pair(self.model.config.patch_size)
            number = (inputs["pixel_values"].shape[-2] // height) * (
                inputs["pixel_values"].shape[-1] // width
            )
            if number < budget:
                # The image has fewer patches than the budget: keep all.
                inputs["selected_patches"] = torch.arange(number).expand(len(images), -1)
        return {name: values.to(self.model.device) for name, values in inputs.items()}


class _Cropped:
    """Options of an image processor that make `to_picture` show the processed image."""

    do_pad = True

    def __init__(self, processor: BaseImageProcessor):
        processor = with_options(processor)
        self.do_normalize = processor.do_normalize
        self.image_mean, self.image_std = processor.image_mean, processor.image_std


class TiledImages(Predictor):
    """Predicts an image tile by tile, with one output for each aggregation.

    Args:
        tile, overlap: see `predict_tiled`.
        aggregations: keys of `TILE_AGGREGATIONS`.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        image_processor: BaseImageProcessor,
        tile: int,
        overlap: float,
        aggregations: Sequence[str],
    ):
        super().__init__(model, image_processor)
        self.tile, self.overlap, self.aggregations = tile, overlap, aggregations
        self.options = AggregationOptions(problem_type_of(model.config))

    def __call__(self, images: Sequence[PIL.Image.Image]) -> dict[str, torch.Tensor]:
        answers: dict[str, list[torch.Tensor]] = {name: [] for name in self.aggregations}
        for image in images:
            prediction = predict_tiled(
                self.model,
                image,
                self.tile,
                self.overlap,
                image_processor=self.image_processor,
                progress=False,
            )
            for name, logits in answers.items():
                logits.append(aggregate_tiles(prediction.tile_logits, name, self.options))
        return {name: torch.stack(logits) for name, logits in answers.items()}

    def picture(self, image: PIL.Image.Image) -> np.ndarray:
        upright = load_upright(image, as_rgb=True)
        grid = TileGrid.cover((upright.height, upright.width), self.tile, self.overlap)
        shown = PIL.Image.fromarray(shrink(upright, PICTURE_SIZE).copy())
        scale = shown.width / upright.width
        draw = PIL.ImageDraw.Draw(shown)
        for top, left, height, width in grid.coordinates.tolist():
            corners = (left, top, left + width - 1, top + height - 1)
            draw.rectangle([round(corner * scale) for corner in corners], outline=GRID_LINE)
        return np.asarray(shown)
