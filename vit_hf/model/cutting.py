"""What a model was given, as patches. Shape legend: `tokens.py`."""

import torch

from .axes import has_frames, native_sides, patch_sides
from .input_checks import check_pixel_values, check_tensors
from .patches import ImagePatches, by


def cut_patches(
    config,
    pixel_values: torch.Tensor | ImagePatches,
    patch_coordinates: torch.Tensor | None,
    spatial_shapes: torch.Tensor | None,
    pixel_attention_mask: torch.Tensor | None,
    interpolate_pos_encoding: bool | None,
) -> ImagePatches:
    """Patches of what a model was given; see `AdaptiveViTModel.forward`. Whoever reads images himself gives patches.

    Raises:
        TypeError: if images were not prepared by an image processor.
        ValueError: if the input has the wrong shape, or is smaller than one patch.
    """
    if isinstance(pixel_values, ImagePatches):
        return pixel_values
    check_pixel_values(pixel_values)
    check_tensors(
        patch_coordinates=patch_coordinates,
        spatial_shapes=spatial_shapes,
        pixel_attention_mask=pixel_attention_mask,
    )
    frames, sides = has_frames(config), patch_sides(config)
    if pixel_values.ndim == 3:
        if patch_coordinates is None or spatial_shapes is None:
            raise ValueError(
                f"pixel_values of shape {tuple(pixel_values.shape)} are cut patches and need patch_coordinates "
                f"(B, N, {len(sides)}) and spatial_shapes (B, {len(sides)}). One whole image needs a batch dimension: "
                "(1, C, H, W)."
            )
        return ImagePatches.from_flat(
            pixel_values,
            patch_coordinates,
            spatial_shapes,
            pixel_attention_mask,
            sides,
            config.num_channels,
        )
    if pixel_values.ndim != 2 + len(sides):
        expected = (
            "videos (B, T, C, H, W) or cut patches (B, N, t*P*P*C)"
            if frames
            else "images (B, C, H, W) or cut patches (B, N, P*P*C)"
        )
        also = ", as num_frames is set" if frames else ""
        if pixel_values.ndim == 5 and not frames:
            also = ". For videos and volumes build the model with num_frames"
        raise ValueError(f"pixel_values must be {expected}{also}, got shape {tuple(pixel_values.shape)}.")
    if frames:
        pixel_values = pixel_values.transpose(1, 2)  # (B, C, T, H, W), as convolutions want it
    if pixel_values.shape[1] != config.num_channels:
        expected = "(B, T, C, H, W)" if frames else "(B, C, H, W)"
        raise ValueError(
            f"pixel_values have {pixel_values.shape[1]} channels, the model was built for "
            f"num_channels={config.num_channels}. Expected {expected}."
        )
    if interpolate_pos_encoding is False and tuple(pixel_values.shape[2:]) != native_sides(config):
        native = f"image_size={config.image_size}" + (
            f" and num_frames={config.num_frames}" if frames else ""
        )
        raise ValueError(
            f"Images of {by(pixel_values.shape[2:])} pixels do not match "
            f"{native}, and interpolate_pos_encoding=False forbids other sizes."
        )
    return ImagePatches.from_images(pixel_values, sides)
