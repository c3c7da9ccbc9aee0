"""What to do, in plain words."""

from collections.abc import Sequence

from .rows import SIGNIFICANT, Row, best_of, digits, measured


# Shares of the time at which a strategy counts as faster, and is worth a word of its own.
FASTER, MUCH_FASTER = 0.9, 0.6
# Share of images that a faster strategy may lose, by the interval of what it loses, and still be recommended.
TOLERABLE_LOSS = 0.05
BASELINES = ("random", "uniform")


def recommend(rows: Sequence[Row], chance: float, adapt: int = 0) -> str:
    """One paragraph: which strategy under what budget, what the images cannot tell apart, and what random patches and
    resizing do with as many tokens as the patches that were chosen.

    Args:
        rows: with accuracy and latency, or a reason.
        chance: accuracy of guessing.
        adapt: steps of fine-tuning that strategies got.
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
        sentences.append(
            "No strategy was fine-tuned, and a checkpoint is not prepared for images at another scale or with patches "
            "missing: --adapt STEPS shows what each can become."
        )
    if failed:
        count = "One strategy" if len(failed) == 1 else f"{len(failed)} strategies"
        sentences.append(f"{count} could not be measured; the table says why.")
    return " ".join(sentences)


def _best(best: Row) -> str:
    return (
        f"On {best.num_images} images the most accurate is {title(best)}, {best.accuracy:.1%} (95 % interval "
        f"{best.accuracy_low:.0%} to {best.accuracy_high:.0%}), at {cost(best)}."
    )


def _pick(known: Sequence[Row], best: Row, chance: float) -> Row:
    """The fastest of those that are shown to lose little to the best, if that is faster at all.

    That a test does not tell two apart is not enough: of few images it tells nothing apart.
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
            f"Use {title(pick)}: with {pick.accuracy:.1%} it cannot be told from that by these images (p = "
            f"{pick.p_value:.2f}; at most {100 * pick.behind_best_high:.1f} points less, by the 95 % interval), and takes "
            f"{cost(pick)}, {best.latency_ms / pick.latency_ms:.1f} times less."
        )
    others = [row for row in known if row is not best and row.as_good_as(best)]
    if any(row.latency_ms <= FASTER * best.latency_ms for row in others):
        whom = "any" if len(others) == len(known) - 1 else "every"
        return (
            f"Use it for now: {best.num_images} images are too few to tell {whom} other strategy from it, or to show that a "
            f"faster one loses no more than {100 * TOLERABLE_LOSS:.0f} points."
        )
    if others:
        names = " and ".join(title(row) for row in sorted(others, key=lambda row: -row.accuracy)[:2])
        return f"Use it: {names} cannot be told from it by these images, and {'is' if len(others) == 1 else 'are'} not faster."
    return "Use it: every other strategy is less accurate by more than chance explains."


def _otherwise(pick: Row, known: Sequence[Row], chance: float) -> list[str]:
    """What to take without a second checkpoint, and where the first choice is too slow."""
    sentences, told = [], pick
    first = [row for row in known if row.strategy != "hybrid"]
    if pick.strategy == "hybrid" and first:
        told = best_of(first)
        sentences.append(
            "That is the second checkpoint, which was trained by itself. Of the first the best is "
            f"{title(told)}, {told.accuracy:.1%} at {cost(told)}."
        )
    able = [row for row in known if row.accuracy_low > chance]
    quicker = [row for row in able if row.latency_ms <= MUCH_FASTER * told.latency_ms]
    if quicker:
        row = best_of(quicker)
        sentences.append(
            f"If {digits(told.latency_ms)} ms is too long: {title(row)}, {row.accuracy:.1%} at {cost(row)}."
        )
    return sentences


def _baselines(pick: Row, known: Sequence[Row]) -> list[str]:
    """The best choice of patches beside random ones, and the resized image, with as many tokens."""
    chosen = [row for row in known if row.strategy == "select" and row.selector not in BASELINES]
    if not chosen:
        return []
    row = pick if pick in chosen else best_of(chosen)
    random = [r for r in known if r.selector == "random" and (r.strategy, r.budget) == ("select", row.budget)]
    resized = [r for r in known if r.strategy == "resize" and r.budget == row.budget]
    found = [("random patches", r) for r in random] + [(title(r), r) for r in resized]
    if not found:
        return [
            f"Beside {title(row)} neither random patches nor resizing to as many tokens was measured, so what choosing "
            "patches is worth is not known."
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
        verdict = "so choosing patches is worth it on these images"
    elif worse:
        verdict = f"so choosing patches loses to {' and '.join(worse)} on these images"
    else:
        same = " and ".join(name for name, _ in found if name not in better)
        verdict = f"so these images do not show that choosing patches beats {same}"
    return [f"{lead}, {verdict} (McNemar's test at {SIGNIFICANT:.0%})."]


def title(row: Row) -> str:
    """A name that reads well in a sentence."""
    return f"\N{LEFT DOUBLE QUOTATION MARK}{row.name}\N{RIGHT DOUBLE QUOTATION MARK}"


def cost(row: Row) -> str:
    """Of an image."""
    return f"{digits(row.latency_ms)} ms an image"
