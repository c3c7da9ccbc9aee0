"""Sparse self-distillation: a checkpoint learns, without labels, to keep its answer with few of its patches.

After the "what" half of LookWhere (Fuller et al., 2025): a frozen copy of the checkpoint sees all patches;
the student sees k of them, k drawn anew in each step, and learns the states that the copy has.
"""

from collections import deque
from functools import partial
from pathlib import Path
from typing import Any, final

import torch
from accelerate.utils import extract_model_from_parallel
from huggingface_hub.errors import StrictDataclassError
from torch import nn
from torch.utils.data import DataLoader, Dataset
from transformers import PreTrainedConfig, PreTrainedModel, TrainerCallback
from transformers.image_processing_utils import BaseImageProcessor
from transformers.trainer_utils import EvalLoopOutput, IntervalStrategy
from transformers.utils import logging

from ..arguments import TASKS, DistillationArguments
from ..checkpoints.loading import check_path, is_swin, part_of
from ..data.loading import LabeledImages
from ..inference.fidelity import (
    EncodedStates,
    encode_states,
    measure_fidelity,
)
from ..model.layers import layer_contexts
from ..model.modeling_adaptive_vit import (
    AdaptiveViTForImageClassification,
    AdaptiveViTForSemanticSegmentation,
    AdaptiveViTModel,
)
from ..model.options import type_of
from ..model.patches import ImagePatches, gather_tokens
from ..model.selection import Selection, count_selected, keep_top
from .arguments import DistillationRunArguments, RunArguments
from .callbacks import EmaCallback
from .hub_trainer import HubTrainer
from .model_loading import make_image_processor
from .pretraining import UnlabeledCollator, UnlabeledTask
from .task import describe_selection, describe_sizes


logger = logging.get_logger(__name__)

# Fields of the teacher: all patches, all tokens.
DENSE_FIELDS = {
    "patch_selector": None,
    "num_selected_patches": None,
    "token_reducer": None,
    "keep_rate": 1.0,
    "thumbnail_context": False,
}
# Selection of the student if neither command line nor checkpoint names one.
DEFAULT_SELECTION = {"patch_selector": "uniform", "num_selected_patches": 0.1}
# By the end of the name of a checkpoint's class; all others have no head that is kept.
MODEL_CLASSES = {
    "ForImageClassification": AdaptiveViTForImageClassification,
    "AdaptiveViTForSemanticSegmentation": AdaptiveViTForSemanticSegmentation,
}
# Image states whose spread is measured at once, and steps of a run without a verdict.
GUARD_IMAGES, GUARD_PATIENCE = 64, 10
LORA_HELP = "pip install peft"


class CollapseError(FloatingPointError):
    """Raised when all images come to have the same state."""


def draw_fraction(low: float, high: float) -> float:
    """Draws a number between `low` and `high`, uniform in its logarithm, from torch's global generator."""
    return low * (high / low) ** torch.rand(()).item()


def choose_patches(
    student: AdaptiveViTModel, patches: ImagePatches, fraction: float, random_ratio: float
) -> Selection:
    """Selects a fraction of the patches, of some images at random and of the others by the selector.

    Args:
        student: model whose selector chooses, as in evaluation.
        patches: all patches of the batch.
        fraction: of the patches.
        random_ratio: probability that those of an image are random.
    """
    number, counts = count_selected(patches, float(fraction), 0.0)
    number = min(number, patches.num_patches)
    ranks = torch.rand(patches.coordinates.shape[:2], device=patches.coordinates.device)
    if patches.mask is not None:
        ranks = ranks.masked_fill(~patches.mask, -torch.inf)
    indices, mask = keep_top(ranks, number, counts)
    chosen = student.select(patches, sample=False, num_selected=float(fraction))
    if chosen.indices is None:  # all patches
        return Selection(indices, mask, chosen.scores)
    is_random = torch.rand(len(indices), device=indices.device) < random_ratio
    return Selection(torch.where(is_random[:, None], indices, chosen.indices), mask, chosen.scores)


