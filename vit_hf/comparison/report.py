"""Report of a comparison: a recommendation in words, plots, a card, a page."""

import base64
import io
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import PIL.Image
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

# First: its error says how to install matplotlib.
from ..figures import FAINT_INK, INK, MARGIN, Cell, Sheet, house_style, wrap
from .choosing import HEADER as CHOICE_HEADER
from .choosing import Choice
from .predictors import PICTURE_SIZE
from .results import SIGNIFICANT, Row, best_of, chance_of, digits, measured
from .running import Comparison
from .strategies import STRATEGIES


# Fractions of the latency at which a strategy counts as faster, and at which the recommendation mentions it.
FASTER, MUCH_FASTER = 0.9, 0.6
# Loss of accuracy, by the bound of its interval, up to which a faster strategy is recommended.
TOLERABLE_LOSS = 0.05
BASELINES = ("random", "uniform")


def recommend(rows: Sequence[Row], chance: float, adapt: int = 0, trained_selector: str | None = None) -> str:
    """Writes one paragraph: which strategy to use, which ones do not differ significantly, and baselines.

    Args:
        rows: rows with accuracy and latency, or a reason.
        chance: accuracy of guessing.
        adapt: steps of fine-tuning.
        trained_selector: selector that the checkpoint was saved with.
    """
    known, failed = measured(rows), [row for row in rows if row.reason is not None]
    if not known:
        return "No strategy could be measured; the table says why."
    best = best_of(known)
    sentences = [_best(best)]
    pick = best
    if best.accuracy_low <= chance:
        sentences.append(
            f"That is not clearly above chance ({chance:.0%}), so nothing can be recommended"
            + ("." if adapt else ": fine-tune first, or give --adapt STEPS.")
        )
    else:
        pick = _pick(known, best, chance)
        sentences += [_why(pick, best, known), *_otherwise(pick, known, chance)]
    sentences += _baselines(pick, known)
    if not adapt:
        unprepared = "at another scale or with patches missing"
        if trained_selector is not None:
            unprepared = (
                f"at another scale, or with other patches than those of its selector, {trained_selector}"
            )
        sentences.append(
            f"No strategy was fine-tuned, and a checkpoint is not prepared for images {unprepared}: "
            "--adapt STEPS fine-tunes each."
        )
    if failed:
        count = "One strategy" if len(failed) == 1 else f"{len(failed)} strategies"
        sentences.append(f"{count} could not be measured; the table says why.")
    return " ".join(sentences)


def advise(comparison: Comparison) -> str:
    """Writes the advice: the number of patches where that was looked for, or else the strategy."""
    facts, rows, choice = comparison.facts, comparison.rows, comparison.choice
    if choice is None:
        chance = chance_of(facts["num_classes"], facts["is_multi_label"])
        return recommend(rows, chance, facts["adapt"], facts.get("trained_selector"))
    compared = [row for row in measured(rows) if choice.row and row.budget == choice.row.budget]
    baselines = _baselines(choice.row, compared) if len(compared) > 1 else []
    return " ".join([choice.describe(facts["adapt"], facts.get("trained_selector")), *baselines])


def _best(best: Row) -> str:
    return (
        f"On {best.num_images} images the most accurate is {title(best)}, {best.accuracy:.1%} (95 % interval "
        f"{best.accuracy_low:.0%} to {best.accuracy_high:.0%}), at {cost(best)}."
    )


def _pick(known: Sequence[Row], best: Row, chance: float) -> Row:
    """Picks the fastest of the rows that provably lose little accuracy, or else the best one.

    A test without a significant difference is not enough: with few images, no difference is significant.
    """
    able = [
        row
        for row in known
        if row.accuracy_low > chance and row.behind_best_high <= TOLERABLE_LOSS and row.as_good_as(best)
    ]
    fastest = min([best, *able], key=lambda row: row.latency_ms)
    return fastest if fastest.latency_ms <= FASTER * best.latency_ms else best


