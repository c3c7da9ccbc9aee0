"""Builds and loads transformers' detectors over an adaptive ViT, and their image processors."""

from functools import partial
from typing import Any, Literal, NamedTuple

from huggingface_hub.errors import StrictDataclassError
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForObjectDetection,
    ConditionalDetrConfig,
    ConditionalDetrForObjectDetection,
    ConditionalDetrImageProcessor,
    DeformableDetrConfig,
    DeformableDetrForObjectDetection,
    DeformableDetrImageProcessor,
    DetrConfig,
    DetrForObjectDetection,
    DetrImageProcessor,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.image_processing_utils import BaseImageProcessor
from transformers.utils import logging

from ..arguments import SELECTION_FIELDS, ModelArguments
from ..checkpoints.loading import PREDICTORS, check_path, check_reduces, is_image_processor_saved
from ..explanations.detections import backbone_of
from ..model.configuration_adaptive_vit import PARTS, AdaptiveViTConfig
from ..model.modeling_adaptive_vit import AdaptiveViTBackbone
from ..model.options import keep_options, type_of
from .optimizer import UNDECAYED, layerwise_parameter_groups


logger = logging.get_logger(__name__)


class Detector(NamedTuple):
    """Classes of transformers for a detector."""

    config: type[PreTrainedConfig]
    model: type[PreTrainedModel]
    image_processor: type[BaseImageProcessor]


# By model_type: detectors that take one feature map, or derive further ones from it.
DETECTORS = {
    "deformable_detr": Detector(
        DeformableDetrConfig, DeformableDetrForObjectDetection, DeformableDetrImageProcessor
    ),
    "conditional_detr": Detector(
        ConditionalDetrConfig, ConditionalDetrForObjectDetection, ConditionalDetrImageProcessor
    ),
    "detr": Detector(DetrConfig, DetrForObjectDetection, DetrImageProcessor),
}
# Selectors and reducers that learn from a loss that detectors do not add.
LEARN_FROM_EXTRA_LOSS = {"policy", "distilled", "gumbel"}


def saved_detector(path: str | None) -> PreTrainedConfig | None:
    """Returns the configuration of a detector over an adaptive ViT, or None for any other checkpoint.

    Raises:
        OSError: if there is no such checkpoint.
        ValueError: if it is a detector over another backbone.
    """
    if path is None:
        return None
    check_path(path)
    stored, _ = PreTrainedConfig.get_config_dict(path)
    if stored.get("model_type") not in DETECTORS:
        return None
    config = AutoConfig.from_pretrained(path)
    if not isinstance(config.backbone_config, AdaptiveViTConfig):
        raise ValueError(
            f"{path} is a {config.model_type} over {config.backbone_config.model_type}, which cannot select "
            "patches: give a ViT, which becomes the backbone of a new detector, or a detector saved by this "
            "script"
        )
    return config


def make_detector(
    arguments: ModelArguments,
    detector: str,
    overrides: dict[str, Any],
    names: list[str],
    crop_size: int | None = None,
) -> PreTrainedModel:
    """Loads a saved detector, or builds a new one over a ViT, pretrained or not.

    Args:
        arguments: checkpoint, if any, and selection.
        detector: key of `DETECTORS`, for a new detector.
        overrides: fields of its configuration.
        names: names of the classes. A saved head is kept if it has as many, and replaced otherwise.
        crop_size: image size of a model from scratch, if `arguments` have none.

    Raises:
        OSError: if there is no such checkpoint.
        ValueError: for unknown or contradictory fields, a checkpoint whose weights do not fit, and a selector
            or reducer that could not learn.
    """
    config = saved_detector(arguments.model_name_or_path)
    labels = {
        "id2label": dict(enumerate(names)),
        "label2id": {name: number for number, name in enumerate(names)},
    }
    try:
        if config is None:
            model = _build(arguments, detector, overrides, labels, crop_size)
        else:
            model = _load(arguments, config, overrides, labels)
    except StrictDataclassError as error:
        # No ValueError, and its own text is about the class that found it.
        raise ValueError(str(error.__cause__ or error)) from error
    # Otherwise transformers would rename the keys back, and Trainer, which resumes by load_state_dict, would
    # not find them.
    model.save_pretrained = partial(model.save_pretrained, save_original_format=False)
    return model


def _build(
    arguments: ModelArguments,
    detector: str,
    overrides: dict[str, Any],
    labels: dict[str, Any],
    crop_size: int | None,
) -> PreTrainedModel:
    classes = DETECTORS[detector]
    known = classes.config().to_dict().keys() - {"backbone_config"}
    if unknown := overrides.keys() - known:
        raise ValueError(
            f"detector_overrides: {classes.config.__name__} has no field {', '.join(sorted(unknown))}"
        )
    if detector == "deformable_detr" and overrides.get("decoder_layers", 2) < 2:
        raise ValueError(
            f"detector_overrides: decoder_layers={overrides['decoder_layers']} must be at least 2 for "
            "deformable_detr; conditional_detr and detr take 1"
        )
    backbone = _make_backbone(arguments, crop_size)
    config = classes.config(
        **({"num_channels": backbone.config.num_channels} | overrides),
        backbone_config=backbone.config,
        **labels,
    )
    model = classes.model(config)
    backbone_of(model).load_state_dict(backbone.state_dict())
    return model


