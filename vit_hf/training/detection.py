"""A fine-tuning run for detection from its arguments to a saved model."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import PreTrainedModel, set_seed
from transformers.image_processing_utils import BaseImageProcessor
from transformers.integrations import get_reporting_integration_callbacks
from transformers.trainer_utils import IntervalStrategy

from .arguments import DataArguments, ModelArguments, RunArguments, parse_json
from .augmentation import ReproducibleTraining
from .box_sources import BoxData, load_boxed_images
from .boxed_images import BoxExamples
from .detection_metrics import AveragePrecision, BoxCollator, stack_labels
from .detectors import (
    DETECTORS,
    backbone_of,
    make_detector,
    make_image_processor,
    parameter_groups,
    saved_detector,
)
from .execution import PreparedRun, check_batch, evaluate_splits, open_output_dir
from .finetuning import describe_selection, find_resumable
from .hub_trainer import HubTrainer
from .monitoring import NonFiniteGuard
from .runs import check_output_dir, check_same_rates
from .schedule import KeepRateSchedule


PICTURE_NAME = "detections.png"


@dataclass
class DetectionArguments:
    """How to fine-tune for boxes, beyond what Trainer does by itself."""

    _argument_group_name = "detection"

    detector: Literal["deformable_detr", "conditional_detr", "detr"] = field(
        default="deformable_detr",
        metadata={"help": "of transformers, for a new one; deformable_detr learns fastest"},
    )
    detector_overrides: dict | str | None = field(
        default=None,
        metadata={
            "help": 'fields of its configuration as JSON, such as \'{"num_queries": 100, "with_box_refine": true}\''
        },
    )
    class_names: list[str] | None = field(
        default=None, metadata={"help": "all classes, in order; default: those of the data"}
    )
    single_class: bool = field(default=False, metadata={"help": "take all classes for one"})
    clip_boxes: bool = field(
        default=False,
        metadata={
            "help": "cut boxes that reach beyond their image and drop those that are empty, instead of failing"
        },
    )
    crop_size: int | None = field(
        default=None,
        metadata={
            "help": "train on random pieces of so many pixels a side, and evaluate on tiles of that size, for large images; "
            "they are not resized unless image_size says so"
        },
    )
    min_box_share: float = field(
        default=0.25, metadata={"help": "of a box that must be on a piece for it to count there"}
    )
    evaluate_whole_images: bool = field(
        default=False, metadata={"help": "evaluate on whole images, whatever crop_size is"}
    )
    horizontal_flip: float = field(default=0.0, metadata={"help": "probability of mirroring left and right"})
    vertical_flip: float = field(default=0.0, metadata={"help": "probability of mirroring top and bottom"})
    keep_rate_schedule: bool = field(
        default=False,
        metadata={
            "help": "begin with all patches and tokens and come to num_selected_patches, keep_rate gradually"
        },
    )
    layer_decay: float = field(
        default=1.0,
        metadata={"help": "factor of the learning rate from a layer of the backbone to the one below"},
    )
    backbone_lr_factor: float = field(
        default=1.0,
        metadata={"help": "factor of the learning rate for the backbone; DETR has 0.1 for a pretrained one"},
    )
    evaluate_only: bool = field(default=False, metadata={"help": "train nothing: measure a saved detector"})
    num_pictured: int = field(
        default=4, metadata={"help": f"held-out images on {PICTURE_NAME} in output_dir; 0 for no picture"}
    )
    start_anew: bool = field(
        default=False,
        metadata={
            "help": "do not resume the run in output_dir: rename it to <output_dir>-previous-1 and begin again"
        },
    )

    def __post_init__(self):
        self.detector_overrides = parse_json("detector_overrides", self.detector_overrides)
        if self.detector not in DETECTORS:
            raise ValueError(f"detector is {self.detector!r}; choose one of {', '.join(DETECTORS)}")
        if self.crop_size is not None and self.crop_size < 1:
            raise ValueError(f"crop_size is {self.crop_size}; it must be at least 1 pixel")
        for name in ("min_box_share", "horizontal_flip", "vertical_flip"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be from 0 to 1")
        if self.num_pictured < 0:
            raise ValueError(f"num_pictured is {self.num_pictured}; it must not be negative")


class DetectionTrainer(HubTrainer):
    """A `Trainer` that evaluates boxes: transformers' detectors take labels as a list, and put out more than is needed."""

    def prediction_step(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, ...] | None, tuple[torch.Tensor, ...] | None]:
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            outputs = model(**inputs)
        loss = outputs.loss.detach().mean()
        if prediction_loss_only:
            return loss, None, None
        return loss, (outputs.logits, outputs.pred_boxes), stack_labels(inputs["labels"])


