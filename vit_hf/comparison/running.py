"""Runs a comparison from its arguments to its files."""

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
from tqdm.auto import tqdm
from transformers import AutoConfig

from ..arguments import SPLITS, ComparedDataArguments, ComparisonArguments
from ..data.loading import ImageDataset, LabeledImages, load_data
from ..measure import in_fresh_process
from ..model.options import type_of
from ..model.pixel_scorers import PIXEL_SCORERS
from ..model.reducers import TOKEN_REDUCERS
from ..model.selectors import PATCH_SELECTORS
from ..model.version import __version__
from .checkpoints import Checkpoint, open_checkpoint
from .choosing import MIN_IMAGES, Choice, choose_tokens, finetune_command
from .measuring import Measurement, measure_speed, measure_strategy, share_weights
from .results import Row, best_of, chance_of, mark, write_rows
from .results import measured as find_measured
from .strategies import STRATEGIES, Setting, Strategy
from .training import adapt, adapted_folder


# Selectors without weights of their own.
UNTRAINED = (*PIXEL_SCORERS, "attention")


def load_compared_data(
    checkpoint: Checkpoint, data_arguments: ComparedDataArguments, adapt: int
) -> tuple[ImageDataset, bool]:
    """Loads the data, with the model's numbers of labels; with their own if classes differ and `adapt` > 0.

    Returns:
        The data, and whether the model needs a new head.

    Raises:
        ValueError: if the classes differ and `adapt` is 0; and for a regression.
    """
    config = AutoConfig.from_pretrained(checkpoint.path)
    new_head = False
    try:
        data = load_data(data_arguments, label2id=config.label2id)
    except ValueError as error:
        data, new_head = load_data(data_arguments), True  # fails again if the error is not about classes
        if not adapt:
            raise ValueError(
                f"{error} To fine-tune it for the classes of these data, give --adapt STEPS."
            ) from error
    if data.problem_type == "regression":
        raise ValueError("The data are a regression: strategies are compared by accuracy, so give classes.")
    return data, new_head or data.num_labels != config.num_labels


def check_same_classes(checkpoint: Checkpoint, hybrid: Checkpoint) -> None:
    """Checks that two checkpoints have the same classes.

    Raises:
        ValueError: if they differ in classes or their order.
    """
    one, other = (AutoConfig.from_pretrained(model.path).label2id for model in (checkpoint, hybrid))
    if one != other:
        raise ValueError(
            f"The hybrid {hybrid.path} has other classes than the model, or in another order: give --adapt "
            "STEPS to fine-tune both for the classes of these data."
        )


def split_of(data: ImageDataset, arguments: ComparisonArguments) -> str:
    """Returns the name of the split to measure on."""
    return arguments.split or next(name for name in SPLITS if name in data.splits)