def _why(pick: Row, best: Row, known: Sequence[Row]) -> str:
    if pick is not best:
        return (
            f"Use {title(pick)}: with {pick.accuracy:.1%} the difference is not significant "
            f"on these images (p = {pick.p_value:.2f}; at most {100 * pick.behind_best_high:.1f} points "
            f"less, by the 95 % interval), and it takes {cost(pick)}, "
            f"{best.latency_ms / pick.latency_ms:.1f} times less."
        )
    others = [row for row in known if row is not best and row.as_good_as(best)]
    if any(row.latency_ms <= FASTER * best.latency_ms for row in others):
        which = "any" if len(others) == len(known) - 1 else "every"
        return (
            f"Use it for now: {best.num_images} images are too few to distinguish {which} other strategy "
            f"from it, or to show that a faster one loses no more than {100 * TOLERABLE_LOSS:.0f} points."
        )
    if others:
        names = " and ".join(title(row) for row in sorted(others, key=lambda row: -row.accuracy)[:2])
        return (
            f"Use it: {names} {'does' if len(others) == 1 else 'do'} not differ significantly from it on "
            f"these images, and {'is' if len(others) == 1 else 'are'} not faster."
        )
    return "Use it: every other strategy is less accurate by more than chance explains."


def _otherwise(pick: Row, known: Sequence[Row], chance: float) -> list[str]:
    """Names alternatives without the second checkpoint, and faster ones."""
    sentences, choice = [], pick
    first = [row for row in known if row.strategy != "hybrid"]
    if pick.strategy == "hybrid" and first:
        choice = best_of(first)
        sentences.append(
            "That is the second checkpoint, which was trained separately. The best of the first is "
            f"{title(choice)}, {choice.accuracy:.1%} at {cost(choice)}."
        )
    able = [row for row in known if row.accuracy_low > chance]
    quicker = [row for row in able if row.latency_ms <= MUCH_FASTER * choice.latency_ms]
    if quicker:
        row = best_of(quicker)
        sentences.append(
            f"If {digits(choice.latency_ms)} ms is too long: {title(row)}, {row.accuracy:.1%} at {cost(row)}."
        )
    return sentences


def _baselines(pick: Row, known: Sequence[Row]) -> list[str]:
    """Compares selected patches with random ones and with resizing at the same number of tokens."""
    chosen = [row for row in known if row.strategy == "select" and row.selector not in BASELINES]
    if not chosen:
        return []
    row = pick if pick in chosen else best_of(chosen)
    random = [r for r in known if r.selector == "random" and (r.strategy, r.budget) == ("select", row.budget)]
    resized = [r for r in known if r.strategy == "resize" and r.budget == row.budget]
    found = [("random patches", r) for r in random] + [(title(r), r) for r in resized]
    if not found:
        return [
            f"Neither random patches nor resizing was measured at the number of tokens of {title(row)}, so "
            "the value of selecting patches is unknown."
        ]
    figures = [f"{r.accuracy:.1%} with {name}" for name, r in found]
    if row is not pick:
        figures.insert(0, f"{row.accuracy:.1%} with {title(row)}")
    lead = (
        f"About {row.budget} tokens give {', '.join(figures[:-1])}{' and ' * (len(figures) > 1)}{figures[-1]}"
    )
    better = [name for name, r in found if r.accuracy < row.accuracy and not r.as_good_as(row)]
    worse = [name for name, r in found if r.accuracy > row.accuracy and not r.as_good_as(row)]
    if len(better) == len(found):
        verdict = "so selecting patches is worth it on these images"
    elif worse:
        verdict = f"so selecting patches loses to {' and '.join(worse)} on these images"
    else:
        same = " and ".join(name for name, _ in found if name not in better)
        verdict = f"so these images do not show that selecting patches beats {same}"
    return [f"{lead}, {verdict} (McNemar's test at {SIGNIFICANT:.0%})."]


def title(row: Row) -> str:
    """Quotes a name for use in a sentence."""
    return f"\N{LEFT DOUBLE QUOTATION MARK}{row.name}\N{RIGHT DOUBLE QUOTATION MARK}"


def cost(row: Row) -> str:
    """Formats the latency of an image."""
    return f"{digits(row.latency_ms)} ms an image"


