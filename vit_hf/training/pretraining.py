"""A pretraining run by masked autoencoding from its arguments to a saved model."""

from dataclasses import asdict, dataclass, field

import torch
from transformers import PreTrainedConfig, set_seed
from transformers.image_processing_utils import BaseImageProcessor
from transformers.integrations import get_reporting_integration_callbacks
from transformers.trainer_utils import IntervalStrategy

from ..model.modeling_adaptive_vit import AdaptiveViTForPreTraining
from .arguments import ArchitectureArguments, DataArguments, RunArguments, given_fields
from .augmentation import (
    AugmentationArguments,
    EvaluationExamples,
    ReproducibleTraining,
    TrainingExamples,
    make_augmentation,
)
from .execution import PreparedRun, check_batch, open_output_dir
from .finetuning import find_resumable
from .hub_trainer import HubTrainer
from .images import prepare_images
from .layer_decay import layerwise_parameter_groups
from .loading import LabelledImages, load_unlabelled
from .models import load_or_build, make_image_processor
from .monitoring import NonFiniteGuard
from .runs import check_output_dir, check_same_rates, describe_run


@dataclass
class PretrainingArguments:
    """How to pretrain, beyond what Trainer does by itself."""

    _argument_group_name = "pretraining"

    mask_ratio: float | None = field(
        default=None,
        metadata={"help": "share of the patches that are dropped; default: as in the checkpoint, or 0.75"},
    )
    norm_pix_loss: bool = field(
        default=True,
        metadata={"help": "reconstruct patches of mean 0 and variance 1, which makes better encoders"},
    )
    start_anew: bool = field(
        default=False,
        metadata={
            "help": "do not resume the run in output_dir: rename it to <output_dir>-previous-1 and begin again"
        },
    )


class UnlabelledCollator:
    """Prepares and stacks images, and leaves out what else an example has."""

    def __init__(self, image_processor: BaseImageProcessor):
        self.image_processor = image_processor

    def __call__(self, examples: list[dict]) -> dict[str, torch.Tensor]:
        return prepare_images(self.image_processor, [example["image"] for example in examples])


def prepare_pretraining(
    model_arguments: ArchitectureArguments,
    data_arguments: DataArguments,
    augmentation: AugmentationArguments,
    method: PretrainingArguments,
    training: RunArguments,
) -> PreparedRun:
    """Everything up to the first step of a new run, or of one to go on with in `training.output_dir`.

    All that can be wrong with the arguments or the data is found here, before anything is written.

    Raises:
        OSError, TypeError, ValueError: for what is wrong.
    """
    if data_arguments.label_column is not None:
        raise ValueError("pretraining reads no labels: leave label_column out")
    if augmentation.mixup_alpha or augmentation.cutmix_alpha:
        raise ValueError("pretraining does not mix images: set mixup_alpha and cutmix_alpha to 0")
    check_output_dir(training.output_dir)
    arguments = training.to_dict()
    for group in (model_arguments, data_arguments, augmentation, method):
        arguments |= asdict(group)
    # One process after the other, because the first fills a cache that the others read.
    with training.main_process_first():
        splits, notes = load_unlabelled(
            data_arguments.dataset,
            image_column=data_arguments.image_column,
            validation_share=data_arguments.validation_share,
            seed=data_arguments.validation_seed,
            skip_corrupt=data_arguments.skip_corrupt,
            options=data_arguments.dataset_options,
        )
    if "train" not in splits:
        raise ValueError(f"the data have no train split, only {', '.join(splits)}")
    if "validation" not in splits and training.eval_strategy != IntervalStrategy.NO:
        raise ValueError(
            "there is no validation split: give one, set validation_share above 0, or set eval_strategy to 'no'"
        )

    set_seed(training.seed)
    fields = model_arguments.config_fields()
    if given := given_fields(method, ("mask_ratio", "norm_pix_loss")):
        path, own = model_arguments.model_name_or_path, fields.get("masked_autoencoder")
        if own is None and path is not None:
            own = PreTrainedConfig.get_config_dict(path)[0].get("masked_autoencoder")
        fields["masked_autoencoder"] = (own or {}) | given
    if model_arguments.model_name_or_path is not None:
        # What a checkpoint selects, fine-tuning may select again.
        fields |= {"patch_selector": None, "num_selected_patches": None, "token_reducer": None}
        fields |= {"keep_rate": 1.0, "thumbnail_context": False}
    model = load_or_build(AdaptiveViTForPreTraining, model_arguments, fields)
    processor = make_image_processor(model_arguments, model.config)
    checkpoint = None if method.start_anew else find_resumable(training.output_dir, model)
    if checkpoint is not None:
        check_same_rates(training.output_dir, arguments)
    trainer = make_pretrainer(model, processor, splits, augmentation, training)
    trainer.card = describe_run(arguments) | {
        "license": training.hub_license,
        "examples": training.hub_examples or [],
    }
    check_batch(trainer)
    open_output_dir(training, arguments, checkpoint, method.start_anew)
    sizes = ", ".join(f"{len(images)} {split}" for split, images in splits.items())
    description = [
        f"Data:   {sizes} images, without labels",
        *(f"        {note}" for note in notes),
        f"Model:  {model.vit.num_parameters() / 1e6:.1f} M parameters, and {sum(map(torch.numel, model.decoder.parameters())) / 1e6:.1f} M of the "
        f"decoder; {model.options.mask_ratio:.1%} of the patches are dropped",
    ]
    held_out = {name: EvaluationExamples(images) for name, images in splits.items() if name != "train"}
    return PreparedRun(trainer, held_out, checkpoint, description)


def make_pretrainer(
    model: AdaptiveViTForPreTraining,
    processor: BaseImageProcessor,
    splits: dict[str, LabelledImages],
    augmentation: AugmentationArguments,
    training: RunArguments,
) -> HubTrainer:
    """A `Trainer` with all that was asked for. Changes what in `training` it does itself."""
    if training.metric_for_best_model == "auto":
        training.metric_for_best_model, training.greater_is_better = "loss", False
    # Trainer evaluates a loss only where it knows of labels; these are the images themselves.
    training.label_names = ["pixel_values"]
    training.prediction_loss_only = True
    size = processor.size if processor.do_resize else {}
    image_size = (size["height"], size["width"]) if "height" in size else None
    callbacks = [ReproducibleTraining(), NonFiniteGuard()]
    callbacks += [callback() for callback in get_reporting_integration_callbacks(training.report_to)]
    training.report_to = []
    optimizer, options = HubTrainer.get_optimizer_cls_and_kwargs(training, model)
    groups = layerwise_parameter_groups(model, training.learning_rate, training.weight_decay)
    augment = make_augmentation(augmentation, image_size)
    return HubTrainer(
        model=model,
        args=training,
        data_collator=UnlabelledCollator(processor),
        train_dataset=TrainingExamples(splits["train"], augment, training.seed, processor.do_convert_rgb),
        eval_dataset=EvaluationExamples(splits["validation"]) if "validation" in splits else None,
        processing_class=processor,
        callbacks=callbacks,
        optimizer_cls_and_kwargs=(optimizer, options | {"params": groups}),
    )
