"""Arguments of the commands: dataclasses whose fields are flags.

This module imports no torch, so that `vit-hf COMMAND --help` answers at once.
"""

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from .model.budget import Budget
from .model.options import Part, check_part


if TYPE_CHECKING:
    import optuna

MEGAPIXEL_DIGITS = "megapixel_digits"
IMAGE_PICTURES = ("overview", "patches", "scores", "attention", "rollout", "stages", "windows")
# "positions" describes the model and is drawn once for all images.
PICTURES = (*IMAGE_PICTURES, "positions")
# Names in tables of other modules, which import torch; tests compare them.
STRATEGIES = ("resize", "tiles", "dense", "select", "reduce", "hybrid")
DETECTORS = ("deformable_detr", "conditional_detr", "detr")
# Value of `tokens` that finds the number of patches, and the percentage points of accuracy it may cost.
AUTO, MARGIN = "auto", 1.0
# Of the patches, at which fidelity to the dense pass is measured.
FIDELITY_FRACTIONS = (0.05, 0.1, 0.25, 0.5)
TILE_AGGREGATIONS = ("mean", "max", "topk-mean", "attention", "vote")
BOX_MERGERS = ("match", "nms", "greedy")


def given_fields(arguments: Any, names: Iterable[str]) -> dict[str, Any]:
    """Returns the named attributes that are not None."""
    values = {name: getattr(arguments, name) for name in names}
    return {name: value for name, value in values.items() if value is not None}


def parse_json(name: str, value: dict | str | None) -> dict[str, Any]:
    """Parses a JSON object given as text; a dict passes unchanged.

    Raises:
        ValueError: if it is none.
    """
    if value is None or isinstance(value, dict):
        return value or {}
    try:
        parsed = json.loads(value)
    except ValueError as error:
        raise ValueError(f"{name} is not valid JSON ({error}): {value}") from error
    if not isinstance(parsed, dict):
        raise ValueError(f"{name} must be a JSON object such as '{{\"name\": 1}}', not {value}")
    return parsed


# Fields of AdaptiveViTConfig that choose the tokens, and may be changed in a checkpoint.
SELECTION_FIELDS = (
    "patch_selector",
    "num_selected_patches",
    "token_reducer",
    "keep_rate",
    "reduction_layers",
)


def parse_part(name: str, value: dict | str | None) -> Part | None:
    """Parses a component's name, or a JSON object with the name as `type` and options.

    Raises:
        ValueError: for an object without a type, or text that begins as one and is none.
    """
    if isinstance(value, str) and value.lstrip().startswith("{"):
        value = parse_json(name, value)
    check_part(name, value)
    return value


def parse_budget(value: float | str | None) -> int | float | None:
    """Parses a number of patches, or a fraction with a decimal point: "98" or "0.25".

    Raises:
        ValueError: if it is neither.
    """
    return None if value is None else Budget.parse(value).value


def parse_tokens(tokens: list[int | str] | None) -> list[int] | list[str] | None:
    """Converts numbers of patches; `["auto"]` stays.

    Raises:
        ValueError: if they are neither numbers of at least 1 nor `auto` alone.
    """
    if tokens is None or list(tokens) == [AUTO]:
        return tokens
    try:
        numbers = [int(number) for number in tokens]
    except ValueError:
        numbers = []
    if min(numbers, default=0) < 1:
        given = " ".join(map(str, tokens))
        raise ValueError(f"tokens are {given}; give numbers of at least 1 patch, or {AUTO} alone")
    return numbers


def check_tile(tile: Any) -> tuple[int, int]:
    """Returns height and width of a tile.

    Raises:
        ValueError: if it is none of at least one pixel.
    """
    sides = tuple(tile) if isinstance(tile, list | tuple) else (tile, tile)
    if len(sides) != 2 or not all(type(side) is int and side >= 1 for side in sides):
        raise ValueError(
            f"tile={tile!r} must be a whole number of at least 1 pixel, or a pair (height, width) of them."
        )
    return sides


def check_overlap(overlap: Any) -> None:
    """
    Raises:
        ValueError: if it is outside [0, 1), or no number.
    """
    if not isinstance(overlap, int | float) or isinstance(overlap, bool) or not 0 <= overlap < 1:
        raise ValueError(
            f"overlap={overlap!r} must be the fraction of a tile that the next one overlaps, in [0, 1), such "
            "as 0.25."
        )


