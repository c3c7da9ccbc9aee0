"""Batches of patches that were cut image by image, in the workers of a data loader.

Shapes: B images; n patches of one image, N those of the longest; P side of a patch; C channels.
"""

from typing import Any

import torch
from transformers.data.data_collator import default_data_collator


PADDED = ("pixel_values", "patch_coordinates", "pixel_attention_mask")
PATCH_KEYS = (*PADDED, "spatial_shapes")


class PatchCollator:
    """Stacks examples of images of any sizes; those with fewer patches are padded, and a mask says so.

    For the data loader of `Trainer`, where an image processor with `return_patches=True` prepares images one by one:
    `Trainer(..., data_collator=PatchCollator())`. Only the patches that are kept leave the workers.
    """

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """
        Args:
            examples: each with what the image processor returns for one image, with or without a leading batch
                dimension of one: `pixel_values` `(n, P*P*C)`, `patch_coordinates` `(n, 2)`, `spatial_shapes`
                `(2,)` and `pixel_attention_mask` `(n,)`; and whatever transformers' `default_data_collator` stacks,
                such as `label`.

        Returns:
            What models take, `(B, N, ...)`; zeros in `pixel_attention_mask` `(B, N)` are padding.

        Raises:
            ValueError: if an example has no patches, or images have patches of different sizes.
        """
        patches = [self._patches_of(index, example) for index, example in enumerate(examples)]
        sizes = sorted({example["pixel_values"].shape[1] for example in patches})
        if len(sizes) > 1:
            raise ValueError(
                f"Patches of different sizes cannot make one batch, and these have {sizes} numbers each: prepare all "
                "images with one patch_size and number of channels."
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
                f"Example {index} has no {' and no '.join(missing)}: prepare images by an image processor with "
                "return_patches=True, and give Trainer remove_unused_columns=False."
            )
        values = {key: torch.as_tensor(example[key]) for key in PATCH_KEYS}
        if values["pixel_values"].ndim == 3 and values["pixel_values"].shape[0] == 1:
            values = {key: value[0] for key, value in values.items()}
        if values["pixel_values"].ndim != 2:
            raise ValueError(
                f"pixel_values of example {index} have the shape {tuple(values['pixel_values'].shape)}, and patches of "
                "one image have (n, P*P*C): prepare images by an image processor with return_patches=True."
            )
        return values
