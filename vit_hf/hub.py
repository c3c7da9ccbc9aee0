"""What others need to know of a model: its card."""

import sys
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from .model.modeling_adaptive_vit import AdaptiveViTPreTrainedModel
from .model.patches import to_pair


def make_model_card(
    model: AdaptiveViTPreTrainedModel,
    *,
    model_name: str,
    summary: str,
    results: str,
    training: str,
    limitations: str,
    eval_results: Sequence[EvalResult] = (),
    repo_id: str | None = None,
    picture: str | None = None,
    license: str = "apache-2.0",
    tags: Sequence[str] = (),
) -> ModelCard:
    """A model card from `model_cards/template.md`; `save(folder / "README.md")` puts it beside the model.

    Args:
        model: the model it describes.
        model_name: title, and name in the card's `model-index`.
        summary, results, training, limitations: Markdown.
        eval_results: metrics for the `model-index`, which the Hub shows and compares.
        repo_id: how to name the model in the example of use; default `model_name`.
        picture: file beside the card.
        license: identifier of the Hub.
        tags: beside the usual ones.

    Raises:
        FileNotFoundError: if the template was not installed.
    """
    config = model.config
    data = ModelCardData(
        model_name=model_name,
        license=license,
        library_name="transformers",
        pipeline_tag="image-classification",
        tags=["vision", "vit_hf", config.model_type, *tags],
        eval_results=list(eval_results) or None,
    )
    selection = "none: all patches"
    if config.patch_selector is not None:
        number = config.num_selected_patches
        share = f"{number:.1%}" if isinstance(number, float) else number
        selection = f"`{config.patch_selector}` keeps {share} patches before the encoder"
    return ModelCard.from_template(
        data,
        template_path=str(find_template()),
        model_name=model_name,
        repo_id=repo_id or model_name,
        summary=summary,
        results=results,
        training=training,
        limitations=limitations,
        picture=picture,
        config=config,
        patch_size="x".join(map(str, to_pair(config.patch_size))),
        num_parameters=f"{model.num_parameters():,}",
        selection=selection,
        classes=", ".join(config.id2label.values()),
    )


def find_template() -> Path:
    """The template in a checkout, or where an installation put it.

    Raises:
        FileNotFoundError: if it is in neither place.
    """
    places = [
        Path(__file__).parents[1] / "model_cards",
        Path(sys.prefix) / "share" / "vit_hf" / "model_cards",
    ]
    for place in places:
        if (place / "template.md").is_file():
            return place / "template.md"
    raise FileNotFoundError(
        f"There is no template.md in {' or '.join(map(str, places))}: install vit_hf again."
    )
