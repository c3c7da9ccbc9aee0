"""Image processors, by torchvision or Pillow: decode, resize, cut into patches, select by pixels."""

import math
import os
from collections.abc import Iterable
from typing import Any

import numpy as np
import PIL.Image
import torch
from torch import nn
from transformers import PreTrainedConfig
from transformers.image_processing_backends import PilBackend, TorchvisionBackend
from transformers.image_processing_base import BatchFeature
from transformers.image_processing_utils import BaseImageProcessor
from transformers.image_transforms import get_size_with_aspect_ratio
from transformers.image_utils import (
    IMAGENET_STANDARD_MEAN,
    IMAGENET_STANDARD_STD,
    ChannelDimension,
    PILImageResampling,
    SizeDict,
    get_image_size_for_max_height_width,
)
from transformers.processing_utils import ImagesKwargs, Unpack
from transformers.utils import TensorType, logging, requires_backends

from .budget import Budget
from .checkpoint_code import IMAGE_PROCESSORS, SavesCode
from .configuration_checks import check_names
from .image_loading import flatten_images, read_image, to_pixels
from .options import check_part, type_of
from .patches import ImagePatches, PatchTokens, flatten_channels_last
from .pixel_scorers import PIXEL_SCORERS, favor_lattice, pixel_scores, read_scorer_options
from .selection import keep_top
from .selection_checks import warn_of_all_kept
from .sizes import to_pair


# Arguments of `from_pretrained` that say where files are.
HUB_OPTIONS = ("cache_dir", "force_download", "local_files_only", "revision", "subfolder", "token")


def target_size(height: int, width: int, size: SizeDict) -> tuple[int, int]:
    """(height, width) that an image gets by an option `size`, as transformers' backends have it.

    A longest edge alone is a cap.
    """
    if size.longest_edge and not size.shortest_edge:
        scale = min(1, size.longest_edge / max(height, width))
        return max(1, round(height * scale)), max(1, round(width * scale))
    if size.shortest_edge and size.longest_edge:
        return tuple(get_size_with_aspect_ratio((height, width), size.shortest_edge, size.longest_edge))
    if size.shortest_edge:
        longer = int(size.shortest_edge * max(height, width) / min(height, width))
        return (longer, size.shortest_edge) if height > width else (size.shortest_edge, longer)
    if size.max_height and size.max_width:
        return get_image_size_for_max_height_width((height, width), size.max_height, size.max_width)
    return size.height, size.width


def size_for_patches(
    height: int, width: int, patch_size: tuple[int, int], max_num_patches: int
) -> tuple[int, int]:
    """(height, width) in whole patches, at most so many, of about the aspect of an image, as large as that
    allows.

    Found by halving, as transformers' `Siglip2ImageProcessor` does, to the same precision, so that sizes
    agree.
    """

    def patches(scale: float) -> tuple[int, int]:
        rows, columns = (
            max(1, math.ceil(side * scale / patch))
            for side, patch in zip((height, width), patch_size, strict=True)
        )
        return rows, columns

    fits, too_large = 1e-6, 100.0
    while too_large - fits >= 1e-5:
        middle = (fits + too_large) / 2
        if math.prod(patches(middle)) <= max_num_patches:
            fits = middle
        else:
            too_large = middle
    rows, columns = patches(fits)
    return rows * patch_size[0], columns * patch_size[1]