def _make_backbone(arguments: ModelArguments, crop_size: int | None) -> AdaptiveViTBackbone:
    fields, path = arguments.config_fields(), arguments.model_name_or_path
    check_fields(arguments)
    if path is None:
        if size := arguments.image_size or crop_size:
            fields["image_size"] = size
        backbone, missing = AdaptiveViTBackbone(AdaptiveViTConfig(**fields)), ["selector.", "reducers."]
    else:
        # transformers would report the unused head.
        verbosity = logging.get_verbosity()
        logging.set_verbosity_error()
        try:
            backbone, report = AdaptiveViTBackbone.from_pretrained(
                path, **fields, ignore_mismatched_sizes=True, output_loading_info=True
            )
        finally:
            logging.set_verbosity(verbosity)
        missing = sorted(report["missing_keys"])
        unfit = [name for name, *_ in report["mismatched_keys"]]
        if unfit:
            raise ValueError(
                f"{path} does not fit: {unfit[0]} has another shape than the model needs ({len(unfit)} "
                "such). Remove the fields that change it from config_overrides"
            )
    check_learns(backbone.config, missing)
    if path is not None and missing:
        logger.warning(
            f"Not in {path}, so initialized at random: {', '.join(missing[:5])}"
            f"{f' and {len(missing) - 5} more' if len(missing) > 5 else ''}."
        )
    return backbone


def _load(
    arguments: ModelArguments, config: PreTrainedConfig, overrides: dict[str, Any], labels: dict[str, Any]
) -> PreTrainedModel:
    changes = arguments.config_fields()
    if other := sorted(changes.keys() - set(SELECTION_FIELDS)) or sorted(overrides):
        raise ValueError(
            f"{other[0]} cannot be changed in {arguments.model_name_or_path}, a {config.model_type}; only "
            f"{', '.join(SELECTION_FIELDS)} can. To change it, start from a ViT"
        )
    for name, value in keep_options(vars(config.backbone_config), changes, PARTS).items():
        setattr(config.backbone_config, name, value)
    config.backbone_config.validate_architecture()
    if config.id2label != labels["id2label"]:
        config.id2label, config.label2id = labels["id2label"], labels["label2id"]
    model, report = AutoModelForObjectDetection.from_pretrained(
        arguments.model_name_or_path,
        config=config,
        ignore_mismatched_sizes=True,
        output_loading_info=True,
        use_safetensors=True,
    )
    prefix = "model.backbone.model."
    check_learns(config.backbone_config, [name.removeprefix(prefix) for name in report["missing_keys"]])
    return model


def check_fields(arguments: ModelArguments) -> None:
    """Raises ValueError for `config_overrides` that the configuration does not have."""
    if unknown := arguments.config_overrides.keys() - AdaptiveViTConfig().to_dict().keys():
        raise ValueError(f"config_overrides: AdaptiveViTConfig has no field {', '.join(sorted(unknown))}")


def check_learns(config: AdaptiveViTConfig, missing: list[str]) -> None:
    """Refuses an untrained selector or reducer that would not learn, and a reducer without an amount.

    Args:
        config: configuration of the backbone.
        missing: names of the weights that are initialized at random.

    Raises:
        ValueError: for such a selector or reducer.
    """
    for field, beginning in zip(("patch_selector", "token_reducer"), PREDICTORS, strict=True):
        name = type_of(getattr(config, field))
        if name in LEARN_FROM_EXTRA_LOSS and any(key.startswith(beginning) for key in missing):
            raise ValueError(
                f"{field}={name!r} learns under a classifier, not under a detector: fine-tune a ViT with it "
                "by vit-hf finetune and give that as model_name_or_path, or choose another, such as "
                "saliency"
            )
    check_reduces(config)


def make_image_processor(
    arguments: ModelArguments, config: PreTrainedConfig, crop_size: int | None
) -> BaseImageProcessor:
    """Returns the detector's image processor, which does not resize crops of `crop_size`.

    Mean and standard deviation of colors are those of the ViT's image processor, if it has one.

    Raises:
        ValueError: for options that only the image processor of a ViT has.
    """
    for name in ("longest_edge", "return_patches"):
        if getattr(arguments, name):
            raise ValueError(
                f"{name} is not for detectors, whose image processors lack it: give image_size, crop_size or "
                "native_resolution"
            )
    options: dict[str, Any] = {}
    if arguments.image_size is not None:
        size = {"height": arguments.image_size, "width": arguments.image_size}
        options |= {"do_resize": True, "size": size}
    elif arguments.native_resolution or crop_size is not None:
        options["do_resize"] = False
    path = arguments.model_name_or_path
    processor_class = DETECTORS[config.model_type].image_processor
    if path is not None and is_image_processor_saved(path):
        if saved_detector(path) is not None:
            return processor_class.from_pretrained(path, **options)
        theirs = AutoImageProcessor.from_pretrained(path)
        options |= {"image_mean": theirs.image_mean, "image_std": theirs.image_std}
    elif config.backbone_config.num_channels != 3:
        half = [0.5] * config.backbone_config.num_channels
        options |= {"image_mean": half, "image_std": half}
    return processor_class(**options)


def parameter_groups(
    model: PreTrainedModel,
    learning_rate: float,
    weight_decay: float,
    layer_decay: float,
    backbone_lr_factor: float,
) -> list[dict[str, Any]]:
    """Makes `layerwise_parameter_groups` of the backbone, and groups of the full rate for the detector."""
    backbone = backbone_of(model)
    inside = {id(parameter) for parameter in backbone.parameters()}
    detector: dict[Literal[True, False], list] = {True: [], False: []}
    for name, parameter in model.named_parameters():
        if id(parameter) not in inside:
            detector[parameter.ndim > 1 and not UNDECAYED.search(name)].append(parameter)
    return [
        {"params": detector[True], "lr": learning_rate, "weight_decay": weight_decay},
        {"params": detector[False], "lr": learning_rate, "weight_decay": 0.0},
        *layerwise_parameter_groups(backbone, learning_rate, weight_decay, layer_decay, backbone_lr_factor),
    ]
