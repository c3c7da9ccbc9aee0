"""Training for image classification and regression."""

from collections.abc import Callable
from typing import Any, final

from torch.utils.data import Dataset
from transformers import PreTrainedModel, TrainerCallback
from transformers.image_processing_utils import BaseImageProcessor

from ..arguments import TASKS, FinetuningArguments
from ..checkpoints.loading import part_of
from ..data.collation import ImageCollator
from ..data.loading import ImageDataset, load_data
from ..hub.remote_code import files_to_save
from ..inference.metrics import BEST_MODEL_METRIC, compute_metrics_for
from ..model.elastic_space import is_elastic, read_elastic_options
from .arguments import RunArguments
from .callbacks import EmaCallback
from .model_loading import make_model
from .optimizer import FreezeBackbone
from .task import Task, describe_selection, describe_sizes


@final
class Classification(Task):
    """Assigns one class, several classes or numbers to an image.

    Attributes:
        data: set by `load_data`.
    """

    argument_groups = TASKS["finetune"]
    data: ImageDataset
    method: FinetuningArguments

    def load_data(self) -> dict[str, Any]:
        self.data = load_data(self.data_arguments)
        return self.data.splits

    def make_model(self) -> PreTrainedModel:
        model = make_model(self.model_arguments, self.data)
        # A class whose code cannot be saved is found before training, not after.
        files_to_save(model)
        return model

    def collator(self, processor: BaseImageProcessor, training: RunArguments) -> ImageCollator:
        is_single_label = self.data.problem_type == "single_label_classification"
        return ImageCollator(
            processor,
            num_labels=self.data.num_labels if is_single_label else None,
            mixup_alpha=self.augmentation.mixup_alpha,
            cutmix_alpha=self.augmentation.cutmix_alpha,
            label_smoothing=training.label_smoothing_factor,
        )

    def metrics(self, model: PreTrainedModel, processor: BaseImageProcessor) -> Callable:
        return compute_metrics_for(self.data.problem_type, self.data.num_labels)

    def best_metric(self) -> tuple[str, bool]:
        return BEST_MODEL_METRIC[self.data.problem_type]

    def callbacks(self, model: PreTrainedModel) -> list[TrainerCallback]:
        callbacks, method = super().callbacks(model), self.method
        freeze = FreezeBackbone(method.freeze_backbone_ratio, method.freeze_head)
        if freeze.ratio > 0:
            freeze.parameters_of(model)
            callbacks.append(freeze)
        if method.ema_decay is not None:
            callbacks.append(EmaCallback(method.ema_decay))
        return callbacks

    def adjust(self, model: PreTrainedModel, training: RunArguments) -> None:
        # The collator smooths labels; see there.
        training.label_smoothing_factor = 0.0
        if training.ddp_find_unused_parameters is None:
            # Only predictors, frozen weights and skipped elastic blocks can lack gradients; in other models
            # DDP warns that the search is needless.
            has_predictors = any(part_of(model, name) == "predictor" for name, _ in model.named_parameters())
            draws_one = is_elastic(model.config) and not read_elastic_options(model.config).distillation
            training.ddp_find_unused_parameters = (
                has_predictors or self.method.freeze_backbone_ratio > 0 or draws_one
            )

    def describe(self, model: PreTrainedModel, examples: dict[str, Dataset]) -> tuple[str, list[str], str]:
        outputs = f"{self.data.num_labels} classes" if self.data.id2label else "regression"
        return (
            f"{describe_sizes(examples)}; {outputs}",
            self.data.describe_left_out(),
            f"{model.num_parameters() / 1e6:.1f} M parameters; {describe_selection(model.config)}",
        )