class SegmentationPostProcessing:
    """Adds `post_process_semantic_segmentation` to an image processor."""

    def post_process_semantic_segmentation(
        self,
        outputs,
        target_sizes: list[tuple[int, int]] | torch.Tensor | None = None,
        return_segmentation_scores: bool = False,
    ) -> list[torch.Tensor] | list[BatchFeature]:
        """As in transformers: class maps `(height, width)` int64, one for each image.

        Args:
            outputs: of `AdaptiveViTForSemanticSegmentation`, with logits `(B, L, h, w)`. A single class is a
                yes (1) or a no (0).
            target_sizes: (height, width) of each image as it was before preparation; None for maps of the
                logits' size. Pixels that no whole patch covered have the class beside them.
            return_segmentation_scores: whether to return objects with `segmentation` and
                `segmentation_scores` (logits `(L, height, width)`) instead.

        Raises:
            ValueError: for another number of sizes than of images.
        """
        logits = outputs.logits
        if target_sizes is not None and len(target_sizes) != len(logits):
            raise ValueError(
                f"target_sizes has {len(target_sizes)} sizes for {len(logits)} images: give one "
                "(height, width) each."
            )
        results = []
        for index, image in enumerate(logits):
            if target_sizes is not None:
                image = self._resize_logits(image, tuple(int(side) for side in target_sizes[index]))
            segmentation = image.argmax(dim=0) if len(image) > 1 else (image[0] > 0).long()
            results.append(BatchFeature(data={"segmentation": segmentation, "segmentation_scores": image}))
        return results if return_segmentation_scores else [result.segmentation for result in results]

    def _resize_logits(self, logits: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        """`(L, height, width)` of `(L, h, w)`, bilinearly as in the loss."""
        prepared = covered = size
        if self.do_resize:
            prepared = target_size(*size, self.size)
        if not self.do_resize or self.max_num_patches is None:  # which resizes to whole patches
            covered = tuple(
                max(1, round(side * (pixels - pixels % patch) / pixels))
                for side, pixels, patch in zip(size, prepared, to_pair(self.patch_size), strict=True)
            )
        logits = nn.functional.interpolate(
            logits[None].float(), size=covered, mode="bilinear", align_corners=False
        )
        beyond = (0, size[1] - covered[1], 0, size[0] - covered[0])
        return nn.functional.pad(logits, beyond, mode="replicate")[0]


logger = logging.get_logger(__name__)


class AdaptiveViTImageProcessorKwargs(ImagesKwargs, total=False):
    r"""
    patch_size (`int` or pair of `int`, *optional*, defaults to 16):
        Height and width of a patch in pixels.
    return_patches (`bool`, *optional*, defaults to `False`):
        Whether to return cut patches instead of images.
    patch_selector (`str` or `dict`, *optional*):
        The pixel heuristic that scores the patches: a key of `PIXEL_SCORERS`, or a dictionary of it as `type`
        and its options, such as `{"type": "random", "seed": 1}`; needs `return_patches`. `None` keeps all of
        them.
    num_selected_patches (`int` or `float`, *optional*):
        How many patches of an image to keep, or which fraction of them in (0, 1]; needed by a selector.
    max_num_patches (`int`, *optional*):
        Resizes each image to at most so many whole patches at about its own aspect, instead of to `size`
        (SigLIP 2's NaFlex). With `return_patches=True` and without a selector every batch is so many wide.
    rescale_before_resize (`bool`, *optional*, defaults to `False`):
        Whether images are resized as floats, after rescaling (DINOv3), rather than as bytes.
    """

    patch_size: int | list[int] | tuple[int, int] | None
    return_patches: bool | None
    patch_selector: str | dict[str, Any] | None
    num_selected_patches: int | float | None
    max_num_patches: int | None
    rescale_before_resize: bool | None


class ImagePreparation(SavesCode, SegmentationPostProcessing, BaseImageProcessor):
    """Everything of an image processor that does not depend on who resizes; stands before a backend class.

    Images may be Pillow images, arrays, tensors, paths, URLs, and lists of these; see `image_loading.py` for
    how they become pixels. The options are those of transformers' `ViTImageProcessor`, with the same
    defaults, and those of `AdaptiveViTImageProcessorKwargs`. `size={"longest_edge": 1024}` shrinks images
    whose longer side exceeds that, and leaves others as they are; `do_resize=False` leaves all.

    Returns a `BatchFeature` with `pixel_values` `(B, C, H, W)`; without `return_tensors`, a list of `(C, H,
    W)`. With `return_patches=True`:
        pixel_values: `(B, N, P*P*C)` float32, the pixels of each patch by row, column and channel.
        patch_coordinates: `(B, N, 2)` int64, (row, column) of each patch in the grid of its image.
        spatial_shapes: `(B, 2)` int64, rows and columns of that grid.
        pixel_attention_mask: `(B, N)` int64, 1 for patches and 0 for the padding behind the patches of an
        image
            that has fewer than others, or than `num_selected_patches`.

    Raises:
        ValueError: if an option or an image makes no sense; names the option, or the file or index in the
            batch.
    """

    valid_kwargs = AdaptiveViTImageProcessorKwargs
    model_input_names = ["pixel_values", "patch_coordinates", "spatial_shapes", "pixel_attention_mask"]

    resample = PILImageResampling.BILINEAR
    image_mean = IMAGENET_STANDARD_MEAN
    image_std = IMAGENET_STANDARD_STD
    size = {"height": 224, "width": 224}
    do_resize = True
    do_rescale = True
    do_normalize = True
    do_convert_rgb = True
    patch_size = 16
    return_patches = False
    patch_selector = None
    num_selected_patches = None
    max_num_patches = None
    rescale_before_resize = False

    def __init__(self, **kwargs: Any):
        self._check_names(kwargs)
        super().__init__(**kwargs)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, *args: Any, **kwargs: Any):
        """Loads as in transformers; a stock processor that returns patches gets the model's `patch_size`."""
        processor = super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        loaded = processor[0] if isinstance(processor, tuple) else processor
        if loaded.return_patches and "patch_size" not in kwargs:
            where = {name: kwargs[name] for name in HUB_OPTIONS if name in kwargs}
            stored, _ = cls.get_image_processor_dict(pretrained_model_name_or_path, **where)
            if "patch_size" not in stored:
                try:
                    config, _ = PreTrainedConfig.get_config_dict(pretrained_model_name_or_path, **where)
                except OSError:  # a processor alone
                    config = {}
                loaded.patch_size = config.get("patch_size", loaded.patch_size)
        return processor

    @classmethod
    def from_dict(cls, image_processor_dict: dict[str, Any], **kwargs: Any):
        """As in transformers, but that misspelt options are refused."""
        cls._check_names(kwargs)
        return super().from_dict(image_processor_dict, **kwargs)

    def preprocess(self, images: Any, *args: Any, **kwargs: Any) -> BatchFeature:
        """Prepares images; misspelt options are refused, those that were set on the processor as well."""
        self._check_names(vars(self))
        self._check_names(kwargs)
        return super().preprocess(images, *args, **kwargs)

    @classmethod
    def _check_names(cls, names: Iterable[str]) -> None:
        legal = cls.valid_kwargs.__annotations__.keys()
        unknown = [name for name in names if name not in legal and not hasattr(cls, name)]
        check_names(unknown, legal, cls.__name__)

    def fetch_images(self, image_url_or_urls: Any) -> Any:
        """Reads the paths and URLs among images, which may be nested in lists."""
        images = image_url_or_urls
        if isinstance(images, list | tuple):
            return [self.fetch_images(image) for image in images]
        if isinstance(images, PIL.Image.Image | np.ndarray | torch.Tensor):
            return images
        if isinstance(images, str | os.PathLike):
            return read_image(images)
        raise TypeError(
            f"An image cannot be of type {type(images).__name__}: give Pillow images, arrays, "
            "tensors, paths, URLs, or "
            "lists of these."
        )

    def resize(self, image: Any, size: SizeDict, **kwargs: Any) -> Any:
        """Resizes `(..., H, W)`; a longest edge alone is a cap."""
        if size.longest_edge and not size.shortest_edge:
            height, width = target_size(*image.shape[-2:], size)
            if (height, width) == tuple(image.shape[-2:]):
                return image
            size = SizeDict(height=height, width=width)
        return super().resize(image=image, size=size, **kwargs)

    def to_dict(self) -> dict[str, Any]:
        """Returns the options, and which file holds the class for which backend."""
        options = super().to_dict()
        # A subclass keeps its own entry: it is one backend, in its own file.
        if type(self).__name__ in {name.rpartition(".")[2] for name in IMAGE_PROCESSORS.values()}:
            options["auto_map"] = {**options.get("auto_map", {}), "AutoImageProcessor": IMAGE_PROCESSORS}
        return options

    def _standardize_kwargs(
        self,
        patch_size: int | list[int] | tuple[int, int] | None = None,
        return_patches: bool | None = None,
        patch_selector: str | dict[str, Any] | None = None,
        num_selected_patches: int | float | None = None,
        max_num_patches: int | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        # transformers calls this when options are first set as well as at every call: so errors come early.
        _check_patch_size(patch_size)
        _check_selection(patch_selector, num_selected_patches, return_patches)
        if max_num_patches is not None and (not isinstance(max_num_patches, int) or max_num_patches < 1):
            raise ValueError(
                f"max_num_patches={max_num_patches!r} must be a whole number of at least 1 patch, "
                "or None for size."
            )
        return super()._standardize_kwargs(**kwargs) | {
            "patch_size": tuple(patch_size) if isinstance(patch_size, list) else patch_size,
            "return_patches": return_patches,
            "patch_selector": patch_selector,
            "num_selected_patches": num_selected_patches,
            "max_num_patches": max_num_patches,
        }

    def _prepare_image_like_inputs(
        self,
        images: Any,
        do_convert_rgb: bool | None = None,
        input_data_format: str | ChannelDimension | None = None,
        device: str | torch.device | None = None,
        **kwargs: Any,
    ) -> list[Any]:
        """Each image as `(C, H, W)` in the backend's container."""
        images = flatten_images(self.fetch_images(images))
        if not images:
            raise ValueError("There are no images in the batch: give at least one.")
        prepared = []
        for index, image in enumerate(images):
            try:
                pixels = to_pixels(image, bool(do_convert_rgb), input_data_format)
            except MemoryError:
                raise
            except Exception as error:
                file_name = getattr(image, "filename", "")
                raise ValueError(
                    f"Cannot use image {index} of the batch{f' ({file_name})' if file_name else ''}: {error}."
                ) from error
            _warn_if_rescaled_twice(pixels, kwargs)
            prepared.append(
                self.process_image(
                    pixels, do_convert_rgb=False, input_data_format=ChannelDimension.FIRST, device=device
                )
            )
        return prepared

    def _preprocess(
        self,
        images: list[Any],
        return_patches: bool | None,
        patch_size: int | tuple[int, int],
        patch_selector: str | dict[str, Any] | None,
        num_selected_patches: int | float | None,
        max_num_patches: int | None,
        rescale_before_resize: bool | None,
        return_tensors: str | TensorType | None,
        **kwargs: Any,
    ) -> BatchFeature:
        if kwargs["do_normalize"]:
            _check_channels(images, kwargs["image_mean"], kwargs["image_std"])
        to_fit = to_pair(patch_size) if max_num_patches is not None and kwargs["do_resize"] else None
        if not return_patches:
            features = self._to_pixels(images, to_fit, max_num_patches, rescale_before_resize, **kwargs)
            if return_tensors is not None:
                _check_stackable(features["pixel_values"])
            return BatchFeature(features.data, tensor_type=return_tensors)
        tokens = []
        for index, image in enumerate(images):
            # One by one: of large images only one at a time is held in floats.
            features = self._to_pixels([image], to_fit, max_num_patches, rescale_before_resize, **kwargs)
            pixels = torch.as_tensor(features["pixel_values"][0])
            try:
                tokens.append(select_patches(pixels, patch_size, patch_selector, num_selected_patches))
            except ValueError as error:
                raise ValueError(f"Cannot cut image {index} of the batch: {error}") from error
        # A whole number fixes the width of every batch, so that batches made apart can be joined.
        is_number = num_selected_patches is not None and not Budget(num_selected_patches).is_fraction
        fixed_width = num_selected_patches if is_number else 0
        if to_fit and patch_selector is None:
            fixed_width = max_num_patches
        patches = pad_patches(tokens, patch_size, fixed_width)
        if return_tensors is None:
            patches = {name: list(values) for name, values in patches.items()}
        return BatchFeature(patches, tensor_type=return_tensors)

    def _to_pixels(
        self,
        images: list[Any],
        to_fit: tuple[int, int] | None,
        max_num_patches: int | None,
        rescale_before_resize: bool | None,
        **options: Any,
    ) -> BatchFeature:
        """The backend's own preparation, but for what it has not: other sizes and another order.

        Args:
            to_fit: height and width of the patches that `max_num_patches` counts; None to resize by `size`.
        """
        if rescale_before_resize and options["do_rescale"]:
            images = [self.rescale(image, options["rescale_factor"]) for image in images]
            options["do_rescale"] = False
        if (to_fit or rescale_before_resize) and options["do_resize"]:
            images = [self._resize_one(image, to_fit, max_num_patches, **options) for image in images]
            options["do_resize"] = False
        return super()._preprocess(images, return_tensors=None, **options)

    def _resize_one(
        self, image: Any, to_fit: tuple[int, int] | None, max_num_patches: int | None, **options: Any
    ) -> Any:
        if to_fit:
            height, width = size_for_patches(*image.shape[-2:], to_fit, max_num_patches)
        else:
            height, width = target_size(*image.shape[-2:], options["size"])
        size = SizeDict(height=height, width=width)
        return self.resize(image=image, size=size, resample=options["resample"], in_floats=True)


def select_patches(
    pixels: torch.Tensor,
    patch_size: int | tuple[int, int],
    patch_selector: str | dict[str, Any] | None = None,
    num_selected_patches: int | float | None = None,
) -> PatchTokens:
    """Cuts an image `(C, H, W)` and keeps K of its N patches, or all if it has no more, as a batch of one.

    Raises:
        ValueError: if the image is smaller than one patch.
    """
    # NumPy leaves channels last in memory; scores are faster, and the same to the last bit as the model's,
    # without.
    patches = ImagePatches.from_images(pixels[None].float().contiguous(), patch_size)
    if patch_selector is None:
        return patches.gather()
    budget = Budget(1.0 if num_selected_patches is None else num_selected_patches)
    if budget.capped(patches.num_patches) != budget:
        logger.warning_once(
            f"num_selected_patches={num_selected_patches}, but an image has {patches.num_patches} "
            "patches: it keeps all "
            "of them, and the rest is padding, which is masked and costs as much. Lower it if no "
            "image has more."
        )
    num_selected = budget.capped(patches.num_patches).resolve(patches.num_patches)
    if num_selected == patches.num_patches:
        if num_selected == num_selected_patches or budget.is_fraction:
            warn_of_all_kept(
                f"The image processor's patch_selector={patch_selector!r} with "
                f"num_selected_patches={num_selected_patches}",
                patches.full_grid,
            )
        return patches.gather()
    options = read_scorer_options(patch_selector)
    scores = score_patches(patches, patch_selector, num_selected)
    if options.coverage:
        scores = favor_lattice(scores, patches.coordinates, patches.grid, num_selected, options.coverage)
    indices, _ = keep_top(scores, num_selected)
    return patches.gather(indices)


def score_patches(
    patches: ImagePatches, patch_selector: str | dict[str, Any], num_selected: int
) -> torch.Tensor:
    """Scores all patches as an image processor with this selector does, `(B, N)`."""
    seed = getattr(read_scorer_options(patch_selector), "seed", 0)
    return pixel_scores(type_of(patch_selector), patches, num_selected, seed)


def pad_patches(
    tokens: list[PatchTokens], patch_size: int | tuple[int, int], fixed_width: int = 0
) -> dict[str, torch.Tensor]:
    """Stacks the patches of images, padded with zeros to the most patches of any and at least
    `fixed_width`."""
    width = max(fixed_width, *(image.features.shape[1] for image in tokens))
    pixel_values, coordinates, masks = [], [], []
    for image in tokens:
        features = flatten_channels_last(image.features, patch_size)[0]  # (N, P*P*C)
        padding = width - len(features)
        pixel_values.append(nn.functional.pad(features, (0, 0, 0, padding)))
        # Whole numbers, lest a cast of the inputs to half precision moves patches of large images.
        coordinates.append(nn.functional.pad(image.coordinates[0].long(), (0, 0, 0, padding)))
        masks.append(torch.arange(width, device=features.device) < len(features))
    return {
        "pixel_values": torch.stack(pixel_values),
        "patch_coordinates": torch.stack(coordinates),
        "spatial_shapes": torch.cat([image.grid for image in tokens]),
        "pixel_attention_mask": torch.stack(masks).long(),
    }


def _check_patch_size(patch_size: Any) -> None:
    sides = patch_size if isinstance(patch_size, list | tuple) else (patch_size, patch_size)
    if len(sides) != 2 or not all(isinstance(side, int) and side >= 1 for side in sides):
        raise ValueError(
            f"patch_size={patch_size!r} must be a number of pixels, or a pair (height, width) of them."
        )


def _check_selection(patch_selector: Any, num_selected_patches: Any, return_patches: Any) -> None:
    if patch_selector is not None:
        check_part("patch_selector", patch_selector)
        if type_of(patch_selector) not in PIXEL_SCORERS:
            raise ValueError(
                f"patch_selector={type_of(patch_selector)!r} cannot run in an image processor, "
                "which sees only "
                f"pixels. Use one of {sorted(PIXEL_SCORERS)}, or None to keep all patches and let "
                "the model select."
            )
        read_scorer_options(patch_selector)
    if num_selected_patches is None:
        if patch_selector is not None:
            raise ValueError(
                f"patch_selector={patch_selector!r} of an image processor needs "
                "num_selected_patches: a number of patches "
                "(int), or a share in (0, 1] (float)."
            )
        return
    Budget(num_selected_patches)
    if patch_selector is None:
        raise ValueError(
            f"num_selected_patches={num_selected_patches!r} needs a patch_selector that says which: one of "
            f"{sorted(PIXEL_SCORERS)}. To keep all patches, give num_selected_patches=None."
        )
    if not return_patches:
        raise ValueError(
            f"patch_selector={patch_selector!r} of an image processor needs return_patches=True: "
            "whole images have all of "
            "their patches. Set it, or patch_selector=None, num_selected_patches=None to let the "
            "model select."
        )


def _check_channels(images: list[Any], image_mean: Any, image_std: Any) -> None:
    for name, values in (("image_mean", image_mean), ("image_std", image_std)):
        for index, image in enumerate(images):
            # torchvision would broadcast one channel to the three of the mean in silence.
            if isinstance(values, list | tuple) and len(values) != image.shape[0]:
                raise ValueError(
                    f"Image {index} of the batch has {image.shape[0]} channels, but {name} has "
                    f"{len(values)} values: "
                    f"give {name} one value a channel, or do_convert_rgb=True."
                )


def _check_stackable(images: list[Any]) -> None:
    shapes = sorted({tuple(image.shape) for image in images})
    if len(shapes) > 1:
        raise ValueError(
            f"Images of different shapes {shapes} do not stack into one tensor. Give "
            "return_patches=True, which takes "
            "mixed sizes (a Swin takes them one at a time, in batches of 1); or a fixed size, as "
            "in size={'height': 224, 'width': 224} with do_resize=True; or "
            "return_tensors=None for a list."
        )


def _warn_if_rescaled_twice(pixels: torch.Tensor, options: dict[str, Any]) -> None:
    if options.get("do_rescale") and pixels.is_floating_point() and 0 < pixels.max() <= 1:
        logger.warning_once(
            "An array of floats in 0..1 is being rescaled by rescale_factor as if it reached to "
            "255, and will be "
            "almost black. Give do_rescale=False for such images."
        )


class AdaptiveViTImageProcessor(ImagePreparation, TorchvisionBackend):
    """Prepares images with torchvision, on the CPU or, given `device`, on an accelerator.

    Options, inputs and outputs: `ImagePreparation`.

    Raises:
        ImportError: without torchvision; `AdaptiveViTImageProcessorPil` does the same without it.
    """

    def __init__(self, **kwargs: Unpack[AdaptiveViTImageProcessorKwargs]):
        # The class can be imported without torchvision, and would fail only at the first image.
        requires_backends(self, ["torchvision"])
        super().__init__(**kwargs)


__all__ = ["AdaptiveViTImageProcessor"]


class AdaptiveViTImageProcessorPil(ImagePreparation, PilBackend):
    """Prepares images with Pillow and NumPy.

    Options, inputs and outputs: `ImagePreparation`. Pillow resizes 8 bits a channel: arrays of floats must
    lie in 0..1, or hold whole numbers in 0..255. With `rescale_before_resize` it resizes floats, one channel
    at a time.
    """

    def __init__(self, **kwargs: Unpack[AdaptiveViTImageProcessorKwargs]):
        super().__init__(**kwargs)

    def resize(self, image: np.ndarray, size: SizeDict, in_floats: bool = False, **kwargs: Any) -> np.ndarray:
        """Resizes `(C, H, W)`, floats to a height and width as they are if `in_floats`."""
        if not in_floats or not np.issubdtype(image.dtype, np.floating):
            return super().resize(image=image, size=size, **kwargs)
        resample = kwargs.get("resample")
        # A number, or a member of Pillow's or torchvision's enumeration, whose names agree.
        name = PIL.Image.Resampling(resample).name if isinstance(resample, int) else resample.name
        channels = [PIL.Image.fromarray(channel.astype(np.float32)) for channel in image]
        return np.stack(
            [
                np.asarray(channel.resize((size.width, size.height), PIL.Image.Resampling[name]))
                for channel in channels
            ]
        )


__all__ = ["AdaptiveViTImageProcessorPil"]
