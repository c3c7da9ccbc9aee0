"""Sub-networks of an elastic ViT. AutoFormer (Chen et al., 2021), section 3: weight entanglement.

A sub-network's parameter is the first part, along each axis, of the supernet's parameter of the same name. So
what cannot be cut like that is refused here. Imports no PyTorch.
"""

import copy
import random
from dataclasses import asdict, dataclass
from typing import Any

from huggingface_hub.dataclasses import strict

from .budget import Budget
from .options import Options, options_of, read_options, type_of
from .sizes import head_dim_of


# What `elastic_space` may leave open, and which field of the configuration says the largest.
CHOICES = {
    "hidden_sizes": "hidden_size",
    "depths": "num_hidden_layers",
    "num_attention_heads": "num_attention_heads",
    "mlp_ratios": "intermediate_size / hidden_size",
    "keep_rates": "num_selected_patches (as a fraction), or keep_rate of a token_reducer",
}
# What has the hidden size in a way that its first channels are not those of a narrower network, and why.
NOT_SLICEABLE = {
    ("pooling", "cls+mean"): "puts two vectors beside each other",
    ("pooling", "cls+register"): "puts two vectors beside each other",
    ("pooling", "map"): "keeps queries, keys and values in one matrix",
    ("token_reducer", "gumbel"): "splits the channels into halves of different meaning",
}


@strict
@dataclass(kw_only=True)
class ElasticOptions(Options):
    """Options of `elastic_space`: what sub-networks choose from, as AutoFormer (Chen et al., 2021), and their
    training.

    The largest of each list is what the configuration says. None for no choice.

    Args:
        hidden_sizes: hidden sizes.
        depths: numbers of blocks.
        num_attention_heads: heads of each block by itself.
        mlp_ratios: widths of each block's feed-forward network, as multiples of the hidden size.
        keep_rates: fractions of the patches that the selector keeps, or without one `keep_rate` of a token
            reducer.
        distillation: whether each training step runs the largest sub-network, which learns from the labels,
            and the smallest and others, which learn from its predictions (Yu & Huang, 2019, "Universally
            Slimmable Networks"); otherwise it runs one, which learns from the labels.
        num_sampled: how many others.
    """

    hidden_sizes: list[int] | tuple[int, ...] | None = None
    depths: list[int] | tuple[int, ...] | None = None
    num_attention_heads: list[int] | tuple[int, ...] | None = None
    mlp_ratios: list[float | int] | tuple[float | int, ...] | None = None
    keep_rates: list[float | int] | tuple[float | int, ...] | None = None
    distillation: bool = False
    num_sampled: int = 2

    def __post_init__(self):
        if self.num_sampled < 0:
            raise ValueError(f"num_sampled={self.num_sampled} must be 0 or more.")
        for name in CHOICES:
            values = getattr(self, name)
            if values is not None and (
                len(values) == 0 or min(values) <= 0 or len(set(values)) < len(values)
            ):
                raise ValueError(f"{name}={values} must be different numbers above 0, or None for no choice.")
        if self.distillation and all(getattr(self, name) is None for name in CHOICES):
            raise ValueError(f"distillation=True needs something elastic: set one of {list(CHOICES)}.")


def read_elastic_options(config) -> ElasticOptions:
    """Options of `config.elastic_space`."""
    return read_options(ElasticOptions, "elastic_space", config.elastic_space)


