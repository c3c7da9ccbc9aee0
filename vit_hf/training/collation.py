"""From examples to the batch that a model takes."""

from typing import Any

import numpy as np
import torch
from torch.nn import functional
from torchvision.transforms import v2
from transformers import BaseImageProcessor

from .augmentation import seeded
from .images import prepare_images


class ImageCollator:
    """Prepares and stacks images; mixes training batches, and smooths their labels, if asked to.

    Labels of a single-label problem that are mixed or smoothed become class probabilities `(B, num_labels)`. They
    are smoothed here and not by Trainer's own label smoother, which keeps the labels from the model, whose loss
    may have a part for training its patch selector.

    Args:
        image_processor: turns a list of images into tensors.
        num_labels: classes, where labels are to be mixed or smoothed; None where they are not.
        mixup_alpha: of MixUp (Zhang et al. 2018), 0 for none.
        cutmix_alpha: of CutMix (Yun et al. 2019), 0 for none; with both, each batch draws one of the two.
        label_smoothing: probability that is spread evenly over all classes.

    Raises:
        ValueError: for mixing without `num_labels`, or when the image processor cuts patches.
    """

    def __init__(
        self,
        image_processor: BaseImageProcessor,
        num_labels: int | None = None,
        mixup_alpha: float = 0.0,
        cutmix_alpha: float = 0.0,
        label_smoothing: float = 0.0,
    ):
        mixing = mixup_alpha > 0 or cutmix_alpha > 0
        if (mixing or label_smoothing) and num_labels is None:
            raise ValueError(
                "mixup_alpha, cutmix_alpha and label_smoothing_factor are for single-label classification: set them to 0"
            )
        if mixing and getattr(image_processor, "return_patches", False):
            raise ValueError(
                "mixup_alpha and cutmix_alpha mix whole images, but return_patches cuts them before: use one or the other"
            )
        self.image_processor = image_processor
        self.num_labels = num_labels
        self.label_smoothing = label_smoothing
        mixers = []
        if mixup_alpha > 0:
            mixers.append(v2.MixUp(alpha=mixup_alpha, num_classes=num_labels))
        if cutmix_alpha > 0:
            mixers.append(v2.CutMix(alpha=cutmix_alpha, num_classes=num_labels))
        self.mix = v2.RandomChoice(mixers) if mixers else None

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Batch of examples with `image` and `labels`; training ones have an `augmentation_seed` as well."""
        batch = prepare_images(self.image_processor, [example["image"] for example in examples])
        labels = torch.as_tensor(np.stack([example["labels"] for example in examples]))
        seeds = [example["augmentation_seed"] for example in examples if "augmentation_seed" in example]
        if seeds and self.mix is not None:
            with seeded(*seeds):
                batch["pixel_values"], labels = self.mix(batch["pixel_values"], labels)
        if seeds and self.label_smoothing:
            if labels.ndim == 1:
                labels = functional.one_hot(labels, self.num_labels).float()
            labels = labels * (1 - self.label_smoothing) + self.label_smoothing / self.num_labels
        return batch | {"labels": labels}
