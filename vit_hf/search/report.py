"""What a search found, beside what it was compared with: a table, JSON, and a plot."""

import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from ..model.elastic_space import SubNetwork
from .drawing import draw_search
from .fitness import COSTS, History


@dataclass
class Row:
    """One network with the weights that it was measured with.

    Attributes:
        way: how it came about.
        budget: number of the budget, or of the hand-made network, from 1 on.
        seed: of its training and search.
        network: its sizes.
        folder: its checkpoint; empty for none of its own.
        validation, test: the metric.
        costs: by the names of `COSTS`.
    """

    way: str
    budget: int
    seed: int
    network: SubNetwork
    folder: str = ""
    validation: float | None = None
    test: float | None = None
    costs: dict[str, float] = field(default_factory=dict)

    @property
    def score(self) -> float:
        """The metric on the test split, or without one on that of the search."""
        return self.validation if self.test is None else self.test


def write_report(
    folder: Path,
    rows: Sequence[Row],
    histories: Sequence[History],
    kind: str,
    metric: str,
    more_is_better: bool,
) -> str:
    """Writes `results.json`, `results.md` and `pareto.png` to a folder.

    Args:
        folder: for them.
        rows: of all seeds.
        histories: of all seeds.
        kind: of the budgets, a key of `COSTS`.
        metric: its name.
        more_is_better: whether it is.

    Returns:
        The table.
    """
    entries = [asdict(row) | {"network": row.network.to_dict()} for row in rows]
    (folder / "results.json").write_text(json.dumps({"metric": metric, "rows": entries}, indent=2) + "\n")
    text = table(rows, metric)
    (folder / "results.md").write_text(text + "\n")
    tried = [
        (values[kind], values[metric])
        for history in histories
        for values in history.measured.values()
        if kind in values and metric in values
    ]
    figure = draw_search(tried, rows, kind, metric, more_is_better)
    figure.savefig(folder / "pareto.png")
    return text


def grouped(rows: Sequence[Row]) -> dict[tuple[int, str], list[Row]]:
    """Rows of all seeds by budget and way, in the order of a table."""
    groups: dict[tuple[int, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.budget, row.way), []).append(row)
    order = list(dict.fromkeys(row.way for row in sorted(rows, key=lambda row: len(row.way))))
    return dict(sorted(groups.items(), key=lambda item: (item[0][0], order.index(item[0][1]))))


def spread(values: Sequence[float], scale: float, form: str) -> str:
    """Mean, and where values differ their standard deviation."""
    deviation = f" ± {scale * statistics.stdev(values):{form}}" if len(set(values)) > 1 else ""
    return f"{scale * statistics.mean(values):{form}}{deviation}"


def table(rows: Sequence[Row], metric: str) -> str:
    """Mean and standard deviation over seeds, in per cent where that is usual."""
    is_share = metric in ("accuracy", "f1")
    scale, form, unit = (100, ".1f", " (%)") if is_share else (1, ".4g", "")
    split = "validation" if rows[0].test is None else "test"
    header = (
        f"| | network | {split} {metric}{unit} | {' | '.join(COSTS.values())} | blocks | hidden size "
        "| keep rate |"
    )
    lines = [header, "|---" * header.count(" | ") + "|---|"]
    for (number, way), group in grouped(rows).items():
        costs = [spread([row.costs[kind] for row in group], 1, ".2g") for kind in COSTS]
        sizes = [
            ", ".join(map(str, sorted({value(row.network) for row in group})))
            for value in (
                lambda one: one.depth,
                lambda one: one.hidden_size,
                lambda one: one.keep_rate or 1.0,
            )
        ]
        score = spread([row.score for row in group], scale, form)
        lines.append(f"| {number} | {way} | {score} | {' | '.join((*costs, *sizes))} |")
    return "\n".join(lines)
