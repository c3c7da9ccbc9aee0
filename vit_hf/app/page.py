"""Page in Gradio; it fetches nothing from the network."""

import os
from collections.abc import Sequence
from pathlib import Path

from ..model.budget import Budget
from .content import (
    INVITATION,
    Content,
    about_left_out,
    about_selector,
    caption,
    default_size,
    selector_choices,
    show,
    size_choices,
)
from .explorer import ALL_PATCHES, MAX_TOKENS, PatchExplorer, load_explorer


# Before the import: no analytics on the user's own images.
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")

try:
    import gradio as gr
except ImportError as error:
    raise ImportError("The page needs Gradio: pip install vit_hf[app]") from error


CSS = """
.gradio-container {width: 100% !important; max-width: 1280px !important; margin: 0 auto !important}
.html-container:has(.figures, .caption, .small, .hint, .message) {padding: 0 !important}
.figures {display: flex; flex-wrap: wrap; gap: 0.5rem 2.5rem}
.figures strong {display: block; font-size: 1.75rem; line-height: 1.25; white-space: nowrap; font-variant-numeric: tabular-nums}
.figures span, .small, .caption span {color: var(--body-text-color-subdued)}
.small {margin: 0.5rem 0 0; font-size: 0.9rem !important}
.hint {margin: 0; font-size: 1.2rem; color: var(--body-text-color-subdued)}
.caption {display: flex; justify-content: space-between; gap: 1rem; margin: 0.5rem 0 -0.5rem}
.caption i {display: inline-block; width: 4.5rem; height: 0.6rem; margin: 0 0.3rem; border-radius: 0.2rem;
    background: linear-gradient(90deg, #440154, #3b528b, #21918c, #5ec962, #fde725)}
.message {margin: 0; padding: 0.6rem 0.9rem; border-left: 4px solid #d55e00; overflow-wrap: anywhere;
    background: var(--background-fill-secondary)}
@media (max-width: 640px) {
    .figures {gap: 0.5rem 1.5rem}
    .figures strong {font-size: 1.4rem}
}
"""  # noqa: E501


def build_page(explorer: PatchExplorer, name: str, examples: Sequence[str | os.PathLike] = ()) -> gr.Blocks:
    """Builds the page for one checkpoint.

    Args:
        name: displayed name of the checkpoint.
        examples: image files to pick from.
    """
    choices, sizes = selector_choices(explorer), size_choices(explorer)
    with gr.Blocks(title=f"{name}: which patches matter", analytics_enabled=False) as page:
        gr.Markdown(
            f"# Which patches matter\n`{name}` computes on some patches of an image, at full resolution, "
            "and drops the others. Choose how, and how many."
        )
        with gr.Row():
            with gr.Column(scale=2, min_width=320):
                image = gr.Image(
                    label="Image",
                    show_label=False,
                    sources=["upload", "clipboard"],
                    placeholder="# Drop an image\nor click to choose one",
                    height=300,
                    elem_id="image",
                )
                # As a file: Gradio would open an image itself, and show its own error messages.
                file = gr.File(visible="hidden")
                if examples:
                    gr.Examples(
                        [[str(path)] for path in examples], image, cache_examples=False, label="Examples"
                    )
                selector = gr.Dropdown(
                    choices,
                    value=explorer.default_selector,
                    label="Selector",
                    info=about_selector(explorer.default_selector),
                    elem_id="selector",
                )
                number = gr.Slider(
                    1,
                    1024,
                    value=start_number(explorer, 1024),
                    step=1,
                    precision=0,
                    buttons=[],
                    label="Patches to keep",
                    interactive=explorer.default_selector != ALL_PATCHES,
                    elem_id="number",
                )
                size = gr.Dropdown(sizes, value=default_size(explorer), label="Size", elem_id="size")
            with gr.Column(scale=5, min_width=320):
                summary = gr.HTML(INVITATION, elem_id="summary", padding=False)
                with gr.Row():
                    measure = gr.Button(visible=False, size="sm", scale=0, min_width=240, elem_id="measure")
                options = {"interactive": False, "show_label": False, "format": "png", "min_width": 260}
                options["buttons"] = ["fullscreen", "download"]
                with gr.Row():
                    with gr.Column(min_width=260):
                        gr.HTML(caption("Kept patches"), padding=False)
                        kept = gr.Image(label="Kept patches", elem_id="kept", **options)
                    with gr.Column(min_width=260):
                        map_caption = gr.HTML(caption("Scores", True), padding=False, elem_id="map_caption")
                        heat_map = gr.Image(label="Scores", elem_id="map", **options)
                classes = gr.Label(label="Prediction", num_top_classes=5, elem_id="classes")
                if explorer.left_out:
                    gr.HTML(about_left_out(explorer), padding=False)

        def respond(path, selector, number, size, measure=False):
            content = show(explorer, path, selector, number, size, measure)
            return to_updates(content)

        def respond_and_fit(path, selector, number, size):
            """Responds to another image or size, which changes the number of patches."""
            content = show(explorer, path, selector, number, size)
            return [*to_updates(content), fit_number(content, number)]

        def choose(path, selector, number, size):
            """Responds to another selector."""
            described = gr.Dropdown(info=about_selector(selector))
            slider = gr.Slider(interactive=selector != ALL_PATCHES)
            return [*respond(path, selector, number, size), described, slider]

        def respond_measured(path, selector, number, size):
            return respond(path, selector, number, size, measure=True)

        inputs = [file, selector, number, size]
        outputs = [summary, measure, kept, map_caption, heat_map, classes]
        # If a slider moves several times during one computation, only the last move counts.
        common = {"inputs": inputs, "trigger_mode": "always_last", "show_progress_on": summary}
        dropped = image.change(None, image, file, js="image => image")
        for listen in (dropped.then, size.input):
            listen(respond_and_fit, outputs=[*outputs, number], **common)
        selector.input(choose, outputs=[*outputs, selector, number], **common)
        number.release(respond, outputs=outputs, **common)
        measure.click(respond_measured, outputs=outputs, **common)
    return page


