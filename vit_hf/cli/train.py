"""`vit-hf finetune`, `segment`, `detect`, `pretrain` and `distill`: tasks of `vit_hf.training`."""

import importlib
from dataclasses import dataclass

from ..arguments import TASKS
from . import PROGRAM
from .parsing import RUN_ARGUMENTS, CommandParser, announce, format_metrics, parse, read_arguments


@dataclass(frozen=True)
class TrainingCommand:
    """A command that trains.

    Attributes:
        task: module and class of the task, below `vit_hf.training`.
        description: what `--help` says first.
        run_arguments: module and class of the flags of `Trainer`.
    """

    task: tuple[str, str]
    description: str
    run_arguments: tuple[str, str] = RUN_ARGUMENTS


COMMON = f"""
The first argument may be a YAML or JSON file of flags, or --config a name that `{PROGRAM} configs`
lists; flags override it. A run that was interrupted goes on where it was when it is started again with
the same arguments. For several GPUs: accelerate launch -m vit_hf COMMAND [argument ...]
"""
COMMANDS = {
    "finetune": TrainingCommand(
        ("classification", "Classification"),
        f"""
Fine-tune a Vision Transformer, with or without adaptive patch selection, on your own images.

  {PROGRAM} finetune --dataset photos/ --model_name_or_path google/vit-base-patch16-224 \\
      --patch_selector variance --num_selected_patches 98 --output_dir runs/photos
  {PROGRAM} finetune --dataset photos/ --model_name_or_path google/vit-base-patch16-224 \\
      --token_reducer merge --keep_rate 0.8 --reduction_layers 3 6 9 --output_dir runs/photos
  {PROGRAM} finetune --config small_digits

photos/ has a folder for each class (optionally under train, validation, test); or it is a CSV, JSON
lines or Parquet file of labels, or a data set on the Hub.
""",
    ),
    "segment": TrainingCommand(
        ("segmentation", "Segmentation"),
        f"""
Fine-tune a Vision Transformer, with or without adaptive patch selection, to tell the class of each pixel.

  {PROGRAM} segment --dataset fields/ --model_name_or_path google/vit-base-patch16-224 --native_resolution \\
      --patch_selector saliency --num_selected_patches 0.25 --output_dir runs/fields
  {PROGRAM} segment --config segment_digits

fields/ is an image folder whose metadata.csv has the columns file_name and mask_file_name; a Parquet
file or a data set with a column of masks works as well. Masks have one channel: a class for each pixel,
255 for pixels to ignore (another value with --ignore_label); black and white ones need --binary.
""",
    ),
    "detect": TrainingCommand(
        ("detection", "Detection"),
        f"""
Fine-tune one of transformers' detectors over an adaptive ViT, from boxes.

  {PROGRAM} detect --dataset photos/ --model_name_or_path google/vit-base-patch16-224 --crop_size 448 \\
      --patch_selector saliency --num_selected_patches 0.5 --output_dir runs/boxes
  {PROGRAM} detect --config detect_digits

photos/ holds images and Pascal VOC files of their boxes, or metadata.jsonl with a column of objects, as
in the image folders of datasets.
""",
    ),
    "pretrain": TrainingCommand(
        ("pretraining", "Pretraining"),
        f"""
Pretrain on images without labels: a masked autoencoder that computes on the patches that it sees.

  {PROGRAM} pretrain --dataset photos/ --output_dir runs/mae --num_train_epochs 100
  {PROGRAM} pretrain --dataset photos/ --model_name_or_path facebook/vit-mae-base --output_dir runs/mae
  {PROGRAM} finetune --model_name_or_path runs/mae --dataset labeled/ --output_dir runs/labeled
""",
    ),
    "distill": TrainingCommand(
        ("distillation", "SparseDistillation"),
        f"""
Teach a checkpoint, on images without labels, to keep its answer with few of its patches.

  {PROGRAM} distill --dataset photos/ --model_name_or_path facebook/dinov2-small --image_size 518 \\
      --patch_selector '{{"type": "attention", "coverage": 0.5}}' --num_selected_patches 0.1 \\
      --output_dir runs/sparse
  {PROGRAM} distill --config distill_photos

The checkpoint, frozen and with all patches, is the teacher. The model that is saved is of the same
class, head included, trained to have the same states from a few patches, whose number each step draws
anew. Fidelity to the teacher at 5, 10, 25 and 50 % of the patches is measured on held-out images, before
training as well.
""",
        ("training.arguments", "DistillationRunArguments"),
    ),
}


def make_parser(name: str) -> CommandParser:
    """Makes the parser of a command, without the flags of Trainer."""
    usage = "[CONFIG.yaml] --dataset DATASET --output_dir DIR [flag ...]"
    command = COMMANDS[name]
    description = command.description.strip() + "\n" + COMMON
    return CommandParser(name, TASKS[name], description, usage, command.run_arguments)


def run(name: str, argv: list[str]) -> None:
    """Trains, and prints the metrics."""
    parser = make_parser(name)
    argv = read_arguments(parser, argv)
    announce(f"{PROGRAM} {name}: loading torch and transformers ...")
    from ..training.task import run_task

    parser.complete()
    *arguments, training, _ = parse(parser, argv)
    module, task = COMMANDS[name].task
    task = getattr(importlib.import_module(f"..training.{module}", __package__), task)
    run_task(task(*arguments), training, parser.prog, format_metrics)
