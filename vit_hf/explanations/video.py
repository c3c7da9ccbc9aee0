"""Which patches of a video or volume a model kept, frame by frame. Shapes: T' tubelets of t frames, R, S
rows and columns."""

import numpy as np
import PIL.Image
import PIL.ImageDraw
import torch

from ..model.modeling_adaptive_vit import AdaptiveViTForVideoClassification
from ..model.sizes import has_frames, patch_sides


# Pixels that a frame is high and wide at least, so that outlines show; and between frames.
FRAME_SIZE, GAP = 192, 6
# How much is left of the light of what was not kept, and the colour of outlines (Okabe & Ito, 2008).
DIM, OUTLINE = 0.35, (230, 159, 0)


@torch.no_grad()
def explain_video(
    model: AdaptiveViTForVideoClassification, pixel_values: torch.Tensor, columns: int = 8
) -> PIL.Image.Image:
    """A strip with the first frame (or slice) of each tubelet: kept patches outlined, the others dimmed.

    Args:
        model: of videos or volumes; its backbone or encoder will do as well.
        pixel_values: `(T, C, H, W)` one video as the model takes it. Its least value is drawn black, its
            greatest white.
        columns: frames in a row of the strip.

    Raises:
        ValueError: for a model of images, or pixels of another shape.
    """
    if not has_frames(model.config):
        raise ValueError("The model is for images (num_frames=None): use vit_hf.explain.")
    if pixel_values.ndim != 4 or columns < 1:
        raise ValueError(
            "One video (T, C, H, W) is drawn, in at least 1 column; got shape "
            f"{tuple(pixel_values.shape)} and "
            f"columns={columns}."
        )
    was_training = model.training
    try:
        outputs = model.eval()(pixel_values[None].to(model.device))
    finally:
        model.train(was_training)
    tubelet, height, width = patch_sides(model.config)
    cells = [
        side // patch for side, patch in zip(pixel_values[:, 0].shape, (tubelet, height, width), strict=True)
    ]
    kept = np.zeros(int(np.prod(cells)), bool)
    chosen = outputs.selected_patches[0]
    kept[chosen[chosen >= 0].cpu().numpy()] = True
    frames = pixel_values[: cells[0] * tubelet : tubelet, :, : cells[1] * height, : cells[2] * width]
    pictures = [
        _draw(frame, of_frame, (height, width))
        for frame, of_frame in zip(_to_bytes(frames), kept.reshape(cells), strict=True)
    ]
    side = pictures[0].width + GAP, pictures[0].height + GAP
    columns = min(columns, len(pictures))
    rows = -(-len(pictures) // columns)
    strip = PIL.Image.new("RGB", (columns * side[0] - GAP, rows * side[1] - GAP), "white")
    for index, picture in enumerate(pictures):
        strip.paste(picture, (index % columns * side[0], index // columns * side[1]))
    return strip


def _to_bytes(frames: torch.Tensor) -> np.ndarray:
    """`(T', H, W, 3)` uint8 of frames `(T', C, H, W)` in any range; grey unless they have three channels."""
    frames = frames.float().cpu()
    if frames.shape[1] != 3:
        frames = frames.mean(1, keepdim=True).expand(-1, 3, -1, -1)
    low, high = frames.aminmax()
    return ((frames - low) / (high - low).clamp(min=1e-6) * 255).round().byte().permute(0, 2, 3, 1).numpy()


def _draw(frame: np.ndarray, kept: np.ndarray, patch_size: tuple[int, int]) -> PIL.Image.Image:
    """One frame `(H, W, 3)` with its kept patches `(R, S)`."""
    shown = np.kron(kept, np.ones(patch_size, bool))[..., None]
    zoom = max(1, -(-FRAME_SIZE // min(frame.shape[:2])))
    picture = PIL.Image.fromarray(np.where(shown, frame, frame * DIM).astype(np.uint8))
    picture = picture.resize((picture.width * zoom, picture.height * zoom), PIL.Image.Resampling.NEAREST)
    draw = PIL.ImageDraw.Draw(picture)
    height, width = (zoom * side for side in patch_size)
    for row, column in np.argwhere(kept).tolist():
        corner = (column * width, row * height)
        draw.rectangle((*corner, corner[0] + width - 1, corner[1] + height - 1), outline=OUTLINE, width=2)
    return picture
