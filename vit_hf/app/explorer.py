"""Runs one checkpoint with any selector that it can use, on any number of patches."""

import copy
import statistics
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import PIL.Image
import torch
from torch import nn
from transformers import PreTrainedConfig
from transformers.image_processing_utils import BaseImageProcessor

from ..checkpoints.convert import convert
from ..checkpoints.loading import check_path, is_swin, load_classifier
from ..explanations.explain import explain
from ..explanations.explanation import Explanation
from ..explanations.model_view import process
from ..model.configuration_adaptive_vit import AdaptiveViTConfig
from ..model.modeling_adaptive_vit import AdaptiveViTForImageClassification
from ..model.options import type_of, with_options
from ..model.selectors import PATCH_SELECTORS, ProbeOptions
from ..model.sizes import has_frames, to_pair
from .pictures import shrink_to


# No selector, all patches; also load_classifier's name for it.
ALL_PATCHES = "none"

# For checkpoints without a selector: finds small objects without training (model_cards/selection).
FREE_SELECTOR = "saliency"

# Most patches that the page computes on: a ViT-B takes about seven seconds for them on two cores.
MAX_TOKENS = 4096
# Most pixels of an image after preprocessing.
MAX_PREPARED_PIXELS = 2**25

# All patches are timed automatically if that takes about this number of seconds.
AUTOMATIC_SECONDS = 2.0

# Limits of the repetitions of a forward pass, in seconds and in number.
REPEAT_SECONDS, MAX_REPEATS = 0.5, 5

# Resizing of an image: as the checkpoint's image processor does, none, or to this number of pixels a side.
Size = Literal["checkpoint", "native"] | int


@dataclass
class Exploration:
    """Result for one image.

    Attributes:
        explanation: see `Explanation`.
        seconds: median time of a forward pass, selection included.
        num_patches: N of the image.
        all_seconds: the same for all patches, without selector and reducer; None if not measured.
        requested: requested number of patches, which may exceed N; None for all.
    """

    explanation: Explanation
    seconds: float
    num_patches: int
    all_seconds: float | None
    requested: int | None


