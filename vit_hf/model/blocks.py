"""What blocks are made of beside attention: norms, feed-forward networks, scales. Shape legend: `tokens.py`."""

from dataclasses import dataclass
from functools import partial

import torch
from huggingface_hub.dataclasses import strict
from torch import nn
from transformers.activations import ACT2FN

from .options import Options, check_range, read_options, type_of


# Those of transformers, and one that it lacks.
ACTIVATIONS = {**{name: partial(ACT2FN.__getitem__, name) for name in ACT2FN}, "elu": nn.ELU}


class TokenBatchNorm(nn.BatchNorm1d):
    """Batch normalisation over all tokens of all images, `(B, T, D)`; tokens that are padding do not count.

    There to be compared with: transformers normalise layers, as statistics of a batch vary with what is in it (Shen et
    al., 2020, "PowerNorm"). Ioffe & Szegedy (2015).
    """

    def forward(self, hidden_states: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """Args: `mask` `(B, T)`, False for padding; None if all count."""
        if not self.training or mask is None:
            return super().forward(hidden_states.flatten(0, 1)).view_as(hidden_states)
        weights = mask.unsqueeze(-1).float()
        count = weights.sum().clamp(min=2)
        states = hidden_states.float()
        mean = (states * weights).sum(dim=(0, 1)) / count
        variance = ((states - mean).square() * weights).sum(dim=(0, 1)) / count
        with torch.no_grad():
            self.num_batches_tracked.add_(1)
            self.running_mean.lerp_(mean.to(self.running_mean), self.momentum)
            self.running_var.lerp_((variance * count / (count - 1)).to(self.running_var), self.momentum)
        normed = (states - mean) * (variance + self.eps).rsqrt()
        return (normed * self.weight + self.bias).to(hidden_states.dtype)


NORMS = {"layernorm": nn.LayerNorm, "rmsnorm": nn.RMSNorm, "batchnorm": TokenBatchNorm}


def make_norm(config, eps: float | None = None) -> nn.Module:
    return NORMS[config.norm_type](config.hidden_size, eps=config.layer_norm_eps if eps is None else eps)


@strict
@dataclass(kw_only=True)
class FinalNormOptions(Options):
    """Options of `final_norm="pooled"`.

    Args:
        eps: epsilon, by default `layer_norm_eps`; VideoMAE has 1e-5 there.
    """

    eps: float | None = None

    def __post_init__(self):
        check_range(self, "eps", "in (0, 1), or None", self.eps is None or 0 < self.eps < 1)


# Where the last norm stands: on the tokens, on what the classifier pools from them (BEiT), or nowhere.
FINAL_NORMS: dict[str, type[Options]] = {"tokens": Options, "pooled": FinalNormOptions, "none": Options}


def make_final_norm(config) -> nn.Module | None:
    """The last norm; None for none."""
    name = type_of(config.final_norm)
    if name == "none":
        return None
    options = read_options(FINAL_NORMS[name], "final_norm", config.final_norm)
    return make_norm(config, getattr(options, "eps", None))


def make_inner_norm(config, size: int, wanted: bool) -> nn.Module:
    """A layer norm before the last dense layer of a branch, as NormFormer and EVA-02; or nothing."""
    return nn.LayerNorm(size, eps=config.layer_norm_eps) if wanted else nn.Identity()


def normalise(norm: nn.Module, hidden_states: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    """A norm of hidden states `(B, T, D)`, whose last tokens have a mask `(B, M)`, or all `(B, T)`."""
    if not isinstance(norm, TokenBatchNorm) or mask is None:
        return norm(hidden_states)
    return norm(
        hidden_states, nn.functional.pad(mask, (hidden_states.shape[1] - mask.shape[1], 0), value=True)
    )


@strict
@dataclass(kw_only=True)
class FeedForwardOptions(Options):
    """Options of feed-forward networks.

    Args:
        bias: whether the dense layers have biases.
        norm: whether a layer norm stands before the last dense layer (EVA-02 base and large, and its CLIP
            variant).
    """

    bias: bool = True
    norm: bool = False


def read_feed_forward_options(config) -> FeedForwardOptions:
    """Options of `config.feed_forward`."""
    return read_options(FeedForwardOptions, "feed_forward", config.feed_forward)


class AdaptiveViTMLP(nn.Module):
    """Two dense layers, named as in transformers' ViT; `size` wide, or as the configuration says."""

    def __init__(self, config, size: int | None = None):
        super().__init__()
        size, options = size or config.intermediate_size, read_feed_forward_options(config)
        self.activation_fn = ACTIVATIONS[config.hidden_act]()
        self.fc1 = nn.Linear(config.hidden_size, size, bias=options.bias)
        self.norm = make_inner_norm(config, size, options.norm)
        self.fc2 = nn.Linear(size, config.hidden_size, bias=options.bias)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.fc2(self.norm(self.activation_fn(self.fc1(hidden_states))))


class GatedMLP(nn.Module):
    """A dense layer gated by the activation of another: SwiGLU with `hidden_act="silu"` (Shazeer, 2020).

    Named as in transformers' DINOv3. Three matrices, so `intermediate_size` is usually 2/3 of that of two.
    """

    def __init__(self, config, size: int | None = None):
        super().__init__()
        size, options = size or config.intermediate_size, read_feed_forward_options(config)
        self.act_fn = ACTIVATIONS[config.hidden_act]()
        self.gate_proj = nn.Linear(config.hidden_size, size, bias=options.bias)
        self.up_proj = nn.Linear(config.hidden_size, size, bias=options.bias)
        self.norm = make_inner_norm(config, size, options.norm)
        self.down_proj = nn.Linear(size, config.hidden_size, bias=options.bias)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        gated = self.act_fn(self.gate_proj(hidden_states)) * self.up_proj(hidden_states)
        return self.down_proj(self.norm(gated))


FEED_FORWARDS = {"mlp": AdaptiveViTMLP, "gated": GatedMLP}


class LayerScale(nn.Module):
    """A learned scale of a residual branch (Touvron et al., 2021), named as in transformers' DINOv2."""

    def __init__(self, config):
        super().__init__()
        self.lambda1 = nn.Parameter(torch.full((config.hidden_size,), float(config.layerscale_value)))

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return hidden_states * self.lambda1


class StochasticDepth(nn.Module):
    """Drops a residual branch for whole images in training (Huang et al., 2016)."""

    def __init__(self, rate: float):
        super().__init__()
        self.rate = rate

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        if not self.training:
            return hidden_states
        keep = 1 - self.rate
        kept = hidden_states.new_empty(hidden_states.shape[0], 1, 1).bernoulli_(keep)
        return hidden_states * kept / keep
