"""Random augmentation of training images, identical in an interrupted and an uninterrupted run.

Trainer restores the global random state when it resumes, but loaders read ahead and workers have states of
their own. So nothing here draws from a state that has a history: every draw is a function of the run's seed,
the epoch and the example.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import PIL.Image
import torch
from torch.utils.data import Dataset
from torchvision.transforms import v2
from transformers.image_processing_utils import BaseImageProcessor

from ..arguments import AugmentationArguments
from ..model.image_loading import to_pixels
from .loading import LabeledImages


def make_augmentation(
    arguments: AugmentationArguments, image_size: tuple[int, int] | None
) -> Callable[[torch.Tensor], torch.Tensor] | None:
    """Builds a random function of uint8 images `(C, H, W)`; None if there is nothing to do.

    Args:
        arguments: the augmentation.
        image_size: height and width that images are resized to; None without resizing.

    Raises:
        ValueError: for `random_crop="resized"` when images are not resized.
    """
    steps: list[torch.nn.Module] = []
    if arguments.random_crop == "resized":
        if image_size is None:
            raise ValueError(
                "random_crop='resized' needs images of one size; at their native size use "
                "random_crop='plain' with a crop_size"
            )
        steps.append(v2.RandomResizedCrop(image_size, (arguments.crop_scale, 1.0), antialias=True))
    elif arguments.random_crop == "plain":
        steps.append(v2.RandomCrop(arguments.crop_size, pad_if_needed=True))
    if arguments.horizontal_flip:
        steps.append(v2.RandomHorizontalFlip(arguments.horizontal_flip))
    if arguments.vertical_flip:
        steps.append(v2.RandomVerticalFlip(arguments.vertical_flip))
    if arguments.rand_augment:
        steps.append(v2.RandAugment(magnitude=arguments.rand_augment))
    return v2.Compose(steps) if steps else None


@contextmanager
def seeded(*entropy: int) -> Iterator[None]:
    """Makes torch's CPU draws a function of `entropy` (integers of at least 0); restores the generator
    afterwards."""
    seed = int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0])
    with torch.random.fork_rng(devices=[]):
        # Not torch.manual_seed, which would reseed accelerators as well.
        torch.default_generator.manual_seed(seed)
        yield


class TrainingExamples(Dataset):
    """Labeled images for a `Trainer`, augmented, each with the seed for mixing its batch.

    An example has `image` (a PIL image, or a uint8 tensor `(C, H, W)` once augmented), `labels`, and
    `augmentation_seed`, all of them functions of (seed, epoch, index).

    Args:
        images: the images to augment.
        augment: a random function of a uint8 tensor `(C, H, W)`, drawing from torch's global generator.
        seed: seed of the run.
        convert_rgb: whether images become RGB before they are augmented.
    """

    def __init__(
        self,
        images: LabeledImages,
        augment: Callable[[torch.Tensor], torch.Tensor] | None = None,
        seed: int = 0,
        convert_rgb: bool = True,
    ):
        self.images = images
        self.augment = augment
        self.seed = seed
        self.convert_rgb = convert_rgb
        # In shared memory, because workers that outlive an epoch hold a copy of everything else.
        self._epoch = torch.zeros(1, dtype=torch.int64).share_memory_()

    def set_epoch(self, epoch: int) -> None:
        """Sets the epoch that draws depend on; see `ReproducibleTraining`."""
        self._epoch[0] = epoch

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        image = self.images.read(index)
        entropy = (self.seed, int(self._epoch), index)
        if self.augment is not None:
            with seeded(*entropy):
                image = self.augment(self._pixels(image, index))
        seed = int(np.random.SeedSequence(entropy).generate_state(1)[0])
        return {"image": image, "labels": self.images.labels[index], "augmentation_seed": seed}

    def _pixels(self, image: PIL.Image.Image, index: int) -> torch.Tensor:
        try:
            return to_pixels(image, self.convert_rgb)
        except ValueError as error:
            file = getattr(image, "filename", "") or f"number {index}"
            raise ValueError(f"Cannot use the image {file}: {error}") from error


class EvaluationExamples(Dataset):
    """Labeled images without augmentation: `image` and `labels`."""

    def __init__(self, images: LabeledImages):
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"image": self.images.read(index), "labels": self.images.labels[index]}


def training_and_evaluation_examples(
    splits: dict[str, LabeledImages],
    augmentation: AugmentationArguments,
    processor: BaseImageProcessor,
    seed: int,
) -> dict[str, Dataset]:
    """Returns augmented examples of the training split, and unchanged images of the other splits."""
    size = processor.size if processor.do_resize else {}
    image_size = (size["height"], size["width"]) if "height" in size else None
    augment = make_augmentation(augmentation, image_size)
    return {
        name: TrainingExamples(images, augment, seed, processor.do_convert_rgb)
        if name == "train"
        else EvaluationExamples(images)
        for name, images in splits.items()
    }
