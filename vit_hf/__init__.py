"""Vision Transformers for large images in transformers.

Importing this package registers the models with transformers' Auto classes.
"""

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForMaskedImageModeling,
)
from transformers.models.auto.image_processing_auto import AutoImageProcessor
from transformers.utils import is_torchvision_available

from .checkpoints import convert
from .explain import explain
from .model.configuration_adaptive_vit import AdaptiveViTConfig
from .model.image_processing_adaptive_vit import AdaptiveViTImageProcessor
from .model.image_processing_pil_adaptive_vit import AdaptiveViTImageProcessorPil
from .model.modeling_adaptive_vit import (
    AdaptiveViTForImageClassification,
    AdaptiveViTForMaskedImageModeling,
    AdaptiveViTModel,
    AdaptiveViTPreTrainedModel,
)
from .model.positions import POSITION_ENCODINGS
from .model.reduction import TOKEN_REDUCERS
from .model.selection import PATCH_SELECTORS
from .training.schedule import KeepRateSchedule
from .version import __version__


AutoConfig.register(AdaptiveViTConfig.model_type, AdaptiveViTConfig)
AutoModel.register(AdaptiveViTConfig, AdaptiveViTModel)
AutoModelForImageClassification.register(AdaptiveViTConfig, AdaptiveViTForImageClassification)
AutoModelForMaskedImageModeling.register(AdaptiveViTConfig, AdaptiveViTForMaskedImageModeling)
image_processors = {"pil": AdaptiveViTImageProcessorPil}
if is_torchvision_available():
    image_processors["torchvision"] = AdaptiveViTImageProcessor
AutoImageProcessor.register(AdaptiveViTConfig, image_processor_classes=image_processors)


__all__ = [
    "PATCH_SELECTORS",
    "POSITION_ENCODINGS",
    "TOKEN_REDUCERS",
    "AdaptiveViTConfig",
    "AdaptiveViTForImageClassification",
    "AdaptiveViTForMaskedImageModeling",
    "AdaptiveViTImageProcessor",
    "AdaptiveViTImageProcessorPil",
    "AdaptiveViTModel",
    "AdaptiveViTPreTrainedModel",
    "KeepRateSchedule",
    "__version__",
    "convert",
    "explain",
]