# Okabe and Ito's palette, safe for color-blind readers, with a shape for each color.
STYLES = {
    "resize": ("#E69F00", "s", "resize"),
    "tiles": ("#CC79A7", "D", "tiles"),
    "dense": ("#1a1a1a", "o", "all patches"),
    "select": ("#0072B2", "*", "selected patches"),
    "random": ("#56B4E9", "X", "random, uniform patches"),
    "reduce": ("#009E73", "^", "fewer tokens inside the encoder"),
    "hybrid": ("#D55E00", "P", "hybrid stem"),
}
SIZES = {"*": 110, "X": 55, "P": 65}
COSTS = {
    "latency_ms": ("on_front_of_latency", "latency of one image (ms, log scale)"),
    "gflops_counted": ("on_front_of_gflops", "GFLOPs of one image, counted (log scale)"),
}
# In inches.
WIDTH, HEIGHT, LEFT, RIGHT, LEGEND, GAP = 4.7, 3.6, 0.85, 0.6, 0.66, 1.2
# For a single plot, which may be shown on a narrow screen.
NARROW, TALL_LEGEND = 3.7, 0.95


def family_of(row: Row) -> str:
    """Returns the key of `STYLES` for a row."""
    return "random" if row.strategy == "select" and row.selector in ("random", "uniform") else row.strategy


def front_numbers(rows: Sequence[Row]) -> dict[str, int]:
    """Numbers the rows on a front from the fastest on, by name, for plots and tables."""
    front = [row for row in measured(rows) if row.on_front_of_latency or row.on_front_of_gflops]
    ordered = sorted(front, key=lambda row: (row.latency_ms, row.accuracy))
    return {row.name: number for number, row in enumerate(ordered, start=1)}


def draw_panel(rows: Sequence[Row], cost: str, chance: float) -> Figure:
    """Draws one plot with a legend below.

    Args:
        rows: rows after `mark`.
        cost: a key of `COSTS`.
        chance: accuracy of guessing.
    """
    with house_style():
        sheet = Sheet(LEFT + NARROW + RIGHT, 0.15 + HEIGHT + 0.55 + TALL_LEGEND)
        _panel(sheet.axes(Cell(LEFT, 0.15, NARROW, HEIGHT)), rows, cost, chance)
        _legend(sheet, sheet.figure.axes[0], sheet.width / 2, rows)
        return sheet.figure


def draw_pareto(rows: Sequence[Row], chance: float, headline: str, note: str) -> Figure:
    """Draws accuracy against latency and against GFLOPs, with the names of the rows on a front.

    Args:
        rows: rows after `mark`.
        chance: accuracy of guessing.
        headline, note: texts above the plots.
    """
    with house_style():
        width = LEFT + 2 * WIDTH + GAP + RIGHT
        numbers = front_numbers(rows)
        notes = wrap(note, width - 2 * MARGIN, 9)
        top = MARGIN + 0.42 + 0.17 * len(notes) + 0.3
        key_top = top + HEIGHT + 0.55 + LEGEND
        per_column = -(-len(numbers) // 3)
        sheet = Sheet(width, key_top + 0.19 * (per_column + 1) + MARGIN)
        sheet.write(headline, MARGIN, MARGIN, 14, weight="bold")
        sheet.write("\n".join(notes), MARGIN, MARGIN + 0.36, 9, FAINT_INK)
        for place, cost in enumerate(COSTS):
            cell = Cell(LEFT + place * (WIDTH + GAP), top, WIDTH, HEIGHT)
            _panel(sheet.axes(cell), rows, cost, chance)
        _legend(sheet, sheet.figure.axes[0], width / 2, rows)
        sheet.write("On a front (nothing is as accurate for less):", MARGIN, key_top, 9, weight="bold")
        by_name = {row.name: row for row in rows}
        for place, (name, number) in enumerate(numbers.items()):
            column, line = divmod(place, per_column)
            x = MARGIN + column * (width - 2 * MARGIN) / 3
            text = f"{number}  {name}: {by_name[name].accuracy:.1%}"
            sheet.write(text, x, key_top + 0.19 * (line + 1.2), 9)
        return sheet.figure


def _panel(axes: Axes, rows: Sequence[Row], cost: str, chance: float) -> None:
    flag, label = COSTS[cost]
    shown = [row for row in measured(rows) if getattr(row, cost)]
    for row in shown:
        color, marker, _ = STYLES[family_of(row)]
        x = getattr(row, cost)
        axes.plot(
            [x, x], [row.accuracy_low, row.accuracy_high], color=color, alpha=0.3, linewidth=1.2, zorder=2
        )
        size = SIZES.get(marker, 38)
        axes.scatter(
            x, row.accuracy, s=size, marker=marker, color=color, edgecolor="white", linewidth=0.5, zorder=4, clip_on=False,  # noqa: E501
        )  # fmt: skip
    front = sorted((row for row in shown if getattr(row, flag)), key=lambda row: getattr(row, cost))
    if front:
        xs, ys = [getattr(row, cost) for row in front], [row.accuracy for row in front]
        axes.step(xs, ys, where="post", color=FAINT_INK, linewidth=1, zorder=3)
    axes.axhline(chance, color=FAINT_INK, linestyle=":", linewidth=1)
    axes.set_xscale("log")
    lowest, highest = (
        (bound(getattr(row, cost) for row in shown) for bound in (min, max)) if shown else (1, 10)
    )
    axes.set_xlim(lowest / 1.6, highest * 1.35)
    axes.set_ylim(0, 1)
    _number(axes, front, cost, front_numbers(rows))
    axes.text(
        1.01, chance, "chance", transform=axes.get_yaxis_transform(), ha="left", va="center",
        fontsize=8, color=FAINT_INK,
    )  # fmt: skip
    axes.set_xlabel(label)
    axes.set_ylabel("accuracy, with 95 % interval")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0%}"))
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if highest < 3000 * lowest else (1,)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.grid(alpha=0.25, linewidth=0.6)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.tick_params(colors=INK, labelsize=9)


