import os
import signal
import time
from functools import partial

import pytest
import torch

from vit_hf.measure import (
    SavedForBackward,
    alternate,
    in_fresh_process,
    peak_memory,
    peak_resident,
    resident_growth,
    return_free_memory,
)


def allocate(mebibytes: int):
    return partial(torch.ones, mebibytes * 2**18)


def test_calls_take_turns_and_medians_leave_the_warm_up_out():
    order = []

    def first():
        order.append("a")
        time.sleep(0.2 if len(order) == 1 else 0.01)

    medians = alternate([first, lambda: order.append("b")], repeats=3, warmup=1)
    assert order == ["a", "b"] * 4
    assert 0.01 <= medians[0] < 0.2 and medians[1] < 0.01


@pytest.mark.slow
def test_peak_memory_of_a_fresh_process():
    small, large = peak_memory(allocate, 64), peak_memory(allocate, 256)
    assert small == pytest.approx(64, abs=16) and large == pytest.approx(256, abs=16)


def grow_twice(mebibytes: int) -> list[float]:
    """Growth by a first call, and by a second one after what the first took was given back."""
    call = partial(torch.ones, mebibytes * 2**18)
    first = resident_growth(call)
    return_free_memory()
    return [first, resident_growth(call)]


@pytest.mark.slow
def test_growth_in_a_fresh_process():
    assert in_fresh_process(grow_twice, 64) == pytest.approx([64, 64], abs=16)


@pytest.mark.slow
def test_what_goes_wrong_in_a_fresh_process():
    with pytest.raises(ZeroDivisionError):
        in_fresh_process(divmod, 1, 0)
    # As the system does when memory runs out.
    with pytest.raises(MemoryError, match="killed, most likely because memory ran out"):
        in_fresh_process(signal.raise_signal, signal.SIGKILL)
    assert in_fresh_process(os.getpid) != os.getpid()


@pytest.mark.slow
def test_a_fresh_process_has_what_is_slow_to_import_and_none_of_our_memory():
    """Looked up by a builtin, so that nothing is imported for the sake of the question."""
    for name in ("vit_hf.measure", "torch", "transformers.modeling_utils"):
        assert in_fresh_process(eval, f"{name!r} in __import__('sys').modules"), name
    assert in_fresh_process(os.getppid) == in_fresh_process(os.getppid) != os.getpid()
    before = in_fresh_process(peak_resident)
    held = torch.ones(512 * 2**18)
    assert in_fresh_process(peak_resident) == pytest.approx(before, abs=16)
    assert in_fresh_process(torch.get_num_threads) >= 1 and held.all()  # a fork still computes


def test_what_is_saved_for_backward_counts_once_and_without_parameters():
    """x @ W keeps x and W, sigmoid its result, and the square what the sigmoid gave, which counts already."""
    layer, inputs = torch.nn.Linear(100, 30, bias=False), torch.randn(8, 100)
    with SavedForBackward(layer) as saved:
        layer(inputs).sigmoid().square().sum()
    assert saved.num_bytes == 4 * (8 * 100 + 8 * 30)
    with SavedForBackward(layer, [inputs]) as saved:
        layer(inputs).sigmoid().square().sum()
    assert saved.num_bytes == 4 * 8 * 30
    with SavedForBackward(layer) as saved, torch.no_grad():
        layer(inputs).sigmoid()
    assert saved.num_bytes == 0
