"""The checkpoints that are compared, as models that can select."""

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
        path: of an AdaptiveViT or AdaptiveSwin; or of the model as it was given, where that cannot be one.
        obstacle: why it cannot; None if it is one.
        side: pixels a side that it was made for.
        patch_size: pixels a side of its patches; of a model that is none of ours 16, to count by.
        num_layers: of the encoder.
        selector: that the checkpoint was trained with, or None.
        takes_cut_patches: whether images may come as patches, so that those of mixed sizes make one batch; a
            Swin wants whole ones.
        fingerprint: of its files, to tell whether they are still the same.
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
        """Patches of an image at the checkpoint's own size."""
        return (self.side // self.patch_size) ** 2

    def load(self, path: str, **changes: object) -> tuple[PreTrainedModel, BaseImageProcessor]:
        """Model and image processor.

        Args:
            path: another one with the same architecture, such as one that was fine-tuned.
            changes: see `load_classifier`; of a model that is none of ours only the resolution.

        Raises:
            ValueError: if that was not trained for, or makes no sense.
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
    """Finds out about a checkpoint; one of another family that can be converted is, into `folder`.

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
    # Of models that are none of ours any may be missing.
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
        return False  # convert reads more than this, or says why it cannot


def own_side(processor: BaseImageProcessor, config: object) -> int:
    """Pixels a side of a square that an image is made to, or else of what the configuration says."""
    sizes, processor = [], with_options(processor)
    if getattr(processor, "do_resize", False):
        crops = getattr(processor, "do_center_crop", None)
        size = SizeDict(**dict(processor.crop_size if crops else processor.size))
        sizes = [size.height, size.width] if size.height else [size.shortest_edge]
    if not any(sizes):
        sizes = to_pair(getattr(config, "image_size", None) or 224)
    return round((sizes[0] * sizes[-1]) ** 0.5)


def fingerprint_of(path: str) -> str:
    """Names, sizes and times of all files of a local checkpoint; of one on the Hub its name and commit."""
    folder = Path(path).expanduser()
    if not folder.exists():
        try:
            return f"{path} {AutoConfig.from_pretrained(path)._commit_hash}"
        except (OSError, ValueError):
            return path  # what convert alone can read
    files = sorted(file for file in folder.iterdir() if file.is_file()) if folder.is_dir() else [folder]
    stats = [(file.name, file.stat()) for file in files]
    return " ".join([path, *(f"{name}:{stat.st_size}@{stat.st_mtime_ns}" for name, stat in stats)])
