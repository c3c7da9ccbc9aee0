"""A few steps of plain `Trainer`, the same for every strategy that can be trained."""

import hashlib
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from transformers import PrinterCallback, set_seed
from transformers.utils import logging

from ...training.arguments import FinetuningArguments, ModelArguments, RunArguments
from ...training.augmentation import AugmentationArguments
from ...training.classification import Classification
from ...training.loading import ImageDataset
from ...training.task import check_batch, make_trainer
from .strategies import Strategy


# Of a checkpoint that was trained with a selector or reducer of its own.
PLAIN_FIELDS = {
    "patch_selector": None,
    "num_selected_patches": None,
    "token_reducer": None,
    "keep_rate": 1.0,
}


def adapted_folder(strategy: Strategy, folder: Path, **options: Any) -> Path:
    """Where its weights are once it was fine-tuned with these options: the same for strategies that share them."""
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
    """Fine-tunes a copy of the checkpoint as the strategy sees images, and saves it to `output`.

    Raises:
        OSError, ValueError: for what does not fit.
    """
    if strategy.checkpoint.obstacle:
        raise ValueError(f"cannot be fine-tuned here: {strategy.checkpoint.obstacle}")
    logging.disable_progress_bar()
    set_seed(seed)
    arguments = ModelArguments(
        model_name_or_path=strategy.checkpoint.path, config_overrides=PLAIN_FIELDS, **strategy.training
    )
    task = Classification(arguments, None, AugmentationArguments(), FinetuningArguments())
    task.data = data
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
        # At once, so that a run that is interrupted leaves nothing half done.
        output.parent.mkdir(parents=True, exist_ok=True)
        partial = output.with_suffix(".partial")
        shutil.rmtree(partial, ignore_errors=True)
        shutil.copytree(saved, partial)
        partial.rename(output)
