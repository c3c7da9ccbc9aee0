"""Arguments of a comparison."""

from dataclasses import dataclass, field

from ..data.arguments import DataArguments
from ..data.sources import MEGAPIXEL_DIGITS
from ..inference.aggregation import TILE_AGGREGATIONS
from ..inference.evaluation import SPLITS
from ..inference.tile_grid import check_overlap, check_tile
from .strategies import STRATEGIES


@dataclass
class ComparedDataArguments(DataArguments):
    """Arguments of the data, as for fine-tuning."""

    dataset: str | None = field(
        default=None,
        metadata={
            "aliases": ["--data"],
            "help": "folder of images (a subfolder for each class; optionally under train, validation, "
            "test), "
            f"parquet, CSV or JSON, folder of save_to_disk, name on the Hub, or {MEGAPIXEL_DIGITS}",
        },
    )


@dataclass(kw_only=True)
class ComparisonArguments:
    """Arguments of the comparison, and of its effort."""

    _argument_group_name = "comparison"

    model_name_or_path: str | None = field(
        default=None,
        metadata={
            "aliases": ["--model"],
            "help": "checkpoint of an image classifier of transformers, local or on the Hub",
        },
    )
    hybrid: str | None = field(
        default=None,
        metadata={"help": "a second checkpoint, with a convolutional stem, to compare with the first"},
    )
    output: str = field(
        default="runs/comparison",
        metadata={"help": "folder of the results; results in it with the same settings are reused"},
    )
    strategies: list[str] = field(
        default_factory=lambda: list(STRATEGIES),
        metadata={"help": "strategies to compare", "choices": tuple(STRATEGIES)},
    )
    tokens: list[int] | None = field(
        default=None,
        metadata={
            "help": "numbers of patches to select, and to resize images to; default: half, once and twice "
            "those of an image at the checkpoint's own size"
        },
    )
    selectors: list[str] | None = field(
        default=None,
        metadata={
            "help": "patch selectors; default: all that need no training, the checkpoint's own, and with "
            "adapt the learned ones"
        },
    )
    token_reducers: list[str] = field(
        default_factory=lambda: ["merge", "attentive"],
        metadata={"help": "token reducers, alone and after a selector"},
    )
    keep_rates: list[float] = field(
        default_factory=lambda: [0.7, 0.5],
        metadata={"help": "fraction of the tokens to keep at each of three blocks"},
    )
    aggregations: list[str] = field(
        default_factory=lambda: list(TILE_AGGREGATIONS),
        metadata={"help": "aggregation of the tiles' predictions", "choices": tuple(TILE_AGGREGATIONS)},
    )
    tile: int | None = field(
        default=None, metadata={"help": "side of a tile in pixels; default: the checkpoint's own size"}
    )
    overlap: float = field(default=0.25, metadata={"help": "fraction of a tile that the next one overlaps"})
    split: str | None = field(
        default=None,
        metadata={
            "help": "split to measure on: test, validation or train; default: the first of these that exists",
            "choices": SPLITS,
        },
    )
    limit: int = field(default=500, metadata={"help": "images to measure on, drawn by seed; 0: all"})
    adapt: int = field(
        default=0,
        metadata={
            "help": "steps of fine-tuning on the train split, with the plain Trainer, for each strategy "
            "before it is measured"
        },
    )
    adapt_batch_size: int = field(default=32, metadata={"help": "images in a step of fine-tuning"})
    adapt_learning_rate: float = field(
        default=1e-4, metadata={"help": "peak learning rate of fine-tuning, with a cosine schedule"}
    )
    batch_size: int = field(default=8, metadata={"help": "images at a time, for accuracy and images/s"})
    repeats: int = field(default=7, metadata={"help": "timed turns; latency is their median"})
    seed: int = field(default=0, metadata={"help": "seed of images, fine-tuning and random patches"})
    isolate: bool = field(
        default=True,
        metadata={
            "help": "run each strategy in a process of its own, which measures peak memory and survives a "
            "strategy that runs out of memory"
        },
    )
    use_cpu: bool = field(default=False, metadata={"help": "use the CPU even if there is an accelerator"})
    card: str | None = field(
        default=None, metadata={"help": "folder for a card, too: README.md, pareto.png, results.csv"}
    )

    def __post_init__(self):
        check_overlap(self.overlap)
        if self.tile is not None:
            check_tile(self.tile)
        for name in ("batch_size", "adapt_batch_size", "repeats"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        for name in ("limit", "adapt"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be 0 or more")
        if self.tokens is not None and min(self.tokens, default=0) < 1:
            raise ValueError(f"tokens are {self.tokens}; give numbers of at least 1 patch")
        for rate in self.keep_rates:
            if not 0 < rate < 1:
                raise ValueError(f"keep_rates has {rate}; give fractions of the tokens between 0 and 1")
