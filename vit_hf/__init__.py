"""Vision Transformers for large images in transformers.

Importing this package registers the models with transformers' Auto classes. Everything around the models is
imported when it is first used, since each part needs libraries of its own.
"""

import importlib
import multiprocessing
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .model.version import __version__
from .requirements import check_versions


def _is_command_line() -> bool:
    """Returns whether `vit-hf` or `python -m vit_hf` is what runs.

    It reads its arguments, and answers `--help`, before torch is imported; the models follow.
    """
    started = Path(getattr(sys, "argv", [""])[0]).stem == "vit-hf" or sys.orig_argv[1:3] == ["-m", "vit_hf"]
    return started and multiprocessing.parent_process() is None


check_versions()
# Threads of torch that wait should sleep: spinning ones slow everything down where cores are shared (of two
# threads on two busy cores, sixfold). OpenMP reads this when torch is imported, later it has no effect.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
if TYPE_CHECKING or not _is_command_line():
    from .auto import (
        PATCH_SELECTORS,
        POSITION_ENCODINGS,
        TOKEN_REDUCERS,
        AdaptiveSwinBackbone,
        AdaptiveSwinConfig,
        AdaptiveSwinForImageClassification,
        AdaptiveSwinForMaskedImageModeling,
        AdaptiveSwinModel,
        AdaptiveSwinPreTrainedModel,
        AdaptiveViTBackbone,
        AdaptiveViTConfig,
        AdaptiveViTForElasticImageClassification,
        AdaptiveViTForImageClassification,
        AdaptiveViTForMaskedImageModeling,
        AdaptiveViTForPreTraining,
        AdaptiveViTForSemanticSegmentation,
        AdaptiveViTForVideoClassification,
        AdaptiveViTImageProcessor,
        AdaptiveViTImageProcessorPil,
        AdaptiveViTModel,
        AdaptiveViTPreTrainedModel,
        ImagePatches,
        PatchSelector,
        PatchTokens,
        PositionEncoding,
        Reduction,
        SearchSpace,
        SubNetwork,
        TokenReducer,
        register_patch_selector,
        register_position_encoding,
        register_token_reducer,
    )

if TYPE_CHECKING:
    from .checkpoints.convert import convert
    from .data.collation import PatchCollator
    from .explanations.explain import explain, explain_video
    from .hub.push import push_to_hub
    from .inference.detect_tiles import detect_tiled
    from .inference.fidelity import measure_fidelity
    from .inference.segment_tiles import segment_tiled
    from .inference.streaming import StreamingCollator, predict_streaming, select_streaming, stream_images
    from .inference.tiles import predict_tiled
    from .readers.opening import ImageSource, open_image
    from .training.callbacks import KeepRateSchedule

# Where each of the other public names is defined; imported when it is first used.
_MODULES = {
    "convert": "checkpoints.convert",
    "PatchCollator": "data.collation",
    "explain": "explanations.explain",
    "explain_video": "explanations.explain",
    "push_to_hub": "hub.push",
    "measure_fidelity": "inference.fidelity",
    "detect_tiled": "inference.detect_tiles",
    "segment_tiled": "inference.segment_tiles",
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
    "detect_tiled",
    "explain",
    "explain_video",
    "measure_fidelity",
    "open_image",
    "predict_streaming",
    "predict_tiled",
    "push_to_hub",
    "register_patch_selector",
    "register_position_encoding",
    "register_token_reducer",
    "segment_tiled",
    "select_streaming",
    "stream_images",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_MODULES.get(name, 'auto')}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
