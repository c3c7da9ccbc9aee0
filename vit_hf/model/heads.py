"""From hidden states to an answer. Shape legend: `tokens.py`."""

import torch
from torch import nn
from transformers.activations import ACT2FN


class AdaptiveViTPooler(nn.Module):
    """A dense layer on the CLS token, as in transformers' ViT."""

    def __init__(self, config):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.pooler_output_size)
        self.activation = ACT2FN[config.pooler_act]

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.activation(self.dense(hidden_states[:, 0]))


def pool_cls(hidden_states: torch.Tensor, num_patches: int, mask: torch.Tensor | None) -> torch.Tensor:
    """The CLS token, `(B, D)`."""
    return hidden_states[:, 0]


def pool_mean(hidden_states: torch.Tensor, num_patches: int, mask: torch.Tensor | None) -> torch.Tensor:
    """Mean over the patches that count, `(B, D)`."""
    patches = hidden_states[:, -num_patches:]
    if mask is None:
        return patches.mean(dim=1)
    weights = mask.unsqueeze(-1).to(patches)
    return (patches * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1)


POOLINGS = {"cls": pool_cls, "mean": pool_mean}


def check_labels(labels: torch.Tensor, num_labels: int, problem_type: str | None) -> None:
    """Refuses labels that stand for nothing (on a GPU a wrong index would kill the process instead).

    Raises:
        ValueError: naming the label and the legal range.
    """
    if problem_type == "regression" or num_labels == 1:
        wrong, legal = ~torch.isfinite(labels), "finite numbers"
    elif labels.is_floating_point():
        wrong, legal = ~((labels >= 0) & (labels <= 1)), "0 to 1 for each class"
    else:
        wrong = (labels != -100) & ((labels < 0) | (labels >= num_labels))
        legal = f"0..{num_labels - 1} (-100 marks one to ignore)"
    if wrong.any():
        raise ValueError(
            f"Label {labels[wrong][0].item()} is outside {legal}. The model has num_labels={num_labels} and "
            f"problem_type={problem_type!r}: set them when loading it, or mend the labels."
        )


class MaskedImageDecoder(nn.Sequential):
    """One 1x1 convolution and a pixel shuffle (SimMIM, Xie et al., 2021), named as in transformers' ViT."""

    def __init__(self, config):
        stride = config.encoder_stride
        super().__init__(
            nn.Conv2d(config.hidden_size, stride**2 * config.num_channels, kernel_size=1),
            nn.PixelShuffle(stride),
        )


def masked_reconstruction_loss(
    pixel_values: torch.Tensor, reconstruction: torch.Tensor, masked: torch.Tensor
) -> torch.Tensor:
    """Mean absolute error over the pixels of masked patches.

    Args:
        pixel_values, reconstruction: `(B, C, H, W)`.
        masked: `(B, R, S)` bool, one for each patch; patches tile the image.
    """
    height, width = pixel_values.shape[-2] // masked.shape[1], pixel_values.shape[-1] // masked.shape[2]
    mask = masked.repeat_interleave(height, 1).repeat_interleave(width, 2).unsqueeze(1)
    error = (pixel_values - reconstruction).abs().float() * mask  # half precision could not hold the sum
    return error.sum() / (mask.sum() + 1e-5) / pixel_values.shape[1]
