"""What a search can be asked for."""

from dataclasses import dataclass, field
from typing import Any

from ..data.arguments import given_fields
from ..training.arguments import ModelArguments
from .evolution import Evolution
from .fitness import COSTS


@dataclass
class SearchArguments:
    """Which networks to choose from, what they may cost, and how to search."""

    _argument_group_name = "search"

    elastic_hidden_sizes: list[int] | None = field(
        default=None,
        metadata={"help": "hidden sizes to choose from, such as 192 216 240; the largest is the supernet's"},
    )
    elastic_depths: list[int] | None = field(
        default=None, metadata={"help": "numbers of blocks to choose from, such as 12 13 14"}
    )
    elastic_num_attention_heads: list[int] | None = field(
        default=None, metadata={"help": "heads to choose from for each block by itself, such as 3 4"}
    )
    elastic_mlp_ratios: list[float] | None = field(
        default=None,
        metadata={
            "help": "widths of the feed-forward network, as multiples of the hidden size, to choose from "
            "for each block"
        },
    )
    elastic_keep_rates: list[float] | None = field(
        default=None,
        metadata={
            "help": "shares of the patches that the selector keeps, or keep rates of the token reducer"
        },
    )
    elastic_distillation: bool | None = field(
        default=None,
        metadata={
            "help": "train the largest by the labels, and the smallest and some others by its answers, "
            "in each step "
            "(about 2.5 times the time); otherwise one network by the labels, as AutoFormer"
        },
    )
    elastic_num_sampled: int | None = field(
        default=None, metadata={"help": "how many others; default: 2, or as in the checkpoint"}
    )
    supernet: str | None = field(
        default=None,
        metadata={
            "help": "checkpoint of a supernet that was trained already; otherwise one is trained in "
            "output_dir"
        },
    )
    supernet_factor: float = field(
        default=1.0,
        metadata={
            "help": "how many times as long the supernet is trained as networks from scratch; each of "
            "its networks learns "
            "in a few of its steps alone"
        },
    )
    budget: str = field(default="gflops", metadata={"help": "what is limited", "choices": [*COSTS]})
    budgets: list[float] | None = field(
        default=None,
        metadata={
            "help": "limits, each with a search of its own: millions of parameters, GFLOPs, or measured "
            "milliseconds of an "
            "image; default: what the hand-made networks cost"
        },
    )
    population: int = field(default=50, metadata={"help": "networks of a generation"})
    generations: int = field(default=20, metadata={"help": "the random first one included"})
    num_parents: int = field(default=10, metadata={"help": "best networks, of which the next are made"})
    mutation_depth: float = field(
        default=0.2, metadata={"help": "chance that a mutation draws depth, hidden size or keep rate anew"}
    )
    mutation_block: float = field(default=0.4, metadata={"help": "chance that a mutation draws a block anew"})
    num_hand_made: int = field(
        default=2,
        metadata={
            "help": "networks of equal blocks to compare with, trained from scratch by the same settings"
        },
    )
    retrain: bool = field(
        default=False, metadata={"help": "train what was found from scratch as well, by the same settings"}
    )
    num_seeds: int = field(
        default=1,
        metadata={"help": "how often everything is done, with seed, seed + 1, ... of training and search"},
    )

    def __post_init__(self):
        if self.budgets is not None and (not self.budgets or min(self.budgets) <= 0):
            raise ValueError(f"budgets are {self.budgets}; give numbers above 0")
        if self.budgets is None and self.num_hand_made < 1:
            raise ValueError(
                "num_hand_made is 0, so that nothing says how large a network may be: give budgets"
            )
        if not 0 < self.supernet_factor < float("inf"):
            raise ValueError(f"supernet_factor is {self.supernet_factor}; it must be above 0")
        if self.num_seeds < 1 or self.num_hand_made < 0:
            raise ValueError(
                f"num_seeds is {self.num_seeds} and num_hand_made {self.num_hand_made}; they must "
                "be at least 1 and 0"
            )
        if self.supernet is not None and self.num_seeds > 1:
            raise ValueError("supernet is one, trained with one seed: set num_seeds to 1")
        given = [f"elastic_{name}" for name in self.elastic_fields().get("elastic_space", {})]
        if self.supernet is not None and given:
            raise ValueError(f"supernet has its own search space: leave {', '.join(given)} out")
        self.evolution(0)

    def elastic_fields(self) -> dict[str, Any]:
        """Fields of the config that were asked for."""
        names = [name for name in self.__dataclass_fields__ if name.startswith("elastic_")]
        given = given_fields(self, names)
        if not given:
            return {}
        return {"elastic_space": {name.removeprefix("elastic_"): value for name, value in given.items()}}

    def evolution(self, seed: int) -> Evolution:
        """How to search."""
        return Evolution(
            self.population,
            self.generations,
            self.num_parents,
            self.mutation_depth,
            self.mutation_block,
            seed,
        )


def check_model_arguments(arguments: ModelArguments, search: SearchArguments) -> None:
    """Raises: ValueError where a model and a supernet are both named."""
    if search.supernet is not None and (arguments.model_name_or_path or arguments.config_overrides):
        raise ValueError("supernet is the model: leave model_name_or_path and config_overrides out")