@dataclass
class DataArguments:
    """Arguments that choose the images and their labels."""

    _argument_group_name = "data"

    dataset: str = field(
        metadata={
            "help": "folder of images (a subfolder for each class, nested folders allowed; optionally "
            "under train, validation, test), parquet, CSV or JSON, folder of save_to_disk, name on the Hub, "
            f"or {MEGAPIXEL_DIGITS}"
        }
    )
    dataset_options: dict | str | None = field(
        default=None,
        metadata={
            "help": 'for datasets.load_dataset or vit_hf.data.megapixel_digits, as JSON: \'{"size": '
            '1024, "task": "max"}\''
        },
    )
    image_column: str | None = field(default=None, metadata={"help": "default: the only one with images"})
    label_column: str | None = field(
        default=None, metadata={"help": "default: label or labels, or the only other column"}
    )
    validation_fraction: float = field(
        default=0.1,
        metadata={"help": "fraction of each class in train, held out if the data have no validation split"},
    )
    validation_seed: int = field(default=0, metadata={"help": "seed of that draw"})
    skip_corrupt: bool = field(
        default=False,
        metadata={"help": "leave damaged images out instead of failing; decodes all of them first"},
    )

    def __post_init__(self):
        self.dataset_options = parse_json("dataset_options", self.dataset_options)


