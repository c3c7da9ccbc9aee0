"""Pretraining by masked autoencoding."""

from typing import Any, ClassVar, final

import torch
from torch.utils.data import Dataset
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.image_processing_utils import BaseImageProcessor

from ..arguments import TASKS, PretrainingArguments, given_fields
from ..data.images import prepare_images
from ..data.loading import load_unlabeled
from ..model.modeling_adaptive_vit import AdaptiveViTForPreTraining
from .arguments import RunArguments
from .model_loading import load_or_build
from .task import Task, describe_sizes


class UnlabeledCollator:
    """Prepares and stacks images without their labels."""

    def __init__(self, image_processor: BaseImageProcessor):
        self.image_processor = image_processor

    def __call__(self, examples: list[dict]) -> dict[str, torch.Tensor]:
        return prepare_images(self.image_processor, [example["image"] for example in examples])


class UnlabeledTask(Task):
    """A task on images without labels.

    Attributes:
        name: of the task, in messages.
        notes: descriptions of images that are left out, set by `load_data`.
    """

    name: ClassVar[str]
    notes: list[str]

    def check(self, training: RunArguments) -> None:
        if self.data_arguments.label_column is not None:
            raise ValueError(f"{self.name} reads no labels: leave label_column out")
        if self.augmentation.mixup_alpha or self.augmentation.cutmix_alpha:
            raise ValueError(f"{self.name} does not mix images: set mixup_alpha and cutmix_alpha to 0")

    def load_data(self) -> dict[str, Any]:
        data = self.data_arguments
        splits, self.notes = load_unlabeled(
            data.dataset,
            image_column=data.image_column,
            validation_fraction=data.validation_fraction,
            seed=data.validation_seed,
            skip_corrupt=data.skip_corrupt,
            options=data.dataset_options,
        )
        return splits


@final
class Pretraining(UnlabeledTask):
    """Reconstructs masked patches of images without labels."""

    argument_groups = TASKS["pretrain"]
    name = "pretraining"
    method: PretrainingArguments

    def make_model(self) -> PreTrainedModel:
        path, fields = self.model_arguments.model_name_or_path, self.model_arguments.config_fields()
        if given := given_fields(self.method, ("mask_ratio", "norm_pix_loss")):
            own = fields.get("masked_autoencoder")
            if own is None and path is not None:
                own = PreTrainedConfig.get_config_dict(path)[0].get("masked_autoencoder")
            fields["masked_autoencoder"] = (own or {}) | given
        if path is not None:
            # Pretraining sees all patches; fine-tuning may select again.
            fields |= {"patch_selector": None, "num_selected_patches": None, "token_reducer": None}
            fields |= {"keep_rate": 1.0, "thumbnail_context": False}
        return load_or_build(AdaptiveViTForPreTraining, self.model_arguments, fields)

    def collator(self, processor: BaseImageProcessor, training: RunArguments) -> UnlabeledCollator:
        return UnlabeledCollator(processor)

    def adjust(self, model: PreTrainedModel, training: RunArguments) -> None:
        # Trainer evaluates a loss only if there are labels; here these are the images.
        training.label_names = ["pixel_values"]
        training.prediction_loss_only = True

    def describe(self, model: PreTrainedModel, examples: dict[str, Dataset]) -> tuple[str, list[str], str]:
        decoder = sum(parameter.numel() for parameter in model.decoder.parameters())
        return (
            f"{describe_sizes(examples)}, without labels",
            self.notes,
            f"{model.vit.num_parameters() / 1e6:.1f} M parameters, and {decoder / 1e6:.1f} M of the decoder; "
            f"{model.options.mask_ratio:.1%} of the patches are dropped",
        )
