"""Loading of classifiers, ViT or Swin, with overrides of patch selection and token reduction."""

import math
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

from ..data.images import is_timm_processor
from ..model.budget import Budget
from ..model.configuration_adaptive_swin import FOREIGN, AdaptiveSwinConfig
from ..model.configuration_adaptive_vit import AdaptiveViTConfig
from ..model.modeling_adaptive_swin import AdaptiveSwinForImageClassification
from ..model.modeling_adaptive_vit import AdaptiveViTForImageClassification
from ..model.options import Part, options_of, type_of


logger = logging.get_logger(__name__)


# By `model_type` of the configuration.
CLASSIFIERS = {
    AdaptiveViTConfig.model_type: AdaptiveViTForImageClassification,
    AdaptiveSwinConfig.model_type: AdaptiveSwinForImageClassification,
}
# Values of fields that mean no selection and no reduction.
NOTHING_SELECTED = {"num_selected_patches": None, "token_reducer": None, "keep_rate": 1.0}


def model_type_of(path: str) -> str:
    """Returns the key of `CLASSIFIERS` for a checkpoint, local or on the Hub; the ViT's for all but Swin."""
    model_type = PreTrainedConfig.get_config_dict(path)[0].get("model_type")
    is_swin = model_type in (AdaptiveSwinConfig.model_type, "swin", "swinv2")
    return AdaptiveSwinConfig.model_type if is_swin else AdaptiveViTConfig.model_type


def is_swin(path: str) -> bool:
    """Checks if `AdaptiveSwinForImageClassification` loads a checkpoint."""
    return model_type_of(path) == AdaptiveSwinConfig.model_type


def swin_fields(fields: dict[str, Any], path: str | None = None) -> dict[str, Any]:
    """Translates fields of `AdaptiveViTConfig` to those of a Swin.

    A number of patches becomes the number of first-stage windows with as many patches; a fraction
    stays the same fraction of the windows. Fields that only switch token reduction off are dropped.

    Args:
        fields: some of either configuration.
        path: the checkpoint that they override; None for a model from scratch.

    Raises:
        ValueError: for other fields that a Swin lacks, with the reason.
    """
    left = {
        name: value
        for name, value in fields.items()
        if name not in NOTHING_SELECTED or value != NOTHING_SELECTED[name]
    }
    number = left.pop("num_selected_patches", None)
    known = AdaptiveSwinConfig().to_dict().keys() - FOREIGN.keys()
    unknown = [name for name in (*FOREIGN, *left) if name in left and name not in known]
    if unknown:
        reason = FOREIGN.get(unknown[0], "AdaptiveSwinConfig has no such field")
        raise ValueError(f"{unknown[0]}={left[unknown[0]]!r} is not for Swin: {reason}.")
    if "num_selected_patches" not in fields:
        return left
    if number is not None and not Budget(number).is_fraction:
        sizes = {
            name: left[name] for name in ("window_size", "depths", "num_heads", "embed_dim") if name in left
        }
        config = (
            AdaptiveSwinConfig(**sizes) if path is None else AdaptiveSwinConfig.from_pretrained(path, **sizes)
        )
        number = Budget(number).coarsened(math.prod(config.window_of(0))).value
    return {"num_selected_windows": number} | left


# Parts of the base model outside the backbone: networks that learn what to select and what to reduce.
PREDICTORS = ("selector.", "reducers.")


def part_of(model: PreTrainedModel, name: str) -> Literal["head", "predictor", "backbone"]:
    """Assigns the parameter `name` to head, predictor or backbone; a base model has no head."""
    prefix = "" if model.base_model is model else f"{model.base_model_prefix}."
    if not name.startswith(prefix):
        return "head"
    return "predictor" if name.removeprefix(prefix).startswith(PREDICTORS) else "backbone"


def check_reduces(config: PreTrainedConfig) -> None:
    """Raises: ValueError for a token reducer whose keep rate removes no tokens."""
    merges_number = options_of(config.token_reducer).get("r") is not None
    if config.token_reducer is not None and config.keep_rate == 1 and not merges_number:
        raise ValueError(
            f"token_reducer={type_of(config.token_reducer)!r} keeps every token: set keep_rate below 1, such "
            "as 0.7"
        )


