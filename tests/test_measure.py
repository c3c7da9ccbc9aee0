import math
import os
import time
from concurrent.futures.process import BrokenProcessPool
from functools import partial

import pytest
import torch

from vit_hf.measure import SavedForBackward, alternate, in_fresh_process, peak_memory


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


@pytest.mark.slow
def test_what_happens_in_a_fresh_process():
    assert in_fresh_process(os.getppid) == os.getpid()
    with pytest.raises(ValueError, match="math domain"):
        in_fresh_process(math.sqrt, -1)
    with pytest.raises(BrokenProcessPool):
        in_fresh_process(os._exit, 9)


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
