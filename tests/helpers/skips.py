"""Lines that name what a run of the tests left out."""

import re


def skipped_lines(reports) -> list[str]:
    """One line for each reason, with the tests that were skipped for it."""
    names = {}
    for report in reports:
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        test = re.split(r"[\[@]", report.nodeid)[0]  # without parameters and group
        names.setdefault(reason.removeprefix("Skipped: "), set()).add(test)
    return [f"NOT TESTED: {', '.join(sorted(tests))}: {reason}" for reason, tests in names.items()]
