"""Training for a comparison: a few steps for each strategy, and small checkpoints for the demonstration."""

import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from transformers import PrinterCallback, set_seed
from transformers.utils import logging

from ..arguments import (
    MEGAPIXEL_DIGITS,
    AugmentationArguments,
    ComparedDataArguments,
    ComparisonArguments,
    FinetuningArguments,
    ModelArguments,
)
from ..data.loading import ImageDataset
from ..training.arguments import RunArguments
from ..training.classification import Classification
from ..training.task import check_batch, make_trainer, prepare
from .strategies import Strategy


# Removes the selector and reducer that a checkpoint was trained with.
PLAIN_FIELDS = {
    "patch_selector": None,
    "num_selected_patches": None,
    "token_reducer": None,
    "keep_rate": 1.0,
}


def adapted_folder(strategy: Strategy, folder: Path, **options: Any) -> Path:
    """Returns the folder of the fine-tuned weights; strategies with the same training share it."""
    key = {"training": strategy.training, "checkpoint": strategy.checkpoint.fingerprint, **options}
    return folder / hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:12]


def adapt(
    strategy: Strategy,
    data: ImageDataset,
    output: Path,
    steps: int,
    batch_size: int,
    learning_rate: float,
    seed: int,
    use_cpu: bool,
) -> None:
    """Fine-tunes a copy of the checkpoint with the strategy's inputs, and saves it to `output`.

    Raises:
        OSError, ValueError: if checkpoint, data and strategy do not match.
    """
    if strategy.checkpoint.obstacle:
        raise ValueError(f"cannot be fine-tuned here: {strategy.checkpoint.obstacle}")
    logging.disable_progress_bar()
    set_seed(seed)
    arguments = ModelArguments(
        model_name_or_path=strategy.checkpoint.path, config_overrides=PLAIN_FIELDS, **strategy.training
    )
    task = Classification(arguments, None, AugmentationArguments(), FinetuningArguments())
    task.data, task.splits = data, data.splits
    model = task.make_model()
    processor = task.make_processor(model)
    # Whole images of mixed sizes go one at a time.
    alone = arguments.native_resolution and not arguments.return_patches
    with tempfile.TemporaryDirectory() as scratch:
        training = RunArguments(
            output_dir=scratch,
            max_steps=steps,
            per_device_train_batch_size=1 if alone else batch_size,
            gradient_accumulation_steps=batch_size if alone else 1,
            learning_rate=learning_rate,
            lr_scheduler_type="cosine",
            warmup_steps=0.1,
            weight_decay=0.05,
            eval_strategy="no",
            save_strategy="no",
            logging_strategy="no",
            seed=seed,
            use_cpu=use_cpu,
            disable_tqdm=True,
        )
        examples = task.examples(model, processor, training)
        trainer = make_trainer(task, model, processor, examples, training)
        trainer.remove_callback(PrinterCallback)
        check_batch(trainer)
        trainer.train()
        saved = Path(scratch, "adapted")
        trainer.save_model(str(saved))
        # Atomic, so that an interrupted run leaves no partial folder.
        output.parent.mkdir(parents=True, exist_ok=True)
        partial = output.with_suffix(".partial")
        shutil.rmtree(partial, ignore_errors=True)
        shutil.copytree(saved, partial)
        partial.rename(output)


ARCHITECTURE = {
    "hidden_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 256,
    "image_size": 112,
    "patch_size": 16,
    "num_channels": 1,
}
# Three stages of basic blocks, 16 pixels to a cell.
STEM = {
    "model_type": "resnet",
    "num_channels": 1,
    "embedding_size": 16,
    "hidden_sizes": [16, 32, 64],
    "depths": [1, 1, 1],
    "layer_type": "basic",
    "out_features": ["stage3"],
}
BATCH = 64


@dataclass(frozen=True)
class TrainingStage:
    """Stage of training: `steps` on canvases of `side` pixels with one digit and `num_noise` strokes."""

    side: int
    num_noise: int
    steps: int