@dataclass
class DetectionRun(PreparedRun):
    """See `PreparedRun`.

    Attributes:
        evaluate_only: whether nothing is trained.
        num_pictured: how many held-out images are drawn at the end.
    """

    evaluate_only: bool = False
    num_pictured: int = 0

    def describe(self) -> str:
        """What is going to happen, in a few lines."""
        return (
            "\n".join([*self.description, "Run:    evaluates"]) if self.evaluate_only else super().describe()
        )

    def execute(self) -> dict[str, float]:
        """Train unless only evaluating, evaluate, save, and draw what was found on held-out images."""
        metrics = evaluate_splits(self.trainer, self.splits) if self.evaluate_only else super().execute()
        examples = self.splits.get("validation") or self.splits.get("test")
        if self.num_pictured and examples is not None and self.trainer.is_world_process_zero():
            from ..explanations.detection_drawing import draw_detections

            model = self.trainer.accelerator.unwrap_model(self.trainer.model)
            figure = draw_detections(model, self.trainer.processing_class, examples, self.num_pictured)
            figure.savefig(Path(self.trainer.args.output_dir, PICTURE_NAME))
        return metrics


def prepare_detection(
    model_arguments: ModelArguments,
    data_arguments: DataArguments,
    method: DetectionArguments,
    training: RunArguments,
) -> DetectionRun:
    """Everything up to the first step of a new run, or of one to go on with in `training.output_dir`.

    All that can be wrong with the arguments or the data is found here, before anything is written.

    Raises:
        ImportError: if what evaluation needs is not installed.
        OSError, TypeError, ValueError: for what is wrong.
    """
    check_arguments(model_arguments, data_arguments, method, training)
    check_output_dir(training.output_dir)
    arguments = training.to_dict()
    for group in (model_arguments, data_arguments, method):
        arguments |= asdict(group)
    saved = saved_detector(model_arguments.model_name_or_path)
    # One process after the other, because the first fills a cache that the others read.
    with training.main_process_first():
        data = load_boxed_images(
            data_arguments,
            class_names=method.class_names,
            known_names=None
            if saved is None
            else [saved.id2label[number] for number in sorted(saved.id2label)],
            single_class=method.single_class,
            clip_boxes=method.clip_boxes,
        )
    check_splits(data, method, training)

    set_seed(training.seed)
    model = make_detector(
        model_arguments, method.detector, method.detector_overrides, data.names, method.crop_size
    )
    processor = make_image_processor(model_arguments, model.config, method.crop_size)
    check_sizes(data, model, processor, method, training)
    splits = make_examples(data, method, training.seed)
    training_examples = splits.pop("train", None)
    if method.evaluate_only and not splits:
        splits = {
            "validation": BoxExamples(data.splits["train"], evaluation_crop(method), method.min_box_share)
        }
    checkpoint = None
    if not method.start_anew and not method.evaluate_only:
        checkpoint = find_resumable(training.output_dir, model)
    if checkpoint is not None:
        check_same_rates(training.output_dir, arguments)
    if method.evaluate_only:
        training.eval_strategy = (
            IntervalStrategy.NO
        )  # while training, for which Trainer wants a validation split
        training_examples = next(iter(splits.values()))  # which check_batch looks at
    trainer = make_detection_trainer(
        model, processor, training_examples, splits.get("validation"), data.names, method, training
    )
    check_batch(trainer)
    open_output_dir(training, arguments, checkpoint, method.start_anew)
    return DetectionRun(
        trainer,
        splits,
        checkpoint,
        describe(
            data, model, method, splits if method.evaluate_only else {"train": training_examples, **splits}
        ),
        method.evaluate_only,
        method.num_pictured,
    )


def check_arguments(
    model: ModelArguments, data: DataArguments, method: DetectionArguments, training: RunArguments
) -> None:
    """Raises: ValueError for arguments that are for other tasks, or contradict each other."""
    if data.skip_corrupt:
        raise ValueError("skip_corrupt is for classification: mend or remove damaged images")
    if training.label_smoothing_factor:
        raise ValueError("label_smoothing_factor is for classification: set it to 0")
    if training.push_to_hub:
        raise ValueError(
            "push_to_hub publishes models with their code, and a detector is a model of transformers: upload the folder "
            "when it is done (hf upload <repository> <output_dir>), from where it loads after import vit_hf"
        )
    if method.evaluate_only and model.model_name_or_path is None:
        raise ValueError("evaluate_only measures a saved detector: name it with model_name_or_path")
    if method.evaluate_whole_images and method.crop_size is None:
        raise ValueError("evaluate_whole_images is for crop_size, without which all images are whole")


