"""Vision Transformers for large images in transformers.

Importing this package registers the models with transformers' Auto classes.
"""

from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForMaskedImageModeling,
)
from transformers.utils import is_torchvision_available

from .model.configuration_adaptive_vit import AdaptiveViTConfig
from .model.modeling_adaptive_vit import (
    AdaptiveViTForImageClassification,
    AdaptiveViTForMaskedImageModeling,
    AdaptiveViTModel,
    AdaptiveViTPreTrainedModel,
)
from .model.positions import POSITION_ENCODINGS
from .model.selection import PATCH_SELECTORS
from .version import __version__


AutoConfig.register(AdaptiveViTConfig.model_type, AdaptiveViTConfig)
AutoModel.register(AdaptiveViTConfig, AdaptiveViTModel)
AutoModelForImageClassification.register(AdaptiveViTConfig, AdaptiveViTForImageClassification)
AutoModelForMaskedImageModeling.register(AdaptiveViTConfig, AdaptiveViTForMaskedImageModeling)
AdaptiveViTConfig.register_for_auto_class()


__all__ = [
    "PATCH_SELECTORS",
    "POSITION_ENCODINGS",
    "AdaptiveViTConfig",
    "AdaptiveViTForImageClassification",
    "AdaptiveViTForMaskedImageModeling",
    "AdaptiveViTModel",
    "AdaptiveViTPreTrainedModel",
    "__version__",
]
