"""A comparison from its arguments to its files."""

import json
import platform
import re
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch
from transformers import AutoConfig

from ..data.loading import ImageDataset, LabeledImages
from ..inference.evaluation import SPLITS
from ..measure import in_fresh_process
from ..model.options import type_of
from ..model.pixel_scorers import PIXEL_SCORERS
from ..model.reducers import TOKEN_REDUCERS
from ..model.selectors import PATCH_SELECTORS
from ..model.version import __version__
from .checkpoints import Checkpoint, open_checkpoint
from .measuring import Measurement, measure_speed, measure_strategy, share_weights
from .options import ComparedDataArguments, ComparisonArguments
from .results import Row, mark, write_rows
from .strategies import STRATEGIES, Setting, Strategy
from .training import adapt, adapted_folder


# Selectors without weights of their own.
UNTRAINED = (*PIXEL_SCORERS, "attention")


def load_data(
    checkpoint: Checkpoint, data_arguments: ComparedDataArguments, adapt: int
) -> tuple[ImageDataset, bool]:
    """The data with their labels as the model numbers them; or, if it has others and is to be adapted, as
    they are.

    Returns:
        The data, and whether the model needs a new head.

    Raises:
        ValueError: for other labels than the model's and nothing to adapt it; and for a regression.
    """
    config = AutoConfig.from_pretrained(checkpoint.path)
    new_head = False
    try:
        data = data_arguments.load(label2id=config.label2id)
    except ValueError as error:
        data, new_head = data_arguments.load(), True  # fails, too, if classes are not what is wrong
        if not adapt:
            raise ValueError(
                f"{error} To fine-tune it for the classes of these data, give --adapt STEPS."
            ) from error
    if data.problem_type == "regression":
        raise ValueError("the data are a regression, and strategies are compared by accuracy")
    return data, new_head or data.num_labels != config.num_labels


def check_same_classes(checkpoint: Checkpoint, hybrid: Checkpoint) -> None:
    """
    Raises:
        ValueError: if their outputs do not mean the same.
    """
    one, other = (AutoConfig.from_pretrained(model.path).label2id for model in (checkpoint, hybrid))
    if one != other:
        raise ValueError(
            f"the hybrid {hybrid.path} has other classes than the model, or in another order: "
            "give --adapt STEPS to "
            "fine-tune both for the classes of these data"
        )


def choose_images(data: ImageDataset, arguments: ComparisonArguments) -> LabeledImages:
    """What is measured on.

    Raises:
        ValueError: if there is no such split, or nothing to adapt on.
    """
    split = arguments.split or next(name for name in SPLITS if name in data.splits)
    if split not in data.splits:
        raise ValueError(f"the data have no {split} split, only {', '.join(data.splits)}")
    if arguments.adapt and (split == "train" or "train" not in data.splits):
        raise ValueError("adapt learns from the train split: give another one to measure on")
    images = data.splits[split]
    if not arguments.limit or arguments.limit >= len(images):
        return images
    drawn = np.random.default_rng(arguments.seed).choice(len(images), arguments.limit, replace=False)
    return images.select(np.sort(drawn))


