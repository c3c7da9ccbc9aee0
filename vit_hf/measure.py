"""Comparable measurements of time and memory."""

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
    """Measures the median seconds of each of `calls`, which take turns (A B A B) and so share disturbances.

    Args:
        calls: functions without arguments; on a GPU each must end with a synchronization.
        repeats: timed turns.
        warmup: untimed turns before them.
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
    """Measures the peak growth of memory, in MiB, in the first call of the result of `make(*args)`.

    On a CPU, the growth of the resident set in a fresh process (so `make` and `args` must be picklable); None
    where the system does not report it. On a GPU, the memory that torch allocated.
    """
    if device == "cpu":
        return in_fresh_process(_resident_growth, make, args)
    call = make(*args)
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    call()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def in_fresh_process(function: Callable[..., Result], *args: object) -> Result:
    """Returns `function(*args)`, computed in a process with fresh memory.

    Where the system can fork, processes are forks of one server that has only imported the modules that this
    process had imported at the first call: a fork takes milliseconds instead of the seconds of importing
        torch
    and transformers, and the memory of their code is in use before `function` begins.

    Args:
        function, args: picklable objects.

    Raises:
        MemoryError: if the process was killed, as the system does when memory runs out.
    """
    method = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
    context = multiprocessing.get_context(method)
    if method == "forkserver":
        context.set_forkserver_preload(slow_imports())  # no effect on a running server
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        try:
            return pool.submit(function, *args).result()
        except BrokenProcessPool as error:
            raise MemoryError("the process was killed, most likely because memory ran out") from error


# Packages that are slow to import and start no thread at import: a fork keeps only the thread that forked.
SLOW_PACKAGES = ("torch", "torchvision", "transformers", "timm", "mlxtend")


def slow_imports() -> list[str]:
    """Lists the modules of this process that a fork server should import.

    These are the slow packages, all modules of this package, and what transformers and torch import lazily.
    """
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
    """Returns the peak resident memory of this process in MiB; None where the system does not report it."""
    peak = _status("VmHWM")
    return None if peak is None else peak / 1024


class SavedForBackward:
    """Context manager that counts the memory that autograd saves for the backward pass.

    Each storage counts once, even if several operations save it or views of it. Parameters and a model's
    input do not count, since they exist anyway.

    Args:
        model: its parameters and buffers do not count.
        inputs: more tensors that do not count.

    Attributes:
        num_bytes: size of the saved storages.
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
    """Returns freed memory to the system, where the C library can (glibc), so that reusing it counts."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (AttributeError, OSError, TypeError):
        return


def resident_growth(call: Callable[[], object]) -> float | None:
    """Measures the peak growth of the resident set, in MiB, while `call` runs; None where it is not reported.

    Code that runs for the first time counts: about 20 MiB of torch's libraries for a forward pass.
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
    except OSError:  # not Linux, or not permitted: the peak is then that of the process
        return


def _status(field: str) -> int | None:
    """Returns a field of /proc/self/status in KiB."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) for line in lines if line.startswith(field + ":")), None)
