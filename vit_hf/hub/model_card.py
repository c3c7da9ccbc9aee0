"""Model cards."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from numbers import Real
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from transformers import SwinConfig, TrainingArguments, ViTConfig
from transformers.image_processing_utils import BaseImageProcessor

from ..model.budget import Budget
from ..model.configuration_adaptive_swin import AdaptiveSwinConfig
from ..model.configuration_adaptive_vit import AdaptiveViTConfig
from ..model.options import Part, options_of, type_of
from ..model.pretrained import AdaptivePreTrainedModel
from ..model.sizes import has_frames, to_pair


TEMPLATE = Path(__file__).with_name("card_template.md")
# The only training arguments that a card shows: no paths, no tokens.
HYPERPARAMETERS = (
    "learning_rate",
    "num_train_epochs",
    "max_steps",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "optim",
    "weight_decay",
    "lr_scheduler_type",
    "warmup_steps",
    "max_grad_norm",
    "label_smoothing_factor",
    "bf16",
    "fp16",
    "seed",
    "layer_decay",
    "backbone_lr_factor",
    "freeze_backbone_ratio",
    "ema_decay",
    "keep_rate_schedule",
    "random_crop",
    "crop_size",
    "horizontal_flip",
    "vertical_flip",
    "rand_augment",
    "mixup_alpha",
    "cutmix_alpha",
)
# Values of unused options; factors are unused at 1.
UNUSED = (None, False, 0, -1, "none")
FACTORS = ("gradient_accumulation_steps", "layer_decay", "backbone_lr_factor")

# Auto class that loads a model, and its task on the Hub.
USES = {
    "AdaptiveViTForImageClassification": ("AutoModelForImageClassification", "image-classification"),
    "AdaptiveViTForVideoClassification": ("AutoModelForVideoClassification", "video-classification"),
    "AdaptiveViTForMaskedImageModeling": ("AutoModelForMaskedImageModeling", "image-feature-extraction"),
    "AdaptiveViTForPreTraining": ("AutoModelForPreTraining", "image-feature-extraction"),
    "AdaptiveViTForSemanticSegmentation": ("AutoModelForSemanticSegmentation", "image-segmentation"),
    "AdaptiveViTBackbone": ("AutoBackbone", "image-feature-extraction"),
    "AdaptiveViTModel": ("AutoModel", "image-feature-extraction"),
    "AdaptiveSwinForImageClassification": ("AutoModelForImageClassification", "image-classification"),
    "AdaptiveSwinForMaskedImageModeling": ("AutoModelForMaskedImageModeling", "image-feature-extraction"),
    "AdaptiveSwinBackbone": ("AutoBackbone", "image-feature-extraction"),
    "AdaptiveSwinModel": ("AutoModel", "image-feature-extraction"),
}
CLASSIFIERS = ("AutoModelForImageClassification", "AutoModelForVideoClassification")

SPLITS = {"eval": "validation", "test": "test"}
# Endings of what Trainer reports in addition to metrics.
TECHNICAL = ("runtime", "_per_second", "epoch", "step", "_flos", "_mem", "_time")
MAX_CLASSES = 20


def make_model_card(
    model: AdaptivePreTrainedModel,
    image_processor: BaseImageProcessor | None = None,
    *,
    model_name: str,
    repo_id: str | None = None,
    summary: str | None = None,
    results: str | None = None,
    training: str | None = None,
    limitations: str | None = None,
    license: str | None = None,
    base_model: str | None = None,
    dataset: str | None = None,
    metrics: Mapping[str, float] | None = None,
    eval_results: Sequence[EvalResult] = (),
    training_arguments: TrainingArguments | Mapping[str, Any] | None = None,
    pictures: Mapping[str, str] | None = None,
    tags: Sequence[str] = (),
) -> ModelCard:
    """Makes a model card from `card_template.md`; save it with `save(folder / "README.md")`.

    Args:
        model: the model to describe.
        image_processor: its image processor, which may select patches, too.
        model_name: title, and name in the card's `model-index`.
        repo_id: name of the model in the code example; default `model_name`.
        summary, results, training, limitations: Markdown; by default made from the other arguments.
        license: identifier of the Hub, such as "apache-2.0"; None for none.
        base_model: initial checkpoint, by its name on the Hub.
        dataset: training data, as "owner/name" on the Hub, or any name.
        metrics: result of `Trainer.evaluate`: `eval_` for the validation split, `test_` for the test split,
            others for an unnamed one. Runtimes and values that are not numbers are left out.
        eval_results: more results for the `model-index`, which the Hub shows and compares.
        training_arguments: only the `HYPERPARAMETERS` are shown.
        pictures: files in the card's folder, by their captions; `push_to_hub` copies those from elsewhere.
        tags: in addition to the usual ones.
    """
    config = model.config
    auto_class, pipeline_tag = next(USES[cls.__name__] for cls in type(model).__mro__ if cls.__name__ in USES)
    split_metrics = group_metrics(metrics or {})
    data = ModelCardData(
        model_name=model_name,
        license=license,
        base_model=base_model,
        datasets=[dataset] if dataset and "/" in dataset else None,
        library_name="transformers",
        pipeline_tag=pipeline_tag,
        tags=["vision", "vit_hf", config.model_type, *tags],
        eval_results=[*eval_results, *_eval_results(split_metrics, dataset, pipeline_tag)] or None,
    )
    return ModelCard.from_template(
        data,
        template_path=str(TEMPLATE),
        model_name=model_name,
        repo_id=repo_id or model_name,
        auto_class=auto_class,
        summary=summary or _summary(model, auto_class, base_model, dataset),
        results=results or _metrics_table(split_metrics),
        training=training or _training(training_arguments),
        limitations=limitations or _limitations(config, image_processor),
        license=license,
        pictures=pictures or {},
        config=config,
        rows=_describe(model, image_processor),
    )


def group_metrics(metrics: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """Groups the metrics of `Trainer.evaluate` or of a log by split; "" for an unnamed one.

    Keeps only single finite numbers, as floats, which YAML can hold and the Hub can show.
    """
    groups: dict[str, dict[str, float]] = {}
    for name, value in metrics.items():
        prefix, _, metric = name.partition("_")
        split, metric = (SPLITS[prefix], metric) if prefix in SPLITS else ("", name)
        if hasattr(value, "item") and getattr(value, "size", 0) == 1:
            value = value.item()
        is_number = isinstance(value, Real) and math.isfinite(value)
        if prefix != "train" and is_number and not metric.endswith(TECHNICAL):
            groups.setdefault(split, {})[metric] = float(value)
    return groups


def _eval_results(groups: dict[str, dict[str, float]], dataset: str | None, task: str) -> list[EvalResult]:
    return [
        EvalResult(
            task_type=task,
            dataset_type=dataset if dataset and "/" in dataset else "imagefolder",
            dataset_name=dataset or "unnamed",
            dataset_split=split or None,
            metric_type=metric,
            metric_value=round(value, 4),
        )
        for split, values in groups.items()
        for metric, value in values.items()
        if metric != "loss"
    ]


def _metrics_table(groups: dict[str, dict[str, float]]) -> str:
    if not groups:
        return "Not stated."
    names = dict.fromkeys(name for values in groups.values() for name in values)
    header = ["", *(split or "value" for split in groups)]
    rows = [[name, *(f"{v[name]:.4f}" if name in v else "" for v in groups.values())] for name in names]
    return _table(header, rows)


def _training(arguments: TrainingArguments | Mapping[str, Any] | None) -> str:
    values = arguments.to_dict() if isinstance(arguments, TrainingArguments) else arguments or {}
    used = {name: values[name] for name in HYPERPARAMETERS if values.get(name) not in UNUSED}
    rows = [(name, value) for name, value in used.items() if not (name in FACTORS and value == 1)]
    if not rows:
        return "Not stated."
    return _table(["", ""], [[f"`{name}`", str(getattr(value, "value", value))] for name, value in rows])


def _summary(
    model: AdaptivePreTrainedModel, auto_class: str, base_model: str | None, dataset: str | None
) -> str:
    seen = "a video" if has_frames(model.config) else "an image"
    does = f"turns {seen.partition(' ')[2]}s into features"
    if auto_class in CLASSIFIERS:
        does = f"classifies {seen.partition(' ')[2]}s into {model.config.num_labels} classes"
        if model.config.problem_type == "regression" or model.config.num_labels == 1:
            does = f"predicts {model.config.num_labels} values for {seen}"
    kind = "Swin" if isinstance(model.config, AdaptiveSwinConfig) else "Vision"
    text = f"A {kind} Transformer of `vit_hf` that {does}."
    if base_model:
        text += f" Fine-tuned from [{base_model}](https://huggingface.co/{base_model})."
    if dataset:
        text += f" Data: {dataset}."
    return text


def _limitations(config: AdaptiveViTConfig, image_processor: BaseImageProcessor | None) -> str:
    videos = has_frames(config)
    text = (
        f"Not evaluated beyond the results above: test it on your own {'videos' if videos else 'images'} "
        "before relying on it."
    )
    if config.patch_selector or getattr(image_processor, "patch_selector", None):
        # Windows that Swin skips pass their patches on unchanged.
        influence = "little" if isinstance(config, AdaptiveSwinConfig) else "no"
        text += (
            f" Patches that were not selected have {influence} influence on the prediction; see which were "
            f"kept with `vit_hf.{'explain_video' if videos else 'explain'}`."
        )
    return text


def _describe(
    model: AdaptivePreTrainedModel, image_processor: BaseImageProcessor | None
) -> list[tuple[str, str]]:
    """Lists the properties of the model and its input for the card's table."""
    config = model.config
    rows = [
        ("architecture", f"`{config.model_type}`: {_architecture(config)}"),
        ("parameters", f"{model.num_parameters():,}"),
        ("position encoding", _part(config.position_encoding)),
    ]
    if image_processor is not None:
        size = image_processor.size if image_processor.do_resize else None
        images = "in native resolution" if size is None else "resized to " + _size(dict(size))
        rows.append(("videos" if has_frames(config) else "images", images))
    selection = [(config, "by the model")]
    if image_processor is not None:
        selection.append((image_processor, "by the image processor"))
    kept = [
        f"{_part(chooser.patch_selector)} keeps {_kept(chooser)}, {who}"
        for chooser, who in selection
        if getattr(chooser, "patch_selector", None)
    ]
    rows.append(("patch selection", "; ".join(kept) or "none: all patches"))
    if config.token_reducer is not None:
        amount = f"keeps {_amount(float(config.keep_rate), 'tokens')}"
        if (merged := options_of(config.token_reducer).get("r")) is not None:
            amount = f"removes {merged} tokens"
        layers = ", ".join(map(str, sorted(config.reduction_layers)))
        rows.append(
            ("token reduction", f"{_part(config.token_reducer)} {amount} at each of the blocks {layers}")
        )
    if settings := _settings(config):
        rows.append(("other settings", ", ".join(settings)))
    if type(model).__name__.endswith(("ImageClassification", "VideoClassification")):
        rows.append(("classes", _classes(config.id2label.values())))
    return rows


