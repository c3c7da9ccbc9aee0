"""The lines at the end of a run about what was not tested."""

from types import SimpleNamespace

from tests.helpers.skips import skipped_lines


def test_a_line_for_each_reason_names_the_tests():
    reasons = {
        "a.py::two@group": "no browser",
        "a.py::one[x]": "no browser",
        "a.py::one[y]": "no browser",
        "b.py": "no package",
    }
    reports = [
        SimpleNamespace(nodeid=name, longrepr=("conftest.py", 1, f"Skipped: {reason}"))
        for name, reason in reasons.items()
    ]
    assert skipped_lines(reports) == [
        "NOT TESTED: a.py::one, a.py::two: no browser",
        "NOT TESTED: b.py: no package",
    ]
    assert skipped_lines([]) == []
