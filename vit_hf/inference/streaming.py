"""Patch selection from images that do not fit into memory: patches arrive in bands, the best stay."""

import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from transformers import AutoImageProcessor
from transformers.image_processing_utils import BaseImageProcessor
from transformers.utils import ModelOutput

from ..checkpoints.loading import is_image_processor_saved
from ..data.images import decode_image
from ..model.budget import Budget
from ..model.configuration_adaptive_vit import AdaptiveViTConfig
from ..model.elastic import active_subnetwork
from ..model.image_processing_adaptive_vit import AdaptiveViTImageProcessorPil
from ..model.patches import flatten_channels_last, raster_indices
from ..model.pretrained import AdaptiveViTPreTrainedModel
from ..model.sizes import to_pair
from ..readers.opening import open_image
from .streamed_patches import StreamedImage, StreamedPatches
from .tiles import AnyImage, as_source, evaluating, with_options


@dataclass
class StreamedSelection:
    """The selected patches of one image; `inputs` are a model's arguments.

    Attributes:
        pixels: `(1, K, C, P, P)` float32.
        coordinates: `(1, K, 2)` float32.
        scores: `(1, K)` float32; None if nobody scored.
        image: the image that they came from.
    """

    pixels: torch.Tensor
    coordinates: torch.Tensor
    scores: torch.Tensor | None
    image: StreamedImage

    @property
    def inputs(self) -> dict[str, torch.Tensor]:
        """Arguments of `forward` for a batch of one, for models that take no thumbnail in addition.

        The choice is made: a selector that learns learns nothing from them, but from `stream_images`.
        """
        return {
            "pixel_values": flatten_channels_last(self.pixels.flatten(2), self.image.patch_size),
            "patch_coordinates": self.coordinates,
            "spatial_shapes": self.grid,
            "selected_patches": self.raster_indices,
        }

    @property
    def grid(self) -> torch.Tensor:
        """Rows and columns of the full grid, `(1, 2)` int64."""
        return torch.tensor([self.image.grid], device=self.coordinates.device)

    @property
    def raster_indices(self) -> torch.Tensor:
        """Raster indices of the selected patches, `(1, K)` int64."""
        return raster_indices(self.coordinates, self.grid)


def stream_images(
    model: AdaptiveViTPreTrainedModel,
    sources: Sequence[AnyImage],
    image_processor: BaseImageProcessor | None = None,
    thumbnails: Literal["exact", "source"] = "exact",
    progress: bool | None = False,
) -> StreamedPatches:
    """Opens a batch of images that need not fit into memory, as `pixel_values` of a model that selects, in
    training as well.

    `model(stream_images(model, ["slide.tif"]), labels=labels)` has the outputs, the loss and the gradients
    that the whole images would have, and reads them a band at a time; see `StreamedPatches` for what each
    selector needs. Files that are opened here are closed when the batch is no longer referred to.

    Args:
        model: with a `patch_selector`.
        sources: whatever `open_image` takes, of any sizes; computed on at their own resolution. One of fewer
            than `num_selected_patches` patches keeps all it has.
        image_processor: how pixels are normalized; its resizing and cropping are left out. Default: that of
            the checkpoint, or our own defaults if there is none.
        thumbnails: "exact", from every pixel, equal to what the whole image would give; "source", the smaller
            versions that the file has, without reading all of it.
        progress: whether to show a bar for each pass; None shows it in a terminal.

    Raises:
        TypeError: for a Swin, which computes on whole images.
        ValueError: if the model has no selector, or one that cannot choose without the whole image; or if an
            image cannot be read or is smaller than a patch.
    """
    _check_streams(model)
    processor = with_options(image_processor or default_processor(model))
    images = []
    for source in sources:
        opened = open_image(source)
        images.append(
            StreamedImage(opened, to_pair(model.config.patch_size), processor, thumbnails, progress)
        )
        if opened is not source:
            weakref.finalize(images[-1], opened.close)
    return StreamedPatches(images, model.device, model.config.num_selected_patches)


def _check_streams(model: AdaptiveViTPreTrainedModel) -> None:
    config = model.config
    if not isinstance(config, AdaptiveViTConfig):
        raise TypeError(
            f"Patches are streamed into an AdaptiveViT, and this is {type(model).__name__}: use "
            "predict_tiled."
        )
    if config.num_frames is not None:
        raise ValueError(
            f"The model was built for videos or volumes (num_frames={config.num_frames}), which are not read "
            "by bands: give it whole ones, (B, T, C, H, W)."
        )
    if config.patch_selector is None:
        raise ValueError(
            "The model has patch_selector=None and would keep every patch: load it with a patch_selector "
            "and num_selected_patches, or use predict_tiled."
        )
    if config.backbone_config is not None:
        raise ValueError(
            "The CNN of a hybrid (backbone_config) reads whole images, which do not fit into memory here."
        )
    if config.num_channels != 3:
        raise ValueError(
            f"Sources give images in RGB, and the model was built for num_channels={config.num_channels}: "
            "load it with num_channels=3."
        )


