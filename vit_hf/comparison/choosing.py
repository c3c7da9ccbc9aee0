"""Choice of the number of patches: the fewest that are as accurate as all of them, up to a margin.

Numbers of patches are tested from the most to the fewest, first powers of two, then between the last that is
accurate enough and the first that is not. Each is compared with all patches on the same images. Testing in a
fixed order up to the first failure needs no correction for the number of tests (Maurer, Hothorn & Lehmacher,
1995). Each of two selectors is tested at 2.5 %, and numbers between powers of two get a second chance: the
choice is wrong in up to about 10 % of cases, and in some more as the same images ranked the selectors.
"""

import json
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from functools import cache
from typing import Any

from ..arguments import ComparedDataArguments, ComparisonArguments
from .checkpoints import Checkpoint
from .results import Row, images_needed, mcnemar, paired_difference


# Below this, an accuracy says next to nothing.
MIN_IMAGES = 20
NUM_SELECTORS = 2
# Fractions of all patches at which selectors are ranked.
RANKED_AT = (4, 16)
# Numbers of patches to try between two powers of two.
NUM_BETWEEN = 3
SHOWN, ESTIMATED, NO = "shown", "estimated", "no"
HEADER = ("patches", "selector", "accuracy", "points less (95 % interval)", "p", "within the margin")


@dataclass
class Choice:
    """Number of patches that was found, and what it was compared with.

    Attributes:
        margin: accuracy that may be lost, as a fraction.
        num_patches: patches of a typical image.
        reference: row of all patches; of the most that fit into memory if all do not.
        obstacle: reason why all patches could not be measured, or None.
        chance: accuracy of guessing.
        rows: rows of the best selectors, from the most patches to the fewest.
        shown: row of the fewest patches whose loss is below the margin by the bound of its interval, or None.
        estimated: row of the fewest patches whose loss on these images is below the margin, or None.
        command: command to go on with.
        num_labeled: images of the split, of which some were measured on.
    """

    margin: float
    num_patches: int
    reference: Row
    obstacle: str | None
    chance: float
    rows: list[Row] = field(default_factory=list)
    shown: Row | None = None
    estimated: Row | None = None
    command: str = ""
    num_labeled: int = 0

    @property
    def row(self) -> Row | None:
        """Row of the choice; None to keep all patches."""
        return self.shown or self.estimated

    @property
    def is_above_chance(self) -> bool:
        """True if the accuracy of all patches is clearly above guessing."""
        return self.reference.accuracy_low > self.chance

    def table(self) -> list[tuple[str, ...]]:
        """Lists the cells of `HEADER` for each row, the reference first."""
        first = f"all {self.num_patches}" if self.obstacle is None else str(self.reference.budget)
        lines = [(first, self.reference.selector or "-", f"{self.reference.accuracy:.1%}", "-", "-", "-")]
        for row in self.rows:
            bounds = f"{_points(row.behind_all_low)} to {_points(row.behind_all_high)}"
            lines.append(
                (
                    str(row.budget),
                    row.selector,
                    f"{row.accuracy:.1%}",
                    f"{_points(row.behind_all)} ({bounds})",
                    "< 0.001" if row.p_value_all < 0.001 else f"{row.p_value_all:.3f}",
                    row.within_margin,
                )
            )
        return lines

    def describe(self, adapt: int = 0, trained_selector: str | None = None) -> str:
        """Writes one paragraph: how many patches to keep, and how sure that is.

        Args:
            adapt: steps of fine-tuning before each measurement.
            trained_selector: selector that the checkpoint was saved with.
        """
        return " ".join([*self._limits(), *self._advice(adapt, trained_selector)])

    def _limits(self) -> list[str]:
        if self.obstacle is None:
            return []
        return [
            f"All {self.num_patches} patches do not fit ({self.obstacle.rstrip('.')}), so that fewer are "
            f"compared with the most that fit: {self.reference.budget} by {self.reference.selector}."
        ]

    def _advice(self, adapt: int, trained_selector: str | None) -> list[str]:
        number, margin = self.reference.num_images, f"{_points(self.margin)} points"
        most = self.reference.budget or self.num_patches
        reference = f"{self.reference.accuracy:.1%} with {'all ' if self.obstacle is None else ''}{most}"
        if not self.is_above_chance:
            return [
                f"The accuracy of {reference} patches on {number} images is not clearly above chance "
                f"({self.chance:.0%}), so no number of patches can be chosen: "
                + ("fine-tune for more steps." if adapt else "fine-tune first, or give --adapt STEPS.")
            ]
        sentences = []
        if self.row is None:
            kept = "all" if self.obstacle is None else most
            sentences.append(
                f"Keep {kept} patches: on {number} images every smaller number loses more than {margin} of "
                f"{reference}. A larger --margin allows fewer."
            )
        elif self.shown is not None:
            bound = self.shown.behind_all_high
            loss = (
                f"The loss is at most {_points(bound)} points (95 % interval), within the margin of {margin}."
            )
            if bound < 0:
                loss = f"It is more accurate than all, by at least {_points(-bound)} points (95 % interval)."
            sentences.append(
                f"Keep {self._name(self.shown)}: {self.shown.accuracy:.1%}, and {reference}, on the same "
                f"{number} images. {loss}"
            )
        if self.estimated is not None and self.estimated is not self.shown:
            sentences += self._estimate(number, margin, reference)
        # A checkpoint that was trained on few patches may be better with them than with all.
        best = max(self.rows, key=lambda row: row.accuracy, default=None)
        if self.row is not None and not best.as_good_as(self.row):
            sentences.append(f"The most accurate number is {self._name(best)}: {best.accuracy:.1%}.")
        if adapt:
            sentences.append(
                f"Each number of patches was fine-tuned for {adapt} steps with one seed, so that differences "
                "include chance in training."
            )
        elif trained_selector is not None:
            sentences.append(
                f"The checkpoint was saved with the selector {trained_selector}, so that all patches, and "
                "those of other selectors, are strange to it: --adapt STEPS fine-tunes for each."
            )
        else:
            sentences.append(
                "The checkpoint was not fine-tuned with patches missing; afterward, fewer may do: give "
                "--adapt STEPS."
            )
        return sentences

    def _estimate(self, number: int, margin: str, reference: str) -> list[str]:
        row = self.estimated
        needed = images_needed(self.reference.right, row.right, self.margin)
        sign = "less" if row.behind_all >= 0 else "more"
        loss = (
            f"{_points(abs(row.behind_all))} points {sign} on these images, at most "
            f"{_points(row.behind_all_high)} less by the 95 % interval, p = {row.p_value_all:.2f}"
        )
        remedy = f"about {needed} images like these are needed"
        if needed is None:
            remedy = "a larger --margin is needed"
        elif self.num_labeled > number:
            remedy += f" (the split has {self.num_labeled}; --limit 0 takes all)"
        if self.shown is not None:
            return [
                f"{self._name(row)} may do ({loss}), but {number} images are too few to show it: {remedy}."
            ]
        return [
            f"{number} images are too few to show that fewer patches lose at most {margin} of {reference}. "
            f"By the estimate alone, keep {self._name(row)} ({loss}); to show it, {remedy}."
        ]

    def _name(self, row: Row) -> str:
        return f"{row.budget} of {self.num_patches} patches by {row.selector}"