@dataclass
class AugmentationArguments:
    """Augmentation of training images before they are resized. Off by default: digits must not be
    mirrored."""

    _argument_group_name = "augmentation"

    random_crop: Literal["none", "resized", "plain"] = field(
        default="none",
        metadata={
            "help": "'resized' cuts out a random part and resizes it to image_size, for photographs; "
            "'plain' cuts out crop_size pixels without resizing, for large images"
        },
    )
    crop_scale: float = field(
        default=0.25,
        metadata={"help": "smallest fraction of the image's area that random_crop='resized' cuts out"},
    )
    crop_size: int | None = field(
        default=None,
        metadata={"help": "pixels a side of random_crop='plain'; smaller images are padded with black"},
    )
    horizontal_flip: float = field(default=0.0, metadata={"help": "probability of mirroring left and right"})
    vertical_flip: float = field(default=0.0, metadata={"help": "probability of mirroring top and bottom"})
    rand_augment: int = field(
        default=0, metadata={"help": "magnitude of RandAugment, 1 to 30 (9 is usual); 0 leaves it out"}
    )
    mixup_alpha: float = field(
        default=0.0, metadata={"help": "of MixUp's Beta(alpha, alpha); 0 leaves it out"}
    )
    cutmix_alpha: float = field(
        default=0.0,
        metadata={"help": "of CutMix's Beta(alpha, alpha); with MixUp as well, each batch draws one"},
    )

    def __post_init__(self):
        if self.random_crop == "plain" and (self.crop_size is None or self.crop_size < 1):
            raise ValueError(f"random_crop='plain' needs crop_size, in pixels; it is {self.crop_size}")
        if not 0 < self.crop_scale <= 1:
            raise ValueError(f"crop_scale is {self.crop_scale}; it must be above 0 and at most 1")
        for name in ("horizontal_flip", "vertical_flip"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it is a probability, from 0 to 1")
        if not 0 <= self.rand_augment <= 30:
            raise ValueError(f"rand_augment is {self.rand_augment}; it must be from 0 (off) to 30")
        for name in ("mixup_alpha", "cutmix_alpha"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be 0 (off) or more")


@dataclass(kw_only=True)
class SelectionArguments:
    """Overrides of a checkpoint's patch selection, token reduction and image size."""

    patch_selector: dict | str | None = field(
        default=None,
        metadata={
            "help": "override the checkpoint's selector; none keeps all patches; with options as JSON, such "
            'as \'{"type": "attention", "num_layers": 2}\''
        },
    )
    num_selected_patches: float | str | None = field(
        default=None, metadata={"help": "override the checkpoint's number (98) or fraction (0.25) of patches"}
    )
    token_reducer: dict | str | None = field(
        default=None,
        metadata={
            "help": "override the checkpoint's reducer (merge, attentive or sample need no training); or "
            "none; with options as JSON, "
            'such as \'{"type": "merge", "r": 16}\''
        },
    )
    keep_rate: float | None = field(
        default=None,
        metadata={"help": "fraction of tokens kept at each of reduction_layers, such as 0.7"},
    )
    reduction_layers: list[int] | None = field(
        default=None, metadata={"help": "blocks, from 0, at which tokens are reduced, such as 3 6 9"}
    )
    native_resolution: bool = field(
        default=False,
        metadata={"help": "do not resize images, overriding the checkpoint's image processor"},
    )
    image_size: int | None = field(
        default=None,
        metadata={
            "help": "pixels a side that images are resized to; default: as the checkpoint's processor does"
        },
    )

    def __post_init__(self):
        self.num_selected_patches = parse_budget(self.num_selected_patches)
        for name in ("patch_selector", "token_reducer"):
            setattr(self, name, parse_part(name, getattr(self, name)))
        if self.native_resolution and self.image_size:
            raise ValueError("native_resolution and image_size are mutually exclusive; set one")
        if self.image_size is not None and self.image_size < 1:
            raise ValueError(f"image_size is {self.image_size}; it must be at least 1 pixel")

    def changes(self) -> dict[str, Any]:
        """Returns the overrides of `load_classifier` that were given."""
        size = "native" if self.native_resolution else self.image_size
        return given_fields(self, SELECTION_FIELDS) | ({"resolution": size} if size else {})


# The default split: the first of these that the data have.
SPLITS = ("test", "validation", "train")


@dataclass(kw_only=True)
class EvaluationArguments(SelectionArguments):
    """Arguments of an evaluation."""

    _argument_group_name = "evaluation"

    model_name_or_path: str = field(
        metadata={"help": "checkpoint of an image classifier, with its image processor"}
    )
    split: str | None = field(
        default=None,
        metadata={
            "help": "test, validation or train; default: the first of these that there is",
            "choices": SPLITS,
        },
    )
    batch_size: int = field(default=16, metadata={"help": "images at a time, on each device"})
    num_workers: int = field(default=0, metadata={"help": "processes that read images"})
    top_k: int = field(default=5, metadata={"help": "predictions that top-k accuracy allows"})
    bf16: bool = field(default=False, metadata={"help": "compute in bfloat16"})
    use_cpu: bool = field(default=False, metadata={"help": "even if there is an accelerator"})
    output: str | None = field(
        default=None,
        metadata={
            "help": "JSON file of metrics; default: evaluation_<split>.json in the model's folder, or here"
        },
    )

    def __post_init__(self):
        super().__post_init__()
        if self.batch_size < 1:
            raise ValueError(f"batch_size is {self.batch_size}; it must be at least 1")


@dataclass(kw_only=True)
class PredictionArguments(SelectionArguments):
    """Arguments of a prediction."""

    _argument_group_name = "prediction"

    model_name_or_path: str = field(
        metadata={
            "help": "checkpoint of a classifier, segmentation model or detector, with its image processor"
        }
    )
    output: str | None = field(
        default=None,
        metadata={
            "help": "file of JSON lines; default: standard output. Of masks and boxes the folder for them"
        },
    )
    top_k: int = field(default=5, metadata={"help": "labels to list for each image"})
    with_patches: bool = field(default=False, metadata={"help": "output the selected patches and their grid"})
    batch_size: int = field(default=16, metadata={"help": "images at a time"})
    num_workers: int = field(default=0, metadata={"help": "processes that read images"})
    use_cpu: bool = field(default=False, metadata={"help": "even if there is an accelerator"})

    def __post_init__(self):
        super().__post_init__()
        for name in ("top_k", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")


@dataclass(kw_only=True)
class TilingArguments:
    """Arguments of prediction by tiles."""

    _argument_group_name = "tiles"

    tile: int | None = field(
        default=None,
        metadata={
            "help": "side in pixels of the tiles that images are cut into at full resolution; default: "
            "images are seen whole"
        },
    )
    overlap: float = field(default=0.25, metadata={"help": "fraction of a tile that the next one overlaps"})
    aggregate: str = field(
        default="mean",
        metadata={"help": "how tile predictions are aggregated", "choices": tuple(TILE_AGGREGATIONS)},
    )
    heat_maps: str | None = field(
        default=None,
        metadata={"help": "folder for pictures of where in each image its label is, <name>_heat_map.png"},
    )

    def __post_init__(self):
        check_overlap(self.overlap)
        if self.tile is not None:
            check_tile(self.tile)
        elif self.heat_maps is not None:
            raise ValueError("heat_maps are made of tiles: set tile, such as to 224")


@dataclass(kw_only=True)
class DenseArguments:
    """How masks and boxes are predicted, and what is written."""

    _argument_group_name = "masks and boxes"

    halo: int = field(
        default=0, metadata={"help": "pixels at each inner side of a tile that are computed and thrown away"}
    )
    scales: list[float] = field(
        default_factory=lambda: [1.0],
        metadata={
            "help": "factors that images are resized by, all in one run, such as 1 0.5 for large objects too"
        },
    )
    format: list[str] | None = field(
        default=None,
        metadata={
            "help": "files to write into the folder output; of masks tif, npy, zarr, geojson, picture "
            "(default: tif picture), of objects coco, geojson, picture (default: all three)"
        },
    )
    threshold: float = field(default=0.5, metadata={"help": "least score of an object"})
    merging: str = field(
        default="match",
        metadata={
            "help": "how objects that several tiles found become one",
            "choices": BOX_MERGERS,
        },
    )
    class_wise: bool = field(default=True, metadata={"help": "merge only objects of one class"})
    tolerance: float = field(
        default=1.0, metadata={"help": "outlines in GeoJSON are simplified by at most this many pixels"}
    )
    tile_selector: str | None = field(
        default=None,
        metadata={"help": "pixel scorer that selects tiles, such as variance; the others are background"},
    )
    num_selected_tiles: float | str | None = field(
        default=None,
        metadata={"help": "number (98) or fraction (0.25) of the tiles that tile_selector keeps"},
    )
    nodata: int | None = field(
        default=None, metadata={"help": "value in 0..255 of all channels of pixels without data"}
    )
    universal: Literal["objects", "masks"] = field(
        default="objects",
        metadata={
            "help": "output of models that can do both, such as Mask2Former: objects, or masks of classes"
        },
    )


@dataclass(kw_only=True)
class CollectionArguments:
    """The engine that predicts; the other options are for engine ray."""

    _argument_group_name = "engine"

    engine: str = field(
        default="local",
        metadata={
            "help": "local: this process, files as inputs, JSON lines as output. ray: processes of this "
            "machine, or of the cluster that RAY_ADDRESS names; inputs are files, folders and Parquet "
            "files, of this machine or of an object store (s3://, gs://, hf://), output is a folder of "
            "Parquet files, there too",
            "choices": ("local", "ray"),
        },
    )
    concurrency: int | None = field(
        default=None,
        metadata={"help": "workers, each with a model; default: one for each accelerator, or for each CPU"},
    )
    part_size: int = field(
        default=256,
        metadata={"help": "images in each Parquet file that is written, the least that is done again"},
    )
    image_column: str | None = field(
        default=None,
        metadata={"help": "of Parquet inputs, bytes or paths; default: the only one that may be images"},
    )

    def __post_init__(self):
        for name in ("concurrency", "part_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}; it must be at least 1")


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
    tokens: list[str] | None = field(
        default=None,
        metadata={
            "help": "numbers of patches to select, and to resize images to; default: half, once and twice "
            "those of an image at the checkpoint's own size; auto: the fewest patches that are as accurate "
            "as all, up to --margin, by the best two selectors"
        },
    )
    margin: float | None = field(
        default=None,
        metadata={
            "help": "with --tokens auto: accuracy that may be lost, in percentage points; default: "
            f"{MARGIN:g}"
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
        self.tokens = parse_tokens(self.tokens)
        for rate in self.keep_rates:
            if not 0 < rate < 1:
                raise ValueError(f"keep_rates has {rate}; give fractions of the tokens between 0 and 1")
        self._check_choice()

    @property
    def chooses_tokens(self) -> bool:
        """True if the number of patches is to be found."""
        return self.tokens == [AUTO]

    def _check_choice(self) -> None:
        if not self.chooses_tokens:
            if self.margin is not None:
                raise ValueError(f"margin is for --tokens {AUTO}, which finds the number of patches")
            return
        self.margin = MARGIN if self.margin is None else self.margin
        if not 0 < self.margin < 100:
            raise ValueError(f"margin is {self.margin}; give percentage points between 0 and 100, such as 1")
        for name, unused in (("strategies", self.strategies != list(STRATEGIES)), ("hybrid", self.hybrid)):
            if unused:
                raise ValueError(
                    f"--tokens {AUTO} compares all patches of the model with selected ones: leave --{name} "
                    "out, or give numbers of tokens"
                )


@dataclass
class ArchitectureArguments:
    """Which model, and at what size it sees images."""

    _argument_group_name = "model"

    model_name_or_path: str | None = field(
        default=None,
        metadata={
            "help": "checkpoint, ours or any ViT or Swin of transformers, local or on the Hub; without "
            "it a model from scratch"
        },
    )
    config_overrides: dict | str | None = field(
        default=None,
        metadata={
            "help": "fields of AdaptiveViTConfig (of a Swin, AdaptiveSwinConfig) as JSON, such as "
            '\'{"hidden_size": 192, "drop_path_rate": 0.1}\''
        },
    )
    position_encoding: dict | str | None = field(
        default=None,
        metadata={
            "help": "such as learned, sinusoidal_2d or rotary, or with options as JSON, such as "
            '\'{"type": "rotary", "base": 10}\'; default: as in the checkpoint'
        },
    )
    image_size: int | None = field(
        default=None,
        metadata={"help": "pixels a side that images are resized to; default: as in the checkpoint, or 224"},
    )
    native_resolution: bool = field(default=False, metadata={"help": "do not resize images"})
    longest_edge: int | None = field(
        default=None,
        metadata={"help": "shrink images whose longer side has more pixels, and resize no others"},
    )
    return_patches: bool = field(
        default=False,
        metadata={
            "help": "cut (and by a pixel heuristic select) patches in the data loader; needed for images "
            "of mixed sizes"
        },
    )

    def __post_init__(self):
        self.config_overrides = parse_json("config_overrides", self.config_overrides)
        self.position_encoding = parse_part("position_encoding", self.position_encoding)
        given = [name for name in ("image_size", "native_resolution", "longest_edge") if getattr(self, name)]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} exclude each other; give one")
        for name in ("image_size", "longest_edge"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1 pixel")

    def config_fields(self) -> dict[str, Any]:
        """Fields of the config that were asked for."""
        return self.config_overrides | given_fields(self, ("position_encoding",))


@dataclass
class ModelArguments(ArchitectureArguments):
    """Which model, and what it looks at."""

    model_type: str | None = field(
        default=None,
        metadata={
            "help": "of a model from scratch: adaptive_vit, which is the default, or adaptive_swin; a "
            "checkpoint has its own"
        },
    )
    patch_selector: dict | str | None = field(
        default=None,
        metadata={
            "help": "how patches are selected before the encoder, such as variance, attention or policy, "
            "or with options as "
            'JSON, such as \'{"type": "policy", "thumbnail_size": 112}\''
        },
    )
    num_selected_patches: float | str | None = field(
        default=None,
        metadata={
            "help": "patches to keep: a number such as 98, or a share such as 0.25; of a Swin as many "
            "windows as have them"
        },
    )
    token_reducer: dict | str | None = field(
        default=None,
        metadata={
            "help": "how tokens are reduced inside the encoder: attentive, merge, gumbel or sample, or "
            "with options as JSON, "
            'such as \'{"type": "merge", "r": 16}\''
        },
    )
    keep_rate: float | None = field(
        default=None,
        metadata={"help": "share of the tokens that go on at each of reduction_layers, such as 0.7"},
    )
    reduction_layers: list[int] | None = field(
        default=None,
        metadata={"help": "blocks, from 0, at which tokens are reduced, such as 3 6 9, which is the default"},
    )

    def __post_init__(self):
        super().__post_init__()
        self.num_selected_patches = parse_budget(self.num_selected_patches)
        for name in ("patch_selector", "token_reducer"):
            setattr(self, name, parse_part(name, getattr(self, name)))

    def config_fields(self) -> dict[str, Any]:
        """Fields of the config that were asked for."""
        return super().config_fields() | given_fields(self, SELECTION_FIELDS)


@dataclass
class TrainingMethodArguments:
    """Options of fine-tuning that all tasks share."""

    keep_rate_schedule: bool = field(
        default=False,
        metadata={
            "help": "start with all patches and tokens and reduce them gradually to num_selected_patches and "
            "keep_rate"
        },
    )
    layer_decay: float = field(
        default=1.0,
        metadata={"help": "factor of the learning rate from a layer to the one below; 0.65 to 0.8 is usual"},
    )
    backbone_lr_factor: float = field(
        default=1.0,
        metadata={
            "help": "factor of the learning rate for all but the head (decoder, detector), patch "
            "selector and "
            "token reducer, beside that of layer_decay; DynamicViT uses 0.01, DETR 0.1"
        },
    )


@dataclass
class DenseTaskArguments(TrainingMethodArguments):
    """Options of segmentation and detection, whose labels are mirrored with the images."""

    horizontal_flip: float = field(default=0.0, metadata={"help": "probability of mirroring left and right"})

    def __post_init__(self):
        if not 0 <= self.horizontal_flip <= 1:
            raise ValueError(f"horizontal_flip is {self.horizontal_flip}; it is a probability, from 0 to 1")


@dataclass
class FinetuningArguments(TrainingMethodArguments):
    """Options of fine-tuning for classification, beyond those of Trainer."""

    _argument_group_name = "fine-tuning"

    keep_rate_warmup: float = field(
        default=0.1, metadata={"help": "fraction of the steps with all patches, for keep_rate_schedule"}
    )
    keep_rate_final: float = field(
        default=0.2,
        metadata={"help": "fraction of the steps with as few as requested, for keep_rate_schedule"},
    )
    keep_rate_initial: float = field(
        default=1.0,
        metadata={
            "help": "where keep_rate_schedule starts: 1 is all patches, 0.5 half-way from the target; for "
            "images whose patches do not all fit into memory"
        },
    )
    freeze_backbone_ratio: float = field(
        default=0.0,
        metadata={
            "help": "fraction of the steps, at the beginning, in which only head, patch selector and token "
            "reducer learn; 0 trains all together"
        },
    )
    freeze_head: bool = field(
        default=False,
        metadata={"help": "freeze the head with the backbone, if it knows these classes already"},
    )
    ema_decay: float | None = field(
        default=None,
        metadata={"help": "average the weights; each step keeps this fraction of the average, such as 0.999"},
    )

    def __post_init__(self):
        if self.freeze_head and not self.freeze_backbone_ratio:
            raise ValueError(
                "freeze_head goes with freeze_backbone_ratio, which is 0: set it, such as to 0.3"
            )


@dataclass
class SegmentationArguments(DenseTaskArguments):
    """Options of fine-tuning for masks, beyond those of Trainer."""

    _argument_group_name = "segmentation"

    segmentation_decoder: Literal["linear", "convolutional"] = field(
        default="convolutional",
        metadata={
            "help": "a classifier on each patch, or transposed convolutions to 4 times as many places a side"
        },
    )
    binary: bool = field(default=False, metadata={"help": "merge all classes but 0 into one"})
    ignore_label: str = field(
        default="auto",
        metadata={
            "help": "value of mask pixels that do not count, or none; default: 255, and none if masks are "
            "black and white (0 and 255) and binary"
        },
    )

    def __post_init__(self):
        super().__post_init__()
        self.ignore_label = str(self.ignore_label).lower()
        if self.ignore_label not in ("auto", "none", *map(str, range(256))):
            raise ValueError(
                f"ignore_label is {self.ignore_label!r}; give a value from 0 to 255, none or auto"
            )


PICTURE_NAME = "detections.png"


@dataclass
class DetectionArguments(DenseTaskArguments):
    """Options of fine-tuning for boxes, beyond those of Trainer."""

    _argument_group_name = "detection"

    detector: Literal["deformable_detr", "conditional_detr", "detr"] = field(
        default="deformable_detr",
        metadata={"help": "of transformers, for a new one; deformable_detr learns fastest"},
    )
    detector_overrides: dict | str | None = field(
        default=None,
        metadata={
            "help": "fields of its configuration as JSON, such as "
            '\'{"num_queries": 100, "with_box_refine": true}\''
        },
    )
    class_names: list[str] | None = field(
        default=None, metadata={"help": "all classes, in order; default: those of the data"}
    )
    single_class: bool = field(default=False, metadata={"help": "merge all classes into one"})
    clip_boxes: bool = field(
        default=False,
        metadata={
            "help": "cut boxes that reach beyond their image and drop those that are empty, instead of "
            "failing"
        },
    )
    crop_size: int | None = field(
        default=None,
        metadata={
            "help": "train on random pieces of this many pixels a side, and evaluate on tiles of that size, "
            "for large images; they are not resized unless image_size says so"
        },
    )
    min_box_fraction: float = field(
        default=0.25, metadata={"help": "of a box that must be on a piece for it to count there"}
    )
    evaluate_whole_images: bool = field(
        default=False, metadata={"help": "evaluate on whole images, whatever crop_size is"}
    )
    evaluate_merged: bool = field(
        default=False,
        metadata={
            "help": "also measure held-out images whole at the end: boxes of overlapping tiles of crop_size, "
            "merged"
        },
    )
    vertical_flip: float = field(default=0.0, metadata={"help": "probability of mirroring top and bottom"})
    evaluate_only: bool = field(default=False, metadata={"help": "train nothing: measure a saved detector"})
    num_pictured: int = field(
        default=4, metadata={"help": f"held-out images on {PICTURE_NAME} in output_dir; 0 for no picture"}
    )

    def __post_init__(self):
        super().__post_init__()
        self.detector_overrides = parse_json("detector_overrides", self.detector_overrides)
        if self.detector not in DETECTORS:
            raise ValueError(f"detector is {self.detector!r}; choose one of {', '.join(DETECTORS)}")
        if self.crop_size is not None and self.crop_size < 1:
            raise ValueError(f"crop_size is {self.crop_size}; it must be at least 1 pixel")
        for name in ("min_box_fraction", "vertical_flip"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be from 0 to 1")
        if self.num_pictured < 0:
            raise ValueError(f"num_pictured is {self.num_pictured}; it must not be negative")


@dataclass
class PretrainingArguments:
    """Options of pretraining, beyond those of Trainer."""

    _argument_group_name = "pretraining"

    mask_ratio: float | None = field(
        default=None,
        metadata={"help": "fraction of the patches that are dropped; default: as in the checkpoint, or 0.75"},
    )
    norm_pix_loss: bool = field(
        default=True,
        metadata={
            "help": "reconstruct patches normalized to mean 0 and variance 1, which makes better encoders"
        },
    )


@dataclass
class DistillationArguments:
    """Options of sparse self-distillation, beyond those of Trainer."""

    _argument_group_name = "distillation"

    min_fraction: float = field(
        default=0.05, metadata={"help": "fewest patches that the student sees, as a fraction of all"}
    )
    max_fraction: float = field(
        default=1.0,
        metadata={
            "help": "most patches that the student sees; each step draws a fraction between both, uniform "
            "in its logarithm. With 1 it keeps what it can do with many patches"
        },
    )
    random_ratio: float = field(
        default=0.5,
        metadata={"help": "fraction of the images whose patches are drawn at random, not by patch_selector"},
    )
    image_weight: float = field(
        default=1.0, metadata={"help": "weight of the loss of the state of the image (CLS, or pooled)"}
    )
    kept_weight: float = field(default=1.0, metadata={"help": "weight of the loss of states of kept patches"})
    dropped_weight: float = field(
        default=0.1,
        metadata={
            "help": "weight of the loss of the dropped patches, each with the state of the nearest kept one"
        },
    )
    map_weight: float = field(
        default=0.1,
        metadata={
            "help": "weight of the loss of a learned patch_selector: the divergence of its scores from the "
            "attention of the last block"
        },
    )
    ema_decay: float | None = field(
        default=0.999,
        metadata={"help": "average the weights; each step keeps this fraction of the average; 0: do not"},
    )
    lora_rank: int | None = field(
        default=None,
        metadata={
            "help": "train low-rank adapters of this rank in the blocks, merged at the end, and no other "
            "weights (needs peft); learning_rate 1e-4 is usual then"
        },
    )
    min_spread: float = field(
        default=0.3,
        metadata={
            "help": "stop when states of different images differ by less than this fraction of what they do "
            "in the teacher; 0: do not"
        },
    )
    fractions: list[float] = field(
        default_factory=lambda: list(FIDELITY_FRACTIONS),
        metadata={"help": "fractions of the patches at which fidelity is measured"},
    )

    def __post_init__(self):
        self.ema_decay = self.ema_decay or None
        for name, values in (
            ("min_fraction", [self.min_fraction]),
            ("max_fraction", [self.max_fraction]),
            ("fractions", self.fractions),
        ):
            if not values or not all(0 < value <= 1 for value in values):
                raise ValueError(
                    f"{name} is {getattr(self, name)}; fractions of the patches are above 0 and at most 1"
                )
        if self.min_fraction > self.max_fraction:
            raise ValueError(
                f"min_fraction is {self.min_fraction} and above max_fraction={self.max_fraction}: swap them"
            )
        if not 0 <= self.random_ratio <= 1:
            raise ValueError(f"random_ratio is {self.random_ratio}; it is a fraction of the images, 0 to 1")
        weights = ("image_weight", "kept_weight", "dropped_weight", "map_weight")
        for name in weights:
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} is {getattr(self, name)}; a weight is 0 or more")
        if not any(getattr(self, name) for name in weights[:3]):
            raise ValueError(f"{', '.join(weights[:3])} are all 0, which teaches nothing: set one above 0")
        if not 0 <= self.min_spread < 1:
            raise ValueError(f"min_spread is {self.min_spread}; it is a fraction, at least 0 and below 1")
        if self.lora_rank is not None and self.lora_rank < 1:
            raise ValueError(f"lora_rank is {self.lora_rank}; it must be at least 1, such as 16")


# By name, what a budget may limit: how tables and plots call it.
COSTS = {
    "parameters": "parameters (M)",
    "gflops": "GFLOPs of an image",
    "latency": "latency of an image (ms)",
}


@dataclass(frozen=True)
class Evolution:
    """How to search; defaults are the paper's.

    Attributes:
        population: networks of a generation.
        generations: how many, the random first one included.
        num_parents: the best so far, of which the next generation is made, half by crossover and half by
            mutation.
        mutation_depth: chance that a mutation draws the number of blocks anew; here also that of each other
            choice that a network makes but once (hidden size, keep rate).
        mutation_block: chance, for each block, that a mutation draws it anew.
        seed: of chance.

    Raises:
        ValueError: for a number that makes no sense.
    """

    population: int = 50
    generations: int = 20
    num_parents: int = 10
    mutation_depth: float = 0.2
    mutation_block: float = 0.4
    seed: int = 0

    def __post_init__(self):
        for name in ("population", "generations", "num_parents"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        for name in ("mutation_depth", "mutation_block"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it is a chance, from 0 to 1")


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


@dataclass
class TuningArguments:
    """Which settings to try."""

    _argument_group_name = "tuning"

    num_trials: int = field(
        default=20, metadata={"help": "settings to try, those of an earlier start included"}
    )
    learning_rates: list[float] = field(
        default_factory=lambda: [1e-5, 1e-2], metadata={"help": "least and highest, on a logarithmic scale"}
    )
    weight_decays: list[float] | None = field(
        default_factory=lambda: [1e-3, 0.3], metadata={"help": "least and highest, on a logarithmic scale"}
    )
    warmup_shares: list[float] | None = field(
        default_factory=lambda: [0.0, 0.3],
        metadata={"help": "least and highest share of the steps in which the learning rate rises"},
    )
    layer_decays: list[float] | None = field(
        default=None,
        metadata={
            "help": "least and highest factor of the learning rate from a layer to the one below, such as "
            "0.6 1.0; for checkpoints, not for models from scratch"
        },
    )
    batch_sizes: list[int] | None = field(
        default=None, metadata={"help": "to choose per_device_train_batch_size from, such as 32 64 128"}
    )
    prune: bool = field(
        default=True,
        metadata={"help": "stop a trial early that is worse than the median of the others at the same step"},
    )

    def __post_init__(self):
        if self.num_trials < 1:
            raise ValueError(f"num_trials is {self.num_trials}; it must be at least 1")
        for name, least, most in (
            ("learning_rates", 0, float("inf")),
            ("weight_decays", 0, float("inf")),
            ("warmup_shares", None, 1),
            ("layer_decays", 0, 1),
        ):
            values = getattr(self, name)
            if values is None:
                continue
            low = 0 if least is None else least
            legal = len(values) == 2 and low <= values[0] <= values[1] <= most
            if not legal or (least is not None and values[0] == least):
                where = f"from 0 to {most}" if least is None else f"above 0, and at most {most}"
                raise ValueError(f"{name} is {values}; give the least and the highest, {where}")
        if self.batch_sizes is not None and (not self.batch_sizes or min(self.batch_sizes) < 1):
            raise ValueError(f"batch_sizes is {self.batch_sizes}; give numbers of at least 1")

    def suggest(self, trial: "optuna.Trial") -> dict[str, Any]:
        """Settings to try, by the names that `vit-hf finetune` has for them."""
        settings = {"learning_rate": trial.suggest_float("learning_rate", *self.learning_rates, log=True)}
        if self.weight_decays is not None:
            settings["weight_decay"] = trial.suggest_float("weight_decay", *self.weight_decays, log=True)
        if self.warmup_shares is not None:
            settings["warmup_steps"] = trial.suggest_float("warmup_steps", *self.warmup_shares)
        if self.layer_decays is not None:
            settings["layer_decay"] = trial.suggest_float("layer_decay", *self.layer_decays)
        if self.batch_sizes is not None:
            name = "per_device_train_batch_size"
            settings[name] = trial.suggest_categorical(name, self.batch_sizes)
        return settings


@dataclass(kw_only=True)
class ExplainArguments(SelectionArguments):
    """Images to explain, and what to draw."""

    _argument_group_name = "explanation"

    model_name_or_path: str = field(
        metadata={"help": "checkpoint with its image processor, local or on the Hub"}
    )
    images: list[str] = field(metadata={"help": "image files, URLs, patterns, and folders"})
    output: str = field(
        default="explanations", metadata={"help": "folder for the pictures and statistics.csv"}
    )
    pictures: list[str] = field(
        default_factory=lambda: ["overview", "windows", "positions"],
        metadata={
            "help": "what to draw; windows are Swin's; positions is about the model, and one file",
            "choices": PICTURES,
        },
    )
    labels: list[str] | None = field(
        default=None, metadata={"help": "true class of each image, by name or number"}
    )
    boxes: str | None = field(
        default=None,
        metadata={
            "help": "JSON file of the objects in the images, in pixels: {image: [[x0, y0, x1, y1], ...]}, "
            "the image named as in --images or by its file name alone"
        },
    )
    device: str | None = field(
        default=None, metadata={"help": "such as cpu or cuda; default: an accelerator if there is one"}
    )


QUICKSTART = "runs/quickstart"


@dataclass(kw_only=True)
class AppArguments:
    """Checkpoint and images of the page, and where it is served."""

    _argument_group_name = "page"

    model_name_or_path: str | None = field(
        default=None,
        metadata={
            "help": "checkpoint with its image processor, local or on the Hub; default: "
            f"{QUICKSTART} if it exists"
        },
    )
    examples: list[str] | None = field(
        default=None,
        metadata={
            "help": "images to pick from: files, folders and patterns; default: examples/ in the "
            "checkpoint's folder"
        },
    )
    device: str | None = field(
        default=None, metadata={"help": "such as cpu or cuda; default: an accelerator if there is one"}
    )
    server_name: str = field(
        default="127.0.0.1", metadata={"help": "address to listen at; 0.0.0.0 lets other machines in"}
    )
    server_port: int | None = field(
        default=None, metadata={"help": "port to listen at; default: 7860, or the first free one after it"}
    )
    write_space: str | None = field(
        default=None, metadata={"help": "write a Hugging Face Space to this folder, instead of the page"}
    )
    space: str | None = field(
        default=None, metadata={"help": "upload a Hugging Face Space to this name, such as user/name"}
    )
    private: bool = field(default=False, metadata={"help": "make a new Space a private one"})

    def __post_init__(self):
        if self.model_name_or_path is None:
            if not Path(QUICKSTART, "config.json").is_file():
                raise ValueError(
                    "which checkpoint? Give --model_name_or_path, a folder or a name on the Hub such as "
                    "google/vit-base-patch16-224; or run `make quickstart`, whose model in "
                    f"{QUICKSTART} is the default"
                )
            self.model_name_or_path = QUICKSTART


# Arguments of the training commands, besides those of Trainer.
TASKS: dict[str, tuple[type, ...]] = {
    "finetune": (ModelArguments, DataArguments, AugmentationArguments, FinetuningArguments),
    "segment": (ModelArguments, DataArguments, SegmentationArguments),
    "detect": (ModelArguments, DataArguments, DetectionArguments),
    "pretrain": (ArchitectureArguments, DataArguments, AugmentationArguments, PretrainingArguments),
    "distill": (ModelArguments, DataArguments, AugmentationArguments, DistillationArguments),
    "search": (ModelArguments, DataArguments, AugmentationArguments, FinetuningArguments, SearchArguments),
    "tune": (ModelArguments, DataArguments, AugmentationArguments, FinetuningArguments, TuningArguments),
}