def select_streaming(
    model: AdaptiveViTPreTrainedModel,
    source: AnyImage,
    num_selected_patches: int | float | None = None,
    image_processor: BaseImageProcessor | None = None,
    thumbnails: Literal["exact", "source"] = "exact",
    progress: bool | None = None,
) -> StreamedSelection:
    """Selects patches of an image read a band at a time, as the model would from the whole image.

    Pointwise selectors score each band once, and the best K patches are kept. Selectors
    that read a thumbnail score the full grid by it; then the K patches alone are read.
    Memory does not grow with the image, except for a score and an index for each patch. Selection is
    deterministic, even in training mode.

    Args:
        model, source, image_processor, thumbnails, progress: see `stream_images`; the bar is shown by default
            in a terminal.
        num_selected_patches: instead of `config.num_selected_patches`.

    Raises:
        ValueError: if the model has no selector, or one that cannot choose without the whole image.
    """
    model = active_subnetwork(model)
    with as_source(source) as opened, evaluating(model), torch.no_grad():
        patches = stream_images(model, [opened], image_processor, thumbnails, progress)
        return _select(model, patches, num_selected_patches)


def _select(
    model: AdaptiveViTPreTrainedModel, patches: StreamedPatches, num_selected: int | float | None
) -> StreamedSelection:
    budget = Budget(model.config.num_selected_patches if num_selected is None else num_selected)
    budget.resolve(patches.num_patches)
    selection = model.base_model.select(patches, sample=False, num_selected=num_selected)
    tokens = patches.gather(selection.indices)
    (image,) = patches.images
    return StreamedSelection(
        tokens.features.unflatten(2, (-1, *image.patch_size)),
        tokens.coordinates,
        selection.scores.gather(1, selection.indices),
        image,
    )


@torch.inference_mode()
def predict_streaming(
    model: AdaptiveViTPreTrainedModel,
    source: AnyImage,
    num_selected_patches: int | float | None = None,
    image_processor: BaseImageProcessor | None = None,
    thumbnails: Literal["exact", "source"] = "exact",
    progress: bool | None = None,
    **kwargs: Any,
) -> ModelOutput:
    """Predicts an image that need not fit into memory; see `select_streaming` for the arguments.

    Returns:
        What the model returns for a batch of one; `selected_patches` and `patch_scores` are `(1, K)`, of the
        patches that were kept.
    """
    model = active_subnetwork(model)
    with as_source(source) as opened, evaluating(model):
        patches = stream_images(model, [opened], image_processor, thumbnails, progress)
        selection = _select(model, patches, num_selected_patches)
        outputs = model(patches, selected_patches=selection.raster_indices, **kwargs)
    outputs["patch_scores"] = selection.scores
    return outputs


def default_processor(model: AdaptiveViTPreTrainedModel) -> BaseImageProcessor:
    """Loads the image processor of the model's checkpoint, or builds our default one."""
    path = model.name_or_path
    if path and is_image_processor_saved(path):
        return AutoImageProcessor.from_pretrained(path)
    return AdaptiveViTImageProcessorPil(patch_size=model.config.patch_size)


class StreamingCollator:
    """Turns rows `{"image": file, "label": class}` into a batch that the model reads a band at a time.

    `Trainer(model, args, data_collator=StreamingCollator(model, processor), train_dataset=rows)` fine-tunes
    on files of any sizes that need not fit into memory, and evaluates and predicts on them. `args` need
    `remove_unused_columns=False`. Files are only opened here; the model reads them, so workers of the data
    loader would do nothing.

    Args:
        model: with a `patch_selector`.
        image_processor, thumbnails: see `stream_images`.
    """

    def __init__(
        self,
        model: AdaptiveViTPreTrainedModel,
        image_processor: BaseImageProcessor | None = None,
        thumbnails: Literal["exact", "source"] = "exact",
    ):
        self.model, self.image_processor, self.thumbnails = model, image_processor, thumbnails

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """
        Args:
            rows: `image` is whatever `open_image` takes, or a file as an image column of `datasets` holds it
                with `decode=False`; `label` or `labels` what the model takes for one image, if anything.

        Raises:
            ValueError: if there is no `image`, and as `stream_images` does.
        """
        if "image" not in rows[0]:
            raise ValueError(
                f"Rows need an 'image', and have {sorted(rows[0])}. Trainer drops what forward does not "
                "name, unless TrainingArguments(remove_unused_columns=False)."
            )
        images = [_source(row["image"]) for row in rows]
        batch = {"pixel_values": stream_images(self.model, images, self.image_processor, self.thumbnails)}
        name = next((name for name in ("labels", "label") if name in rows[0]), None)
        if name is not None:
            batch["labels"] = torch.stack([torch.as_tensor(row[name]) for row in rows])
        return batch


def _source(image: Any) -> AnyImage:
    if not isinstance(image, dict):
        return image
    return image["path"] if image["bytes"] is None else decode_image(image)
