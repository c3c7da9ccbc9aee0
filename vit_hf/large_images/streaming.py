"""Selection from images that do not fit into memory: patches arrive in bands, the best stay.

Shape legend: `vit_hf/model/tokens.py`; h, w rows and columns of pixels of a thumbnail.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import PIL.Image
import torch
from torch import nn
from transformers import AutoImageProcessor
from transformers.image_processing_utils import BaseImageProcessor
from transformers.utils import ModelOutput
from transformers.utils.logging import tqdm

from ..model.image_processing_pil_adaptive_vit import AdaptiveViTImageProcessorPil
from ..model.modeling_adaptive_vit import AdaptiveViTPreTrainedModel
from ..model.patches import ImagePatches, flatten_channels_last, to_pair
from ..model.scout import ModelScout
from ..model.selection_base import keep_top, resolve_num_selected
from ..model.tokens import gather_tokens, grid_coordinates, raster_indices
from ..training.models import is_image_processor_saved
from .contexts import AnyImage, as_source, evaluating
from .sources import ImageSource


# Pixels of a band that are in memory at once, about 3 MB as floats, which stay in the processor's cache.
BAND_PIXELS = 2**18


class StreamedPatches(ImagePatches):
    """All patches of one image that is never whole in memory: where they are, and thumbnails, but no pixels."""

    def __init__(self, image: "StreamedImage", device: torch.device):
        rows, columns = image.grid
        super().__init__(
            # Whoever looks at pixels after all fails at once: there are none.
            pixels=torch.empty(1, rows, columns, 3, *image.patch_size, device="meta"),
            coordinates=grid_coordinates(rows, columns, device)[None],
            grid=torch.tensor([image.grid], device=device),
        )
        self.source = image

    def thumbnails(self, size: tuple[int, int]) -> torch.Tensor:
        return self.source.thumbnail(size).to(self.coordinates.device)


class KeptPatches(ImagePatches):
    """The patches of one image that were kept; thumbnails still show all of it."""

    def __init__(self, selection: "StreamedSelection"):
        super().__init__(selection.pixels, selection.coordinates, selection.grid)
        self.source = selection.image

    def thumbnails(self, size: tuple[int, int]) -> torch.Tensor:
        return self.source.thumbnail(size).to(self.pixels.device)


class StreamedImage:
    """A source as the model wants it: normalised, a band of patches or a thumbnail at a time.

    Args:
        source: the image.
        patch_size: height and width of a patch.
        image_processor: how pixels are rescaled and normalised; nothing is resized.
        thumbnails: "exact" computes them from every pixel, with the weights that a whole image would get; "source"
            asks the source, which may have smaller versions.
        progress: whether to show how far a pass through the image has come.
    """

    def __init__(
        self,
        source: ImageSource,
        patch_size: tuple[int, int],
        image_processor: BaseImageProcessor,
        thumbnails: Literal["exact", "source"] = "exact",
        progress: bool = False,
    ):
        self.source, self.patch_size, self.image_processor = source, patch_size, image_processor
        self.grid = (source.height // patch_size[0], source.width // patch_size[1])
        if 0 in self.grid:
            raise ValueError(
                f"{source.name} has {source.height}x{source.width} pixels and is smaller than one patch of "
                f"{patch_size[0]}x{patch_size[1]}."
            )
        if thumbnails not in ("exact", "source"):
            raise ValueError(f"thumbnails={thumbnails!r} is unknown. Choose 'exact' or 'source'.")
        self.thumbnails, self.progress = thumbnails, progress
        self._known: dict[tuple[int, int], torch.Tensor] = {}

    def prepare(self, pixels: np.ndarray) -> torch.Tensor:
        """`(1, 3, height, width)` float32 of uint8 `(height, width, 3)`."""
        options = {"do_resize": False, "do_center_crop": False, "return_tensors": "pt"}
        if hasattr(self.image_processor, "return_patches"):
            options["return_patches"] = False
        return self.image_processor(PIL.Image.fromarray(np.ascontiguousarray(pixels)), **options)[
            "pixel_values"
        ]

    def bands(self, purpose: str) -> Iterator[tuple[int, torch.Tensor]]:
        """The first row of patches in each band, and the band `(1, C, rows * P, S * P)`; nothing beyond whole patches."""
        height, width = self.patch_size
        rows, columns = self.grid
        step = max(1, BAND_PIXELS // (height * width * columns))
        starts = tqdm(range(0, rows, step), desc=purpose, disable=not self.progress)
        for start in starts:
            number = min(step, rows - start)
            yield start, self.prepare(self.source.read(start * height, 0, number * height, columns * width))

    def patch(self, row: int, column: int) -> torch.Tensor:
        """The pixels `(C, P, P)` of one patch."""
        height, width = self.patch_size
        return self.prepare(self.source.read(row * height, column * width, height, width))[0]

    def thumbnail(self, size: tuple[int, int]) -> torch.Tensor:
        """The image, without what is beyond whole patches, at another size, `(1, C, h, w)` float32."""
        if size not in self._known:
            self._known[size] = self._exact(size) if self.thumbnails == "exact" else self._from_source(size)
        return self._known[size]

    def _from_source(self, size: tuple[int, int]) -> torch.Tensor:
        # The source shows the border as well, which the grid leaves out: less than a patch of the whole.
        return self.prepare(self.source.thumbnail(*size))

    def _exact(self, size: tuple[int, int]) -> torch.Tensor:
        """As `torch.nn.functional.interpolate` with antialiasing: a matrix for each axis, so bands can be added up."""
        columns = self.grid[1] * self.patch_size[1]
        weights = RowWeights(self.grid[0] * self.patch_size[0], size[0])
        result = None
        for start, band in self.bands("thumbnail"):
            top = start * self.patch_size[0]
            if size[1] != columns:
                narrow = (band.shape[2], size[1])
                band = nn.functional.interpolate(band, narrow, mode="bilinear", antialias=True)
            if result is None:
                result = band.new_zeros(*band.shape[:2], *size)
            first, last, share = weights.of_band(top, top + band.shape[2])
            result[:, :, first:last] += share @ band
        return result


class RowWeights:
    """With which weights `interpolate(mode="bilinear", antialias=True)` makes `new` rows of `old` ones.

    Each new row has a triangle of weights around its centre, as wide as a row of the coarser image.
    """

    def __init__(self, old: int, new: int):
        scale = old / new
        self.reach = max(scale, 1.0)
        self.centres = (torch.arange(new, dtype=torch.float64) + 0.5) * scale
        self.total = torch.stack([self._triangle(row, 0, old).sum() for row in self.centres])

    def _triangle(self, centres: torch.Tensor, first: int, last: int) -> torch.Tensor:
        rows = torch.arange(first, last, dtype=torch.float64) + 0.5
        return (1 - (rows - centres.unsqueeze(-1)).abs() / self.reach).clamp(min=0)

    def of_band(self, top: int, bottom: int) -> tuple[int, int, torch.Tensor]:
        """First and last new row that old rows from `top` to `bottom` count for, and how much, `(last - first, rows)`."""
        touched = (self.centres > top - self.reach) & (self.centres < bottom + self.reach)
        first, last = int(touched.int().argmax()), int(touched.sum() + touched.int().argmax())
        weights = self._triangle(self.centres[first:last], top, bottom) / self.total[first:last, None]
        return first, last, weights.float()


@dataclass
class StreamedSelection:
    """The patches that were kept of one image; `inputs` are what a model takes.

    Attributes:
        pixels: `(1, K, C, P, P)` float32.
        coordinates: `(1, K, 2)` float32.
        scores: `(1, K)` float32; None if nobody scored.
        image: where they came from.
    """

    pixels: torch.Tensor
    coordinates: torch.Tensor
    scores: torch.Tensor | None
    image: StreamedImage

    @property
    def inputs(self) -> dict[str, torch.Tensor]:
        """Tensors for `forward`, with a batch of one."""
        return {
            "pixel_values": flatten_channels_last(self.pixels.flatten(2), self.image.patch_size),
            "patch_coordinates": self.coordinates,
            "spatial_shapes": self.grid,
            "selected_patches": self.raster_indices,
        }

    @property
    def grid(self) -> torch.Tensor:
        """`(1, 2)` int64, rows and columns of the full grid."""
        return torch.tensor([self.image.grid], device=self.coordinates.device)

    @property
    def raster_indices(self) -> torch.Tensor:
        """`(1, K)` int64, which patches of the full grid these are."""
        return raster_indices(self.coordinates, self.grid)


@torch.no_grad()
def select_streaming(
    model: AdaptiveViTPreTrainedModel,
    source: AnyImage,
    num_patches: int | float | None = None,
    image_processor: BaseImageProcessor | None = None,
    thumbnails: Literal["exact", "source"] = "exact",
    progress: bool = False,
) -> StreamedSelection:
    """Chooses the patches of an image that is read a band at a time, as the model would of the whole image.

    Selectors that look at one patch at a time see each band once, and the best K patches are kept. Selectors that look
    at a thumbnail score the places of the full grid by it; then the K patches alone are read. Memory does not grow
    with the image, but for a score and a place for each patch with the second kind.

    Args:
        model: with a `patch_selector`.
        source: whatever `open_image` takes; computed on at its own resolution.
        num_patches: instead of `config.num_selected_patches`.
        image_processor: how the model wants pixels; its resizing and cropping are left out. Default: that of the
            checkpoint, or our own defaults if there is none.
        thumbnails: "exact", from every pixel, equal to what the whole image would give; "source", the smaller versions
            that the file has, without reading all of it.
        progress: shows how far each pass has come.

    Raises:
        ValueError: if the model has no selector, or one that cannot choose without the whole image.
    """
    config, base = model.config, model.base_model
    selector = base.selector
    if selector is None:
        raise ValueError(
            "The model has patch_selector=None and would keep every patch: load it with a patch_selector and "
            "num_selected_patches, or use predict_tiled."
        )
    if config.backbone_config is not None:
        raise ValueError(
            "The CNN of a hybrid (backbone_config) reads whole images, which do not fit into memory here."
        )
    processor = image_processor or default_processor(model)
    with as_source(source) as opened:
        image = StreamedImage(opened, to_pair(config.patch_size), processor, thumbnails, progress)
        wanted = config.num_selected_patches if num_patches is None else num_patches
        num_selected = resolve_num_selected(wanted, image.grid[0] * image.grid[1])
        keep = _keep_from_bands if selector.sees_one_patch else _keep_by_thumbnail
        return StreamedSelection(*keep(model, image, num_selected), image)


def _keep_from_bands(
    model, image: StreamedImage, num_selected: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    base, device = model.base_model, model.device
    grid = torch.tensor([image.grid], device=device)
    best = None
    for start, band in image.bands("patches"):
        patches = ImagePatches.from_images(band.to(device), image.patch_size)
        patches.coordinates = patches.coordinates + torch.tensor([start, 0], device=device)
        patches.grid = grid
        scores = base.selector.score(patches, num_selected, ModelScout(base)).float()
        keep, _ = keep_top(scores, min(num_selected, scores.shape[1]))
        tokens = patches.take(keep)
        some = (tokens.features, tokens.coordinates, scores.gather(1, keep))
        if best is not None:
            # Earlier ones first, so that ties go to them as they would in the whole image.
            some = tuple(torch.cat(pair, dim=1) for pair in zip(best, some, strict=True))
            keep, _ = keep_top(some[2], min(num_selected, some[2].shape[1]))
            some = tuple(gather_tokens(values, keep) for values in some)
        best = some
    features, coordinates, scores = best
    return features.unflatten(2, (-1, *image.patch_size)), coordinates, scores


def _keep_by_thumbnail(
    model, image: StreamedImage, num_selected: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    base = model.base_model
    patches = StreamedPatches(image, model.device)
    scores = base.selector.score(patches, num_selected, ModelScout(base)).float()
    keep, _ = keep_top(scores, num_selected)
    coordinates = gather_tokens(patches.coordinates, keep)
    places = coordinates[0].long().tolist()
    pixels = torch.stack([image.patch(row, column) for row, column in places])[None].to(model.device)
    return pixels, coordinates, scores.gather(1, keep)


@torch.inference_mode()
def predict_streaming(
    model: AdaptiveViTPreTrainedModel,
    source: AnyImage,
    num_patches: int | float | None = None,
    image_processor: BaseImageProcessor | None = None,
    thumbnails: Literal["exact", "source"] = "exact",
    progress: bool = False,
    **kwargs: Any,
) -> ModelOutput:
    """The model's answer for an image that need not fit into memory; see `select_streaming` for the arguments.

    Returns:
        What the model returns for a batch of one; `selected_patches` and `patch_scores` are `(1, K)`, of the patches
        that were kept.
    """
    with as_source(source) as opened, evaluating(model):
        selection = select_streaming(model, opened, num_patches, image_processor, thumbnails, progress)
        outputs = model(KeptPatches(selection), selected_patches=selection.raster_indices, **kwargs)
    outputs["patch_scores"] = selection.scores
    return outputs


def default_processor(model: AdaptiveViTPreTrainedModel) -> BaseImageProcessor:
    """The image processor beside the model's checkpoint; our own if it has none."""
    path = model.name_or_path
    if path and is_image_processor_saved(path):
        return AutoImageProcessor.from_pretrained(path)
    return AdaptiveViTImageProcessorPil(patch_size=model.config.patch_size)