def _number(axes: Axes, front: Sequence[Row], cost: str, numbers: dict[str, int]) -> None:
    """Writes numbers next to points, moved up to avoid overlaps; offsets fit a font of 9 points."""
    to_points = axes.transData.transform
    taken: list[np.ndarray] = []
    for row in front:
        anchor = to_points((getattr(row, cost), row.accuracy)) * 72 / axes.figure.dpi
        place = np.array([-9.0, 8.0])
        while any((abs(anchor + place - other) < [13, 11]).all() for other in taken):
            place += [0, 3]
        taken.append(anchor + place)
        axes.annotate(
            str(numbers[row.name]), (getattr(row, cost), row.accuracy), place, textcoords="offset points",
            ha="center", va="center", fontsize=9, fontweight="bold", color=INK, zorder=6,
            bbox={"boxstyle": "circle,pad=0.15", "facecolor": "white", "edgecolor": "none", "alpha": 0.8},
        )  # fmt: skip


def _legend(sheet: Sheet, axes: Axes, x: float, rows: Sequence[Row]) -> None:
    used = {family_of(row) for row in measured(rows)}
    handles = [
        axes.scatter([], [], marker=marker, color=color, s=SIZES.get(marker, 38), label=label)
        for family, (color, marker, label) in STYLES.items()
        if family in used
    ]
    (line,) = axes.plot([], [], color=FAINT_INK, linewidth=1, label="front: nothing is as accurate for less")
    bottom = axes.get_position().y0 - 0.5 / sheet.height
    sheet.figure.legend(
        handles=[*handles, line], loc="upper center", bbox_to_anchor=(x / sheet.width, bottom),
        ncols=2 if sheet.width < 8 else 4, frameon=False, fontsize=8.5, handletextpad=0.4, columnspacing=1.2,
    )  # fmt: skip


HEADER = (
    "| strategy | accuracy % (95 % interval) | latency ms | images/s | memory MiB | GFLOPs counted | "
    "formula | tokens | front |"
)


