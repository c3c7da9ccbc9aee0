"""Holds the common parts of the experiments: flags, short trainings, cached results, tables and log lines.

Import it as `import harness` before torch: threads of torch that wait should sleep rather than take cores
from others, which they learn from the environment when torch starts.
"""

import argparse
import contextlib
import json
import multiprocessing
import os
import platform
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import TYPE_CHECKING, Any


os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch
import transformers
from transformers.utils.logging import disable_progress_bar, set_verbosity_error


if TYPE_CHECKING:
    from vit_hf.arguments import DataArguments


DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# Flags that several experiments have, and their help.
FLAGS = {
    "output": "folder of the results",
    "seeds": "seeds of everything random, or their number",
    "steps": "steps of each training",
    "batch_size": "examples in a step",
    "learning_rate": "peak learning rate",
    "size": "side of the images in pixels",
    "num_noise": "strokes on a canvas",
    "num_train": "examples to train on",
    "num_test": "examples to test on",
    "device": "cpu or cuda",
    "use_cpu": "even where there is an accelerator",
}


def make_parser(description: str, **defaults: Any) -> argparse.ArgumentParser:
    """Builds a parser whose help shows the defaults.

    Args:
        description: docstring of the experiment; its first line is shown.
        defaults: default of each flag; `(default, help)` of one that is not in `FLAGS`. A flag with a list
            takes several values, one with False is a switch, and one with True has a `--no-` form.
    """
    parser = argparse.ArgumentParser(
        description=description.partition("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    for name, default in defaults.items():
        default, text = default if isinstance(default, tuple) else (default, FLAGS[name])
        if isinstance(default, bool):
            options = {"action": argparse.BooleanOptionalAction if default else "store_true"}
        elif isinstance(default, list):
            # Without seeds, results that are there already are printed.
            options = {"nargs": "*" if name == "seeds" else "+", "type": type(default[0])}
        else:
            options = {"type": Path if name == "output" else type(default)}
        default = Path(default) if name == "output" else default
        parser.add_argument(f"--{name.replace('_', '-')}", default=default, help=text, **options)
    return parser


def training_options(output: Path, args: argparse.Namespace, seed: int, **options: Any) -> dict[str, Any]:
    """Returns arguments of `RunArguments` or `TrainingArguments` for a short training without checkpoints.

    Args:
        output: folder of the run.
        args: parsed flags, with `batch_size`, `learning_rate` and `use_cpu`.
        seed: of initialization and order.
        options: further arguments; they override.
    """
    return {
        "output_dir": str(output),
        "num_train_epochs": 1,
        "per_device_train_batch_size": args.batch_size,
        "per_device_eval_batch_size": 50,
        "learning_rate": args.learning_rate,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 0.1,
        "weight_decay": 0.05,
        "eval_strategy": "no",
        "save_strategy": "no",
        "logging_steps": 100,
        "seed": seed,
        "use_cpu": args.use_cpu,
        "disable_tqdm": True,
        **options,
    }


def digit_canvases(**options: Any) -> "DataArguments":
    """Returns the arguments for the embedded digits, without a validation split.

    Args:
        options: of `vit_hf.data.megapixel_digits`.
    """
    # Imported late: experiments that measure memory train nothing.
    from vit_hf.arguments import DataArguments

    return DataArguments(dataset="megapixel_digits", dataset_options=options, validation_fraction=0.0)


def check_settings(file: Path, settings: dict[str, Any]) -> None:
    """Ends the script if the result in `file` was made with other settings."""
    if json.loads(file.read_text()).get("settings") != settings:
        raise SystemExit(f"{file} was made with other settings: give another --output, or remove it")


def cached(file: Path, settings: dict[str, Any], compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Returns the result in `file`, after computing and writing it if there is none.

    Args:
        file: JSON file of one run.
        settings: of the run, written with its result; other settings in `file` end the script.
        compute: returns the result.
    """
    if file.is_file():
        check_settings(file, settings)
        return json.loads(file.read_text())
    result = compute() | {"settings": settings}
    write_json(file, result)
    return result


def run_settings(
    num_seeds: int,
    settings: Mapping[str, Any],
    run: Callable[[Any, int], Any],
    log: "Log",
    summarize: Callable[[Any], str],
    file: Path | None = None,
    jobs: int = 1,
) -> dict[str, list]:
    """Runs every setting with every seed, and returns the results of each setting in the order of seeds.

    Args:
        num_seeds: number of seeds 0, 1, ...
        settings: settings by name.
        run: returns the result of a setting and a seed; picklable if there are several jobs.
        log: receives a line for each run.
        summarize: formats a result for that line.
        file: JSON file of the results so far.
        jobs: number of processes; they share the threads of this one.
    """
    results: dict[str, list] = {name: [None] * num_seeds for name in settings}
    runs = [(name, seed) for seed in range(num_seeds) for name in settings]

    def record(name: str, seed: int, result: Any) -> None:
        results[name][seed] = result
        log(f"seed {seed}, {name}: {summarize(result)}")
        if file is not None:
            done = {key: [one for one in found if one is not None] for key, found in results.items()}
            write_json(file, done)

    disable_progress_bar()
    if jobs == 1:
        for name, seed in runs:
            record(name, seed, run(settings[name], seed))
        return results
    threads = max(1, torch.get_num_threads() // jobs)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, context, start_process, (threads,)) as pool:
        futures = {pool.submit(run, settings[name], seed): (name, seed) for name, seed in runs}
        for future in as_completed(futures):
            record(*futures[future], future.result())
    return results


def start_process(num_threads: int) -> None:
    """Limits the threads of a process and hides its progress bars."""
    torch.set_num_threads(num_threads)
    disable_progress_bar()


def selections(selectors: Iterable[str], fractions: Iterable[float]) -> dict[str, tuple[str, float]]:
    """Returns each selector with each fraction of the patches, the highest first, after all patches."""
    pairs = [("all", 1.0)]
    pairs += [(selector, fraction) for selector in selectors for fraction in sorted(fractions, reverse=True)]
    return {f"{selector} {fraction}": (selector, fraction) for selector, fraction in pairs}


def write_json(file: Path, value: Any) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(value, indent=2) + "\n")


class Log:
    """Prints messages after the seconds since it was made.

    Args:
        clock: `time.process_time` for seconds of the CPU, `time.perf_counter` where processes share the work.
    """

    def __init__(self, clock: Callable[[], float] = time.process_time):
        self._clock, self._start = clock, clock()

    def __call__(self, message: str) -> None:
        print(f"[{self.seconds():.0f} s] {message}", flush=True)

    def seconds(self) -> float:
        return self._clock() - self._start

    def total(self) -> str:
        return f"{self.seconds():.0f} s{' of CPU time' if self._clock is time.process_time else ''} in all"


def mean_and_sd(values: Sequence[float | None]) -> str:
    """Formats mean ± sample standard deviation in per cent; one value has no ±, unknown ones are `-`."""
    if None in values:
        return "-"
    deviation = f" ± {100 * statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{100 * statistics.mean(values):.1f}{deviation}"


def markdown_row(cells: Iterable[object]) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def markdown_head(header: Sequence[object]) -> str:
    """Returns the first two lines of a table."""
    return f"{markdown_row(header)}\n{'|---' * len(header)}|"


def markdown_table(header: Sequence[object], rows: Iterable[Iterable[object]]) -> str:
    return "\n".join([markdown_head(header), *map(markdown_row, rows)])


def machine_line(device: str = "cpu") -> str:
    """Returns processor or GPU and the versions of libraries, for the heading of a table."""
    name = f"{torch.get_num_threads()} CPU threads ({platform.machine()})"
    if device.startswith("cuda"):
        name = torch.cuda.get_device_name()
    return f"{name}, torch {torch.__version__}, transformers {transformers.__version__}"


def command_line(file: str, argv: list[str] | None) -> str:
    """Returns the command that runs the experiment `file` with `argv`, by default that of this process."""
    return shlex.join(
        ["python", f"scripts/experiments/{Path(file).name}", *(sys.argv[1:] if argv is None else argv)]
    )


def hide_reports() -> None:
    """Hides the progress bars of transformers, and its report about the head of every checkpoint."""
    set_verbosity_error()
    disable_progress_bar()


@contextlib.contextmanager
def errors_as_messages(file: str) -> Iterator[None]:
    """Ends the experiment `file` with a line instead of a traceback when files or values are wrong."""
    try:
        yield
    except (OSError, ValueError, ImportError) as error:
        sys.exit(f"{Path(file).name}: {error}")


def attention_selectors(
    num_layers: Iterable[int], reductions: Iterable[str], thumbnail_size: int | None
) -> list[tuple[str, dict[str, Any]]]:
    """Returns titles and options of `attention` selectors: each number of blocks with each reduction."""
    size = {} if thumbnail_size is None else {"thumbnail_size": thumbnail_size}
    return [
        (
            f"attention of block {block}" + (f", {reduction}" if reduction != "mean" else ""),
            {"type": "attention", "num_layers": block, "reduction": reduction, **size},
        )
        for block in num_layers
        for reduction in reductions
    ]
