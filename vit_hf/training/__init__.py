"""What fine-tuning needs beside `transformers.Trainer`.

Names are imported when they are first used: each needs its own libraries, some of which come with `vit_hf[train]`.
"""

import importlib
from typing import Any


_MODULES = {
    "arguments": (
        "DataArguments",
        "FinetuningArguments",
        "ModelArguments",
        "RunArguments",
        "SelectionArguments",
        "ArchitectureArguments",
    ),
    "augmentation": (
        "AugmentationArguments",
        "EvaluationExamples",
        "ReproducibleTraining",
        "TrainingExamples",
        "make_augmentation",
    ),
    "classification": ("Classification",),
    "collation": ("ImageCollator",),
    "command_line": ("format_metrics", "make_parser", "parse_arguments"),
    "detection": ("Detection", "DetectionArguments", "DetectionTrainer"),
    "detection_metrics": ("AveragePrecision", "BoxCollator"),
    "ema": ("EmaCallback",),
    "evaluation": ("EvaluationArguments", "evaluate_model"),
    "execution": ("main_of",),
    "freezing": ("FreezeBackbone",),
    "hub_trainer": ("HubTrainer",),
    "image_collections": ("CollectionArguments",),
    "images": ("find_images",),
    "layer_decay": ("layerwise_parameter_groups",),
    "loading": ("ImageDataset", "LabelledImages", "load_image_dataset"),
    "metrics": ("F1", "Accuracy", "MeanSquaredError", "TopKAccuracy", "compute_metrics_for"),
    "models": ("load_classifier", "make_image_processor", "make_model"),
    "monitoring": ("LogSelectionLoss", "NonFiniteGuard"),
    "patch_collation": ("PatchCollator",),
    "pretraining": ("Pretraining", "PretrainingArguments"),
    "prediction": ("Prediction", "PredictionArguments", "predict_files"),
    "ray_prediction": ("CollectionRun", "prepare_collection"),
    "schedule": ("KeepRateSchedule", "dense_fraction_at"),
    "segmentation": ("MeanIoU", "Segmentation", "SegmentationArguments"),
    "task": ("Run", "Task", "make_trainer", "prepare"),
    "tiled_prediction": ("TilingArguments", "predict_files_tiled"),
}
_HOMES = {name: module for module, names in _MODULES.items() for name in names}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)


def __dir__() -> list[str]:
    return __all__
