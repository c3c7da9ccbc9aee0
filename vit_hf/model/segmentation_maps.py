"""From the logits of a segmentation model to a class for each pixel of the images. Shape legend: `tokens.py`; L classes."""

import torch
from torch import nn
from transformers.image_processing_base import BatchFeature

from .axes import to_pair
from .image_resizing import target_size


class SegmentationMaps:
    """Stands before an image processor."""

    def post_process_semantic_segmentation(
        self,
        outputs,
        target_sizes: list[tuple[int, int]] | torch.Tensor | None = None,
        return_segmentation_scores: bool = False,
    ) -> list[torch.Tensor] | list[BatchFeature]:
        """As in transformers: class maps `(height, width)` int64, one for each image.

        Args:
            outputs: of `AdaptiveViTForSemanticSegmentation`, with logits `(B, L, h, w)`. A single class is a yes (1) or a
                no (0).
            target_sizes: (height, width) of each image as it was before preparation; None for maps of the logits' size.
                Pixels that no whole patch covered have the class beside them.
            return_segmentation_scores: whether to return objects with `segmentation` and `segmentation_scores` (logits
                `(L, height, width)`) instead.

        Raises:
            ValueError: for another number of sizes than of images.
        """
        logits = outputs.logits
        if target_sizes is not None and len(target_sizes) != len(logits):
            raise ValueError(
                f"target_sizes has {len(target_sizes)} sizes for {len(logits)} images: give one (height, width) each."
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