# Fields with a row of their own, and those that do not affect the model.
TOLD = {
    "patch_selector",
    "num_selected_patches",
    "num_selected_windows",
    "position_encoding",
    "token_reducer",
    "keep_rate",
    "reduction_layers",
    "backbone_config",
    "_out_features",
    "_out_indices",
}


def _architecture(config: AdaptiveViTConfig | AdaptiveSwinConfig) -> str:
    height, width = to_pair(config.patch_size)
    patches = f"patches of {height}x{width} pixels"
    if has_frames(config):
        patches += f" in {config.tubelet_size} frames"
    if not isinstance(config, AdaptiveSwinConfig):
        return (
            f"{config.num_hidden_layers} blocks of width {config.hidden_size}, "
            f"{config.num_attention_heads} heads, "
            f"{patches}"
        )
    stages = range(config.num_layers)
    windows = ["x".join(map(str, config.window_of(stage))) for stage in stages]
    return (
        f"{config.num_layers} stages of {_several(config.depths)} blocks of width "
        f"{_several([config.embed_dim * 2**stage for stage in stages])}, "
        f"{_several(config.num_heads)} heads, windows of "
        f"{_several(dict.fromkeys(windows))}, {patches}"
    )


def _several(values: Iterable[Any]) -> str:
    return ", ".join(map(str, values))


