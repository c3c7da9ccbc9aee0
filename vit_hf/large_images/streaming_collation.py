"""Batches for `Trainer` of images that do not fit into memory."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from transformers.image_processing_utils import BaseImageProcessor

from ..model.pretrained import AdaptiveViTPreTrainedModel
from ..training.images import decode_image
from .contexts import AnyImage
from .streaming import stream_images


class StreamingCollator:
    """Turns rows `{"image": file, "label": class}` into a batch that the model reads a band at a time.

    `Trainer(model, args, data_collator=StreamingCollator(model, processor), train_dataset=rows)` fine-tunes on files
    of any sizes that need not fit into memory, and evaluates and predicts on them. `args` need
    `remove_unused_columns=False`. Files are only opened here; the model reads them, so workers of the data loader
    would do nothing.

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
            rows: `image` is whatever `open_image` takes, or a file as an image column of `datasets` holds it with
                `decode=False`; `label` or `labels` what the model takes for one image, if anything.

        Raises:
            ValueError: if there is no `image`, and as `stream_images` does.
        """
        if "image" not in rows[0]:
            raise ValueError(
                f"Rows need an 'image', and have {sorted(rows[0])}. Trainer drops what forward does not name, unless "
                "TrainingArguments(remove_unused_columns=False)."
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