VIT_STAGES = (TrainingStage(32, 0, 300), TrainingStage(48, 0, 400), TrainingStage(112, 2, 250))
HYBRID_STAGES = (TrainingStage(32, 0, 150), TrainingStage(112, 2, 150))
# Defaults of the demonstration for what is not given on the command line.
DEMONSTRATION = {
    "dataset": MEGAPIXEL_DIGITS,
    "tokens": [24, 48],
    "selectors": ["random", "variance", "saliency", "attention"],
    "keep_rates": [0.7],
    "limit": 400,
    "adapt": 24,
    "adapt_batch_size": 16,
    "adapt_learning_rate": 5e-4,
}


def canvases(stage: TrainingStage, num_test: int) -> dict[str, Any]:
    """Returns options of the embedded data; each training canvas is seen once."""
    return {
        "task": "single",
        "size": stage.side,
        "num_noise": stage.num_noise,
        "num_train": stage.steps * BATCH,
        "num_test": num_test,
        "seed": stage.side,
    }


def train_checkpoint(
    folder: Path, stages: tuple[TrainingStage, ...], overrides: dict[str, Any], log: Callable[[str], None]
) -> str:
    """Trains a model from scratch, stage by stage, and returns its folder; finished stages are reused."""
    checkpoint = None
    for stage in stages:
        output = folder / f"digits-{stage.side}"
        if not (output / "model.safetensors").is_file():
            run = prepare(
                Classification(
                    ModelArguments(
                        model_name_or_path=checkpoint,
                        # Distances mean the same on a larger canvas.
                        position_encoding="rotary",
                        config_overrides={} if checkpoint else overrides,
                        image_size=stage.side,
                    ),
                    ComparedDataArguments(
                        dataset=MEGAPIXEL_DIGITS,
                        dataset_options=canvases(stage, 500),
                        validation_fraction=0.0,
                    ),
                    AugmentationArguments(),
                    FinetuningArguments(),
                ),
                RunArguments(
                    output_dir=str(output),
                    num_train_epochs=1,
                    per_device_train_batch_size=BATCH,
                    per_device_eval_batch_size=100,
                    learning_rate=2e-3,
                    lr_scheduler_type="cosine",
                    warmup_steps=0.1,
                    weight_decay=0.05,
                    eval_strategy="no",
                    save_strategy="no",
                    logging_strategy="no",
                    dataloader_num_workers=1,
                    disable_tqdm=True,
                ),
            )
            accuracy = run.execute()["test_accuracy"]
            log(f"Trained on canvases of {stage.side}x{stage.side} pixels: {accuracy:.1%}")
        checkpoint = str(output)
    return checkpoint


def demonstration(
    arguments: ComparisonArguments,
    data_arguments: ComparedDataArguments,
    given: set[str],
    log: Callable[[str], None] = print,
) -> tuple[ComparisonArguments, ComparedDataArguments]:
    """Trains the checkpoints, and fills in arguments that were not given on the command line.

    Args:
        arguments, data_arguments: arguments with defaults.
        given: names of the arguments given on the command line.
        log: called with each line of progress.
    """
    folder = Path(arguments.output) / "checkpoints"
    values = {name: value for name, value in DEMONSTRATION.items() if name not in given}
    if "model_name_or_path" not in given:
        values["model_name_or_path"] = train_checkpoint(folder / "vit", VIT_STAGES, ARCHITECTURE, log)
    if "hybrid" not in given and not arguments.chooses_tokens:
        overrides = ARCHITECTURE | {"backbone_config": STEM}
        values["hybrid"] = train_checkpoint(folder / "hybrid", HYBRID_STAGES, overrides, log)
    theirs = {name: values.pop(name) for name in list(values) if hasattr(data_arguments, name)}
    arguments = replace(arguments, **values)
    if not given & {"dataset", "dataset_options"}:
        number = max(1, arguments.adapt * arguments.adapt_batch_size)
        options = canvases(TrainingStage(512, 8, 0), arguments.limit or 1000) | {"num_train": number}
        theirs["dataset_options"] = options
        # The test split is measured; the rest is for training.
        if "validation_fraction" not in given:
            theirs["validation_fraction"] = 0.0
    return arguments, replace(data_arguments, **theirs)
