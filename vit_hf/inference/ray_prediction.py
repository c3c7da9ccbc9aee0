"""Classification of collections larger than one machine, on Ray Data."""

import contextlib
import json
import logging
import math
import os
import sys
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import PIL.Image
import pyarrow
import torch

from ..arguments import SELECTION_FIELDS, CollectionArguments, PredictionArguments
from ..checkpoints.loading import load_classifier
from ..data.collections import Part, Stores, decode_stored, find_collection, make_parts, path_of, read_part
from ..data.image_folders import LeftOut
from ..data.images import StoredImage
from .parquet_output import ParquetWriter, prediction_schema
from .predict import FilePrediction, Preparation, PreparedFiles, check_with_patches, predict_prepared


# Before ray is imported, which otherwise tells its makers about its use, and whoever watches about itself.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
try:
    import ray
    import ray.data
except ImportError as error:
    raise ImportError("engine ray needs Ray Data: pip install vit_hf[ray]") from error

# Attempts at a part whose worker dies, and the largest number of tasks.
MAX_ATTEMPTS = 3
MAX_TASKS = 10_000


@ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)
class Attempts:
    """Counts the attempts at each part: Ray itself would retry forever one that kills every worker."""

    def __init__(self):
        self.counts = Counter()

    def begin(self, name: str) -> int:
        self.counts[name] += 1
        return self.counts[name]


@dataclass(frozen=True)
class WorkerSettings:
    """Settings of a worker."""

    arguments: PredictionArguments
    folder: ParquetWriter
    schema: pyarrow.Schema


class Worker:
    """Holds the model, and predicts parts."""

    def __init__(self, settings: WorkerSettings, attempts: ray.actor.ActorHandle):
        self.settings, self.attempts, arguments = settings, attempts, settings.arguments
        torch.set_num_threads(max(1, arguments.num_workers))
        self.model, self.image_processor = load_classifier(
            arguments.model_name_or_path, **arguments.changes()
        )
        self.model.eval()
        if torch.accelerator.is_available() and not arguments.use_cpu:
            self.model.to(torch.accelerator.current_accelerator())

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, list]:
        """Predicts and writes parts; returns each part's number of images, or why it failed."""
        counts, failures = [], []
        for text in batch["part"]:
            part = Part(**json.loads(text))
            count, failure = 0, ""
            if ray.get(self.attempts.begin.remote(part.name)) <= MAX_ATTEMPTS:
                try:
                    self.predict(part)
                    count = len(part)
                # Not the fault of an image. As text, because errors of other libraries do not always travel.
                except Exception as error:
                    failure = f"{part.names()[0]} and what follows it: {type(error).__name__}: {error}"
            counts.append(count)
            failures.append(failure)
        return {"count": counts, "failure": failures}

    def predict(self, part: Part) -> None:
        """Predicts and writes a part, unless a worker did so before it died."""
        arguments, folder = self.settings.arguments, self.settings.folder
        if folder.has(part):
            return
        paths, predictions = {}, []

        def prepare(batch: dict[str, StoredImage]) -> PreparedFiles:
            read = partial(_read, batch, folder.stores)
            return Preparation(self.image_processor, read)(list(batch))

        def batches() -> Iterator[dict[str, StoredImage]]:
            for batch in read_part(part, folder.stores, arguments.batch_size):
                paths.update({name: path_of(source) for name, source in batch.items()})
                yield batch

        for prepared in _map_ahead(prepare, batches(), arguments.num_workers):
            results = predict_prepared(self.model, prepared, arguments.top_k, arguments.with_patches)
            predictions += [replace(found, file=paths[found.file]) for found in results]
        folder.write(part, predictions, self.settings.schema)