# Ends of the names of model classes that predict masks or boxes.
DENSE_CLASSES = (
    "ForSemanticSegmentation",
    "ForObjectDetection",
    "ForInstanceSegmentation",
    "ForUniversalSegmentation",
    "ForSegmentation",
)


def dense_class_of(path: str) -> str | None:
    """Returns which of `DENSE_CLASSES` saved a checkpoint, local or on the Hub; None for other models.

    Raises:
        OSError: if there is no such checkpoint.
    """
    check_path(path)
    names = PreTrainedConfig.get_config_dict(path)[0].get("architectures") or [""]
    return next((ending for ending in DENSE_CLASSES if names[0].endswith(ending)), None)


def load_classifier(
    path: str,
    patch_selector: Part | None = None,
    num_selected_patches: int | float | None = None,
    resolution: int | Literal["native"] | None = None,
    **fields: Any,
) -> tuple[PreTrainedModel, BaseImageProcessor]:
    """Loads any saved image classifier and its image processor, optionally with another selection or
    reduction.

    A Swin selects windows: a number of patches means the first-stage windows that hold as many
    patches.

    Args:
        path: checkpoint, local or on the Hub.
        patch_selector, num_selected_patches: override the checkpoint's; turn any ViT into an
            adaptive one. "none" removes a selector.
        resolution: pixels a side that images are resized to, or "native" to leave them; None as the processor
            does.
        fields: others of the config, such as `token_reducer="merge", keep_rate=0.7`; "none" removes
            a reducer.

    Raises:
        OSError: if there is no such checkpoint.
        ValueError: for a model of masks or boxes, and for a selection or reduction that does not exist, or
            that the checkpoint has not learned.
    """
    dense = dense_class_of(path)
    if dense is not None:
        raise ValueError(
            f"{path} is a model {dense}, which has no classifier: its head would be random. `vit-hf predict` "
            "writes its masks or boxes; for classes, fine-tune it with `vit-hf finetune`"
        )
    processor = AutoImageProcessor.from_pretrained(path)
    named = {"patch_selector": patch_selector, "num_selected_patches": num_selected_patches}
    selection = {name: value for name, value in named.items() if value is not None}
    if not selection and not fields and resolution is None:
        return AutoModelForImageClassification.from_pretrained(path), processor
    if is_timm_processor(processor):
        changed = [*selection, *fields, *(["resolution"] if resolution is not None else [])]
        raise ValueError(
            f"{path} is a timm checkpoint with transformations of its own, in which {', '.join(changed)} "
            "cannot be changed: leave that out, or make it an AdaptiveViT first (vit-hf convert, "
            "vit_hf.convert)"
        )
    set_resolution(processor, resolution)
    replaced = bool(selection)
    if patch_selector == "none":
        selection = {"patch_selector": None, "num_selected_patches": None}
    if fields.get("token_reducer") == "none":
        fields |= {"token_reducer": None, "keep_rate": 1.0}
    # Two options for one budget: an explicit value wins.
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
            f"{field}={type_of(getattr(model.config, field))!r} is learned, in fine-tuning, and {path} was "
            "not trained with it: fine-tune it with vit-hf finetune, or choose one that needs no "
            f"training, {free}"
        )
    config = model.config
    if "keep_rate" not in fields and not is_swin(path):
        check_reduces(config)
    if replaced and getattr(processor, "return_patches", False):
        # It may keep too few already.
        processor.patch_selector = processor.num_selected_patches = None
    return model, processor


def set_resolution(processor: BaseImageProcessor, resolution: int | Literal["native"] | None) -> None:
    """Sets the side in pixels that an image processor resizes to, or turns resizing off; None changes
    nothing."""
    if resolution is None:
        return
    processor.do_resize, processor.do_center_crop = resolution != "native", False
    if resolution != "native":
        processor.size = type(processor.size)(height=resolution, width=resolution)
        if getattr(processor, "max_num_patches", None) is not None:  # it would take precedence over size
            processor.max_num_patches = None


def check_path(path: str) -> None:
    """Raises if `path` is a folder that does not exist, before the Hub is asked for a model of that name.

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
    """Checks if a checkpoint, local or on the Hub, has an image processor."""
    return cached_file(path, IMAGE_PROCESSOR_NAME, _raise_exceptions_for_missing_entries=False) is not None
