"""Metrics of a saved model on a data set."""

import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedConfig, Trainer, TrainingArguments

from ..arguments import (
    SELECTION_FIELDS,
    SPLITS,
    DataArguments,
    EvaluationArguments,
    given_fields,
)
from ..checkpoints.loading import load_classifier
from ..data.augmentation import EvaluationExamples
from ..data.collation import ImageCollator
from ..data.loading import load_data
from .metrics import compute_metrics_for


def evaluate_model(
    arguments: EvaluationArguments,
    data_arguments: DataArguments,
    log: Callable[[str], None] = lambda note: print(note, file=sys.stderr),
) -> tuple[dict[str, float], Path]:
    """Computes the metrics of a model on a split, and writes them to a file.

    Labels are matched with the model's by name. With `split="validation"`, data without such a split have it
    held out as for fine-tuning; otherwise nothing is held out.

    Args:
        arguments: model and options of the evaluation.
        data_arguments: on which images.
        log: receives a line about each kind of data left out.

    Returns:
        The metrics, each with the split's name before it, and the file.

    Raises:
        OSError, ValueError: for a model, data or options that do not exist or do not fit each other.
    """
    model, processor = load_classifier(arguments.model_name_or_path, **arguments.changes())
    with tempfile.TemporaryDirectory() as folder:
        training = TrainingArguments(
            output_dir=folder,
            per_device_eval_batch_size=arguments.batch_size,
            dataloader_num_workers=arguments.num_workers,
            dataloader_pin_memory=torch.accelerator.is_available(),
            bf16=arguments.bf16,
            use_cpu=arguments.use_cpu,
            remove_unused_columns=False,
            report_to="none",
        )
        with training.main_process_first():
            changes = {
                "label2id": None if model.config.problem_type == "regression" else model.config.label2id
            }
            if arguments.split != "validation":
                changes["validation_fraction"] = 0.0
            data = load_data(data_arguments, **changes)
        if training.process_index == 0:
            for note in data.describe_left_out():
                log(note)
        problem_type = model.config.problem_type or "single_label_classification"
        if (data.problem_type, data.num_labels) != (problem_type, model.config.num_labels):
            raise ValueError(
                f"the data are a {data.problem_type} with {data.num_labels} outputs, and the model is made "
                f"for a {problem_type} with {model.config.num_labels}"
            )
        split = arguments.split or next(name for name in SPLITS if name in data.splits)
        if split not in data.splits:
            raise ValueError(f"the data have no {split} split, only {', '.join(data.splits)}")

        trainer = Trainer(
            model=model,
            args=training,
            data_collator=ImageCollator(processor),
            compute_metrics=compute_metrics_for(problem_type, data.num_labels, arguments.top_k),
        )
        metrics = trainer.evaluate(EvaluationExamples(data.splits[split]), metric_key_prefix=split)
    for technical in ("epoch", f"{split}_model_preparation_time"):
        metrics.pop(technical, None)
    changes = arguments.changes()
    output = Path(arguments.output or default_output(arguments.model_name_or_path, split, changes))
    metrics |= selection_settings(model.config)
    if training.process_index == 0:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(json.dumps(metrics, indent=2, sort_keys=True) + "\n")
    return metrics, output


def selection_settings(config: PreTrainedConfig) -> dict[str, Any]:
    """Returns the config fields of patch selection and token reduction; none of a reducer if there is
    none."""
    names = SELECTION_FIELDS if getattr(config, "token_reducer", None) else SELECTION_FIELDS[:2]
    return given_fields(config, [name for name in names if hasattr(config, name)])


def default_output(model_name_or_path: str, split: str, changes: dict[str, Any]) -> Path:
    """Default path of the metrics file: in a local model's folder, otherwise in the working directory.

    What was changed in the checkpoint is part of the name, lest one trial replaces another.
    """
    folder = Path(model_name_or_path)
    said = "".join(f"_{name}={value}" for name, value in changes.items()).replace(" ", "").replace("/", "-")
    return (folder if folder.is_dir() else Path()) / f"evaluation_{split}{said}.json"