def relative_error(
    states: torch.Tensor, target: torch.Tensor, mask: torch.Tensor | None = None
) -> torch.Tensor:
    """Squared distance of states `(..., D)` to the target's, by the mean square of the target's.

    0 where they are equal and 1 for states of zeros, whatever the scale of a model's states.

    Args:
        mask: `(...)` bool, False for what does not count.
    """
    states, target = states.float(), target.float()
    error, power = (states - target).square().mean(dim=-1), target.square().mean(dim=-1)
    if mask is not None:
        error, power = error * mask, power * mask
    return error.sum() / power.sum().clamp(min=torch.finfo(torch.float32).tiny)


def spread_to_nearest(
    kept: torch.Tensor, kept_mask: torch.Tensor | None, coordinates: torch.Tensor, indices: torch.Tensor
) -> torch.Tensor:
    """Gives each of N patches the state `(B, N, D)` of the nearest kept one.

    Args:
        kept: `(B, K, D)` states.
        kept_mask: `(B, K)` bool, False for places without a state; None if all have one.
        coordinates: `(B, N, A)` of all patches.
        indices: `(B, K)` which patches were kept.
    """
    distance = torch.cdist(coordinates, gather_tokens(coordinates, indices))  # (B, N, K)
    if kept_mask is not None:
        distance = distance.masked_fill(~kept_mask[:, None], torch.inf)
    return gather_tokens(kept, distance.argmin(dim=-1))


def map_divergence(
    scores: torch.Tensor, target: torch.Tensor, mask: torch.Tensor | None = None
) -> torch.Tensor:
    """Divergence of the softmax of scores `(B, N)` from that of `target` logits `(B, N)`, mean over images.

    Args:
        mask: `(B, N)` bool, False for padding.
    """
    present = torch.ones_like(scores, dtype=torch.bool) if mask is None else mask
    log_probs = [
        logits.float().masked_fill(~present, -torch.inf).log_softmax(dim=-1).masked_fill(~present, 0)
        for logits in (scores, target)
    ]
    expected = log_probs[1].exp() * present
    return (expected * (log_probs[1] - log_probs[0])).sum(dim=-1).mean()


@torch.no_grad()
def attention_map(teacher: AdaptiveViTModel, patches: ImagePatches) -> torch.Tensor:
    """Logits `(B, N)` of attention in the last block, averaged over heads and patch queries.

    After LookWhere (2025). Works without a CLS token. Costs a pass through all blocks but the last.
    """
    sequence = teacher.embed(patches, Selection(None, patches.mask))
    contexts = layer_contexts(teacher.config, teacher.embeddings.position_encoding, sequence)
    states, last = sequence.hidden_states, len(teacher.layers) - 1
    for index in range(last):
        states = teacher.layers[index](states, contexts[index])
    return teacher.layers[last].patch_attention_logits(states, contexts[last], patches.num_patches)


