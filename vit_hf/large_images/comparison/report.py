"""The result as a page that needs nothing else, and as a picture."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import PIL.Image
from matplotlib.figure import Figure

from .drawing import COSTS, STYLES, draw_panel, draw_pareto, family_of, front_numbers
from .predictors import PICTURE_SIZE
from .recommendation import recommend
from .rows import Row, digits, measured
from .running import Comparison
from .strategies import STRATEGIES


TEMPLATE = Path(__file__).with_name("report.html")


@dataclass
class Sight:
    """What a strategy saw of the examples.

    Attributes:
        row: of it.
        panels: for each example its picture as a data URI, what was answered, and whether that was right.
    """

    row: Row
    panels: list[tuple[str, str, bool]]


def write_report(comparison: Comparison, output: Path) -> str:
    """Writes `pareto.png` and `report.html`, and returns the recommendation."""
    facts, rows = comparison.facts, comparison.rows
    chance = chance_of(facts)
    advice = recommend(rows, chance, facts["adapt"])
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
        panels=[(figure_uri(draw_panel(rows, cost, chance)), cost) for cost in COSTS],
        rows=sorted(measured(rows), key=lambda row: -row.accuracy),
        failed=[row for row in rows if row.reason is not None],
        numbers=front_numbers(rows),
        colours={row.name: STYLES[family_of(row)][0] for row in rows},
        originals=[(picture_uri(image), label) for image, label in comparison.examples],
        sights=find_sights(rows),
        strategies={name: strategy.__doc__.partition("\n")[0] for name, strategy in STRATEGIES.items()},
    )
    (output / "report.html").write_text(page)
    return advice


def chance_of(facts: dict[str, Any]) -> float:
    """Accuracy of guessing; of several labels an image, all of which must be right, next to none."""
    return 0.5 ** facts["num_classes"] if facts["is_multi_label"] else 1 / facts["num_classes"]


def headline(facts: dict[str, Any]) -> str:
    return f"A model for {facts['own_side']} pixels, images of {facts['image_size']}"


def note(facts: dict[str, Any]) -> str:
    """How it was measured."""
    trained = "as the checkpoint is, without fine-tuning"
    if facts["adapt"]:
        tiles = "as the checkpoint is"
        if facts["new_head"]:
            tiles = f"with the weights for images resized to {facts['own_side']} pixels"
        trained = f"each fine-tuned for {facts['adapt']} steps of {facts['adapt_batch_size']} images (tiles: {tiles})"
    return (
        f"{facts['num_images']} images of {facts['data']}, {facts['num_classes']} classes; {trained}; one seed. Latency is "
        f"from decoded image to logits on {facts['machine']}, all strategies by turns."
    )


def describe_options(facts: dict[str, Any]) -> str:
    """How the data were loaded."""
    options = facts["data_options"] or {}
    return ", ".join(f"{name} {value}" for name, value in options.items()) or "none"


def find_sights(rows: Sequence[Row]) -> list[Sight]:
    """Of each strategy one that shows what it sees: of those that differ in numbers alone, that with the fewest tokens."""
    sights: dict[str, Sight] = {}
    for row in sorted(
        measured(rows), key=lambda row: (list(STRATEGIES).index(row.strategy), row.tokens or 0)
    ):
        kind = {"select": f"select {row.selector}", "hybrid": f"hybrid {row.selector}"}.get(
            row.strategy, row.variant
        )
        if kind in sights or not row.pictures:
            continue
        panels = [
            (file_uri(Path(picture)), answer, right)
            # Examples are the first images.
            for picture, answer, right in zip(row.pictures, row.predicted, row.right, strict=False)
        ]
        sights[kind] = Sight(row, panels)
    return list(sights.values())


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
