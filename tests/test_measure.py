import time
from functools import partial

import pytest
import torch

from vit_hf.measure import alternate, peak_memory


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
