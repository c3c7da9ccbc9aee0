"""What a comparison can be asked for."""

from dataclasses import dataclass, field

from ..data.arguments import DataArguments
from ..data.sources import MEGAPIXEL_DIGITS
from ..inference.aggregation import TILE_AGGREGATIONS
from ..inference.evaluation import SPLITS
from ..inference.tile_grid import check_overlap, check_tile
from .strategies import STRATEGIES


@dataclass
class ComparedDataArguments(DataArguments):
    """Which images, as for fine-tuning."""

    dataset: str | None = field(
        default=None,
        metadata={
            "aliases": ["--data"],
            "help": "folder of images (a subfolder for each class; optionally under train, validation, "
            "test), parquet, "
            f"CSV or JSON, folder of save_to_disk, name on the Hub, or {MEGAPIXEL_DIGITS}",
        },
    )


@dataclass(kw_only=True)
class ComparisonArguments:
    """What to compare, and how long to take for it."""

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
        metadata={"help": "folder of the result; what is in it and was made alike is not run again"},
    )
    strategies: list[str] = field(
        default_factory=lambda: list(STRATEGIES),
        metadata={"help": "which of the ways to compare", "choices": tuple(STRATEGIES)},
    )
    tokens: list[int] | None = field(
        default=None,
        metadata={
            "help": "numbers of patches that are selected, and that images are resized to; default: "
            "half, once and twice "
            "as many as an image has at the checkpoint's own size"
        },
    )
    selectors: list[str] | None = field(
        default=None,
        metadata={
            "help": "patch selectors; default: all that need no training, what the checkpoint was "
            "trained with, and with "
            "adapt the learned ones"
        },
    )
    token_reducers: list[str] = field(
        default_factory=lambda: ["merge", "attentive"],
        metadata={"help": "token reducers, by themselves and after a selector"},
    )
    keep_rates: list[float] = field(
        default_factory=lambda: [0.7, 0.5],
        metadata={"help": "share of the tokens that go on at each of three blocks"},
    )
    aggregations: list[str] = field(
        default_factory=lambda: list(TILE_AGGREGATIONS),
        metadata={"help": "how tiles make the answer of the image", "choices": tuple(TILE_AGGREGATIONS)},
    )
    tile: int | None = field(
        default=None, metadata={"help": "side of a tile in pixels; default: the checkpoint's own size"}
    )
    overlap: float = field(default=0.25, metadata={"help": "share of a tile that the next one covers again"})
    split: str | None = field(
        default=None,
        metadata={
            "help": "measured on: test, validation or train; default: the first of these that there is",
            "choices": SPLITS,
        },
    )
    limit: int = field(default=500, metadata={"help": "images to measure on, drawn by seed; 0: all"})
    adapt: int = field(
        default=0,
        metadata={
            "help": "steps of plain Trainer, on the train split, that each strategy gets a copy of the "
            "checkpoint "
            "fine-tuned for before it is measured"
        },
    )
    adapt_batch_size: int = field(default=32, metadata={"help": "images in such a step"})
    adapt_learning_rate: float = field(default=1e-4, metadata={"help": "highest, of a cosine"})
    batch_size: int = field(default=8, metadata={"help": "images at a time, for accuracy and images/s"})
    repeats: int = field(default=7, metadata={"help": "turns of which latency is the median"})
    seed: int = field(default=0, metadata={"help": "of images, fine-tuning and random patches"})
    isolate: bool = field(
        default=True,
        metadata={
            "help": "run each strategy in a process of its own: one that exhausts memory ends alone, and "
            "peak memory is "
            "known"
        },
    )
    use_cpu: bool = field(default=False, metadata={"help": "even if there is an accelerator"})
    card: str | None = field(
        default=None, metadata={"help": "folder to also write a card to: README.md, pareto.png, results.csv"}
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
                raise ValueError(f"keep_rates has {rate}; a share of the tokens lies between 0 and 1")