@dataclass
class CollectionRun:
    """A validated run, ready to start.

    Attributes:
        settings: settings of the workers.
        concurrency: number of workers; None for the default.
        num_images: in all.
        pending: parts without predictions.
        notes: lines for the user about skipped files.
    """

    settings: WorkerSettings
    concurrency: int | None
    num_images: int
    pending: list[Part]
    notes: list[str] = field(default_factory=list)

    @property
    def num_pending(self) -> int:
        """Number of images without a prediction."""
        return sum(map(len, self.pending))

    @property
    def folder(self) -> str:
        """Name of the output folder."""
        return self.settings.folder.name

    def describe(self) -> str:
        """Describes the run in a few lines."""
        arguments, num_done = self.settings.arguments, self.num_images - self.num_pending
        done = f"; {num_done} are done" if num_done else ""
        where = os.environ.get("RAY_ADDRESS")
        notes = "".join(f"         {note}\n" for note in self.notes)
        return (
            f"Images:  {self.num_images}{done}; {self.num_pending} in {len(self.pending)} parts to "
            f"do\n{notes}"
            f"Model:   {arguments.model_name_or_path}\n"
            f"Engine:  Ray {ray.__version__}, {f'cluster {where}' if where else 'on this machine'}"
        )

    def summary(self, num_errors: int) -> tuple[int, int, list[str]]:
        """See `ParquetWriter.summary`."""
        return self.settings.folder.summary(num_errors)

    def execute(self) -> Iterator[int]:
        """Predicts the pending parts; yields the number of images of each part written.

        A part whose worker dies is begun again by another. If that goes on, its images are tried one by one,
        and those whose worker dies then have that as their error.

        Raises:
            RuntimeError: if something fails that is not the fault of an image. What was written stays.
        """
        if not self.pending:
            return
        folder = self.settings.folder
        folder.begin()
        before = set(folder.parts())
        is_ours = not ray.is_initialized()
        if is_ours:
            _start_ray()
        try:
            yield from self._run(self.pending)
            singles = [single for part in _missing(self.pending, folder) for single in part.single()]
            yield from self._run(singles)
            # One image may well be what kills workers; several in a row, and nothing else answered, are not.
            if singles and set(folder.parts()) <= before and (not before or len(singles) > 1):
                raise RuntimeError("every worker died; is there enough memory for the model and a batch?")
            for part in _missing(singles, folder):
                error = f"{part.names()[0]}: {MAX_ATTEMPTS} workers died that read it"
                folder.write(part, [FilePrediction(part.names()[0], error=error)], self.settings.schema)
                yield 1
        except ray.exceptions.RayError as error:
            raise RuntimeError(str(error)) from error
        finally:
            if is_ours:
                ray.shutdown()

    def _run(self, parts: list[Part]) -> Iterator[int]:
        if not parts:
            return
        _be_quiet()
        arguments = self.settings.arguments
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        needs_gpu = not arguments.use_cpu and any(node.get("GPU") for node in nodes)
        nodes = [node for node in nodes if node.get("GPU") or not needs_gpu]
        # Request no more than one existing node has: Ray would wait forever.
        num_cpus = min(max(1, arguments.num_workers), max([1, *(node.get("CPU", 0) for node in nodes)]))
        slots = [
            min(node.get("CPU", 0) // num_cpus, node["GPU"] if needs_gpu else math.inf) for node in nodes
        ]
        workers = self.concurrency or max(1, int(sum(slots)))
        rows = [{"part": json.dumps(asdict(part))} for part in parts]
        written = ray.data.from_items(rows, override_num_blocks=min(len(rows), MAX_TASKS)).map_batches(
            Worker,
            fn_constructor_args=(self.settings, Attempts.remote()),
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(size=min(workers, len(parts))),
            num_cpus=num_cpus,
            num_gpus=int(needs_gpu),
        )
        for row in written.iter_rows():
            if row["failure"]:
                raise RuntimeError(row["failure"])
            yield int(row["count"])


def prepare_collection(
    arguments: PredictionArguments, collection: CollectionArguments, inputs: list[str]
) -> CollectionRun:
    """Finds the images and what remains to be done, and checks the arguments.

    Args:
        arguments: `output` is a folder of Parquet files, see `prediction_schema`.
        collection: options of the engine.
        inputs: see `find_collection`.

    Raises:
        OSError: if there is no such checkpoint, or there are no images.
        TypeError: for `with_patches` with a model that does not output selected patches.
        ValueError: without `output`, with one made with other settings, and as `load_classifier`
            and `find_collection` do.
    """
    if arguments.output is None:
        raise ValueError("engine ray writes Parquet files: name a folder as output")
    if os.path.isdir(os.path.expanduser(arguments.model_name_or_path)):
        # For workers, which run elsewhere.
        path = os.path.abspath(os.path.expanduser(arguments.model_name_or_path))
        arguments = replace(arguments, model_name_or_path=path)
    stores = Stores()
    folder = ParquetWriter(arguments.output, stores)
    model, _ = load_classifier(arguments.model_name_or_path, **arguments.changes())
    check_with_patches(model, arguments.with_patches)
    recorded = (
        "model_name_or_path",
        *SELECTION_FIELDS,
        "native_resolution",
        "image_size",
        "top_k",
        "with_patches",
    )
    origin = {name: getattr(arguments, name) for name in recorded} | {"image_column": collection.image_column}
    folder.check_origin(origin)
    left_out = LeftOut()
    files, tables = find_collection(
        inputs, stores, collection.image_column, without=folder.name, left_out=left_out
    )
    parts = list(make_parts(files, tables, collection.part_size))
    schema = prediction_schema(model.config, arguments.with_patches, origin)
    settings = WorkerSettings(arguments, folder, schema)
    return CollectionRun(
        settings, collection.concurrency, sum(map(len, parts)), folder.pending(parts), left_out.notes()
    )


def _start_ray() -> None:
    # Without an address, Ray would look for a cluster that was started here at some time.
    address = os.environ.get("RAY_ADDRESS", "local")
    try:
        with _no_stderr():
            ray.init(address, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    # Any exception: its type varies on a busy machine.
    except Exception as error:
        ray.shutdown()
        raise RuntimeError(f"Ray does not start: {error}") from error


@contextlib.contextmanager
def _no_stderr() -> Iterator[None]:
    """Silences the process's stderr, not Python's: Ray's core writes there that it was told to be silent."""
    sys.stderr.flush()
    stderr, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(nowhere)


def _read(batch: dict[str, StoredImage], stores: Stores, name: str) -> PIL.Image.Image:
    return decode_stored(name, batch[name], stores)


def _map_ahead(function: Callable, values: Iterable, num_threads: int) -> Iterator[Any]:
    """Maps like `map`, with threads that run at most one value each ahead."""
    if not num_threads:
        yield from map(function, values)
        return
    with ThreadPoolExecutor(num_threads) as pool:
        waiting = deque()
        for value in values:
            waiting.append(pool.submit(function, value))
            if len(waiting) > num_threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _missing(parts: list[Part], folder: ParquetWriter) -> list[Part]:
    existing = set(folder.parts())
    return [part for part in parts if part.name not in existing]


def _be_quiet() -> None:
    """Keeps Ray Data off the terminal; its log files have everything."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    for handler in logging.getLogger("ray.data").handlers:
        if isinstance(handler, logging.StreamHandler) and not isinstance(handler, logging.FileHandler):
            handler.setLevel(logging.CRITICAL)
