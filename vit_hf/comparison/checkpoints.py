"""Compared checkpoints, converted to models that can select."""

from dataclasses import dataclass
from pathlib import Path

from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageClassification, PreTrainedModel
from transformers.image_processing_utils import BaseImageProcessor
from transformers.image_utils import SizeDict

from ..checkpoints.convert import convert
from ..checkpoints.loading import load_classifier, set_resolution
from ..inference.tiles import with_options
from ..model.configuration_adaptive_swin import AdaptiveSwinConfig
from ..model.configuration_adaptive_vit import AdaptiveViTConfig
from ..model.options import type_of
from ..model.sizes import to_pair


@dataclass(frozen=True)
class Checkpoint:
    """A model to compare strategies with.

    Attributes:
        path: path of an AdaptiveViT or AdaptiveSwin; of the original model if it cannot be converted.
        obstacle: reason why it cannot be converted; None otherwise.
        side: its own image size in pixels a side.
        patch_size: side of its patches in pixels; 16 for a model that was not converted, to count tokens.
        num_layers: blocks of the encoder.
        selector: selector that the checkpoint was trained with, or None.
        takes_cut_patches: True if images may come as patches, so that mixed sizes make one batch; Swin takes
            whole images.
        fingerprint: identifies its files, to detect changes.
    """

    path: str
    obstacle: str | None
    side: int
    patch_size: int
    num_layers: int
    selector: str | None
    takes_cut_patches: bool
    fingerprint: str

    @property
    def num_tokens(self) -> int:
        """Number of patches of an image at the checkpoint's own size."""
        return (self.side // self.patch_size) ** 2

    def load(self, path: str, **changes: object) -> tuple[PreTrainedModel, BaseImageProcessor]:
        """Loads model and image processor.

        Args:
            path: a checkpoint with the same architecture, such as a fine-tuned one.
            changes: see `load_classifier`; only the resolution for a model that was not converted.

        Raises:
            ValueError: if the model does not support the changes.
        """
        if self.obstacle is None:
            return load_classifier(path, **changes)
        processor = AutoImageProcessor.from_pretrained(path)
        resolution = changes.pop("resolution", None)
        # timm's transformations have no size to change.
        processor = processor if resolution is None else with_options(processor)
        set_resolution(processor, resolution)
        if changes:
            raise ValueError(self.obstacle)
        return AutoModelForImageClassification.from_pretrained(path), processor


def open_checkpoint(path: str, folder: Path) -> Checkpoint:
    """Inspects a checkpoint; one of another family is converted into `folder`, if possible.

    Raises:
        OSError: if there is no such checkpoint.
    """
    given, obstacle = path, None
    if not is_ours(path):
        try:
            model, processor = convert(path)
        except (ImportError, ValueError) as error:
            obstacle = f"{type(error).__name__}: {error}"
        else:
            path = str(folder)
            model.save_pretrained(path)
            processor.save_pretrained(path)
    config = AutoConfig.from_pretrained(path)
    # Models that were not converted may lack any of these.
    patch = getattr(config, "patch_size", None) if obstacle is None else None
    return Checkpoint(
        path=path,
        obstacle=obstacle,
        side=own_side(AutoImageProcessor.from_pretrained(path), config),
        patch_size=16 if patch is None else max(to_pair(patch)),
        num_layers=getattr(config, "num_hidden_layers", 0),
        selector=type_of(getattr(config, "patch_selector", None)),
        takes_cut_patches=config.model_type != AdaptiveSwinConfig.model_type,
        fingerprint=fingerprint_of(given),
    )


def is_ours(path: str) -> bool:
    try:
        ours = (AdaptiveViTConfig.model_type, AdaptiveSwinConfig.model_type)
        return AutoConfig.from_pretrained(path).model_type in ours
    except (OSError, ValueError):
        return False  # convert reads more formats, or raises the error


def own_side(processor: BaseImageProcessor, config: object) -> int:
    """Returns the side in pixels of the square that the processor, or else the configuration, specifies."""
    sizes, processor = [], with_options(processor)
    if getattr(processor, "do_resize", False):
        crops = getattr(processor, "do_center_crop", None)
        size = SizeDict(**dict(processor.crop_size if crops else processor.size))
        sizes = [size.height, size.width] if size.height else [size.shortest_edge]
    if not any(sizes):
        sizes = to_pair(getattr(config, "image_size", None) or 224)
    return round((sizes[0] * sizes[-1]) ** 0.5)


def fingerprint_of(path: str) -> str:
    """Joins names, sizes and times of all files of a local checkpoint; name and commit of one on the Hub."""
    folder = Path(path).expanduser()
    if not folder.exists():
        try:
            return f"{path} {AutoConfig.from_pretrained(path)._commit_hash}"
        except (OSError, ValueError):
            return path  # a format that only convert reads
    files = sorted(file for file in folder.iterdir() if file.is_file()) if folder.is_dir() else [folder]
    stats = [(file.name, file.stat()) for file in files]
    return " ".join([path, *(f"{name}:{stat.st_size}@{stat.st_mtime_ns}" for name, stat in stats)])
