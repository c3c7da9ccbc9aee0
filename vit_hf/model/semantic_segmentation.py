"""A class for every pixel. Shape legend: `tokens.py`."""

import torch
from transformers.utils.generic import can_return_tuple

from .axes import to_pair
from .base_model import AdaptiveViTModel
from .configuration_adaptive_vit import AdaptiveViTConfig
from .heads import check_outputs
from .input_checks import check_tensors
from .options import type_of
from .outputs import AdaptiveViTModelOutput, AdaptiveViTSemanticSegmenterOutput
from .pretrained import AdaptiveViTPreTrainedModel
from .scout import RECORD_NOTHING
from .segmentation_decoders import (
    SEGMENTATION_DECODERS,
    crop_labels,
    read_segmentation_options,
    segmentation_loss_per_image,
)
from .selection_policy import reinforce_loss


class AdaptiveViTForSemanticSegmentation(AdaptiveViTPreTrainedModel):
    """The encoder with a linear or a small convolutional decoder: `config.segmentation_decoder`.

    Whatever is selected or reduced, logits cover the whole image: the patches that were kept are computed on finely, the
    others have what `restore` of `AdaptiveViTModel.forward` fills in.
    """

    _auto_class = "AutoModelForSemanticSegmentation"

    def __init__(self, config: AdaptiveViTConfig):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.vit = AdaptiveViTModel(config, add_pooling_layer=False)
        self.decode_head = SEGMENTATION_DECODERS[type_of(config.segmentation_decoder)](config)
        self.ignore_index = read_segmentation_options(config).ignore_index
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        labels: torch.LongTensor | None = None,
        interpolate_pos_encoding: bool | None = None,
        **kwargs,
    ) -> AdaptiveViTSemanticSegmenterOutput:
        """
        Args:
            pixel_values: see `AdaptiveViTModel.forward`, which takes the other arguments as well. The images of a batch
                have one grid.
            labels: `(B, H, W)` int64 class of each pixel, `ignore_index` of `config.segmentation_decoder` to
                ignore.

        Returns:
            `logits` `(B, num_labels, R, S)`, one for each patch, of the linear decoder, four times as many rows and
            columns of the convolutional one. The image processors make class maps of them:
            `post_process_semantic_segmentation`.

        Raises:
            ValueError: if the images have different grids, or labels do not fit them or are outside the classes.
        """
        inputs = {
            "pixel_values": pixel_values,
            "interpolate_pos_encoding": interpolate_pos_encoding,
            **kwargs,
        }
        check_tensors(labels=labels)
        outputs = self.vit(**inputs, restore=True, return_dict=True)
        grid = self._grid(pixel_values, outputs)
        logits = self._segment(outputs, grid)
        loss, selection_loss = None, outputs.selection_loss
        if labels is not None:
            ignored = self.ignore_index
            patch_size = to_pair(self.config.patch_size)
            check_outputs(self.config, self.num_labels)
            labels = crop_labels(labels.to(logits.device), grid, patch_size, self.num_labels, ignored)
            losses, counts = segmentation_loss_per_image(labels, logits, ignored)
            loss = losses.sum() / counts.sum().clamp(min=1)
            if self.training and outputs.selection_log_prob is not None:
                rewards = [-losses.detach() / counts.clamp(min=1)]
                with torch.no_grad():
                    kwargs = {**inputs, **RECORD_NOTHING, "selected_patches": outputs.favourite_patches}
                    favourites = self._segment(self.vit(**kwargs, restore=True), grid)
                    losses, _ = segmentation_loss_per_image(labels, favourites, ignored)
                    rewards.append(-losses / counts.clamp(min=1))
                policy_loss = reinforce_loss(outputs.selection_log_prob, *rewards)
                policy_loss = self.vit.selector.policy_loss_weight * policy_loss
                selection_loss = policy_loss if selection_loss is None else selection_loss + policy_loss
            if self.training and selection_loss is not None:
                loss = loss + selection_loss
        return AdaptiveViTSemanticSegmenterOutput(
            loss=loss,
            logits=logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            selected_patches=outputs.selected_patches,
            patch_scores=outputs.patch_scores,
            spatial_shapes=outputs.spatial_shapes,
            selection_loss=selection_loss,
        )

    def _segment(self, outputs: AdaptiveViTModelOutput, grid: tuple[int, int]) -> torch.Tensor:
        maps = outputs.restored_hidden_state.transpose(1, 2).unflatten(2, grid)  # (B, D, R, S)
        return self.decode_head(maps)

    def _grid(self, pixel_values: torch.Tensor, outputs: AdaptiveViTModelOutput) -> tuple[int, int]:
        """Rows and columns that all images have."""
        height, width = to_pair(self.config.patch_size)
        if pixel_values.ndim == 4:
            return pixel_values.shape[-2] // height, pixel_values.shape[-1] // width
        grids = outputs.spatial_shapes
        if (grids != grids[:1]).any():
            raise ValueError(
                f"Logits of one batch have one size, but the images have grids of {grids.tolist()} rows and columns. "
                "Give images of one size, or one at a time."
            )
        return tuple(grids[0].tolist())
