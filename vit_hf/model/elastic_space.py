"""Sub-networks of an elastic ViT. AutoFormer (Chen et al., 2021), section 3: weight entanglement.

A sub-network's parameter is the first part, along each axis, of the supernet's parameter of the same name. So what cannot
be cut like that is refused here.
"""

import copy
import random
from dataclasses import asdict, dataclass
from typing import Any

from .sizes import head_dim_of


# What a configuration may leave open, and which of its fields says the largest.
CHOICES = {
    "elastic_hidden_sizes": "hidden_size",
    "elastic_depths": "num_hidden_layers",
    "elastic_num_attention_heads": "num_attention_heads",
    "elastic_mlp_ratios": "intermediate_size / hidden_size",
    "elastic_keep_rates": "num_selected_patches (as a share), or keep_rate of a token_reducer",
}
# What has the hidden size in a way that its first channels are not those of a narrower network, and why.
NOT_SLICEABLE = {
    ("pooling", "cls+mean"): "puts two vectors beside each other",
    ("pooling", "cls+register"): "puts two vectors beside each other",
    ("pooling", "map"): "keeps queries, keys and values in one matrix",
    ("token_reducer", "gumbel"): "splits the channels into halves of different meaning",
}


@dataclass(frozen=True)
class SubNetwork:
    """One network of the space; hashable, and plain JSON by `to_dict`.

    Attributes:
        hidden_size: channels D.
        num_attention_heads: of each block, as many as there are blocks.
        mlp_ratios: width of each block's feed-forward network, as a multiple of `hidden_size`.
        keep_rate: share of the patches that are selected, or of the tokens that go on at each reduction; None where
            the configuration has neither.
    """

    hidden_size: int
    num_attention_heads: tuple[int, ...]
    mlp_ratios: tuple[float, ...]
    keep_rate: float | None = None

    @property
    def depth(self) -> int:
        """Number of blocks."""
        return len(self.num_attention_heads)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        return {
            name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "SubNetwork":
        """The inverse of `to_dict`."""
        return cls(
            **{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
        )


@dataclass(frozen=True)
class SearchSpace:
    """Choices, each ascending; heads and ratios are chosen for each block by itself.

    Attributes:
        hidden_sizes, depths, num_attention_heads, mlp_ratios, keep_rates: see `elastic_...` of `AdaptiveViTConfig`.
    """

    hidden_sizes: tuple[int, ...]
    depths: tuple[int, ...]
    num_attention_heads: tuple[int, ...]
    mlp_ratios: tuple[float, ...]
    keep_rates: tuple[float | None, ...]

    @classmethod
    def of(cls, config) -> "SearchSpace":
        """That of a configuration; what it does not leave open has one value."""

        def choices(name: str, own: Any) -> tuple:
            given = getattr(config, name)
            return (own,) if given is None else tuple(sorted(given))

        return cls(
            choices("elastic_hidden_sizes", config.hidden_size),
            choices("elastic_depths", config.num_hidden_layers),
            choices("elastic_num_attention_heads", config.num_attention_heads),
            choices("elastic_mlp_ratios", config.intermediate_size / config.hidden_size),
            choices("elastic_keep_rates", None),
        )

    def uniform(self, place: int) -> SubNetwork:
        """The smallest (0) or the largest (-1) sub-network."""
        depth = self.depths[place]
        return SubNetwork(
            self.hidden_sizes[place],
            (self.num_attention_heads[place],) * depth,
            (self.mlp_ratios[place],) * depth,
            self.keep_rates[place],
        )

    def sample(self, generator: random.Random) -> SubNetwork:
        """Each choice with the same chance, of each block by itself."""
        depth = generator.choice(self.depths)
        return SubNetwork(
            generator.choice(self.hidden_sizes),
            tuple(generator.choice(self.num_attention_heads) for _ in range(depth)),
            tuple(generator.choice(self.mlp_ratios) for _ in range(depth)),
            generator.choice(self.keep_rates),
        )

    def check(self, network: SubNetwork) -> None:
        """Raises: ValueError if a sub-network is none of these, naming what is not to be chosen."""
        for name, chosen, legal in (
            ("hidden_size", (network.hidden_size,), self.hidden_sizes),
            ("depth", (network.depth,), self.depths),
            ("num_attention_heads", network.num_attention_heads, self.num_attention_heads),
            ("mlp_ratios", network.mlp_ratios, self.mlp_ratios),
            ("keep_rate", (network.keep_rate,), self.keep_rates),
        ):
            if not set(chosen) <= set(legal):
                shown = chosen[0] if name in ("hidden_size", "depth", "keep_rate") else list(chosen)
                raise ValueError(f"{name}={shown} of the sub-network must be of {list(legal)}.")
        if len(network.mlp_ratios) != network.depth:
            raise ValueError(
                f"mlp_ratios={list(network.mlp_ratios)} of the sub-network must be as many as "
                f"num_attention_heads={list(network.num_attention_heads)}, one for each block."
            )


def is_elastic(config) -> bool:
    """Tells whether a configuration leaves anything open."""
    return any(getattr(config, name, None) is not None for name in CHOICES)


def subnetwork_config(config, network: SubNetwork):
    """The configuration of a sub-network, as an ordinary model."""
    config = copy.deepcopy(config)
    head_dim = head_dim_of(config)
    widths = [round(ratio * network.hidden_size) for ratio in network.mlp_ratios]
    if config.pooler_output_size == config.hidden_size:
        config.pooler_output_size = network.hidden_size
    config.hidden_size = network.hidden_size
    config.num_hidden_layers = network.depth
    config.head_dim = None if head_dim * config.num_attention_heads == network.hidden_size else head_dim
    # A position encoding counts as many heads as before, so that it means the same in every sub-network.
    if set(network.num_attention_heads) != {config.num_attention_heads}:
        config.layer_num_attention_heads = list(network.num_attention_heads)
    config.intermediate_size = max(widths)
    if len(set(widths)) > 1:
        config.layer_intermediate_sizes = widths
    if network.keep_rate is not None:
        # As a number of patches a whole number would be a single one.
        name = "num_selected_patches" if config.patch_selector else "keep_rate"
        setattr(config, name, float(network.keep_rate))
    for name in CHOICES:
        setattr(config, name, None)
    config.elastic_distillation = False
    config._out_features = config._out_indices = None
    return config


def check_elastic(config) -> None:
    """Raises: ValueError for choices that the largest network does not have, or that it cannot be cut to."""
    if config.elastic_num_sampled < 0:
        raise ValueError(f"elastic_num_sampled={config.elastic_num_sampled} must be 0 or more.")
    if not is_elastic(config):
        if config.elastic_distillation:
            raise ValueError(
                f"elastic_distillation=True needs something elastic: set one of {list(CHOICES)}."
            )
        return
    _check_choices(config)
    if config.norm_type == "batchnorm":
        raise ValueError(
            "norm_type='batchnorm' has statistics that differ from one sub-network to the next: use 'layernorm' or "
            "'rmsnorm'."
        )
    if config.backbone_config is not None:
        raise ValueError(
            "backbone_config is not for elastic networks: its CNN computes on whole images, whatever is chosen, and is the "
            "larger part. Search without it."
        )
    for name in ("layer_num_attention_heads", "layer_intermediate_sizes"):
        if getattr(config, name) is not None:
            raise ValueError(
                f"{name}={getattr(config, name)} is not for elastic networks, whose largest has equal blocks: leave it out."
            )
    space = SearchSpace.of(config)
    for (field, value), reason in NOT_SLICEABLE.items():
        if len(space.hidden_sizes) > 1 and getattr(config, field) == value:
            raise ValueError(
                f"{field}={value!r} {reason}, so that the first channels are not a narrower network: choose another, or "
                "leave elastic_hidden_sizes out."
            )
    reduced = max(config.reduction_layers, default=0) if config.token_reducer else -1
    if reduced >= space.depths[0]:
        raise ValueError(
            f"reduction_layers={config.reduction_layers} must be blocks that every sub-network has, below the least of "
            f"elastic_depths={list(space.depths)}."
        )
    largest = space.uniform(-1)
    for hidden_size in space.hidden_sizes:
        smallest = space.uniform(0)
        values = {**smallest.to_dict(), "hidden_size": hidden_size}
        for network in (SubNetwork.from_dict(values), largest):
            try:
                subnetwork_config(config, network).validate_architecture()
            except ValueError as error:
                raise ValueError(f"Of the sub-network {network.to_dict()}: {error}") from error


def _check_choices(config) -> None:
    for name, largest in CHOICES.items():
        values = getattr(config, name)
        if values is not None and (not values or min(values) <= 0 or len(set(values)) < len(values)):
            raise ValueError(f"{name}={values} must be different numbers above 0, or None for no choice.")
        own = _largest(config, name)
        if values is None or max(values) == own:
            continue
        if (
            name == "elastic_mlp_ratios"
            and round(max(values) * config.hidden_size) == config.intermediate_size
        ):
            continue
        if name == "elastic_keep_rates" and own is None:
            raise ValueError(
                f"{name}={values} needs a patch_selector with num_selected_patches as a share (a float), or a token_reducer "
                "with keep_rate."
            )
        raise ValueError(f"The largest of {name}={values} must be {own}, which is {largest}.")


def _largest(config, name: str) -> int | float | None:
    if name == "elastic_mlp_ratios":
        return config.intermediate_size / config.hidden_size
    if name == "elastic_keep_rates":
        if config.patch_selector is not None:
            number = config.num_selected_patches
            return number if isinstance(number, float) else None
        return config.keep_rate if config.token_reducer is not None and config.merge_r is None else None
    return getattr(config, CHOICES[name])
