"""From examples to batches: whole images, or patches cut in the workers."""

from typing import Any

import numpy as np
import torch
from torch.nn import functional
from torchvision.transforms import v2
from transformers import BaseImageProcessor
from transformers.data.data_collator import default_data_collator

from .augmentation import seeded
from .images import prepare_images


class ImageCollator:
    """Prepares and stacks images; optionally mixes training batches and smooths their labels.

    Labels of a single-label problem that are mixed or smoothed become class probabilities `(B, num_labels)`.
    They are smoothed here and not by Trainer's own label smoother, which keeps the labels from the model,
    whose loss may have a part for training its patch selector.

    Args:
        image_processor: turns a list of images into tensors.
        num_labels: classes, where labels are to be mixed or smoothed; None where they are not.
        mixup_alpha: alpha of MixUp (Zhang et al. 2018), 0 for none.
        cutmix_alpha: alpha of CutMix (Yun et al. 2019), 0 for none; with both, each batch draws one.
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
                "mixup_alpha, cutmix_alpha and label_smoothing_factor are for single-label classification: "
                "set them to 0"
            )
        if mixing and getattr(image_processor, "return_patches", False):
            raise ValueError(
                "mixup_alpha and cutmix_alpha mix whole images, but return_patches cuts them before: use "
                "one or the other"
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


PADDED = ("pixel_values", "patch_coordinates", "pixel_attention_mask")
PATCH_KEYS = (*PADDED, "spatial_shapes")


class PatchCollator:
    """Stacks patches of images of any sizes; pads the shorter examples and masks the padding.

    For the data loader of `Trainer`, where an image processor with `return_patches=True` prepares images one
    by one: `Trainer(..., data_collator=PatchCollator())`. Only the patches that are kept leave the workers.
    """

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """
        Args:
            examples: each with what the image processor returns for one image, with or without a leading
                batch dimension of one: `pixel_values` `(n, P*P*C)`, `patch_coordinates` `(n, 2)`,
                    `spatial_shapes`
                `(2,)` and `pixel_attention_mask` `(n,)`; and whatever transformers' `default_data_collator`
                stacks, such as `label`.

        Returns:
            What models take, `(B, N, ...)`; zeros in `pixel_attention_mask` `(B, N)` are padding.

        Raises:
            ValueError: if an example has no patches, or images have patches of different sizes.
        """
        patches = [self._patches_of(index, example) for index, example in enumerate(examples)]
        sizes = sorted({example["pixel_values"].shape[1] for example in patches})
        if len(sizes) > 1:
            raise ValueError(
                f"Patches of different sizes cannot make one batch, and these have {sizes} numbers each: "
                "prepare all images with one patch_size and number of channels."
            )
        batch = {
            key: torch.nn.utils.rnn.pad_sequence([example[key] for example in patches], batch_first=True)
            for key in PADDED
        }
        batch["spatial_shapes"] = torch.stack([example["spatial_shapes"] for example in patches])
        others = [
            {key: value for key, value in example.items() if key not in PATCH_KEYS} for example in examples
        ]
        return batch | default_data_collator(others)

    def _patches_of(self, index: int, example: dict[str, Any]) -> dict[str, torch.Tensor]:
        missing = [key for key in PATCH_KEYS if key not in example]
        if missing:
            raise ValueError(
                f"Example {index} has no {' and no '.join(missing)}: prepare images by an image processor "
                "with return_patches=True, and give Trainer remove_unused_columns=False."
            )
        values = {key: torch.as_tensor(example[key]) for key in PATCH_KEYS}
        if values["pixel_values"].ndim == 3 and values["pixel_values"].shape[0] == 1:
            values = {key: value[0] for key, value in values.items()}
        if values["pixel_values"].ndim != 2:
            raise ValueError(
                f"pixel_values of example {index} have the shape {tuple(values['pixel_values'].shape)}, and "
                "patches of one image have (n, P*P*C): prepare images by an image processor with "
                "return_patches=True."
            )
        return values