class PatchExplorer:
    """Runs one checkpoint with other selectors and budgets than its own; thread-safe.

    Args:
        model: a classifier; kept in evaluation mode.
        image_processor: the model's own. If it selects patches, the model does so instead.

    Attributes:
        selectors: modules of the usable selectors, by name; None for all patches.
        left_out: reasons why other selectors cannot be used, by name.

    Raises:
        ValueError: if the model takes neither one nor three channels.
    """

    def __init__(self, model: AdaptiveViTForImageClassification, image_processor: BaseImageProcessor):
        self.model = model.eval()
        self.config = model.config
        if self.config.num_channels not in (1, 3):
            raise ValueError(
                f"The model takes images of num_channels={self.config.num_channels}: this page shows gray "
                "(1) and color (3) images."
            )
        self.image_processor = copy.deepcopy(image_processor)
        self.image_processor.return_patches = False
        self.image_processor.patch_selector = self.image_processor.num_selected_patches = None
        self.default_selector = type_of(self.config.patch_selector) or FREE_SELECTOR
        self.default_number = self.config.num_selected_patches or 196
        self.selectors, self.left_out = find_selectors(model)
        self._lock = threading.Lock()
        self._all_seconds: dict[tuple[int, int], float] = {}

    @property
    def trained_size(self) -> str | None:
        """Size to which the checkpoint's image processor resizes images, as text; None for no resizing."""
        processor = self.image_processor
        if not processor.do_resize:
            return None
        size = processor.crop_size if getattr(processor, "do_center_crop", None) else processor.size
        if getattr(processor, "max_num_patches", None):
            return f"at most {processor.max_num_patches} patches"
        height, width = (getattr(size, side, None) for side in ("height", "width"))
        return f"{width} x {height}" if height and width else "resized"

    def prepare(
        self, picture: PIL.Image.Image, size: Size
    ) -> tuple[PIL.Image.Image, BaseImageProcessor, dict[str, torch.Tensor]]:
        """Returns the picture at `size`, the image processor for it, and the model's inputs, on its device.

        Raises:
            ValueError: if the image is smaller than one patch.
        """
        processor = self.image_processor
        if size != "checkpoint":
            processor = copy.deepcopy(processor)
            processor.do_resize = processor.do_center_crop = False
            if getattr(processor, "max_num_patches", None) is not None:
                processor.max_num_patches = None
        if isinstance(size, int):
            picture = shrink_to(picture, size)
        patch_height, patch_width = to_pair(self.config.patch_size)
        if size != "checkpoint" and (picture.height < patch_height or picture.width < patch_width):
            raise ValueError(
                f"The image is too small: at {picture.width} x {picture.height} pixels it is smaller "
                f"than one patch of {patch_width} x {patch_height}. Give a larger one."
            )
        if size == "checkpoint":
            _check_stretched(processor, picture)
        inputs, _ = process(processor, picture)
        return picture, processor, {name: value.to(self.model.device) for name, value in inputs.items()}

    def count_patches(self, inputs: dict[str, torch.Tensor]) -> int:
        patch_height, patch_width = to_pair(self.config.patch_size)
        height, width = inputs["pixel_values"].shape[-2:]
        return (height // patch_height) * (width // patch_width)

    def explore(
        self, picture: PIL.Image.Image, selector: str, num_selected: int, size: Size = "checkpoint"
    ) -> Exploration:
        """Runs the model on an image.

        Args:
            picture: RGB, or gray for a model of one channel.
            selector: a key of `selectors`.
            num_selected: K, capped at N.
            size: resizing of the image.

        Raises:
            ValueError: for an unknown selector, no patches or too many, and errors of the model.
        """
        if selector not in self.selectors:
            reason = self.left_out.get(selector, f"choose one of {', '.join(self.selectors)}")
            raise ValueError(f"The selector {selector!r} cannot be used here: {reason}.")
        if num_selected < 1:
            raise ValueError(f"{num_selected} patches are too few: keep at least one.")
        picture, processor, inputs = self.prepare(picture, size)
        num_patches = self.count_patches(inputs)
        kept = num_patches if selector == ALL_PATCHES else min(num_selected, num_patches)
        if kept > MAX_TOKENS:
            raise ValueError(
                f"Computing on {kept:,} patches would take long: this page stops at {MAX_TOKENS:,}. Choose a "
                "selector and fewer patches, or a smaller size."
            )
        shape = tuple(inputs["pixel_values"].shape[-2:])
        with self._lock:
            with self._selecting(selector, kept), record_seconds(self.model) as times:
                # No rollout, which would double the time.
                (explanation,) = explain(
                    self.model, processor, picture, max_rollout_tokens=0, names=["the image"]
                )
                self._repeat(inputs, times)
            seconds = typical(times)
            if kept == num_patches and not self.model.vit.reducers:
                self._all_seconds[shape] = seconds
            elif (
                shape not in self._all_seconds
                and num_patches <= MAX_TOKENS
                and seconds * num_patches / kept <= AUTOMATIC_SECONDS
            ):
                self._time_all(inputs)
            all_seconds = self._all_seconds.get(shape)
        requested = None if selector == ALL_PATCHES else num_selected
        return Exploration(explanation, seconds, num_patches, all_seconds, requested)

    def measure_all(self, picture: PIL.Image.Image, size: Size = "checkpoint") -> None:
        """Times all patches of an image at a size; `Exploration.all_seconds` has the time from then on.

        Raises:
            ValueError: for more than `MAX_TOKENS` patches.
        """
        _, _, inputs = self.prepare(picture, size)
        num_patches = self.count_patches(inputs)
        if num_patches > MAX_TOKENS:
            raise ValueError(
                f"All {num_patches:,} patches would take long: this page stops at {MAX_TOKENS:,}."
            )
        with self._lock:
            self._time_all(inputs)

    def _time_all(self, inputs: dict[str, torch.Tensor]) -> None:
        vit, reducers = self.model.vit, self.model.vit.reducers
        vit.reducers = nn.ModuleDict()
        try:
            with self._selecting(ALL_PATCHES, None), record_seconds(self.model) as times:
                self._repeat(inputs, times)
        finally:
            vit.reducers = reducers
        self._all_seconds[tuple(inputs["pixel_values"].shape[-2:])] = typical(times)

    def _repeat(self, inputs: dict[str, torch.Tensor], times: list[float]) -> None:
        """Repeats forward passes until `times`, which record them, are enough."""
        while not times or (sum(times) < REPEAT_SECONDS and len(times) < MAX_REPEATS):
            with torch.inference_mode():
                self.model(**inputs)

    @contextmanager
    def _selecting(self, selector: str, num_selected: int | None) -> Iterator[None]:
        """Gives the model another selector for the time of the context; needs the lock."""
        vit, config = self.model.vit, self.config
        before = vit.selector, config.patch_selector, config.num_selected_patches
        vit.selector = self.selectors[selector]
        config.patch_selector = None if selector == ALL_PATCHES else selector
        config.num_selected_patches = None if selector == ALL_PATCHES else num_selected
        try:
            yield
        finally:
            vit.selector, config.patch_selector, config.num_selected_patches = before


def _check_stretched(processor: BaseImageProcessor, picture: PIL.Image.Image) -> None:
    """Checks that resizing a narrow strip by its shorter edge does not fill the host's memory.

    Raises:
        ValueError: for more than `MAX_PREPARED_PIXELS`.
    """
    shortest = getattr(processor.size, "shortest_edge", None)
    if not processor.do_resize or not shortest or getattr(processor.size, "longest_edge", None):
        return
    longest = shortest * max(picture.size) / min(picture.size)
    if shortest * longest > MAX_PREPARED_PIXELS:
        raise ValueError(
            f"The image of {picture.width} x {picture.height} pixels is too narrow: with a shorter "
            f"edge of {shortest} pixels, the longer would have {longest:,.0f}. Crop it."
        )


def find_selectors(
    model: AdaptiveViTForImageClassification,
) -> tuple[dict[str, nn.Module | None], dict[str, str]]:
    """Finds the selectors that a checkpoint can use, and the reasons why it cannot use the others.

    Usable are its own, those that need no training, and none.
    """
    own, left_out = type_of(model.config.patch_selector), {}
    selectors: dict[str, nn.Module | None] = {} if own is None else {own: model.vit.selector}
    for name, selector_class in PATCH_SELECTORS.items():
        if name == own:
            continue
        config = copy.deepcopy(model.config)
        options = {}
        if issubclass(selector_class.Options, ProbeOptions):
            options["num_layers"] = min(selector_class.Options().num_layers, config.num_hidden_layers)
        config.patch_selector, config.num_selected_patches = with_options(name, **options), 1
        try:
            config.validate_architecture()
            selector = selector_class(config)
        except ValueError as error:
            left_out[name] = str(error).rstrip(".")
            continue
        if next(selector.parameters(), None) is not None:
            left_out[name] = "learned, and untrained in this checkpoint"
            continue
        selectors[name] = selector.to(model.device).eval()
    return selectors | {ALL_PATCHES: None}, left_out


@contextmanager
def record_seconds(model: nn.Module) -> Iterator[list[float]]:
    """Records the seconds of each forward pass of `model` in the context."""
    times: list[float] = []

    def now() -> float:
        if model.device.type != "cpu":
            torch.accelerator.synchronize()
        return time.perf_counter()

    # Until a pass ends, its entry is its start.
    hooks = (
        model.register_forward_pre_hook(lambda *_: times.append(now())),
        model.register_forward_hook(lambda *_: times.append(now() - times.pop())),
    )
    try:
        yield times
    finally:
        for hook in hooks:
            hook.remove()


def typical(times: list[float]) -> float:
    """Returns the median, without the first, a warm-up, if there are others."""
    return statistics.median(times[1:] or times)


def load_explorer(path: str, device: str | torch.device | None = None) -> PatchExplorer:
    """Loads a checkpoint of this package, or any that `vit_hf.convert` takes.

    Args:
        path: local folder, or name on the Hub.
        device: by default an accelerator if there is one.

    Raises:
        OSError: if there is no such checkpoint, or it lacks an image processor.
        ValueError: if it is not a ViT image classifier.
    """
    check_path(path)
    if is_swin(path):
        raise ValueError(
            f"{path} is a Swin, and the page shows patches of a ViT: use vit-hf explain instead."
        )
    config, _ = PreTrainedConfig.get_config_dict(path)
    if config.get("model_type") == AdaptiveViTConfig.model_type:
        model, image_processor = load_classifier(path)
    else:
        model, image_processor = convert(path)
    if not isinstance(model, AdaptiveViTForImageClassification):
        raise ValueError(
            f"{path} has no classifier: the page shows classes. Fine-tune it with vit-hf finetune first."
        )
    if has_frames(model.config):
        raise ValueError(
            f"{path} is for videos (num_frames={model.config.num_frames}), and the page shows patches of "
            "images: use vit_hf.explain_video instead."
        )
    device = device or torch.accelerator.current_accelerator(check_available=True) or "cpu"
    return PatchExplorer(model.to(device), image_processor)
