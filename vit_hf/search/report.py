"""Table and plot of a search: metrics on the search and test splits against cost."""

import statistics
from collections.abc import Sequence

from ..arguments import COSTS
from ..comparison.results import pareto_front
from ..figures import FAINT_INK, INK, MARGIN, Cell, Sheet, house_style


from matplotlib.axes import Axes  # isort: skip
from matplotlib.figure import Figure  # isort: skip
from matplotlib.ticker import FuncFormatter  # isort: skip
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

from ..model.elastic_space import SubNetwork
from .fitness import History


# Okabe and Ito's palette, and a shape for each.
STYLES = {
    "found": ("#0072B2", "*"),
    "found, retrained": ("#56B4E9", "P"),
    "hand-made": ("#D55E00", "s"),
    "hand-made, weights of the supernet": ("#E69F00", "D"),
}
SIZES = {"*": 14, "P": 9}
# Inches.
WIDTH, HEIGHT, LEFT, GAP, TOP, LEGEND = 4.4, 3.4, 0.9, 1.0, 0.75, 1.25


def draw_search(
    tried: Sequence[tuple[float, float]],
    rows: Sequence["Row"],
    kind: str,
    metric: str,
    more_is_better: bool,
) -> Figure:
    """Draws all evaluated networks with their Pareto front, and the rows with standard deviations over seeds.

    Args:
        tried: cost and metric of each evaluated network.
        rows: rows of all seeds.
        kind: kind of cost, a key of `COSTS`.
        metric: name of the metric.
        more_is_better: whether a higher metric is better.
    """
    with house_style():
        sheet = Sheet(LEFT + 2 * WIDTH + GAP + MARGIN, TOP + HEIGHT + LEGEND)
        sheet.write("Networks that were tried, and what was found", MARGIN, 0.2, 13, weight="bold")
        left = sheet.axes(Cell(LEFT, TOP, WIDTH, HEIGHT))
        right = sheet.axes(Cell(LEFT + WIDTH + GAP, TOP, WIDTH, HEIGHT))
        _draw_tried(left, tried, more_is_better)
        left.set_title("on the split of the search, weights of the supernet")
        is_test = rows[0].test is not None
        _draw_rows(right, rows, kind)
        seeds = len({row.seed for row in rows})
        right.set_title(
            f"on the {'test' if is_test else 'validation'} split"
            + (f", mean and deviation of {seeds} seeds" if seeds > 1 else "")
        )
        for axes in (left, right):
            axes.set_xlabel(COSTS[kind])
            axes.set_ylabel(metric)
            if metric in ("accuracy", "f1"):
                axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.4g}%"))
            axes.grid(alpha=0.25, linewidth=0.6)
            for side in ("top", "right"):
                axes.spines[side].set_visible(False)
            axes.tick_params(colors=INK, labelsize=9)
        handles = [*left.get_legend_handles_labels()[0], *right.get_legend_handles_labels()[0]]
        sheet.figure.legend(
            handles=handles, loc="upper center", bbox_to_anchor=(0.5, (LEGEND - 0.5) / sheet.height), ncols=3,
            frameon=False, fontsize=9, columnspacing=1.5,
        )  # fmt: skip
        return sheet.figure


def _draw_tried(axes: Axes, tried: Sequence[tuple[float, float]], more_is_better: bool) -> None:
    costs, values = zip(*tried, strict=True)
    axes.scatter(costs, values, s=9, color=FAINT_INK, alpha=0.35, linewidth=0, label="tried by the search")
    places = pareto_front(costs, [value if more_is_better else -value for value in values])
    axes.step(
        [costs[place] for place in places], [values[place] for place in places], where="post", color=INK,
        linewidth=1.2, label="front: nothing is as good for less",
    )  # fmt: skip


def _draw_rows(axes: Axes, rows: Sequence["Row"], kind: str) -> None:
    for way, (color, marker) in STYLES.items():
        groups: dict[int, list[tuple[float, float]]] = {}
        for row in rows:
            if row.way == way:
                groups.setdefault(row.budget, []).append((row.costs[kind], row.score))
        if not groups:
            continue
        points = [tuple(map(statistics.mean, zip(*group, strict=True))) for group in groups.values()]
        deviations = [
            statistics.stdev(score for _, score in group) if len(group) > 1 else 0
            for group in groups.values()
        ]
        axes.errorbar(
            [x for x, _ in points], [y for _, y in points], yerr=deviations if any(deviations) else None,
            linestyle="none", marker=marker, markersize=SIZES.get(marker, 7), color=color, capsize=3, elinewidth=1,  # noqa: E501
            markeredgecolor="white", markeredgewidth=0.5, label=way,
        )  # fmt: skip


@dataclass
class Row:
    """Result of one network with one set of weights.

    Attributes:
        way: origin of network and weights, a key of `STYLES`.
        budget: number of the budget, or of the hand-made network, from 1.
        seed: seed of its training and search.
        network: its sizes.
        folder: folder of its checkpoint; empty if it has none.
        validation, test: metric on these splits.
        costs: costs by the names of `COSTS`.
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
        """Metric on the test split, or on the validation split if there is no test split."""
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
        folder: folder of the files.
        rows: rows of all seeds.
        histories: measurements of all seeds.
        kind: kind of the budgets, a key of `COSTS`.
        metric: name of the metric.
        more_is_better: whether a higher metric is better.

    Returns:
        Table in Markdown.
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
    """Groups the rows of all seeds by budget and origin, in the order of the table."""
    groups: dict[tuple[int, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.budget, row.way), []).append(row)
    order = list(dict.fromkeys(row.way for row in sorted(rows, key=lambda row: len(row.way))))
    return dict(sorted(groups.items(), key=lambda item: (item[0][0], order.index(item[0][1]))))


def spread(values: Sequence[float], scale: float, form: str) -> str:
    """Formats the mean, and the standard deviation if values differ."""
    deviation = f" ± {scale * statistics.stdev(values):{form}}" if len(set(values)) > 1 else ""
    return f"{scale * statistics.mean(values):{form}}{deviation}"


def table(rows: Sequence[Row], metric: str) -> str:
    """Formats mean and standard deviation over seeds; accuracy and F1 in percent."""
    is_fraction = metric in ("accuracy", "f1")
    scale, form, unit = (100, ".1f", " (%)") if is_fraction else (1, ".4g", "")
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
