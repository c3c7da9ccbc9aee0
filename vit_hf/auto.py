"""Classes of the models, and their registration with transformers' Auto classes."""

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
_image_processors = {"pil": AdaptiveViTImageProcessorPil}
if is_torchvision_available():
    _image_processors["torchvision"] = AdaptiveViTImageProcessor
AutoImageProcessor.register(AdaptiveViTConfig, image_processor_classes=_image_processors)
AutoImageProcessor.register(AdaptiveSwinConfig, image_processor_classes=_image_processors)
code_writers.append(GeneratedFiles())
