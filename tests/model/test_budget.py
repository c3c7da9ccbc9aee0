"""How many are kept: numbers, fractions, and text of a command line."""

import pytest

from vit_hf.model.budget import Budget


@pytest.mark.parametrize(("value", "expected"), [(4, 4), (10, 10), (0.25, 2), (0.01, 1), (1.0, 10)])
def test_budget_resolves(value, expected):
    assert Budget(value).resolve(10) == expected


def test_budget_refuses_a_number_above_the_total():
    with pytest.raises(ValueError, match=r"num_selected_patches=11 .* 10 patches.*1 to 10"):
        Budget(11).resolve(10)
    assert Budget(11).capped(10).resolve(10) == 10
    assert Budget(3).capped(0).value == 1


@pytest.mark.parametrize("value", [0, -3, 0.0, 1.5, -0.5, float("nan"), True, "many", None, [4]])
def test_budget_refuses_what_is_none(value):
    with pytest.raises(ValueError, match=r"num_cells=.*number of cells of at least 1.*\(0, 1\]"):
        Budget(value, "num_cells", "cells")


@pytest.mark.parametrize(
    ("text", "value"), [("98", 98), ("0.25", 0.25), ("1", 1), ("1.0", 1.0), (98, 98), (0.5, 0.5)]
)
def test_budget_parses(text, value):
    parsed = Budget.parse(text)
    assert parsed.value == value and type(parsed.value) is type(value)
    assert parsed.is_fraction == isinstance(value, float)


@pytest.mark.parametrize("text", ["", "half", "0", "2.5", "-1"])
def test_budget_parse_refuses(text):
    with pytest.raises(ValueError, match="num_selected_patches="):
        Budget.parse(text)


def test_budget_in_groups():
    assert [Budget(9).coarsened(4**stage).value for stage in range(4)] == [9, 3, 1, 1]
    assert Budget(0.25).coarsened(4).value == 0.25
