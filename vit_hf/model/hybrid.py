"""The hybrid stem: a CNN reads the images, and cells of its last feature map are embedded. Shape legend: `tokens.py`.

"An Image is Worth 16x16 Words" (Dosovitskiy et al., 2020), section 3.1. F: channels of the feature map.
"""

import math

import torch
from torch import nn
from transformers import MODEL_FOR_BACKBONE_MAPPING, AutoBackbone

from .axes import to_pair
from .options import read_options
from .patch_embeddings import PatchEmbeddingOptions, PatchProjection
from .patches import ImagePatches
from .tokens import PatchTokens, raster_indices


class HybridPatchEmbeddings(nn.Module):
    """Projects cells of a CNN's feature map to the hidden size, one for each patch of pixels.

    Which cells, selectors say by the patches; the CNN itself sees whole images, whatever is selected, and thumbnails
    as the images that they are. Where it has batch norms, training counts these in their statistics as well.
    """

    def __init__(self, config):
        super().__init__()
        self.patch_size = to_pair(config.patch_size)
        # Without attention it refuses every implementation of it but this, whichever the encoder has.
        has_attention = MODEL_FOR_BACKBONE_MAPPING[type(config.backbone_config)].has_attentions
        options = {} if has_attention else {"attn_implementation": "eager"}
        self.backbone = AutoBackbone.from_config(config.backbone_config, **options)
        bias = read_options(PatchEmbeddingOptions, "patch_embedding", config.patch_embedding).bias
        self.projection = PatchProjection(
            self.backbone.channels[-1], config.hidden_size, kernel_size=1, bias=bias
        )

    def forward(
        self,
        patches: ImagePatches,
        indices: torch.Tensor | None = None,
        weights: torch.Tensor | None = None,
    ) -> PatchTokens:
        """Embeds the cells at `indices` `(B, K)`, or means of cells by `weights` `(B, K, N)`, or all of them.

        Raises:
            ValueError: if patches of an image are missing, or the feature map has not one cell for each patch.
        """
        if patches.features is None:
            patches.features = self._read(patches)
        tokens = patches.take(indices) if weights is None else patches.mix(weights)
        tokens = tokens.with_features(self.projection(tokens.features.to(self.projection.weight.dtype)))
        if indices is None and weights is None:
            tokens.full_grid = patches.full_grid
        return tokens

    def reset_missing(self) -> None:
        """Gives torch's initial values to what a file lacked of a backbone of timm; transformers leaves it as it is.

        Raises:
            ValueError: if a part has none.
        """
        if self.backbone.config.model_type != "timm_backbone":
            return
        for name, part in self.backbone.named_modules():
            values = part.parameters(recurse=False)
            if all(getattr(value, "_is_hf_initialized", False) for value in values):
                continue
            if not hasattr(part, "reset_parameters"):
                raise ValueError(
                    f"The file has no weights for {name} of the backbone {self.backbone.config.backbone!r} of timm, and "
                    "there is no way to initialise it. Build the model from its configuration and load the file by "
                    "load_state_dict(strict=False)."
                )
            part.reset_parameters()

    def _read(self, patches: ImagePatches) -> torch.Tensor:
        """The cell of each patch, `(B, N, F)`."""
        if patches.image is not None:
            return self._map(patches.image)
        try:
            images = patches.to_images()
        except ValueError as error:
            raise ValueError(
                f"{error} The CNN of a hybrid (backbone_config) reads whole images, so the image processor must not "
                "select patches: leave out its patch_selector, and let the model select."
            ) from error
        raster = raster_indices(patches.coordinates, patches.grid)  # (B, N)
        if patches.mask is not None:
            raster = raster.masked_fill(~patches.mask, 0)
        # One by one, as they may differ in size.
        return torch.stack(
            [self._map(image[None])[0][cells] for image, cells in zip(images, raster, strict=True)]
        )

    def _map(self, images: torch.Tensor) -> torch.Tensor:
        """Cells `(B, R*S, F)` of images `(B, C, R*P, S*P)`."""
        cells = self.backbone(images.to(self.projection.weight.dtype)).feature_maps[-1]  # (B, F, R, S)
        height, width = images.shape[-2:]
        wanted = (height // self.patch_size[0], width // self.patch_size[1])
        if tuple(cells.shape[-2:]) != wanted:
            self._refuse((height, width), tuple(cells.shape[-2:]), wanted)
        return cells.flatten(2).transpose(1, 2)

    def _refuse(self, size: tuple[int, int], got: tuple[int, int], wanted: tuple[int, int]) -> None:
        # Strides of CNNs are powers of two, and a map may have a cell more or less than fit.
        strides = [2 ** round(math.log2(side / cells)) for side, cells in zip(size, got, strict=True)]
        stride = strides[0] if strides[0] == strides[1] else strides
        remedy = f"set patch_size={stride}"
        if tuple(strides) == self.patch_size:
            remedy = "give it padding that keeps the border (for BiT global_padding='same' and embedding_dynamic_padding=True)"
        raise ValueError(
            f"The feature map of the backbone has {got[0]}x{got[1]} cells for an image of {size[0]}x{size[1]} pixels, a "
            f"stride of {stride}, and patch_size={self.patch_size} needs {wanted[0]}x{wanted[1]}: {remedy}, or choose "
            "another stage as the last of out_features in backbone_config."
        )