def check_splits(data: BoxData, method: DetectionArguments, training: RunArguments) -> None:
    """Raises: ValueError if there is nothing to train on, or nothing to evaluate on."""
    if method.evaluate_only:
        return
    if "train" not in data.splits:
        raise ValueError(f"the data have no train split, only {', '.join(data.splits)}")
    if "validation" not in data.splits and training.eval_strategy != IntervalStrategy.NO:
        raise ValueError(
            "there is no validation split: give one, set validation_share above 0, or set eval_strategy to 'no'"
        )
    for name in ("train", "validation"):
        if name in data.splits and not data.splits[name].num_boxes:
            raise ValueError(f"there is no box on any image of the {name} split")


def check_sizes(
    data: BoxData,
    model: PreTrainedModel,
    processor: BaseImageProcessor,
    method: DetectionArguments,
    training: RunArguments,
) -> None:
    """Refuses batches of mixed sizes where patches are selected.

    Detectors do not tell their backbone what is padding: a share of the patches would be one of the padded size, and so
    depend on which images are in a batch.

    Raises:
        ValueError: if there could be such a batch.
    """
    if backbone_of(model).config.patch_selector is None or "height" in (
        processor.size if processor.do_resize else {}
    ):
        return
    for name, images in data.splits.items():
        is_train = name == "train"
        in_pieces = method.crop_size is not None and (is_train or not method.evaluate_whole_images)
        batch = training.per_device_train_batch_size if is_train else training.per_device_eval_batch_size
        if not in_pieces and batch > 1 and len(set(images.sizes)) > 1:
            raise ValueError(
                f"images of the {name} split have several sizes, and in a batch all would be padded to the largest, which a "
                f"patch_selector would take for part of the image: give crop_size, image_size, or "
                f"per_device_{'train' if is_train else 'eval'}_batch_size 1"
            )


def evaluation_crop(method: DetectionArguments) -> int | None:
    """Pixels a side of the tiles that are evaluated; None for whole images."""
    return None if method.evaluate_whole_images else method.crop_size


def make_examples(data: BoxData, method: DetectionArguments, seed: int) -> dict[str, BoxExamples]:
    """Random pieces of training images, tiles of the others; or all of them whole."""
    examples = {}
    for name, images in data.splits.items():
        if name == "train":
            flips = (method.horizontal_flip, method.vertical_flip)
            examples[name] = BoxExamples(images, method.crop_size, method.min_box_share, True, *flips, seed)
        else:
            examples[name] = BoxExamples(images, evaluation_crop(method), method.min_box_share)
    return examples


def describe(
    data: BoxData, model: PreTrainedModel, method: DetectionArguments, splits: dict[str, BoxExamples]
) -> list[str]:
    """Data and model, a line each."""
    sizes = ", ".join(
        f"{len(examples.images)} {name} with {examples.images.num_boxes} boxes"
        + (f" in {len(examples)} pieces" if examples.crop_size else "")
        for name, examples in splits.items()
    )
    backbone = backbone_of(model)
    return [
        f"Data:   {sizes}; {len(data.names)} {'class' if len(data.names) == 1 else 'classes'}",
        *(f"        {note}" for note in data.notes),
        f"Model:  {model.config.model_type}, {model.num_parameters() / 1e6:.1f} M parameters, "
        f"{backbone.num_parameters() / 1e6:.1f} M of them the backbone's; {describe_selection(backbone.config)}",
    ]


def make_detection_trainer(
    model: PreTrainedModel,
    processor: BaseImageProcessor,
    train: BoxExamples | None,
    validation: BoxExamples | None,
    names: list[str],
    method: DetectionArguments,
    training: RunArguments,
) -> DetectionTrainer:
    """A `Trainer` with all that was asked for. Changes what in `training` it does itself."""
    if training.metric_for_best_model == "auto":
        training.metric_for_best_model, training.greater_is_better = "map", True
    # Otherwise the boxes of all images would be kept until the end.
    training.batch_eval_metrics = True
    callbacks = [ReproducibleTraining(), NonFiniteGuard()]
    config = backbone_of(model).config
    if method.keep_rate_schedule:
        if config.patch_selector is None and config.token_reducer is None:
            raise ValueError(
                "keep_rate_schedule has nothing to lead to: name a patch_selector or a token_reducer"
            )
        callbacks.append(KeepRateSchedule())
    callbacks += [callback() for callback in get_reporting_integration_callbacks(training.report_to)]
    training.report_to = []
    optimizer, options = DetectionTrainer.get_optimizer_cls_and_kwargs(training, model)
    groups = parameter_groups(
        model, training.learning_rate, training.weight_decay, method.layer_decay, method.backbone_lr_factor
    )
    return DetectionTrainer(
        model=model,
        args=training,
        data_collator=BoxCollator(processor),
        train_dataset=train,
        eval_dataset=validation,
        processing_class=processor,
        compute_metrics=AveragePrecision(processor, names),
        callbacks=callbacks,
        optimizer_cls_and_kwargs=(optimizer, options | {"params": groups}),
    )