def write_card(comparison: Comparison, output: Path, folder: Path, command: str) -> Path:
    """Writes `README.md` to `folder`, and copies the plot and the figures of `output` there."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("pareto.png", "results.csv"):
        shutil.copy(output / name, folder / name)
    facts, rows = comparison.facts, comparison.rows
    ordered = sorted(measured(rows), key=lambda row: -row.accuracy)
    failed = [f"- {row.name}: {row.reason}" for row in rows if row.reason is not None]
    text = [
        f"# {headline(facts)}",
        f"{note(facts)} Options of the data: {describe_options(facts)}. Made by `{command}`, "
        "which also writes a page with pictures of what each strategy computes on.",
        "![Accuracy against latency and against GFLOPs](pareto.png)",
        advise(comparison),
        *_choice_card(comparison.choice),
        "\n".join([HEADER, f"|{'---|' * (HEADER.count('|') - 1)}", *(_line(row, facts) for row in ordered)]),
        *(["Not measured:\n\n" + "\n".join(failed)] if failed else []),
        "Latency is the median for one image, from decoded pixels to logits; memory is the growth of the "
        "process for it. GFLOPs count 2 for a multiply-add; the formula covers embedding, blocks and head, "
        "the counted GFLOPs also selectors and a convolutional stem. Front: no other row is as accurate "
        "for less time (t) or fewer counted operations (f). The accuracy of the best strategy is slightly "
        "optimistic, since it was selected on the images that it is measured on.",
    ]
    path = folder / "README.md"
    path.write_text("\n\n".join(text) + "\n")
    return path


def describe_tokens(row: Row, facts: dict[str, Any]) -> str:
    """Formats the tokens of a row: of how many patches, and how many leave the encoder if fewer."""
    if row.tokens is None:
        return "-"
    whole = f" of {facts['num_patches']}" if row.strategy == "select" else ""
    return f"{row.tokens}{whole}" + (f" → {row.tokens_out}" if row.tokens_out != row.tokens else "")


def _choice_card(choice: Choice | None) -> list[str]:
    if choice is None:
        return []
    lines = [CHOICE_HEADER, ["---"] * len(CHOICE_HEADER), *choice.table()]
    return [
        "\n".join(f"| {' | '.join(line)} |" for line in lines),
        *([f"To go on:\n\n```bash\n{choice.command}\n```"] if choice.row is not None else []),
    ]


def _line(row: Row, facts: dict[str, Any]) -> str:
    cells = [
        row.name,
        f"{100 * row.accuracy:.1f} ({100 * row.accuracy_low:.0f} to {100 * row.accuracy_high:.0f})",
        digits(row.latency_ms),
        digits(row.images_per_s),
        "-" if row.peak_memory_mib is None else f"{row.peak_memory_mib:.0f}",
        digits(row.gflops_counted),
        "-" if row.gflops_formula is None else digits(row.gflops_formula),
        describe_tokens(row, facts),
        " ".join(["t"] * row.on_front_of_latency + ["f"] * row.on_front_of_gflops),
    ]
    return f"| {' | '.join(cells)} |"


NOTEBOOK = """<p>{{ advice }}</p>
<img src="{{ plot }}" style="max-width: 60rem; width: 100%" alt="Accuracy against cost">
<table><tr>{% for name in header %}<th>{{ name }}</th>{% endfor %}</tr>
{% for line in lines %}<tr>{% for cell in line %}<td
{%- if line|length < 3 and loop.last %} colspan="4"{% endif %}>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}</table>"""
TEMPLATE = Path(__file__).with_name("report.html")


@dataclass
class StrategyPictures:
    """Pictures of what a strategy computed on in the examples.

    Attributes:
        row: row of the strategy.
        panels: for each example its picture as a data URI, the prediction, and whether that was right.
    """

    row: Row
    panels: list[tuple[str, str, bool]]


def write_report(comparison: Comparison, output: Path) -> str:
    """Writes `pareto.png` and `report.html`, and returns the recommendation."""
    facts, rows = comparison.facts, comparison.rows
    chance = chance_of(facts["num_classes"], facts["is_multi_label"])
    advice = advise(comparison)
    output.mkdir(parents=True, exist_ok=True)
    draw_pareto(rows, chance, headline(facts), note(facts)).savefig(output / "pareto.png")
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["digits"] = digits
    page = environment.from_string(TEMPLATE.read_text()).render(
        facts=facts,
        headline=headline(facts),
        note=note(facts),
        data_options=describe_options(facts),
        advice=advice,
        choice=comparison.choice,
        choice_header=CHOICE_HEADER,
        panels=[(figure_uri(draw_panel(rows, cost, chance)), cost) for cost in COSTS],
        rows=sorted(measured(rows), key=lambda row: -row.accuracy),
        tokens={row.name: describe_tokens(row, facts) for row in rows},
        failed=[row for row in rows if row.reason is not None],
        numbers=front_numbers(rows),
        colors={row.name: STYLES[family_of(row)][0] for row in rows},
        originals=[(picture_uri(image), label) for image, label in comparison.examples],
        strategy_pictures=find_pictures(rows),
        strategies={name: strategy.__doc__.partition("\n")[0] for name, strategy in STRATEGIES.items()},
    )
    (output / "report.html").write_text(page)
    return advice


def to_html(comparison: Comparison) -> str:
    """Writes recommendation, plot and table for a notebook."""
    facts, rows = comparison.facts, comparison.rows
    chance = chance_of(facts["num_classes"], facts["is_multi_label"])
    plot = figure_uri(draw_pareto(rows, chance, headline(facts), note(facts)))
    ordered = sorted(measured(rows), key=lambda row: -row.accuracy)
    lines = [
        [
            row.name,
            f"{row.accuracy:.1%}",
            "-" if row.latency_ms is None else digits(row.latency_ms),
            "-" if row.gflops_counted is None else digits(row.gflops_counted),
            describe_tokens(row, facts),
        ]
        for row in ordered
    ]
    lines += [[row.name, f"not measured: {row.reason}"] for row in rows if row.reason is not None]
    template = jinja2.Environment(autoescape=True).from_string(NOTEBOOK)
    header = ["strategy", "accuracy", "latency ms", "GFLOPs", "tokens"]
    return template.render(advice=advise(comparison), plot=plot, header=header, lines=lines)


def headline(facts: dict[str, Any]) -> str:
    return f"A model for {facts['own_side']} pixels, images of {facts['image_size']}"


def note(facts: dict[str, Any]) -> str:
    """Describes how it was measured."""
    trained = "checkpoint unchanged, without fine-tuning"
    if facts["adapt"]:
        tiles = "checkpoint unchanged"
        if facts["new_head"]:
            tiles = f"with the weights for images resized to {facts['own_side']} pixels"
        trained = (
            f"each fine-tuned for {facts['adapt']} steps of {facts['adapt_batch_size']} images "
            f"(tiles: {tiles})"
        )
    return (
        f"{facts['num_images']} images of {facts['data']}, {facts['num_classes']} classes; "
        f"{trained}; one seed. Latency "
        f"from decoded image to logits on {facts['machine']}, all strategies by turns."
    )


def describe_options(facts: dict[str, Any]) -> str:
    """Describes how the data were loaded."""
    options = facts["data_options"] or {}
    return ", ".join(f"{name} {value}" for name, value in options.items()) or "none"


def find_pictures(rows: Sequence[Row]) -> list[StrategyPictures]:
    """Chooses one row of each kind of strategy: among budgets and rates, that with the fewest tokens."""
    strategy_pictures: dict[str, StrategyPictures] = {}
    for row in sorted(
        measured(rows), key=lambda row: (list(STRATEGIES).index(row.strategy), row.tokens or 0)
    ):
        kind = {"select": f"select {row.selector}", "hybrid": f"hybrid {row.selector}"}.get(
            row.strategy, row.variant
        )
        if kind in strategy_pictures or not row.pictures:
            continue
        panels = [
            (file_uri(Path(picture)), answer, right)
            # Examples are the first images.
            for picture, answer, right in zip(row.pictures, row.predicted, row.right, strict=False)
        ]
        strategy_pictures[kind] = StrategyPictures(row, panels)
    return list(strategy_pictures.values())


def figure_uri(figure: Figure) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=200)
    return to_uri(buffer.getvalue(), "png")


def picture_uri(image: PIL.Image.Image) -> str:
    image = image.convert("RGB")
    image.thumbnail((PICTURE_SIZE, PICTURE_SIZE))
    buffer = io.BytesIO()
    image.save(buffer, format="jpeg", quality=88)
    return to_uri(buffer.getvalue(), "jpeg")


def file_uri(path: Path) -> str:
    return to_uri(path.read_bytes(), "png" if path.suffix == ".png" else "jpeg")


def to_uri(content: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
