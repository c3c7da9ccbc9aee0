"""Model and image processor at the start of a run."""

from typing import Any

from huggingface_hub.errors import StrictDataclassError
from transformers import (
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.image_processing_utils import BaseImageProcessor
from transformers.utils import logging

from ..arguments import ArchitectureArguments, ModelArguments
from ..checkpoints.loading import (
    CLASSIFIERS,
    check_path,
    check_reduces,
    is_image_processor_saved,
    model_type_of,
    swin_fields,
)
from ..data.loading import ImageDataset
from ..model.configuration_adaptive_swin import AdaptiveSwinConfig
from ..model.configuration_adaptive_vit import AdaptiveViTConfig
from ..model.elastic import AdaptiveViTForElasticImageClassification
from ..model.elastic_space import CHOICES
from ..model.image_processing_adaptive_vit import AdaptiveViTImageProcessor
from ..model.options import options_of, type_of, with_options
from ..model.pixel_scorers import PIXEL_SCORERS
from ..model.sizes import to_pair


logger = logging.get_logger(__name__)

# Prefix of the weights of each class outside the encoder.
HEADS = {
    "AdaptiveViTForImageClassification": "classifier.",
    "AdaptiveViTForElasticImageClassification": "classifier.",
    "AdaptiveViTForPreTraining": "decoder.",
    "AdaptiveSwinForImageClassification": "classifier.",
    "AdaptiveViTForSemanticSegmentation": "decode_head.",
}


def make_model(arguments: ModelArguments, data: ImageDataset) -> PreTrainedModel:
    """Loads a checkpoint with a head for the labels of `data`, or builds a model from scratch.

    The head of a checkpoint is kept if its number of outputs matches, and replaced otherwise. For a Swin a
    number of patches is translated to windows. With `elastic_space` the model is a supernet.

    Raises:
        OSError: if there is no such checkpoint.
        ValueError: for unknown or contradictory fields of the config, or a checkpoint whose weights do not
            fit.
    """
    fields = arguments.config_fields()
    model_type = _model_type(arguments)
    if model_type == AdaptiveSwinConfig.model_type:
        fields = swin_fields(fields, arguments.model_name_or_path)
    fields |= {"num_labels": data.num_labels, "problem_type": data.problem_type}
    if data.id2label:
        fields |= {"id2label": data.id2label, "label2id": data.label2id}
    return load_or_build(_class_for(model_type, arguments, fields), arguments, fields)


def _model_type(arguments: ArchitectureArguments) -> str:
    given, path = getattr(arguments, "model_type", None), arguments.model_name_or_path
    if given is not None and given not in CLASSIFIERS:
        raise ValueError(f"model_type is {given!r}; choose one of {', '.join(CLASSIFIERS)}")
    if path is None:
        return given or AdaptiveViTConfig.model_type
    check_path(path)
    found = model_type_of(path)
    if given not in (None, found):
        raise ValueError(f"{path} is of model_type {found}, not {given}: leave model_type out")
    return found


def _class_for(
    model_type: str, arguments: ArchitectureArguments, fields: dict[str, Any]
) -> type[PreTrainedModel]:
    """Returns the elastic class if fields or checkpoint have an `elastic_space`, else the ordinary one."""
    values = {}
    if arguments.model_name_or_path is not None:
        values, _ = PreTrainedConfig.get_config_dict(arguments.model_name_or_path)
    values |= fields
    if any(options_of(values.get("elastic_space")).get(name) is not None for name in CHOICES):
        return AdaptiveViTForElasticImageClassification
    return CLASSIFIERS[model_type]


def load_or_build(
    model_class: type[PreTrainedModel], arguments: ArchitectureArguments, fields: dict[str, Any]
) -> PreTrainedModel:
    """Loads a checkpoint as `model_class`, with a new head if it does not fit, or builds one from scratch.

    Args:
        model_class: class named in `HEADS`.
        arguments: arguments of the model, with or without a checkpoint.
        fields: fields of the configuration.

    Raises:
        OSError, ValueError: as `make_model`.
    """
    config_class = model_class.config_class
    found = _model_type(arguments)
    if found != config_class.model_type:
        raise ValueError(
            f"{arguments.model_name_or_path or 'model_type'} is of model_type {found}, and this task needs "
            f"{config_class.model_type}: use classification (vit-hf finetune), which takes both"
        )
    unknown = fields.keys() - config_class().to_dict().keys() - {"num_labels"}
    if unknown:
        raise ValueError(
            f"config_overrides: {config_class.__name__} has no field {', '.join(sorted(unknown))}"
        )

    try:
        model = (
            _build(model_class, arguments, fields)
            if arguments.model_name_or_path is None
            else _load(model_class, arguments, fields)
        )
    except StrictDataclassError as error:
        # No ValueError, and its own text is about the class that found it.
        raise ValueError(str(error.__cause__ or error)) from error
    check_reduces(model.config)
    return model


def _build(
    model_class: type[PreTrainedModel], arguments: ArchitectureArguments, fields: dict[str, Any]
) -> PreTrainedModel:
    if arguments.image_size is not None:
        fields["image_size"] = arguments.image_size
    return model_class(model_class.config_class(**fields))


def _load(
    model_class: type[PreTrainedModel], arguments: ArchitectureArguments, fields: dict[str, Any]
) -> PreTrainedModel:
    # transformers' long report would only say that the head is new.
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        model, report = model_class.from_pretrained(
            arguments.model_name_or_path, **fields, ignore_mismatched_sizes=True, output_loading_info=True
        )
    finally:
        logging.set_verbosity(verbosity)
    head = HEADS[model_class.__name__]
    mismatched = [entry for entry in report["mismatched_keys"] if not entry[0].startswith(head)]
    if mismatched:
        name, found, needed = mismatched[0]
        raise ValueError(
            f"{arguments.model_name_or_path} does not fit: {name} has the shape {tuple(found)}, and the "
            f"model needs {tuple(needed)} ({len(mismatched)} such). Remove the fields that change it from "
            "config_overrides."
        )
    missing = sorted(name for name in report["missing_keys"] if not name.startswith(head))
    if missing:
        logger.warning(
            f"Not in {arguments.model_name_or_path}, so initialized at random: {', '.join(missing[:5])}"
            f"{f' and {len(missing) - 5} more' if len(missing) > 5 else ''}."
        )
    return model


def make_image_processor(
    arguments: ModelArguments, config: AdaptiveViTConfig | AdaptiveSwinConfig, select: bool = True
) -> BaseImageProcessor:
    """Returns the image processor of the checkpoint, or a new one, with the sizes of the arguments.

    Args:
        arguments: size and checkpoint.
        config: configuration of the model.
        select: whether an image processor that cuts patches selects them as well, if the selector is a pixel
            heuristic; otherwise the model selects.

    Raises:
        ValueError: for `return_patches` with a Swin.
    """
    is_swin = isinstance(config, AdaptiveSwinConfig)
    if is_swin and arguments.return_patches:
        raise ValueError(
            "return_patches is not for Swin, whose windows are cut from whole images: leave it out. For "
            "images of mixed sizes use per_device_train_batch_size=1 with gradient_accumulation_steps, or "
            "image_size"
        )
    options: dict[str, Any] = {"patch_size": config.patch_size}
    if arguments.return_patches:
        options["return_patches"] = True
    if arguments.native_resolution:
        options["do_resize"] = False
    elif arguments.longest_edge:
        options |= {"do_resize": True, "size": {"longest_edge": arguments.longest_edge}}
    elif arguments.image_size:
        options |= {
            "do_resize": True,
            "size": {"height": arguments.image_size, "width": arguments.image_size},
        }

    path = arguments.model_name_or_path
    if path is not None and is_image_processor_saved(path):
        processor = AdaptiveViTImageProcessor.from_pretrained(path, **options)
    else:
        height, width = to_pair(config.image_size)
        options.setdefault("size", {"height": height, "width": width})
        if config.num_channels != 3:
            half = [0.5] * config.num_channels
            options |= {"do_convert_rgb": False, "image_mean": half, "image_std": half}
        processor = AdaptiveViTImageProcessor(**options)
    # Random patches are drawn by the model: in training they differ in each epoch.
    selector, choices = type_of(config.patch_selector), options_of(config.patch_selector)
    draws = choices.pop("exploration", 0) or choices.pop("sampling", None) is not None
    is_cheap = not is_swin and selector in PIXEL_SCORERS.keys() - {"random"} and not draws
    # A thumbnail needs every patch, and so does the convolutional stem.
    is_cheap = is_cheap and config.thumbnail_context is False and config.backbone_config is None
    selects = select and is_cheap and processor.return_patches
    processor.patch_selector = with_options(selector, **choices) if selects else None
    processor.num_selected_patches = config.num_selected_patches if selects else None
    return processor