def choose_images(data: ImageDataset, arguments: ComparisonArguments) -> LabeledImages:
    """Chooses the images to measure on.

    Raises:
        ValueError: if the split does not exist, or if there is no other split to fine-tune on.
    """
    split = split_of(data, arguments)
    if split not in data.splits:
        raise ValueError(f"split={split!r} is not in the data; choose from {', '.join(data.splits)}")
    if arguments.adapt and (split == "train" or "train" not in data.splits):
        raise ValueError("adapt fine-tunes on the train split: give another split to measure on")
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
    """Makes the setting, with defaults that fit the checkpoint and the images.

    Raises:
        ValueError: for a selector that does not exist.
    """
    own, patches = checkpoint.num_tokens, area // checkpoint.patch_size**2
    chosen = None if arguments.chooses_tokens else arguments.tokens
    budgets = chosen or [max(1, own // 2), own, 2 * own]
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
        num_patches=patches,
        new_head=new_head,
    )


def check_enough(images: LabeledImages) -> None:
    """Checks that there are enough images to compare numbers of patches.

    Raises:
        ValueError: for fewer than `MIN_IMAGES`.
    """
    if len(images) < MIN_IMAGES:
        raise ValueError(
            f"--tokens auto has {len(images)} images to measure on, and needs at least {MIN_IMAGES}, better "
            "some hundreds: label more, choose a larger split with --split, or raise --limit (0: all)."
        )


NUM_EXAMPLES = 3


@dataclass(repr=False)
class Comparison:
    """Result of a comparison.

    Attributes:
        rows: see `Row`.
        examples: images that the strategies' pictures show, with the names of their classes.
        facts: facts about data, model and machine, for reports.
        choice: number of patches that was found, with `--tokens auto`.
    """

    rows: list[Row]
    examples: list[tuple[PIL.Image.Image, str]]
    facts: dict[str, Any]
    choice: Choice | None = None

    def __repr__(self) -> str:
        known = find_measured(self.rows)
        best = best_of(known) if known else None
        answer = f"most accurate: {best.name}, {best.accuracy:.1%}" if best else "none could be measured"
        return (
            f"Comparison({len(self.rows)} strategies on {self.facts['num_images']} images of "
            f"{self.facts['data']}; {answer})"
        )

    def _repr_html_(self) -> str | None:
        """Shows recommendation, plot and table in a notebook."""
        try:
            from .report import to_html
        except ImportError:  # matplotlib is missing, and notebooks show the text
            return None
        return to_html(self)


def compare(
    arguments: ComparisonArguments,
    data_arguments: ComparedDataArguments,
    log: Callable[[str], None] = print,
) -> Comparison:
    """Measures every strategy, and writes `results.csv` to the output folder.

    A strategy that fails becomes a row with the reason. The file is written before speeds are measured, and
    again after. Results with the same settings are reused; if anything is new, speed is measured again, for
    all strategies by turns.

    Args:
        arguments: arguments of the comparison.
        data_arguments: arguments of the data.
        log: called with each line of progress.

    Raises:
        OSError, ValueError: for a model or data that do not exist or do not match.
    """
    run = _Run(arguments, data_arguments, log)
    choice = None
    if arguments.chooses_tokens:
        check_enough(run.images)
        choice = choose_tokens(
            run.measure_patches,
            run.setting.selectors,
            run.setting.num_patches,
            arguments.margin / 100,
            chance=chance_of(run.data.num_labels, run.is_multi_label),
            log=log,
        )
        choice.num_labeled = len(run.data.splits[split_of(run.data, arguments)])
        choice.command = finetune_command(choice, arguments, data_arguments, run.setting.checkpoint)
    else:
        listed = run.strategies()
        for number, strategy in enumerate(tqdm(listed, unit="strategy", disable=None), start=1):
            run.add(strategy, f"{number} of {len(listed)}: ")
    strategies, measured, rows = run.measured_strategies, run.measured, run.rows
    mark(rows)
    write_rows(rows, run.output / "results.csv")
    speeds, failures = run.speeds(strategies, measured)
    for name, reason in failures.items():
        first = next(index for index, row in enumerate(rows) if row.variant == name)
        rows = [row for row in rows if row.variant != name]
        rows.insert(first, _failed(strategies[name], reason))
        log(f"{name}: not timed: {reason}")
    for row in rows:
        if row.variant in speeds:
            row.latency_ms, row.images_per_s = speeds[row.variant]
    mark(rows)
    write_rows(rows, run.output / "results.csv")
    examples = [(run.images.read(index), run.label(index)) for index in run.examples]
    return Comparison(rows, examples, run.facts(run.setting), choice)


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
    """Returns exceptions as text, since not all of them can be pickled."""
    try:
        return function(*args)
    except Exception as error:
        return _Failure(reason_of(error))


def reason_of(error: Exception) -> str:
    """Formats an error in one line."""
    text = " ".join(str(error).split())[:400]
    return text if type(error) in (RuntimeError, ValueError) else f"{type(error).__name__}: {text}"


class _Run:
    """State that all strategies share."""

    def __init__(
        self,
        arguments: ComparisonArguments,
        data_arguments: ComparedDataArguments,
        log: Callable[[str], None],
    ):
        for name, value in (("model", arguments.model_name_or_path), ("data", data_arguments.dataset)):
            if value is None:
                raise ValueError(f"name the {name} to compare with: --{name}")
        self.arguments, self.log = arguments, log
        self.output = Path(arguments.output)
        self.output.mkdir(parents=True, exist_ok=True)
        self.device = "cpu"
        if torch.accelerator.is_available() and not arguments.use_cpu:
            self.device = str(torch.accelerator.current_accelerator())
        checkpoint = open_checkpoint(arguments.model_name_or_path, self.output / "converted")
        if arguments.chooses_tokens and checkpoint.obstacle:
            raise ValueError(f"no number of patches can be chosen: {checkpoint.obstacle}")
        hybrid = None
        if arguments.hybrid is not None:
            hybrid = open_checkpoint(arguments.hybrid, self.output / "converted_hybrid")
        self.data, new_head = load_compared_data(checkpoint, data_arguments, arguments.adapt)
        for note in self.data.describe_left_out():
            log(note)
        if hybrid is not None and not arguments.adapt:
            check_same_classes(checkpoint, hybrid)
        self.images = choose_images(self.data, arguments)
        sizes = [self.images.read(index).size for index in range(min(len(self.images), 32))]
        areas = [width * height for width, height in sizes]
        self.typical = int(np.argsort(areas, kind="stable")[len(areas) // 2])
        self.largest = int(np.argmax(areas))
        self.sizes = sizes
        self.examples = list(range(min(NUM_EXAMPLES, len(self.images))))
        self.is_multi_label = self.data.problem_type == "multi_label_classification"
        self.setting = make_setting(arguments, checkpoint, hybrid, areas[self.typical], new_head)
        self.rows: list[Row] = []
        self.measured: dict[str, Measurement] = {}
        self.measured_strategies: dict[str, Strategy] = {}
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
        """Lists all variants of the strategies; just one, which fails, if a strategy needs another model."""
        found: list[Strategy] = []
        for name in self.arguments.strategies:
            variants = STRATEGIES[name].variants(self.setting)
            if variants and variants[0].needs_ours and variants[0].checkpoint.obstacle:
                variants = [replace(variants[0], name=name)]
            found += variants
        return list({strategy.name: strategy for strategy in found}.values())

    def add(self, strategy: Strategy, counted: str = "") -> list[Row]:
        """Measures a strategy and adds its rows; one row with the reason if it fails.

        Args:
            strategy: to measure.
            counted: beginning of the line that is logged.
        """
        start = time.perf_counter()
        result, is_new = self.measure(strategy)
        if isinstance(result, str):
            added = [_failed(strategy, result)]
            self.log(f"{counted}{strategy.name}: not measured: {result}")
        else:
            self.measured_strategies[strategy.name], self.measured[strategy.name] = strategy, result
            added = [_row(strategy, answer, result, self.arguments) for answer in result.right]
            how = f"{time.perf_counter() - start:.0f} s" if is_new else "as before"
            self.log(f"{counted}{strategy.name}: {max(row.accuracy for row in added):.1%} ({how})")
        self.rows += added
        return added

    def measure_patches(self, selector: str | None, budget: int | None) -> Row:
        """Measures a number of selected patches, or all patches."""
        setting, family = self.setting, "dense"
        if selector is not None:
            setting, family = replace(setting, selectors=(selector,), budgets=(budget,)), "select"
        [strategy] = STRATEGIES[family].variants(setting)
        [row] = self.add(strategy)
        return row

    def measure(self, strategy: Strategy) -> tuple[Measurement | str, bool]:
        """Returns the measurement, or the reason why there is none, and whether it is new."""
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
        # Measuring speed needs the weights, too.
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
            inputs = (self.examples, self.typical, self.largest, folder)
            result = self._call(measure_strategy, strategy, path, self.images, *inputs, *common)
        # An error of one strategy, such as out of memory, does not affect the others.
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
        """Returns milliseconds and images/s by strategy, and the reasons why others have none.

        Saved speeds are reused if all of these strategies were timed together.
        """
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
        self.log(f"Speed of {len(strategies)} strategies, by turns")
        sizes = {name: measured[name].figures["batch_size"] for name in strategies}
        images = [self.images.read(index) for index in range(min(max(sizes.values()), len(self.images)))]
        predictors, first, failures = {}, {}, {}
        for name, strategy in strategies.items():
            path = read_json(self.output / "strategies" / slug(name) / "result.json")["path"]
            try:
                predictor = strategy.load(path, self.device)
                base = first.setdefault(strategy.checkpoint.path, predictor.model)
                # Weights decide how many tokens "sample" keeps, and maybe custom reducers.
                reducer = type_of(getattr(predictor.model.config, "token_reducer", None))
                follows = reducer is not None and (reducer == "sample" or reducer not in TOKEN_REDUCERS)
                if base is not predictor.model and not follows:
                    share_weights(predictor.model, base)
                # It may not fit into memory together with all others.
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

    def label(self, index: int) -> str:
        """Returns the names of the classes of an image."""
        label = self.images.labels[index]
        numbers = [int(label)] if np.ndim(label) == 0 else np.flatnonzero(label).tolist()
        return ", ".join(self.data.id2label[number] for number in numbers)

    def num_patches(self, side: int) -> int:
        """Counts the patches of `side` pixels in the typical image, on which tokens are counted."""
        width, height = self.sizes[self.typical]
        return (width // side) * (height // side)

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
            "is_multi_label": self.is_multi_label,
            "image_size": f"{widths[0]}x{heights[0]}"
            if is_one_size
            else f"{min(widths)}x{min(heights)} to {max(widths)}x{max(heights)}",
            "new_head": setting.new_head,
            "own_side": setting.checkpoint.side,
            "patch_size": setting.checkpoint.patch_size,
            "trained_selector": setting.checkpoint.selector,
            "num_patches": self.num_patches(setting.checkpoint.patch_size),
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
    """Reads a JSON file; None if it is missing or invalid."""
    try:
        return json.loads(file.read_text())
    except (OSError, ValueError):
        return None


def write_json(file: Path, content: Any) -> None:
    """Writes a JSON file atomically, so that an interrupted run leaves no partial file."""
    partial = file.with_suffix(".partial")
    partial.write_text(json.dumps(content))
    partial.replace(file)


def slug(name: str) -> str:
    return re.sub(r"[^\w.]+", "_", name)


def describe_machine(device: str) -> str:
    """Describes the machine, for a note on figures."""
    threads = torch.get_num_threads()
    where = f"{threads} thread{'s' * (threads > 1)} of a {platform.machine()} CPU"
    if device.startswith("cuda"):
        where = torch.cuda.get_device_name()
    return f"{where}, torch {torch.__version__}"
