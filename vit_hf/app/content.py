"""Texts and pictures of the page. Errors become messages on the page; `show` never raises."""

import html
import inspect
from dataclasses import dataclass

import numpy as np
import PIL.Image
from transformers.utils import logging

from ..explanations.explanation import Prediction
from ..model.options import type_of
from ..model.pixel_scorers import PIXEL_SCORERS
from ..model.selectors import PATCH_SELECTORS
from ..model.sizes import to_pair
from .explorer import ALL_PATCHES, MAX_TOKENS, Exploration, PatchExplorer, Size
from .pictures import draw_kept, draw_map, read_picture


logger = logging.get_logger(__name__)

INVITATION = '<p class="hint">Drop an image, or pick an example.</p>'


@dataclass
class Content:
    """Changing parts of the page.

    Attributes:
        summary: HTML with the figures, or an error message.
        kept: `(h, w, 3)` uint8, see `draw_kept`; None if there is nothing to show.
        map: `(h, w, 3)` uint8, scores, or attention if there are no scores.
        map_title: title of the map.
        classes: most probable classes to probabilities, or the values of a regression as text.
        num_patches: N of the image; None if unknown.
        can_measure: True if the page offers to time all patches.
    """

    summary: str
    kept: np.ndarray | None = None
    map: np.ndarray | None = None
    map_title: str = "Scores"
    classes: dict[str, float] | str | None = None
    num_patches: int | None = None
    can_measure: bool = False


def show(
    explorer: PatchExplorer,
    path: str | None,
    selector: str,
    num_selected: int,
    size: Size,
    measure: bool = False,
) -> Content:
    """Makes the content for an image file; an invitation if `path` is None.

    Args:
        measure: times all patches first, however long that takes.
    """
    if path is None:
        return Content(INVITATION)
    try:
        picture = read_picture(path, explorer.config.num_channels)
        if measure:
            explorer.measure_all(picture, size)
        return describe(explorer, picture, explorer.explore(picture, selector, int(num_selected), size))
    except (ValueError, TypeError, OSError) as error:
        return Content(message(str(error)))
    except Exception as error:  # a stack trace helps the page's host, not its visitors
        logger.exception("The page could not show an image.")
        reason = str(error).partition("\n")[0][:300]
        return Content(message(f"That did not work: {reason or type(error).__name__}"))


def describe(explorer: PatchExplorer, picture: PIL.Image.Image, exploration: Exploration) -> Content:
    explanation = exploration.explanation
    values, title = explanation.patch_scores, "Scores"
    if values is None:
        values, title = explanation.attention, "Attention to each patch"
    return Content(
        summary=summarize(explorer, picture, exploration),
        kept=draw_kept(explanation),
        map=None if values is None else draw_map(explanation, values),
        map_title=title,
        classes=list_classes(explanation.prediction),
        num_patches=exploration.num_patches,
        can_measure=exploration.all_seconds is None and exploration.num_patches <= MAX_TOKENS,
    )


def summarize(explorer: PatchExplorer, picture: PIL.Image.Image, exploration: Exploration) -> str:
    """Formats the figures as HTML."""
    explanation, num_patches = exploration.explanation, exploration.num_patches
    kept = len(explanation.kept_patches)
    figures = [
        (f"{kept:,} of {num_patches:,}", f"patches, {kept / num_patches:.1%}"),
        (
            duration(exploration.seconds),
            "to select and predict" if kept < num_patches else "to predict",
        ),
    ]
    if exploration.all_seconds is not None:
        ratio = exploration.all_seconds / exploration.seconds
        times = f", {ratio:.3g} times as long" if ratio >= 1.05 else ""
        figures.append((duration(exploration.all_seconds), f"for all patches{times}"))
    elif num_patches > MAX_TOKENS:
        figures.append(("?", "for all patches: too many to time here"))
    tiles = "".join(
        f"<div><strong>{value}</strong><span>{html.escape(name)}</span></div>" for value, name in figures
    )
    return (
        f'<div class="figures" role="status">{tiles}</div><p '
        f'class="small">{html.escape(facts(explorer, picture, exploration))}</p>'
    )


