"""The model that a run begins with, and the image processor that goes with it."""

from pathlib import Path
from typing import Any, Literal

from huggingface_hub.errors import StrictDataclassError
from transformers import (
    AutoImageProcessor,
    AutoModelForImageClassification,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.image_processing_utils import BaseImageProcessor
from transformers.utils import IMAGE_PROCESSOR_NAME, cached_file, logging

from ..model.configuration_adaptive_swin import AdaptiveSwinConfig
from ..model.configuration_adaptive_vit import AdaptiveViTConfig
from ..model.elastic import AdaptiveViTForElasticImageClassification
from ..model.elastic_space import CHOICES
from ..model.image_processing_adaptive_vit import AdaptiveViTImageProcessor
from ..model.options import Part, options_of, type_of
from ..model.pixel_scorers import PIXEL_SCORERS
from ..model.sizes import to_pair
from .arguments import ArchitectureArguments, ModelArguments
from .families import CLASSIFIERS, is_swin, model_type_of, swin_fields
from .freezing import part_of
from .images import is_timm_processor
from .loading import ImageDataset


logger = logging.get_logger(__name__)

# What each class has beside the encoder, by the beginning of names of weights.
HEADS = {
    "AdaptiveViTForImageClassification": "classifier.",
    "AdaptiveViTForElasticImageClassification": "classifier.",
    "AdaptiveViTForPreTraining": "decoder.",
    "AdaptiveSwinForImageClassification": "classifier.",
    "AdaptiveViTForSemanticSegmentation": "decode_head.",
}


def make_model(arguments: ModelArguments, data: ImageDataset) -> PreTrainedModel:
    """Load a checkpoint with a head for these labels, or build a model from scratch.

    The head of a checkpoint is kept if it has as many outputs, and else replaced. For a Swin a number of patches is that
    of as many windows as have these. With `elastic_space` it is a supernet.

    Raises:
        OSError: if there is no such checkpoint.
        ValueError: for a field of the config that does not exist or does not fit the others, or a checkpoint
            whose weights do not fit.
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
    wanted, path = getattr(arguments, "model_type", None), arguments.model_name_or_path
    if wanted is not None and wanted not in CLASSIFIERS:
        raise ValueError(f"model_type is {wanted!r}; choose one of {', '.join(CLASSIFIERS)}")
    if path is None:
        return wanted or AdaptiveViTConfig.model_type
    check_path(path)
    found = model_type_of(path)
    if wanted not in (None, found):
        raise ValueError(f"{path} is of model_type {found}, not {wanted}: leave model_type out")
    return found


def _class_for(
    model_type: str, arguments: ArchitectureArguments, fields: dict[str, Any]
) -> type[PreTrainedModel]:
    """The class of an elastic classifier, if a field or else the checkpoint leaves sizes open, or the ordinary one."""
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
    """A checkpoint as a model of that class, whose head begins anew where it does not fit; or one from scratch.

    Args:
        model_class: a key of `HEADS`.
        arguments: which checkpoint, if any.
        fields: all that the configuration is to have.

    Raises:
        OSError, ValueError: as `make_model`.
    """
    config_class = model_class.config_class
    found = _model_type(arguments)
    if found != config_class.model_type:
        raise ValueError(
            f"{arguments.model_name_or_path or 'model_type'} is of model_type {found}, and this needs "
            f"{config_class.model_type}: scripts/finetune.py is for both"
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
    config = model.config
    check_reduces(config)
    return model


def check_reduces(config: PreTrainedConfig) -> None:
    """Raises: ValueError for a token reducer that is not told how much to take away."""
    merges_number = options_of(config.token_reducer).get("r") is not None
    if config.token_reducer is not None and config.keep_rate == 1 and not merges_number:
        raise ValueError(
            f"token_reducer={type_of(config.token_reducer)!r} keeps every token: set keep_rate below 1, such as 0.7"
        )


def _build(
    model_class: type[PreTrainedModel], arguments: ArchitectureArguments, fields: dict[str, Any]
) -> PreTrainedModel:
    if arguments.image_size is not None:
        fields["image_size"] = arguments.image_size
    return model_class(model_class.config_class(**fields))


def _load(
    model_class: type[PreTrainedModel], arguments: ArchitectureArguments, fields: dict[str, Any]
) -> PreTrainedModel:
    # What transformers reports at length about a new head is no more than that there is one.
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
            f"{arguments.model_name_or_path} does not fit: {name} has the shape {tuple(found)}, and the model asked "
            f"for needs {tuple(needed)} ({len(mismatched)} such). Take what changes it out of config_overrides."
        )
    missing = sorted(name for name in report["missing_keys"] if not name.startswith(head))
    if missing:
        logger.warning(
            f"Not in {arguments.model_name_or_path}, so to be trained from scratch: {', '.join(missing[:5])}"
            f"{f' and {len(missing) - 5} more' if len(missing) > 5 else ''}."
        )
    return model


def load_classifier(
    path: str,
    patch_selector: Part | None = None,
    num_selected_patches: int | float | None = None,
    resolution: int | Literal["native"] | None = None,
    **fields: Any,
) -> tuple[PreTrainedModel, BaseImageProcessor]:
    """Any saved image classifier and its image processor, if asked to computing on less, or on more.

    A Swin computes on windows: for it a number of patches means as many windows of the first stage as have these.

    Args:
        path: checkpoint, local or on the Hub.
        patch_selector, num_selected_patches: instead of the checkpoint's; makes any ViT an adaptive one. "none" takes a
            selector away.
        resolution: pixels a side that images are resized to, or "native" to leave them; None as the processor does.
        fields: others of the config, such as `token_reducer="merge", keep_rate=0.7`; "none" takes a reducer away.

    Raises:
        OSError: if there is no such checkpoint.
        ValueError: for a selection or reduction that does not exist, or that the checkpoint has not learned.
    """
    check_path(path)
    processor = AutoImageProcessor.from_pretrained(path)
    named = {"patch_selector": patch_selector, "num_selected_patches": num_selected_patches}
    selection = {name: value for name, value in named.items() if value is not None}
    if not selection and not fields and resolution is None:
        return AutoModelForImageClassification.from_pretrained(path), processor
    if is_timm_processor(processor):
        changed = [*selection, *fields, *(["resolution"] if resolution is not None else [])]
        raise ValueError(
            f"{path} is a timm checkpoint with transformations of its own, in which {', '.join(changed)} cannot be "
            "changed: leave that out, or make it an AdaptiveViT first (scripts/convert.py, vit_hf.convert)"
        )
    set_resolution(processor, resolution)
    replaced = bool(selection)
    if patch_selector == "none":
        selection = {"patch_selector": None, "num_selected_patches": None}
    if fields.get("token_reducer") == "none":
        fields |= {"token_reducer": None, "keep_rate": 1.0}
    # Two ways of saying how much goes on: the one that is given holds.
    own = PreTrainedConfig.get_config_dict(path)[0].get("token_reducer")
    if options_of(fields.get("token_reducer")).get("r") is not None:
        fields.setdefault("keep_rate", 1.0)
    elif "keep_rate" in fields and fields.get("token_reducer", type_of(own)) == type_of(own):
        kept = {name: value for name, value in options_of(own).items() if name != "r"}
        fields["token_reducer"] = None if own is None else {"type": type_of(own), **kept}
    if is_swin(path):
        selection, fields = swin_fields(selection | fields, path), {}
    model_class = CLASSIFIERS[model_type_of(path)]
    try:
        model, report = model_class.from_pretrained(path, **selection, **fields, output_loading_info=True)
    except StrictDataclassError as error:
        raise ValueError(str(error.__cause__ or error)) from error
    untrained = sorted(name for name in report["missing_keys"] if part_of(model, name) == "predictor")
    if untrained:
        field = "token_reducer" if ".reducers." in untrained[0] else "patch_selector"
        free = (
            "attentive, merge or sample"
            if field == "token_reducer"
            else "such as saliency, variance or attention"
        )
        raise ValueError(
            f"{field}={type_of(getattr(model.config, field))!r} is learned, in fine-tuning, and {path} was not trained with it: "
            f"fine-tune it with scripts/finetune.py, or choose one that needs no training, {free}"
        )
    config = model.config
    if "keep_rate" not in fields and not is_swin(path):
        check_reduces(config)
    if replaced and getattr(processor, "return_patches", False):
        # It may keep too few already.
        processor.patch_selector = processor.num_selected_patches = None
    return model, processor


def set_resolution(processor: BaseImageProcessor, resolution: int | Literal["native"] | None) -> None:
    """Makes an image processor resize to so many pixels a side, or not at all; None leaves it as it is."""
    if resolution is None:
        return
    processor.do_resize, processor.do_center_crop = resolution != "native", False
    if resolution != "native":
        processor.size = type(processor.size)(height=resolution, width=resolution)
        if getattr(processor, "max_num_patches", None) is not None:  # it would go before size
            processor.max_num_patches = None


def make_image_processor(
    arguments: ModelArguments, config: AdaptiveViTConfig | AdaptiveSwinConfig, select: bool = True
) -> BaseImageProcessor:
    """The image processor of the checkpoint, or a new one, resizing and cutting as asked for.

    Args:
        arguments: size and checkpoint.
        config: of the model.
        select: whether an image processor that cuts patches selects them as well, where a pixel heuristic does
            that. Otherwise the model does.

    Raises:
        ValueError: if it is to cut patches for a Swin.
    """
    is_swin = isinstance(config, AdaptiveSwinConfig)
    if is_swin and arguments.return_patches:
        raise ValueError(
            "return_patches is not for Swin, whose windows are cut from whole images: leave it out. Images of mixed sizes "
            "go one at a time (per_device_train_batch_size=1, gradient_accumulation_steps), or resized (image_size)"
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
    # Random patches are the model's to draw: in training they are others in each epoch.
    selector, explores = type_of(config.patch_selector), options_of(config.patch_selector).get("exploration")
    is_cheap = not is_swin and selector in PIXEL_SCORERS.keys() - {"random"} and not explores
    # A thumbnail needs every patch, and so does the CNN of a hybrid.
    is_cheap = is_cheap and config.thumbnail_context is False and config.backbone_config is None
    selects = select and is_cheap and processor.return_patches
    processor.patch_selector = selector if selects else None
    processor.num_selected_patches = config.num_selected_patches if selects else None
    return processor


def check_path(path: str) -> None:
    """Say so if `path` is a folder that does not exist, before the Hub is asked for a model of that name.

    Raises:
        FileNotFoundError: if it can be nothing but a folder.
    """
    may_be_on_hub = path.count("/") == 1 and not path.startswith((".", "/", "~")) and not path.endswith("/")
    if not may_be_on_hub and not Path(path).expanduser().is_dir():
        raise FileNotFoundError(f"there is no folder {path}; a model on the Hub has a name like owner/model")
    folder = Path(path).parent
    if may_be_on_hub and folder.is_dir() and not Path(path).is_dir():
        logger.warning(
            f"There is a folder {folder} and no {Path(path).name} in it: asking the Hub for {path}."
        )


def is_image_processor_saved(path: str) -> bool:
    """Whether there is an image processor beside a checkpoint, local or on the Hub."""
    return cached_file(path, IMAGE_PROCESSOR_NAME, _raise_exceptions_for_missing_entries=False) is not None