class SpreadGuard:
    """Measures how far states of different images lie apart, and stops training where they fall together.

    A student can lower its loss by giving every image the mean of all; small rates and large batches do not
    tend to it. The spread is the mean squared distance of normalized states from their mean, over the last
    images, which may be of several steps.

    Args:
        least: fraction of the teacher's spread below which training stops; 0 for never.
    """

    def __init__(self, least: float):
        self.least = least
        self.states: deque[tuple[torch.Tensor, torch.Tensor]] = deque(maxlen=GUARD_IMAGES)
        self.num_below = 0

    def see(self, student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
        """Adds states `(B, D)` of a batch, and returns the student's spread, 1 for that of the teacher."""
        self.states.extend(zip(student.detach().float(), teacher.detach().float(), strict=True))
        spreads = []
        for states in zip(*self.states, strict=True):
            states = nn.functional.normalize(torch.stack(states), dim=-1)
            spreads.append((states - states.mean(dim=0)).square().sum(dim=-1).mean())
        if len(self.states) == 1:
            return spreads[0].new_ones(())
        return spreads[0] / spreads[1].clamp(min=1e-12)

    def check(self, spread: float, step: int) -> None:
        """
        Raises:
            CollapseError: if the spread has been too small for several steps.
        """
        self.num_below = self.num_below + 1 if spread < self.least else 0
        if self.num_below < GUARD_PATIENCE:
            return
        raise CollapseError(
            f"the model collapses: at step {step} the states of different images differ by {spread:.0%} of "
            f"what they do in the teacher, below min_spread={self.least:.0%} for {GUARD_PATIENCE} steps. "
            "Checkpoints before are as they were. Lower learning_rate (1e-5 is the default), raise the batch "
            "size (per_device_train_batch_size, gradient_accumulation_steps), or train with lora_rank."
        )


class DistillationTrainer(HubTrainer):
    """Trains a student on the states of a dense teacher, and evaluates by fidelity.

    Args:
        teacher: frozen; may be a copy of the student with `DENSE_FIELDS`.
        options: of the loss and of the evaluation.
        args, kwargs: as of `HubTrainer`.
    """

    def __init__(self, *args: Any, teacher: PreTrainedModel, options: DistillationArguments, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.teacher = teacher.to(self.args.device).eval().requires_grad_(False)
        self.options = options
        self.guard = SpreadGuard(options.min_spread)
        self.parts: list[dict[str, torch.Tensor]] = []

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, torch.Tensor],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, EncodedStates]:
        """Loss of a batch at a fraction of the patches that is drawn."""
        options = self.options
        student: AdaptiveViTModel = extract_model_from_parallel(model, keep_torch_compile=False).base_model
        patches = ImagePatches.from_inputs(student.config, **inputs)
        with torch.no_grad():
            target = encode_states(self.teacher, inputs)
        fraction = draw_fraction(options.min_fraction, options.max_fraction)
        learns_map = bool(options.map_weight) and learns(student.selector)
        with torch.set_grad_enabled(learns_map and torch.is_grad_enabled()):
            selection = choose_patches(student, patches, fraction, options.random_ratio)
        selected = patches.raster_indices(selection.indices, selection.mask)
        states = encode_states(model, inputs, selected_patches=selected)

        parts = self._state_losses(states, target, patches, selection)
        if learns_map and selection.scores is not None and selection.scores.requires_grad:
            expected = attention_map(self.teacher.base_model, patches)
            parts["map"] = map_divergence(selection.scores, expected, patches.mask)
        loss = sum(getattr(options, f"{name}_weight") * part for name, part in parts.items())
        spread = self.guard.see(states.image, target.image)
        parts = {name: part.detach() for name, part in parts.items()}
        self.parts.append(parts | {"fraction": spread.new_tensor(fraction), "spread": spread})
        if options.min_spread:
            # All processes stop at once, by their mean.
            spread = self.accelerator.reduce(spread, "mean").item()
            self.guard.check(spread, self.state.global_step)
        return (loss, states) if return_outputs else loss

    def _state_losses(
        self, states: EncodedStates, target: EncodedStates, patches: ImagePatches, selection: Selection
    ) -> dict[str, torch.Tensor]:
        options, indices = self.options, selection.indices
        losses = {"image": relative_error(states.image, target.image)}
        if options.kept_weight:
            expected = gather_tokens(target.patches, indices)
            losses["kept"] = relative_error(states.patches, expected, states.mask)
        if options.dropped_weight:
            nearest = spread_to_nearest(states.patches, states.mask, patches.coordinates, indices)
            is_dropped = torch.ones(nearest.shape[:2], device=nearest.device)
            kept = is_dropped.new_zeros(indices.shape)
            if selection.mask is not None:  # padding has the index 0, which may be dropped itself
                kept = is_dropped.gather(1, indices).masked_fill(selection.mask, 0)
                is_dropped = is_dropped.scatter_reduce(1, indices, kept, "amin")
            else:
                is_dropped = is_dropped.scatter(1, indices, kept)
            if patches.mask is not None:
                is_dropped = is_dropped * patches.mask
            losses["dropped"] = relative_error(nearest, target.patches, is_dropped)
        return losses

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Logs the parts of the loss, the fraction and the spread as well, as means since the last log."""
        if "loss" in logs and self.parts:
            for name in dict.fromkeys(name for parts in self.parts for name in parts):
                values = [parts[name].float() for parts in self.parts if name in parts]
                suffix = "" if name in ("fraction", "spread") else "_loss"
                logs[f"{name}{suffix}"] = torch.stack(values).mean().item()
            self.parts = []
        super().log(logs, *args, **kwargs)

    def evaluation_loop(
        self,
        dataloader: DataLoader,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """Measures fidelity; see `measure_fidelity`."""
        batches = (self._prepare_inputs(batch) for batch in dataloader)
        with self.compute_loss_context_manager():
            rows = measure_fidelity(
                self.model,
                batches,
                self.teacher,
                self.options.fractions,
                gather=self.accelerator.gather_for_metrics,
            )
        metrics = {name: value for row in rows for name, value in row.as_metrics().items()}
        metrics["fidelity"] = sum(row.image_cosine for row in rows) / len(rows)
        return EvalLoopOutput(
            predictions=None,
            label_ids=None,
            metrics={f"{metric_key_prefix}_{name}": value for name, value in metrics.items()},
            num_samples=len(dataloader.dataset),
        )


def learns(selector: nn.Module | None) -> bool:
    """Tells whether a selector has parameters that are trained."""
    return selector is not None and any(parameter.requires_grad for parameter in selector.parameters())


def add_adapters(model: PreTrainedModel, rank: int) -> None:
    """Adds low-rank adapters (Hu et al., 2022) to every linear layer of the blocks, which alone are trained.

    A selector or reducer that learns is trained as well.

    Raises:
        ImportError: if peft is not installed.
    """
    try:
        import peft
    except ImportError as error:
        raise ImportError(f"lora_rank needs peft: {LORA_HELP}") from error
    blocks = {id(module) for module in model.base_model.layers.modules()}
    names = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and id(module) in blocks
    ]
    trained = [name for name, _ in model.named_parameters() if part_of(model, name) == "predictor"]
    peft.inject_adapter_in_model(peft.LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=names), model)
    for name in trained:
        model.get_parameter(name).requires_grad_(True)


def merge_adapters(model: nn.Module) -> None:
    """Adds adapters to the weights they belong to, so that the model is an ordinary one again."""
    from peft.tuners.lora import LoraLayer

    adapted = [(name, module) for name, module in model.named_modules() if isinstance(module, LoraLayer)]
    for name, module in adapted:
        module.merge()
        parent, _, own = name.rpartition(".")
        setattr(model.get_submodule(parent), own, module.get_base_layer())


class MergeAdapters(TrainerCallback):
    """Merges adapters when training ends, before the model is saved and evaluated."""

    def on_train_end(self, args: Any, state: Any, control: Any, model: nn.Module, **kwargs: Any) -> None:
        merge_adapters(extract_model_from_parallel(model, keep_torch_compile=False))


def load_checkpoint(path: str, fields: dict[str, Any]) -> PreTrainedModel:
    """Loads a checkpoint with the head that it has, and with every weight but those of selectors that learn.

    Args:
        path: local or on the Hub; ours, or any that converts.
        fields: of the configuration.

    Raises:
        OSError: if there is no such checkpoint.
        ValueError: for one that is no AdaptiveViT, or that lacks weights.
    """
    check_path(path)
    if is_swin(path):
        raise ValueError(
            f"{path} is a Swin, which computes on windows of all patches: distillation is for models that "
            "drop patches, such as a ViT"
        )
    names = PreTrainedConfig.get_config_dict(path)[0].get("architectures") or [""]
    model_class = next(
        (cls for end, cls in MODEL_CLASSES.items() if names[0].endswith(end)), AdaptiveViTModel
    )
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # missing weights are errors below
    try:
        model, report = model_class.from_pretrained(
            path, **fields, ignore_mismatched_sizes=True, output_loading_info=True
        )
        if any(name.startswith("pooler.") for name in report["missing_keys"]):
            model, report = model_class.from_pretrained(
                path,
                **fields,
                add_pooling_layer=False,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            )
    except StrictDataclassError as error:
        raise ValueError(str(error.__cause__ or error)) from error
    finally:
        logging.set_verbosity(verbosity)
    missing = sorted(
        name
        for name in report["missing_keys"]
        if part_of(model, name) != "predictor" and not name.endswith("scale_embedding")
    )
    if missing or report["mismatched_keys"]:
        name = [*missing, *(entry[0] for entry in report["mismatched_keys"])][0]
        raise ValueError(
            f"{path} lacks {name} of {model_class.__name__} or has it in another shape: distillation needs "
            "a trained checkpoint whose architecture is not changed (config_overrides)"
        )
    return model


@final
class SparseDistillation(UnlabeledTask):
    """Teaches a checkpoint, on images without labels, to keep its states with few patches.

    Attributes:
        teacher: set by `make_model`.
    """

    argument_groups = TASKS["distill"]
    run_arguments = DistillationRunArguments
    name = "distillation"
    splits: dict[str, LabeledImages]
    teacher: PreTrainedModel
    method: DistillationArguments

    def check(self, training: RunArguments) -> None:
        path = self.model_arguments.model_name_or_path
        if path is None:
            raise ValueError("distillation needs a trained checkpoint: give it as model_name_or_path")
        if self.model_arguments.model_type is not None:
            raise ValueError(
                "model_type is for models from scratch, and distillation needs a checkpoint: leave it out"
            )
        if training.fsdp or training.deepspeed:
            raise ValueError(
                "distillation needs the whole model in each process: leave out fsdp and deepspeed"
            )
        super().check(training)
        if Path(path).resolve() == Path(training.output_dir).resolve():
            raise ValueError("output_dir is model_name_or_path, the teacher: name another folder")

    def make_model(self) -> PreTrainedModel:
        path, fields = self.model_arguments.model_name_or_path, self.model_arguments.config_fields()
        own = PreTrainedConfig.get_config_dict(path)[0]
        if fields.get("patch_selector", own.get("patch_selector")) is None:
            fields |= {"patch_selector": DEFAULT_SELECTION["patch_selector"]}
        if fields.get("num_selected_patches", own.get("num_selected_patches")) is None:
            fields |= {"num_selected_patches": DEFAULT_SELECTION["num_selected_patches"]}
        student = load_checkpoint(path, fields)
        self.teacher = load_checkpoint(path, fields | DENSE_FIELDS)
        self.trainer_class = partial(DistillationTrainer, teacher=self.teacher, options=self.method)
        for name, parameter in student.named_parameters():
            if part_of(student, name) == "head":  # which reads states that are as they were
                parameter.requires_grad_(False)
        if self.method.lora_rank is not None:
            add_adapters(student, self.method.lora_rank)
        return student

    def make_processor(self, model: PreTrainedModel) -> BaseImageProcessor:
        # The teacher sees all patches.
        return make_image_processor(self.model_arguments, model.config, select=False)

    def collator(self, processor: BaseImageProcessor, training: RunArguments) -> UnlabeledCollator:
        return UnlabeledCollator(processor)

    def best_metric(self) -> tuple[str, bool]:
        return "fidelity", True

    def callbacks(self, model: PreTrainedModel) -> list[TrainerCallback]:
        callbacks: list[TrainerCallback] = []
        if self.method.ema_decay is not None:
            callbacks.append(EmaCallback(self.method.ema_decay))
        if self.method.lora_rank is not None:
            callbacks.append(MergeAdapters())
        return callbacks

    def adjust(self, model: PreTrainedModel, training: RunArguments) -> None:
        training.eval_on_start &= training.eval_strategy != IntervalStrategy.NO
        if training.world_size > 1 and self.method.map_weight and learns(model.base_model.selector):
            # The selector scores outside the forward pass that several processes synchronize.
            raise ValueError(
                f"patch_selector={type_of(model.config.patch_selector)!r} learns from the map loss in one "
                "process only: set map_weight=0, or train without several processes"
            )
        if training.ddp_find_unused_parameters is None:
            # A step may use neither the selector nor the pooler.
            training.ddp_find_unused_parameters = True

    def describe(self, model: PreTrainedModel, examples: dict[str, Dataset]) -> tuple[str, list[str], str]:
        method = self.method
        trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
        return (
            f"{describe_sizes(examples)}, without labels",
            self.notes,
            f"{model.num_parameters() / 1e6:.1f} M parameters, of which {trained / 1e6:.1f} M are trained; "
            f"{describe_selection(model.config)}; trained with {method.min_fraction:.0%} to "
            f"{method.max_fraction:.0%} of the patches, of {method.random_ratio:.0%} of the images random",
        )