def facts(explorer: PatchExplorer, picture: PIL.Image.Image, exploration: Exploration) -> str:
    """Describes the image and its processing in one line."""
    explanation, config = exploration.explanation, explorer.config
    input_height, input_width = explanation.input_size
    parts = [f"{picture.width} x {picture.height} pixels"]
    if (picture.width, picture.height) != (input_width, input_height):
        parts[0] += f", given to the model as {input_width} x {input_height}"
    rows, columns = explanation.grid
    patch_height, patch_width = to_pair(config.patch_size)
    parts.append(f"{columns} x {rows} patches of {patch_width} x {patch_height}")
    if exploration.requested is not None and exploration.requested > exploration.num_patches:
        parts.append(f"{exploration.requested:,} requested, more than there are")
    if explanation.stages:
        parts.append(
            f"thinned to {explanation.stages[-1].num_tokens:,} tokens by {type_of(config.token_reducer)}"
        )
    if config.thumbnail_context:
        parts.append("with the tokens of a thumbnail")
    parts.append(f"on {explorer.model.device.type.upper()}")
    return " · ".join(parts)


def list_classes(prediction: Prediction) -> dict[str, float] | str:
    """Maps the most probable classes to probabilities; formats the values of a regression as text."""
    if prediction.probabilities is None:
        return ", ".join(f"{value:.4g}" for _, value in prediction.top)
    classes: dict[str, float] = {}
    for name, probability in prediction.top:
        # ImageNet has two kinds of crane.
        classes[f"{name} (another)" if name in classes else name] = probability
    return classes


def caption(title: str, has_colors: bool = False) -> str:
    """Formats the caption of a picture as HTML."""
    colors = "<span>low<i></i>high</span>" if has_colors else ""
    return f'<p class="caption"><strong>{html.escape(title)}</strong>{colors}</p>'


def message(text: str) -> str:
    """Formats an error message as HTML."""
    return f'<p class="message" role="alert">{html.escape(text)}</p>'


def duration(seconds: float) -> str:
    if seconds < 0.9995:
        return f"{seconds * 1000:.0f} ms" if seconds >= 0.01 else f"{seconds * 1000:.1f} ms"
    return f"{seconds:.1f} s"


def selector_choices(explorer: PatchExplorer) -> list[tuple[str, str]]:
    """Lists (text, name) of the usable selectors, the checkpoint's own first."""
    own = type_of(explorer.config.patch_selector)
    return [
        (
            "all patches"
            if name == ALL_PATCHES
            else f"{name}, the checkpoint's own"
            if name == own
            else name,
            name,
        )
        for name in explorer.selectors
    ]


def about_selector(name: str) -> str:
    """Describes a selector by the first paragraph of its docstring."""
    if name == ALL_PATCHES:
        return "No selection: all patches are computed on, which is slow for large images."
    source = PIXEL_SCORERS.get(name) or PATCH_SELECTORS.get(name)
    return (inspect.getdoc(source) or "").partition("\n\n")[0] if source else ""


def about_left_out(explorer: PatchExplorer) -> str:
    """Formats the reasons why some selectors cannot be used, as HTML."""
    reasons: dict[str, list[str]] = {}
    for name, reason in explorer.left_out.items():
        reasons.setdefault(reason, []).append(name)
    lines = [f"Not offered: {', '.join(names)} ({reason})." for reason, names in reasons.items()]
    return f'<p class="small">{html.escape(" ".join(lines))}</p>'


def size_choices(explorer: PatchExplorer) -> list[tuple[str, Size]]:
    """Lists (text, size) of the sizes that images can be resized to."""
    choices: list[tuple[str, Size]] = []
    if explorer.trained_size is not None:
        choices.append((f"as in training: {explorer.trained_size}", "checkpoint"))
    choices += [(f"at most {side} pixels a side", side) for side in (512, 1024, 2048)]
    return [*choices, ("not resized", "native")]


def default_size(explorer: PatchExplorer) -> Size:
    """Returns the checkpoint's size if it selects patches, else one large enough for selection to matter."""
    if explorer.trained_size is None:
        return "native"
    return 1024 if explorer.config.patch_selector is None else "checkpoint"