def _points(fraction: float) -> str:
    """Formats a fraction in percentage points."""
    return f"{100 * fraction:.1f}".replace("-0.0", "0.0")


def format_table(choice: Choice) -> str:
    """Formats the rows of a choice for a terminal."""
    lines = [HEADER, *choice.table()]
    widths = [max(len(line[column]) for line in lines) for column in range(len(HEADER))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def powers_below(number: int) -> list[int]:
    """Lists the powers of two below a number, descending."""
    return [2**exponent for exponent in reversed(range(max(0, (number - 1).bit_length())))]


def between(low: int, high: int) -> list[int]:
    """Lists up to `NUM_BETWEEN` whole numbers between two others, descending, at equal distances."""
    step = (high - low) / (NUM_BETWEEN + 1)
    numbers = {round(high - step * index) for index in range(1, NUM_BETWEEN + 1)}
    return sorted((number for number in numbers if low < number < high), reverse=True)


def find_fewest(is_enough: Callable[[int], bool], most: int) -> int:
    """Finds the smallest number that is enough, in descending order, up to the first that is not.

    Args:
        is_enough: the test of a number below `most`.
        most: number that is enough.
    """
    fewest, refused = most, 0
    for number in powers_below(most):
        if not is_enough(number):
            refused = number
            break
        fewest = number
    for number in between(refused, fewest):
        if not is_enough(number):
            break
        fewest = number
    return fewest


def choose_tokens(
    measure: Callable[[str | None, int | None], Row],
    selectors: Sequence[str],
    num_patches: int,
    margin: float,
    chance: float,
    log: Callable[[str], None] = print,
) -> Choice:
    """Finds the fewest patches whose accuracy is within a margin of all patches.

    Args:
        measure: measures a selector with a number of patches, or all patches by None and None; a row without
            accuracy if that is not possible.
        selectors: names of selectors, of which the best two are searched.
        num_patches: patches of a typical image.
        margin: accuracy that may be lost, as a fraction.
        chance: accuracy of guessing.
        log: called with each line of progress.

    Raises:
        ValueError: if no selector could be measured.
    """
    measure = cache(measure)
    reference, obstacle, most = measure(None, None), None, num_patches
    if reference.accuracy is not None and reference.accuracy_low <= chance:
        return Choice(margin, num_patches, reference, None, chance)
    best = _best_selectors(measure, selectors, num_patches)
    log(f"Searching between 1 and {num_patches} patches with {' and '.join(best)}")
    if reference.accuracy is None:
        obstacle = reference.reason
        reference = next(row for row in (measure(best[0], k) for k in powers_below(num_patches)) if row.right)
        most = reference.budget

    tested: dict[tuple[str, int], Row] = {}

    def test(selector: str, budget: int) -> Row:
        row = tested[selector, budget] = measure(selector, budget)
        if row.right and row.within_margin is None:
            _compare(row, reference, margin)
        return row

    choice = Choice(margin, num_patches, reference, obstacle, chance)
    if choice.is_above_chance:
        choice.shown = _fewest_row(test, best, most, (SHOWN,))
        choice.estimated = _fewest_row(test, best, choice.shown.budget if choice.shown else most, NEAR)
        choice.estimated = choice.estimated or choice.shown
    pick = choice.row
    # The baseline of the report.
    if pick is not None and "random" in selectors:
        test("random", pick.budget)
    # The random baseline comes last, unless it is one of the best.
    order = [*best, "random"]
    choice.rows = [
        row
        for _, row in sorted(tested.items(), key=lambda item: (order.index(item[0][0]), -item[0][1]))
        if row.right and row is not reference
    ]
    return choice


# Verdicts of a loss that is below the margin on the images.
NEAR = (SHOWN, ESTIMATED)


def _best_selectors(
    measure: Callable[[str, int], Row], selectors: Sequence[str], num_patches: int
) -> list[str]:
    """Ranks selectors by their accuracy at `RANKED_AT`, and returns the best.

    Raises:
        ValueError: if none could be measured.
    """
    budgets = {powers_below(max(1, num_patches // part) + 1)[0] for part in RANKED_AT}
    accuracy, reasons = {}, []
    for selector in selectors:
        rows = [measure(selector, budget) for budget in sorted(budgets, reverse=True)]
        reasons += [row.reason for row in rows if not row.right]
        if all(row.right for row in rows):
            accuracy[selector] = sum(row.accuracy for row in rows)
    if not accuracy:
        reason = reasons[0] if reasons else "there is none"
        raise ValueError(f"none of the selectors {', '.join(selectors)} could be measured: {reason}")
    return sorted(accuracy, key=lambda selector: -accuracy[selector])[:NUM_SELECTORS]


def _compare(row: Row, reference: Row, margin: float) -> None:
    """Compares a row with the reference, and fills in its columns."""
    figures = paired_difference(reference.right, row.right)
    row.behind_all, row.behind_all_low, row.behind_all_high = figures
    row.p_value_all = mcnemar(reference.right, row.right)
    # Fractions of images are not exact as floating-point numbers.
    close = row.behind_all <= margin + 1e-9
    row.within_margin = SHOWN if row.behind_all_high <= margin else ESTIMATED if close else NO


def _fewest_row(
    test: Callable[[str, int], Row], selectors: Sequence[str], most: int, verdicts: Sequence[str]
) -> Row | None:
    """Finds the row with the fewest patches, below `most`, whose verdict is one of these."""
    found = []
    for selector in selectors:
        fewest = find_fewest(lambda k, name=selector: test(name, k).within_margin in verdicts, most)
        if fewest < most:
            found.append(test(selector, fewest))
    return min(found, key=lambda row: (row.budget, -row.accuracy), default=None)


def finetune_command(
    choice: Choice, arguments: ComparisonArguments, data: ComparedDataArguments, checkpoint: Checkpoint
) -> str:
    """Writes the command that fine-tunes the checkpoint with the chosen number of patches."""
    flags: dict[str, Any] = {"model_name_or_path": arguments.model_name_or_path}
    for entry in fields(data):
        if getattr(data, entry.name) not in (entry.default, None, {}):
            flags[entry.name] = getattr(data, entry.name)
    flags |= {"native_resolution": True, "return_patches": checkpoint.takes_cut_patches}
    row = choice.row or (choice.reference if choice.obstacle else None)
    if row is not None:
        flags |= {"patch_selector": row.selector, "num_selected_patches": row.budget}
    flags["output_dir"] = "runs/" + (f"{row.budget}_patches" if row else "all_patches")
    words = ["vit-hf", "finetune"]
    for name, value in flags.items():
        if value is False:
            continue
        words.append(f"--{name}")
        if value is not True:
            words.append(json.dumps(value) if isinstance(value, dict) else str(value))
    return shlex.join(words)