@dataclass(frozen=True)
class SubNetwork:
    """One network of the space; hashable, and plain JSON by `to_dict`.

    Attributes:
        hidden_size: channels D.
        num_attention_heads: of each block, as many as there are blocks.
        mlp_ratios: width of each block's feed-forward network, as a multiple of `hidden_size`.
        keep_rate: share of the patches that are selected, or of the tokens that go on at each reduction; None
            where the configuration has neither.
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
        hidden_sizes, depths, num_attention_heads, mlp_ratios, keep_rates: see `ElasticOptions`.
    """

    hidden_sizes: tuple[int, ...]
    depths: tuple[int, ...]
    num_attention_heads: tuple[int, ...]
    mlp_ratios: tuple[float, ...]
    keep_rates: tuple[float | None, ...]

    @classmethod
    def of(cls, config) -> "SearchSpace":
        """That of a configuration; what it does not leave open has one value."""

        options = read_elastic_options(config)

        def choices(name: str, own: Any) -> tuple:
            given = getattr(options, name)
            return (own,) if given is None else tuple(sorted(given))

        return cls(
            choices("hidden_sizes", config.hidden_size),
            choices("depths", config.num_hidden_layers),
            choices("num_attention_heads", config.num_attention_heads),
            choices("mlp_ratios", config.intermediate_size / config.hidden_size),
            choices("keep_rates", None),
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
    given = options_of(getattr(config, "elastic_space", None))
    return any(given.get(name) is not None for name in CHOICES)


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
    sizes = {}
    if set(network.num_attention_heads) != {config.num_attention_heads}:
        sizes["num_attention_heads"] = list(network.num_attention_heads)
    config.intermediate_size = max(widths)
    if len(set(widths)) > 1:
        sizes["intermediate_size"] = widths
    config.layer_sizes = sizes or None
    if network.keep_rate is not None:
        # As a number of patches a whole number would be a single one.
        name = "num_selected_patches" if config.patch_selector else "keep_rate"
        setattr(config, name, float(network.keep_rate))
    config.elastic_space = None
    config._out_features = config._out_indices = None
    return config


def check_elastic(config) -> None:
    """Raises: ValueError for choices that the largest network does not have, or that it cannot be cut to."""
    options = read_elastic_options(config)
    if not is_elastic(config):
        return
    _check_choices(config, options)
    if config.norm_type == "batchnorm":
        raise ValueError(
            "norm_type='batchnorm' has statistics that differ from one sub-network to the next: "
            "use 'layernorm' or "
            "'rmsnorm'."
        )
    if config.backbone_config is not None:
        raise ValueError(
            "backbone_config is not for elastic networks: its CNN computes on whole images, "
            "whatever is chosen, and is the "
            "larger part. Search without it."
        )
    if config.layer_sizes is not None:
        raise ValueError(
            f"layer_sizes={config.layer_sizes} is not for elastic networks, whose largest has "
            "equal blocks: leave it out."
        )
    space = SearchSpace.of(config)
    for (field, value), reason in NOT_SLICEABLE.items():
        if len(space.hidden_sizes) > 1 and type_of(getattr(config, field)) == value:
            raise ValueError(
                f"{field}={value!r} {reason}, so that the first channels are not a narrower "
                "network: choose another, or "
                "leave hidden_sizes of elastic_space out."
            )
    reduced = max(config.reduction_layers, default=0) if config.token_reducer else -1
    if reduced >= space.depths[0]:
        raise ValueError(
            f"reduction_layers={config.reduction_layers} must be blocks that every sub-network "
            "has, below the least of "
            f"depths={list(space.depths)} of elastic_space."
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


def _check_choices(config, options: ElasticOptions) -> None:
    for name, largest in CHOICES.items():
        values, own = getattr(options, name), _largest(config, name)
        if values is None or max(values) == own:
            continue
        if name == "mlp_ratios" and round(max(values) * config.hidden_size) == config.intermediate_size:
            continue
        if name == "keep_rates" and own is None:
            raise ValueError(
                f"elastic_space: {name}={values} needs a patch_selector with num_selected_patches "
                "as a fraction (a float), or "
                "a token_reducer with keep_rate."
            )
        raise ValueError(f"elastic_space: the largest of {name}={values} must be {own}, which is {largest}.")


def _largest(config, name: str) -> int | float | None:
    if name == "mlp_ratios":
        return config.intermediate_size / config.hidden_size
    if name == "keep_rates":
        if config.patch_selector is not None:
            return config.num_selected_patches if Budget(config.num_selected_patches).is_fraction else None
        merges_number = options_of(config.token_reducer).get("r") is not None
        return config.keep_rate if config.token_reducer is not None and not merges_number else None
    return getattr(config, CHOICES[name])
