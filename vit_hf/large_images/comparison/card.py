"""The result as a page of a repository: README.md with the table, beside pareto.png and results.csv."""

import shutil
from pathlib import Path

from .recommendation import recommend
from .report import chance_of, describe_options, headline, note
from .rows import Row, digits, measured
from .running import Comparison


HEADER = "| strategy | accuracy % (95 % interval) | latency ms | images/s | memory MiB | GFLOPs counted | formula | tokens | front |"


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
        f"{note(facts)} Options of the data: {describe_options(facts)}. Made by `{command}`, which also writes a page with pictures of what each strategy sees.",
        "![Accuracy beside latency and beside GFLOPs](pareto.png)",
        recommend(rows, chance_of(facts), facts["adapt"]),
        "\n".join([HEADER, f"|{'---|' * (HEADER.count('|') - 1)}", *map(_line, ordered)]),
        *(["Not measured:\n\n" + "\n".join(failed)] if failed else []),
        "Latency is the median of one image from decoded pixels to logits, memory what a process grows "
        "by for it. GFLOPs count 2 for a multiply-add; the formula is that of embedding, blocks and head, so what chooses "
        "patches and a convolutional stem are in the counted ones alone. Front: nothing is as accurate for less time (t) "
        "or fewer counted operations (f). The winner of so many strategies flatters itself a little, as it was chosen "
        "by the images it is measured on.",
    ]
    path = folder / "README.md"
    path.write_text("\n\n".join(text) + "\n")
    return path


def _line(row: Row) -> str:
    tokens = "-" if row.tokens is None else str(row.tokens)
    if row.tokens_out != row.tokens:
        tokens += f" → {row.tokens_out}"
    cells = [
        row.name,
        f"{100 * row.accuracy:.1f} ({100 * row.accuracy_low:.0f} to {100 * row.accuracy_high:.0f})",
        digits(row.latency_ms),
        digits(row.images_per_s),
        "-" if row.peak_memory_mib is None else f"{row.peak_memory_mib:.0f}",
        digits(row.gflops_counted),
        "-" if row.gflops_formula is None else digits(row.gflops_formula),
        tokens,
        " ".join(["t"] * row.on_front_of_latency + ["f"] * row.on_front_of_gflops),
    ]
    return f"| {' | '.join(cells)} |"