def make_setting(
    arguments: ComparisonArguments,
    checkpoint: Checkpoint,
    hybrid: Checkpoint | None,
    area: int,
    new_head: bool,
) -> Setting:
    """What was asked for, with defaults that fit the checkpoint and the images.

    Raises:
        ValueError: for a selector that does not exist.
    """
    own, patches = checkpoint.num_tokens, area // checkpoint.patch_size**2
    budgets = arguments.tokens or [max(1, own // 2), own, 2 * own]
    selectors = arguments.selectors
    if selectors is None:
        learned = [name for name in PATCH_SELECTORS if name not in UNTRAINED]
        selectors = [*UNTRAINED, *(learned if arguments.adapt else [])]
        if checkpoint.selector is not None and checkpoint.selector not in selectors:
            selectors.append(checkpoint.selector)
    unknown = [name for name in selectors if name not in PATCH_SELECTORS and "." not in name]
    if unknown:
        raise ValueError(f"selectors has {unknown[0]!r}; choose from {', '.join(PATCH_SELECTORS)}")
    return Setting(
        checkpoint=checkpoint,
        hybrid=hybrid,
        budgets=tuple(sorted({budget for budget in budgets if budget < patches} or {max(1, patches // 4)})),
        selectors=tuple(dict.fromkeys(selectors)),
        token_reducers=tuple(arguments.token_reducers),
        keep_rates=tuple(arguments.keep_rates),
        aggregations=tuple(arguments.aggregations),
        tile=arguments.tile or checkpoint.side,
        overlap=arguments.overlap,
        side=int(area**0.5),
        new_head=new_head,
    )


NUM_EXAMPLES = 3


@dataclass
class Comparison:
    """What came of a comparison.

    Attributes:
        rows: see `Row`.
        examples: images of which strategies have pictures, with the names of their classes.
        facts: about data, model and machine, as reports tell them.
    """

    rows: list[Row]
    examples: list[tuple[PIL.Image.Image, str]]
    facts: dict[str, Any]


def compare(
    arguments: ComparisonArguments,
    data_arguments: ComparedDataArguments,
    say: Callable[[str], None] = print,
) -> Comparison:
    """Measures every strategy, and writes `results.csv` to the output folder.

    A strategy that fails becomes a row with the reason. The file is there before speeds are, which come last.
    What was measured with the same settings before is not run again; speed is measured again whenever
    anything is new, for all by turns.

    Args:
        arguments: what to compare.
        data_arguments: on which images.
        say: is told how things go, a line at a time.

    Raises:
        OSError, ValueError: for a model or data that do not exist or do not fit each other.
    """
    run = _Run(arguments, data_arguments, say)
    setting = run.setting
    measured: dict[str, Measurement] = {}
    strategies, rows = {}, []
    for strategy in run.strategies():
        start = time.perf_counter()
        result, is_new = run.measure(strategy)
        if isinstance(result, str):
            rows.append(_failed(strategy, result))
            say(f"{strategy.name}: not measured: {result}")
            continue
        strategies[strategy.name], measured[strategy.name] = strategy, result
        added = [_row(strategy, answer, result, arguments) for answer in result.right]
        rows += added
        how = f"{time.perf_counter() - start:.0f} s" if is_new else "as before"
        say(f"{strategy.name}: {max(row.accuracy for row in added):.1%} ({how})")
    mark(rows)
    write_rows(rows, run.output / "results.csv")
    speeds, failures = run.speeds(strategies, measured)
    for name, reason in failures.items():
        first = next(place for place, row in enumerate(rows) if row.variant == name)
        rows = [row for row in rows if row.variant != name]
        rows.insert(first, _failed(strategies[name], reason))
        say(f"{name}: not timed: {reason}")
    for row in rows:
        if row.variant in speeds:
            row.latency_ms, row.images_per_s = speeds[row.variant]
    mark(rows)
    write_rows(rows, run.output / "results.csv")
    examples = [(run.images.read(place), run.label(place)) for place in run.examples]
    return Comparison(rows, examples, run.facts(setting))


def _row(strategy: Strategy, answer: str, result: Measurement, arguments: ComparisonArguments) -> Row:
    return Row(
        name=f"{strategy.name}, {answer}" if answer else strategy.name,
        variant=strategy.name,
        strategy=strategy.family,
        selector=strategy.changes.get("patch_selector", "none").replace("none", "") or None,
        budget=strategy.budget,
        adapt_steps=arguments.adapt if strategy.training else 0,
        right=result.right[answer],
        pictures=result.pictures,
        predicted=result.predicted[answer],
        **result.figures,
    )


def _failed(strategy: Strategy, reason: str) -> Row:
    return Row(strategy.name, strategy.family, budget=strategy.budget, reason=reason)


@dataclass
class _Failure:
    reason: str


def _attempt(function: Callable, *args: Any) -> Any:
    """Not every exception can be sent from one process to another."""
    try:
        return function(*args)
    except Exception as error:
        return _Failure(reason_of(error))


def reason_of(error: Exception) -> str:
    """In one line."""
    text = " ".join(str(error).split())[:400]
    return text if type(error) in (RuntimeError, ValueError) else f"{type(error).__name__}: {text}"


class _Run:
    """What all strategies have in common."""

    def __init__(
        self,
        arguments: ComparisonArguments,
        data_arguments: ComparedDataArguments,
        say: Callable[[str], None],
    ):
        for name, value in (("model", arguments.model_name_or_path), ("data", data_arguments.dataset)):
            if value is None:
                raise ValueError(f"name the {name} to compare with: --{name}")
        self.arguments, self.say = arguments, say
        self.output = Path(arguments.output)
        self.output.mkdir(parents=True, exist_ok=True)
        self.device = "cpu"
        if torch.accelerator.is_available() and not arguments.use_cpu:
            self.device = str(torch.accelerator.current_accelerator())
        checkpoint = open_checkpoint(arguments.model_name_or_path, self.output / "converted")
        hybrid = None
        if arguments.hybrid is not None:
            hybrid = open_checkpoint(arguments.hybrid, self.output / "converted_hybrid")
        self.data, new_head = load_data(checkpoint, data_arguments, arguments.adapt)
        for note in self.data.describe_left_out():
            say(note)
        if hybrid is not None and not arguments.adapt:
            check_same_classes(checkpoint, hybrid)
        self.images = choose_images(self.data, arguments)
        sizes = [self.images.read(place).size for place in range(min(len(self.images), 32))]
        areas = [width * height for width, height in sizes]
        self.typical = int(np.argsort(areas, kind="stable")[len(areas) // 2])
        self.largest = int(np.argmax(areas))
        self.sizes = sizes
        self.examples = list(range(min(NUM_EXAMPLES, len(self.images))))
        self.setting = make_setting(arguments, checkpoint, hybrid, areas[self.typical], new_head)
        self.shared = {
            "data": asdict(data_arguments),
            "content": {name: split.rows._fingerprint for name, split in self.data.splits.items()},
            "version": __version__,
            "number": len(self.images),
            "device": self.device,
            **{
                name: getattr(arguments, name) for name in ("split", "limit", "seed", "batch_size", "isolate")
            },
        }

    def strategies(self) -> list[Strategy]:
        """All variants of what was asked for; of a strategy that needs another model than this, one to say
        so."""
        found: list[Strategy] = []
        for name in self.arguments.strategies:
            variants = STRATEGIES[name].variants(self.setting)
            if variants and variants[0].needs_ours and variants[0].checkpoint.obstacle:
                variants = [replace(variants[0], name=name)]
            found += variants
        return list({strategy.name: strategy for strategy in found}.values())

    def measure(self, strategy: Strategy) -> tuple[Measurement | str, bool]:
        """Its measurement, or the reason why there is none; and whether it was made now."""
        arguments = self.arguments
        is_trained = bool(arguments.adapt) and strategy.training is not None
        options = {
            "steps": arguments.adapt,
            "batch_size": arguments.adapt_batch_size,
            "learning_rate": arguments.adapt_learning_rate,
            "seed": arguments.seed,
        }
        settings = json.loads(json.dumps(asdict(strategy) | self.shared | {"adapt": is_trained and options}))
        folder = self.output / "strategies" / slug(strategy.name)
        file = folder / "result.json"
        saved = read_json(file)
        # Speed needs the weights once more.
        if saved and saved["settings"] == settings and (not is_trained or Path(saved["path"]).is_dir()):
            return Measurement(**saved["measurement"]), False
        try:
            if strategy.needs_ours and strategy.checkpoint.obstacle:
                return strategy.checkpoint.obstacle, True
            path = strategy.checkpoint.path
            if is_trained:
                shared = {name: self.shared[name] for name in ("data", "content", "version")} | options
                trained = adapted_folder(strategy, self.output / "adapted", **shared)
                if not trained.is_dir():
                    self._call(adapt, strategy, self.data, trained, *options.values(), self.device == "cpu")
                path = str(trained)
            common = (arguments.batch_size, arguments.seed, self.device, arguments.isolate)
            place = (self.examples, self.typical, self.largest, folder)
            result = self._call(measure_strategy, strategy, path, self.images, *place, *common)
        # Whatever goes wrong with one strategy, of memory above all, says nothing about the others.
        except Exception as error:
            return reason_of(error), True
        write_json(file, {"settings": settings, "path": path, "measurement": asdict(result)})
        return result, True

    def _call(self, function: Callable, *args: Any) -> Any:
        if not self.arguments.isolate:
            return function(*args)
        result = in_fresh_process(_attempt, function, *args)
        if isinstance(result, _Failure):
            raise RuntimeError(result.reason)
        return result

    def speeds(
        self, strategies: dict[str, Strategy], measured: dict[str, Measurement]
    ) -> tuple[dict[str, tuple[float, float]], dict[str, str]]:
        """Milliseconds and images/s by name of the strategy, those of before if all of these were timed
        together; and why others have none."""
        file = self.output / "speeds.json"
        settings = {
            name: (self.output / "strategies" / slug(name) / "result.json").stat().st_mtime_ns
            for name in strategies
        } | {"repeats": self.arguments.repeats, "threads": torch.get_num_threads()}
        saved = read_json(file)
        if saved and settings.items() <= saved["settings"].items():
            return {name: tuple(saved["speeds"][name]) for name in strategies}, {}
        if not strategies:
            return {}, {}
        self.say(f"Speed of {len(strategies)} strategies, by turns")
        sizes = {name: measured[name].figures["batch_size"] for name in strategies}
        images = [self.images.read(place) for place in range(min(max(sizes.values()), len(self.images)))]
        predictors, first, failures = {}, {}, {}
        for name, strategy in strategies.items():
            path = read_json(self.output / "strategies" / slug(name) / "result.json")["path"]
            try:
                predictor = strategy.load(path, self.device)
                base = first.setdefault(strategy.checkpoint.path, predictor.model)
                # How many tokens "sample" keeps depends on the weights, and so may those of other packages.
                reducer = type_of(getattr(predictor.model.config, "token_reducer", None))
                follows = reducer is not None and (reducer == "sample" or reducer not in TOKEN_REDUCERS)
                if base is not predictor.model and not follows:
                    share_weights(predictor.model, base)
                # Beside all the others it may not fit into memory.
                predictor(images[: sizes[name]])
            except Exception as error:
                failures[name] = reason_of(error)
                del settings[name]
            else:
                predictors[name] = predictor
        speeds = measure_speed(
            list(predictors.values()),
            [sizes[name] for name in predictors],
            self.images.read(self.typical),
            images,
            self.arguments.repeats,
        )
        result = dict(zip(predictors, speeds, strict=True))
        write_json(file, {"settings": settings, "speeds": result})
        return result, failures

    def label(self, place: int) -> str:
        """The names of the classes of an image."""
        label = self.images.labels[place]
        numbers = [int(label)] if np.ndim(label) == 0 else np.flatnonzero(label).tolist()
        return ", ".join(self.data.id2label[number] for number in numbers)

    def facts(self, setting: Setting) -> dict[str, Any]:
        heights, widths = [height for _, height in self.sizes], [width for width, _ in self.sizes]
        is_one_size = len(set(self.sizes)) == 1
        return {
            "model": self.arguments.model_name_or_path,
            "hybrid": self.arguments.hybrid,
            "data": self.shared["data"]["dataset"],
            "data_options": self.shared["data"]["dataset_options"],
            "num_images": len(self.images),
            "num_classes": self.data.num_labels,
            "is_multi_label": self.data.problem_type == "multi_label_classification",
            "image_size": f"{widths[0]}x{heights[0]}"
            if is_one_size
            else f"{min(widths)}x{min(heights)} to {max(widths)}x{max(heights)}",
            "new_head": setting.new_head,
            "own_side": setting.checkpoint.side,
            "patch_size": setting.checkpoint.patch_size,
            "budgets": list(setting.budgets),
            "adapt": self.arguments.adapt,
            "adapt_batch_size": self.arguments.adapt_batch_size,
            "adapt_learning_rate": self.arguments.adapt_learning_rate,
            "batch_size": self.arguments.batch_size,
            "repeats": self.arguments.repeats,
            "seed": self.arguments.seed,
            "device": self.device,
            "version": __version__,
            "machine": describe_machine(self.device),
        }


def read_json(file: Path) -> Any:
    """What is in a file; None if there is none, or nothing that can be read."""
    try:
        return json.loads(file.read_text())
    except (OSError, ValueError):
        return None


def write_json(file: Path, content: Any) -> None:
    """At once, so that a run that is interrupted leaves nothing half done."""
    partial = file.with_suffix(".partial")
    partial.write_text(json.dumps(content))
    partial.replace(file)


def slug(name: str) -> str:
    return re.sub(r"[^\w.]+", "_", name)


def describe_machine(device: str) -> str:
    """What ran it, for a note beside figures."""
    threads = torch.get_num_threads()
    where = f"{threads} thread{'s' * (threads > 1)} of a {platform.machine()} CPU"
    if device.startswith("cuda"):
        where = torch.cuda.get_device_name()
    return f"{where}, torch {torch.__version__}"
