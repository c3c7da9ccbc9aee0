"""Masked autoencoding: masking, a light decoder, the loss.

"Masked Autoencoders Are Scalable Vision Learners" (He et al., 2022). Parameters carry the names of
transformers' ViTMAE.
"""

import copy
from dataclasses import dataclass

import torch
from huggingface_hub.dataclasses import strict
from torch import nn
from transformers import initialization as init

from .layers import AdaptiveViTLayer, Initialized, layer_contexts, make_norm, normalize
from .options import Options, check_part, check_positive, check_range, read_options, type_of
from .patches import (
    ImagePatches,
    PatchTokens,
    TokenSequence,
    flatten_channels_last,
    gather_tokens,
    move_fields,
    raster_indices,
)
from .pixel_scorers import pixel_scores
from .positions import POSITION_ENCODINGS
from .sizes import to_pair


@strict
@dataclass(kw_only=True)
class MaskedAutoencoderOptions(Options):
    """Options of `masked_autoencoder`, named as in transformers' `ViTMAEConfig`.

    Args:
        mask_ratio: fraction in (0, 1) of the patches that pretraining drops.
        norm_pix_loss: whether it reconstructs patches of mean 0 and variance 1.
        decoder_hidden_size, decoder_num_hidden_layers, decoder_num_attention_heads,
            decoder_intermediate_size: sizes of the decoder.
        decoder_position_encoding: a name of `POSITION_ENCODINGS`, or a dictionary with options.
    """

    mask_ratio: float = 0.75
    norm_pix_loss: bool = False
    decoder_hidden_size: int = 512
    decoder_num_hidden_layers: int = 8
    decoder_num_attention_heads: int = 16
    decoder_intermediate_size: int = 2048
    decoder_position_encoding: str | dict = "sinusoidal_2d"

    def __post_init__(self):
        check_range(self, "mask_ratio", "a fraction of the patches in (0, 1)", 0 < self.mask_ratio < 1)
        check_positive(
            self,
            "decoder_hidden_size",
            "decoder_num_hidden_layers",
            "decoder_num_attention_heads",
            "decoder_intermediate_size",
        )
        if self.decoder_hidden_size % self.decoder_num_attention_heads:
            raise ValueError(
                f"decoder_hidden_size={self.decoder_hidden_size} must be a multiple of "
                f"decoder_num_attention_heads={self.decoder_num_attention_heads}."
            )
        check_part("decoder_position_encoding", self.decoder_position_encoding)
        if type_of(self.decoder_position_encoding) not in POSITION_ENCODINGS:
            raise ValueError(
                f"decoder_position_encoding={self.decoder_position_encoding!r} is unknown. Choose one of "
                f"{sorted(POSITION_ENCODINGS)}."
            )


def read_mae_options(config) -> MaskedAutoencoderOptions:
    """Options of `config.masked_autoencoder`."""
    return read_options(MaskedAutoencoderOptions, "masked_autoencoder", config.masked_autoencoder)


def decoder_config(config):
    """The configuration of the decoder's blocks: the encoder's, with the decoder's sizes and positions."""
    options, config = read_mae_options(config), copy.copy(config)
    config.hidden_size = options.decoder_hidden_size
    config.num_hidden_layers = options.decoder_num_hidden_layers
    config.num_attention_heads = options.decoder_num_attention_heads
    config.intermediate_size = options.decoder_intermediate_size
    config.head_dim = config.layer_sizes = None
    config.position_encoding = options.decoder_position_encoding
    config.drop_path_rate = 0.0
    config.layerscale_value = None
    return config


@dataclass
class Masking:
    """Kept and dropped patches.

    Attributes:
        selected: `(B, K)` int64 raster indices of the kept patches, in the order of the noise; -1 where an
            image keeps fewer than the batch.
        mask: `(B, N)` float, 1 for dropped patches, 0 for kept ones and for padding.
        ids_restore: `(B, N)` int64, where each patch is in a sequence of first the kept, then the dropped
            ones.
    """

    selected: torch.Tensor
    mask: torch.Tensor
    ids_restore: torch.Tensor

    def to(self, device: torch.device, non_blocking: bool = False) -> "Masking":
        """Moves all tensors; accelerate calls this where a model is spread over several devices."""
        return move_fields(self, device, non_blocking)