def _kept(chooser: AdaptiveViTConfig | AdaptiveSwinConfig | BaseImageProcessor) -> str:
    if not isinstance(chooser, AdaptiveSwinConfig):
        return _amount(chooser.num_selected_patches, "patches")
    number = chooser.num_selected_windows
    if Budget(number).is_fraction:
        return f"{number:.1%} of each stage's windows"
    return f"{number} windows of the first stage and a quarter as many of each that follows"


def _part(part: Part) -> str:
    """Formats a name and its options."""
    options = ", ".join(f"`{name}={value!r}`" for name, value in options_of(part).items())
    return f"`{type_of(part)}`" + (f" ({options})" if options else "")


def _settings(config: AdaptiveViTConfig | AdaptiveSwinConfig) -> list[str]:
    """Lists fields that stock models lack, where they differ from the default."""
    stock = SwinConfig if isinstance(config, AdaptiveSwinConfig) else ViTConfig
    ours = {field.name for field in fields(config)} - {field.name for field in fields(stock)} - TOLD
    default = type(config)()
    return [
        f"`{name}={getattr(config, name)!r}`"
        for name in sorted(ours)
        if getattr(config, name) != getattr(default, name)
    ]


def _size(size: dict[str, int | None]) -> str:
    if size.get("height"):
        return f"{size['height']}x{size['width']} pixels"
    return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in size.items() if value)


def _amount(number: float | int | None, things: str) -> str:
    return f"{number:.1%} of the {things}" if isinstance(number, float) else f"{number} {things}"


def _classes(names: Iterable[str]) -> str:
    names = [str(name).replace("|", "\\|") for name in names]
    more = len(names) - MAX_CLASSES
    return ", ".join(names[:MAX_CLASSES]) + (f" and {more} more" if more > 0 else "")


def _table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
