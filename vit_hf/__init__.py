"""Vision Transformers for large images in transformers.

Importing this package registers the models with transformers' Auto classes. Everything around the models is
imported when it is first used, since each part needs libraries of its own.
"""

import importlib
from typing import TYPE_CHECKING, Any

from transformers import (
    AutoBackbone,
    AutoConfig,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForMaskedImageModeling,
    AutoModelForPreTraining,
    AutoModelForSemanticSegmentation,
    AutoModelForVideoClassification,
)
from transformers.models.auto.image_processing_auto import AutoImageProcessor
from transformers.utils import is_torchvision_available

from .hub.remote_code import GeneratedFiles
from .model.checkpoint_code import code_writers
from .model.configuration_adaptive_swin import AdaptiveSwinConfig
from .model.configuration_adaptive_vit import AdaptiveViTConfig
from .model.elastic import AdaptiveViTForElasticImageClassification
from .model.elastic_space import SearchSpace, SubNetwork
from .model.image_processing_adaptive_vit import AdaptiveViTImageProcessor, AdaptiveViTImageProcessorPil
from .model.modeling_adaptive_swin import (
    AdaptiveSwinBackbone,
    AdaptiveSwinForImageClassification,
    AdaptiveSwinForMaskedImageModeling,
    AdaptiveSwinModel,
    AdaptiveSwinPreTrainedModel,
)
from .model.modeling_adaptive_vit import (
    AdaptiveViTBackbone,
    AdaptiveViTForImageClassification,
    AdaptiveViTForMaskedImageModeling,
    AdaptiveViTForPreTraining,
    AdaptiveViTForSemanticSegmentation,
    AdaptiveViTForVideoClassification,
    AdaptiveViTModel,
)
from .model.patches import ImagePatches, PatchTokens
from .model.positions import POSITION_ENCODINGS, PositionEncoding
from .model.pretrained import AdaptiveViTPreTrainedModel
from .model.reducers import TOKEN_REDUCERS, Reduction, TokenReducer
from .model.registry import register_patch_selector, register_position_encoding, register_token_reducer
from .model.selection import PatchSelector
from .model.selectors import PATCH_SELECTORS
from .model.version import __version__


if TYPE_CHECKING:
    from .checkpoints.convert import convert
    from .data.collation import PatchCollator
    from .explanations.explain import explain, explain_video
    from .hub.push import push_to_hub
    from .inference.streaming import StreamingCollator, predict_streaming, select_streaming, stream_images
    from .inference.tiles import predict_tiled
    from .readers.opening import ImageSource, open_image
    from .training.callbacks import KeepRateSchedule

AutoConfig.register(AdaptiveViTConfig.model_type, AdaptiveViTConfig)
AutoBackbone.register(AdaptiveViTConfig, AdaptiveViTBackbone)
AutoModel.register(AdaptiveViTConfig, AdaptiveViTModel)
AutoModelForImageClassification.register(AdaptiveViTConfig, AdaptiveViTForImageClassification)
AutoModelForMaskedImageModeling.register(AdaptiveViTConfig, AdaptiveViTForMaskedImageModeling)
AutoModelForPreTraining.register(AdaptiveViTConfig, AdaptiveViTForPreTraining)
AutoModelForSemanticSegmentation.register(AdaptiveViTConfig, AdaptiveViTForSemanticSegmentation)
AutoModelForVideoClassification.register(AdaptiveViTConfig, AdaptiveViTForVideoClassification)
AutoConfig.register(AdaptiveSwinConfig.model_type, AdaptiveSwinConfig)
AutoBackbone.register(AdaptiveSwinConfig, AdaptiveSwinBackbone)
AutoModel.register(AdaptiveSwinConfig, AdaptiveSwinModel)
AutoModelForImageClassification.register(AdaptiveSwinConfig, AdaptiveSwinForImageClassification)
AutoModelForMaskedImageModeling.register(AdaptiveSwinConfig, AdaptiveSwinForMaskedImageModeling)
image_processors = {"pil": AdaptiveViTImageProcessorPil}
if is_torchvision_available():
    image_processors["torchvision"] = AdaptiveViTImageProcessor
AutoImageProcessor.register(AdaptiveViTConfig, image_processor_classes=image_processors)
AutoImageProcessor.register(AdaptiveSwinConfig, image_processor_classes=image_processors)
code_writers.append(GeneratedFiles())

# Where each of the other public names is defined; imported when it is first used.
_MODULES = {
    "convert": "checkpoints.convert",
    "PatchCollator": "data.collation",
    "explain": "explanations.explain",
    "explain_video": "explanations.explain",
    "push_to_hub": "hub.push",
    "StreamingCollator": "inference.streaming",
    "predict_streaming": "inference.streaming",
    "select_streaming": "inference.streaming",
    "stream_images": "inference.streaming",
    "predict_tiled": "inference.tiles",
    "ImageSource": "readers.opening",
    "open_image": "readers.opening",
    "KeepRateSchedule": "training.callbacks",
}


__all__ = [
    "PATCH_SELECTORS",
    "POSITION_ENCODINGS",
    "TOKEN_REDUCERS",
    "AdaptiveSwinBackbone",
    "AdaptiveSwinConfig",
    "AdaptiveSwinForImageClassification",
    "AdaptiveSwinForMaskedImageModeling",
    "AdaptiveSwinModel",
    "AdaptiveSwinPreTrainedModel",
    "AdaptiveViTBackbone",
    "AdaptiveViTConfig",
    "AdaptiveViTForElasticImageClassification",
    "AdaptiveViTForImageClassification",
    "AdaptiveViTForMaskedImageModeling",
    "AdaptiveViTForPreTraining",
    "AdaptiveViTForSemanticSegmentation",
    "AdaptiveViTForVideoClassification",
    "AdaptiveViTImageProcessor",
    "AdaptiveViTImageProcessorPil",
    "AdaptiveViTModel",
    "AdaptiveViTPreTrainedModel",
    "ImagePatches",
    "ImageSource",
    "KeepRateSchedule",
    "PatchCollator",
    "PatchSelector",
    "PatchTokens",
    "PositionEncoding",
    "Reduction",
    "SearchSpace",
    "StreamingCollator",
    "SubNetwork",
    "TokenReducer",
    "__version__",
    "convert",
    "explain",
    "explain_video",
    "open_image",
    "predict_streaming",
    "predict_tiled",
    "push_to_hub",
    "register_patch_selector",
    "register_position_encoding",
    "register_token_reducer",
    "select_streaming",
    "stream_images",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_MODULES[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