def draw_mask(patches: ImagePatches, mask_ratio: float, noise: torch.Tensor) -> Masking:
    """Keeps of each image the patches with the least of `noise` `(B, N)`, at least one."""
    if patches.mask is None:
        num_kept = counts = max(1, int(patches.num_patches * (1 - mask_ratio)))
    else:
        noise = noise.masked_fill(~patches.mask, torch.inf)
        counts = (patches.mask.sum(dim=1, keepdim=True).double() * (1 - mask_ratio)).long().clamp(min=1)
        num_kept = int(counts.max())
    shuffled = noise.argsort(dim=1)
    ids_restore = shuffled.argsort(dim=1)
    dropped = ids_restore >= counts
    selected = raster_indices(patches.coordinates, patches.grid).gather(1, shuffled[:, :num_kept])
    if patches.mask is not None:
        dropped = dropped & patches.mask
        selected = selected.masked_fill(torch.arange(num_kept, device=counts.device) >= counts, -1)
    return Masking(selected, dropped.float(), ids_restore)


def draw_noise(patches: ImagePatches, seed: int | None) -> torch.Tensor:
    """`(B, N)` uniform noise: afresh, or given a seed the same whenever an image of that size is seen."""
    return pixel_scores("random", patches, patches.num_patches, seed)


class MaskedAutoencoderDecoder(Initialized, nn.Module):
    """Reconstructs all patches from the states of those that the encoder saw."""

    def __init__(self, config):
        super().__init__()
        self.decoder_embed = nn.Linear(config.hidden_size, read_mae_options(config).decoder_hidden_size)
        self.num_cls = int(config.use_cls_token)
        self.config = config = decoder_config(config)
        self.mask_token = nn.Parameter(torch.empty(1, 1, config.hidden_size))
        self.position_encoding = POSITION_ENCODINGS[type_of(config.position_encoding)](config)
        self.decoder_layers = nn.ModuleList(
            AdaptiveViTLayer(config, index) for index in range(config.num_hidden_layers)
        )
        self.decoder_norm = make_norm(config)
        height, width = to_pair(config.patch_size)
        self.decoder_pred = nn.Linear(config.hidden_size, height * width * config.num_channels)

    def forward(self, hidden_states: torch.Tensor, patches: ImagePatches, masking: Masking) -> torch.Tensor:
        """Pixels `(B, N, P*P*C)` of all patches, from the encoder's last hidden states `(B, T, D)`."""
        num_kept = masking.selected.shape[1]
        hidden_states = self.decoder_embed(hidden_states)
        # The encoder may lie on another device.
        device = hidden_states.device
        masking = masking.to(device)
        prefix, kept = hidden_states[:, :-num_kept], hidden_states[:, -num_kept:]
        seen = gather_tokens(kept, masking.ids_restore.clamp(max=num_kept - 1))
        states = torch.where(masking.mask.bool().unsqueeze(-1), self.mask_token.to(seen.dtype), seen)
        tokens = PatchTokens(
            states, patches.coordinates, patches.grid, patches.mask, full_grid=patches.full_grid
        ).to(device)
        cls, registers = prefix[:, : self.num_cls], prefix[:, self.num_cls :]
        positions = self.position_encoding(tokens, cls_token=cls if self.num_cls else None)
        cls = positions.cls_token if self.num_cls else cls
        hidden_states = torch.cat((cls, registers, positions.features), dim=1)
        contexts = layer_contexts(self.config, self.position_encoding, TokenSequence(hidden_states, tokens))
        for index, layer in enumerate(self.decoder_layers):
            hidden_states = layer(hidden_states, contexts[index])
        hidden_states = normalize(self.decoder_norm, hidden_states, tokens.mask)
        return self.decoder_pred(hidden_states[:, -tokens.coordinates.shape[1] :])

    def reset_parameters(self, std: float) -> None:
        init.trunc_normal_(self.mask_token, mean=0.0, std=std)


def reconstruction_loss(
    patches: ImagePatches, logits: torch.Tensor, mask: torch.Tensor, norm_pix_loss: bool
) -> torch.Tensor:
    """Mean squared error of pixels `(B, N, P*P*C)` over the patches that `mask` `(B, N)` has 1 for.

    Args:
        norm_pix_loss: whether each patch is first brought to mean 0 and variance 1, as in table 1d of the
            paper.
    """
    target = flatten_channels_last(patches.gather().features, patches.pixels.shape[-2:]).float()
    if norm_pix_loss:
        variance, mean = torch.var_mean(target, dim=-1, keepdim=True)
        target = (target - mean) / (variance + 1e-6).sqrt()
    error = (logits.float() - target.to(logits.device)).square().mean(dim=-1)
    mask = mask.to(logits.device)
    return (error * mask).sum() / mask.sum().clamp(min=1)