def make_theme() -> gr.Theme:
    """Makes Gradio's theme with bundled fonts (its weight 600 lacks most letters) and darker notes."""
    theme = gr.themes.Default(
        primary_hue="blue", font=[gr.themes.LocalFont("Source Sans Pro", weights=(400, 700)), "sans-serif"]
    )
    subdued = {"block_info_text_color": "*neutral_600", "body_text_color_subdued": "*neutral_600"}
    return theme.set(**subdued, **{f"{name}_dark": "*neutral_300" for name in subdued})


def to_updates(content: Content) -> list:
    return [
        content.summary,
        gr.Button(f"Time all {content.num_patches or 0:,} patches, too", visible=content.can_measure),
        gr.Image(content.kept),
        caption(content.map_title, True),
        gr.Image(content.map),
        gr.Label(content.classes),
    ]


def start_number(explorer: PatchExplorer, most: int) -> int:
    """Returns the checkpoint's number of patches; a fraction is taken of `most` until there is an image."""
    return Budget(explorer.default_number).capped(most).resolve(most)


def fit_number(content: Content, number: int):
    """Fits the slider to the patches of another image."""
    if content.num_patches is None:
        return gr.skip()
    most = max(2, min(content.num_patches, MAX_TOKENS))  # a slider needs two ends
    return gr.Slider(maximum=most, value=min(number, most))


def launch(
    model_name_or_path: str,
    examples: Sequence[str | os.PathLike] = (),
    device: str | None = None,
    server_name: str | None = None,
    server_port: int | None = None,
) -> None:
    """Serves the page for a checkpoint until it is interrupted.

    Args:
        model_name_or_path: see `load_explorer`, also for the errors.
        examples: image files to pick from.
        device: by default an accelerator if there is one.
        server_name, server_port: where to listen; by default on this machine only, at 7860 or the first free
            port after it.
    """
    explorer = load_explorer(model_name_or_path, device)
    local = Path(model_name_or_path)
    name = local.resolve().name if local.is_dir() else model_name_or_path
    build_page(explorer, name, examples).launch(
        server_name=server_name,
        server_port=server_port,
        theme=make_theme(),
        css=CSS,
        footer_links=[],
        ssr_mode=False,
        max_file_size="200mb",
    )
