"""Time and memory, measured so that they can be compared."""

import ctypes
import multiprocessing
import re
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, TypeVar

import torch


Result = TypeVar("Result")


def alternate(calls: Sequence[Callable[[], object]], repeats: int, warmup: int = 1) -> list[float]:
    """Median seconds of each of `calls`, which take turns (A B A B), so that what else the machine does hits
    all.

    Args:
        calls: functions without arguments; on a GPU each must end with a synchronization.
        repeats: timed turns.
        warmup: turns before them that do not count.
    """
    seconds = [[] for _ in calls]
    for turn in range(warmup + repeats):
        for call, times in zip(calls, seconds, strict=True):
            start = time.perf_counter()
            call()
            if turn >= warmup:
                times.append(time.perf_counter() - start)
    return [statistics.median(times) for times in seconds]


def peak_memory(
    make: Callable[..., Callable[[], object]], *args: object, device: str = "cpu"
) -> float | None:
    """MiB by which memory grows, at the most, while the function that `make(*args)` returns runs for the
    first time.

    On a CPU it runs in a fresh process (so `make` and `args` must be picklable), where the growth of the
    resident set is read; None where the system does not tell. On a GPU it is what torch allocated.
    """
    if device == "cpu":
        return in_fresh_process(_resident_growth, make, args)
    call = make(*args)
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    call()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def in_fresh_process(function: Callable[..., Result], *args: object) -> Result:
    """Returns `function(*args)`, computed in a process of its own whose memory nobody has used yet.

    Where the system can fork, such processes are forks of one server that has imported what this process has
    imported by the first call, and has done nothing else: a process costs milliseconds instead of the seconds
    that torch and transformers take to import, and the memory that their code takes is there before
    `function` begins.

    Args:
        function, args: what can be pickled.

    Raises:
        MemoryError: if the process was killed, which is what the system does when memory runs out.
    """
    method = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
    context = multiprocessing.get_context(method)
    if method == "forkserver":
        context.set_forkserver_preload(slow_imports())  # a server that runs keeps what it has
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        try:
            return pool.submit(function, *args).result()
        except BrokenProcessPool as error:
            raise MemoryError("the process was killed, most likely because memory ran out") from error


# Packages that take long to import and start no thread by it, for a fork has only the thread that made it.
SLOW_PACKAGES = ("torch", "torchvision", "transformers", "timm", "mlxtend")


def slow_imports() -> list[str]:
    """Names the modules of this process that a fork server should import: these packages, all modules of ours
    with what those import, and what transformers and torch import only when it is needed."""
    late = re.compile(
        r"transformers\.models\..*\.\w*(modeling|image_processing)_\w+|torch\._dynamo|mlxtend\.data"
    )
    ours = __name__.partition(".")[0] + "."
    return [
        name
        for name in list(sys.modules)
        if name in SLOW_PACKAGES or name.startswith(ours) or late.fullmatch(name)
    ]


def peak_resident() -> float | None:
    """MiB that this process had resident at most since it began; None where the system does not tell."""
    peak = _status("VmHWM")
    return None if peak is None else peak / 1024


class SavedForBackward:
    """Counts the memory that autograd keeps for the backward pass of what runs in its `with` statement.

    Each storage counts once, however many operations keep it or a view of it; parameters do not count, for
    they are there anyway, and neither does a model's input.

    Args:
        model: whose parameters and buffers are left out.
        inputs: tensors that are left out as well.

    Attributes:
        num_bytes: of what was kept.
    """

    def __init__(self, model: torch.nn.Module, inputs: Sequence[torch.Tensor] = ()):
        known = (*model.parameters(), *model.buffers(), *inputs)
        self._known = {tensor.untyped_storage().data_ptr() for tensor in known}
        # By address, kept alive so that no address is used twice.
        self._storages: dict[int, torch.UntypedStorage] = {}
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._keep, lambda tensor: tensor)

    @property
    def num_bytes(self) -> int:
        return sum(storage.nbytes() for storage in self._storages.values())

    def _keep(self, tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._known:
            self._storages[storage.data_ptr()] = storage
        return tensor

    def __enter__(self) -> "SavedForBackward":
        self._hooks.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._hooks.__exit__(*error)


def _resident_growth(make: Callable[..., Callable[[], object]], args: tuple) -> float | None:
    return resident_growth(make(*args))


def return_free_memory() -> None:
    """Gives what was freed back to the system, where the C library can (glibc), so that it counts when it
    is used again."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (AttributeError, OSError, TypeError):
        return


def resident_growth(call: Callable[[], object]) -> float | None:
    """MiB by which the resident set of this process grows, at the most, while `call` runs; None where none
    tells.

    Code that runs for the first time counts: some 20 MiB of torch's libraries for a forward pass.
    """
    before = _status("VmRSS")
    _reset_peak()
    call()
    peak = _status("VmHWM")
    return None if before is None or peak is None else (peak - before) / 1024


def _reset_peak() -> None:
    """Forgets the peak of loading the model (proc(5), `clear_refs`)."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:  # not Linux, or not allowed: the peak is then that of the process
        return


def _status(field: str) -> int | None:
    """KiB of a field of /proc/self/status."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) for line in lines if line.startswith(field + ":")), None)
