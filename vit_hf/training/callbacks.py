"""Callbacks of `Trainer`: keep-rate schedule, non-finite guard, moving average of the weights."""

import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import extract_model_from_parallel
from safetensors.torch import load_file, save_file
from torch import nn
from torch.distributed.tensor import DTensor
from torch.optim.swa_utils import get_ema_multi_avg_fn
from torch.utils.hooks import RemovableHandle
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments, set_seed
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from transformers.utils import logging

from ..model.options import type_of


def dense_fraction_at(
    step: int,
    max_steps: int,
    warmup_ratio: float = 0.1,
    final_ratio: float = 0.2,
    num_buckets: int = 8,
    initial: float = 1.0,
) -> float:
    """Computes the dense fraction of a training step: 1 keeps every patch, 0 keeps the target.

    Dense for the first `warmup_ratio` of the steps, at the target for the last `final_ratio`; between them
    (1 + cos(pi t)) / 2 for t from 0 to 1, the keep-rate schedule of EViT (Liang et al. 2022), rounded to
    `num_buckets` values strictly between 1 and 0 so that shapes change seldom.

    It depends on the step alone, so a resumed run follows the same schedule.

    Args:
        step: optimizer steps completed.
        max_steps: optimizer steps of the whole run.
        warmup_ratio: fraction of the steps that are dense.
        final_ratio: fraction of the steps that are at the target.
        num_buckets: number of values that the decay takes.
        initial: dense fraction of the first steps, which scales all others. Lower it if all patches exceed
            memory or time.

    Raises:
        ValueError: for a ratio outside [0, 1], ratios whose sum exceeds 1, or no bucket.
    """
    _check_schedule(warmup_ratio, final_ratio, num_buckets, initial)
    # Whole steps, because fractions that add up to 1 may not do so in floating point.
    decay_begin, decay_end = round(warmup_ratio * max_steps), max_steps - round(final_ratio * max_steps)
    if step >= decay_end:
        return 0.0
    if step < decay_begin:
        return initial
    bucket = (step - decay_begin) * num_buckets // (decay_end - decay_begin)
    return initial * (1 + math.cos(math.pi * (bucket + 0.5) / num_buckets)) / 2


def _check_schedule(warmup_ratio: float, final_ratio: float, num_buckets: int, initial: float) -> None:
    for name, ratio in {"warmup_ratio": warmup_ratio, "final_ratio": final_ratio}.items():
        if not 0 <= ratio <= 1:
            raise ValueError(f"{name} is {ratio}; it is a fraction of the training steps, from 0 to 1")
    if not 0 <= initial <= 1:
        raise ValueError(f"initial is {initial}; it must lie between 0 (the target) and 1 (every patch)")
    if warmup_ratio + final_ratio > 1:
        raise ValueError(
            f"warmup_ratio {warmup_ratio} and final_ratio {final_ratio} add up to more than the whole run "
            "(1): lower one of them"
        )
    if num_buckets < 1:
        raise ValueError(f"num_buckets is {num_buckets}; the decay needs at least 1")


def selecting_part(model: nn.Module) -> nn.Module | None:
    """Returns the outermost module with a dense fraction: the model, or the backbone of a detector."""
    modules = extract_model_from_parallel(model, keep_torch_compile=False).modules()
    return next((part for part in modules if callable(getattr(part, "set_dense_fraction", None))), None)


class KeepRateSchedule(TrainerCallback):
    """Trains on all patches first and reduces them gradually to the target, for stable training.

    In training a patch selector keeps `round(K + d (N - K))` of N patches and a token reducer the fraction
    `keep_rate + d (1 - keep_rate)` (or `"merge"` merges `round((1 - d) r)` tokens), where d is
    `dense_fraction_at` of the step; evaluation always uses the target. d is logged as `dense_fraction`.

        Trainer(..., callbacks=[KeepRateSchedule(warmup_ratio=0.1, final_ratio=0.2)])

    Args:
        warmup_ratio, final_ratio, num_buckets, initial: arguments of `dense_fraction_at`.

    Raises:
        ValueError: for a ratio outside [0, 1], ratios whose sum exceeds 1, or no bucket.
    """

    def __init__(
        self,
        warmup_ratio: float = 0.1,
        final_ratio: float = 0.2,
        num_buckets: int = 8,
        initial: float = 1.0,
    ):
        _check_schedule(warmup_ratio, final_ratio, num_buckets, initial)
        self.initial = initial
        self.warmup_ratio = warmup_ratio
        self.final_ratio = final_ratio
        self.num_buckets = num_buckets
        self.dense_fraction = 0.0

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module,
        **kwargs,
    ) -> None:
        unwrapped = selecting_part(model)
        if unwrapped is None:
            raise TypeError(
                "KeepRateSchedule needs a model with a method set_dense_fraction(float), but "
                f"{type(extract_model_from_parallel(model, keep_torch_compile=False)).__name__} "
                "has none: remove the callback, or train an AdaptiveViT model."
            )
        config = unwrapped.config
        if config.patch_selector is None and config.token_reducer is None:
            raise ValueError(
                "KeepRateSchedule needs a patch_selector or a token_reducer in the model, which has neither: "
                "set one of them (the image processor's does not count), or remove the callback."
            )
        if getattr(kwargs.get("processing_class"), "patch_selector", None) and config.token_reducer is None:
            raise ValueError(
                "KeepRateSchedule has no effect if the image processor selects, by "
                f"patch_selector={type_of(kwargs['processing_class'].patch_selector)!r}: set it to None "
                "there, so that the model selects."
            )
        self._apply(state, model)

    def on_step_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module,
        **kwargs,
    ) -> None:
        self._apply(state, model)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float],
        **kwargs,
    ) -> None:
        # Only beside the training loss: an evaluation is always at the target.
        if "loss" in logs:
            logs["dense_fraction"] = self.dense_fraction
            state.log_history[-1]["dense_fraction"] = self.dense_fraction

    def on_train_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module,
        **kwargs,
    ) -> None:
        self.dense_fraction = 0.0
        selecting_part(model).set_dense_fraction(0.0)

    def _apply(self, state: TrainerState, model: nn.Module) -> None:
        self.dense_fraction = dense_fraction_at(
            state.global_step,
            state.max_steps,
            self.warmup_ratio,
            self.final_ratio,
            self.num_buckets,
            self.initial,
        )
        selecting_part(model).set_dense_fraction(self.dense_fraction)


class OutputWatch(TrainerCallback):
    """Observes the outputs of the model in training, unless it is compiled."""

    def __init__(self):
        self.handles: list[RemovableHandle] = []

    def see(self, outputs: Any) -> None:
        """Receives the outputs of each forward pass in training."""
        raise NotImplementedError

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module,
        **kwargs,
    ) -> None:
        # Of a training that failed.
        self._remove()
        model = extract_model_from_parallel(model, keep_torch_compile=False)
        self.handles = [model.register_forward_hook(self._after_forward)]

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs
    ) -> None:
        self._remove()

    def _after_forward(self, model: nn.Module, inputs: tuple, outputs: Any) -> None:
        if model.training and not torch.compiler.is_compiling():
            self.see(outputs)

    def _remove(self) -> None:
        for handle in self.handles:
            handle.remove()
        self.handles = []


class LogSelectionLoss(OutputWatch):
    """Logs `selection_loss`, the part of the loss that selectors and reducers add to that of the task.

    It is the mean over the steps since the last log, in the main process, and is logged with `loss`. Models
    without such a part log nothing.
    """

    def __init__(self):
        super().__init__()
        self.losses: list[torch.Tensor] = []

    def see(self, outputs: Any) -> None:
        loss = getattr(outputs, "selection_loss", None)
        if loss is not None:
            self.losses.append(loss.detach().float())

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float],
        **kwargs,
    ) -> None:
        if "loss" in logs and self.losses:
            logs["selection_loss"] = (
                torch.stack([loss.to(self.losses[0].device) for loss in self.losses]).mean().item()
            )
            state.log_history[-1]["selection_loss"] = logs["selection_loss"]
            self.losses = []


class NonFiniteGuard(OutputWatch):
    """Stops training before a gradient or a loss that is not finite reaches the weights.

    Without it Trainer continues with NaN weights, logs plausible losses (`logging_nan_inf_filter`), and
    overwrites good checkpoints with bad ones. The error names the parameters, in the order of the backward
    pass; it is raised before the optimizer step, in all processes at once, so checkpoints stay intact.

    With fp16 a scaled gradient may overflow: the scaler then halves the scale and skips the step. Only
    `max_skipped` skipped steps in a row show that the scale is not the cause.

    It costs one norm of each gradient, and one synchronization in each step. Works in one process, or in
    several that each hold the whole model (DDP) or a part of each parameter (FSDP2); with flattened
    parameters (FSDP1) it checks the loss only.

    Args:
        max_skipped: steps in a row that may be skipped with fp16. The scale starts at 2**16, so after 16
            halvings it is 1.
    """

    def __init__(self, max_skipped: int = 16):
        super().__init__()
        self.max_skipped = max_skipped
        self.num_skipped = 0
        self.losses: list[torch.Tensor] = []
        # Largest gradient of each parameter, in the order of the backward pass.
        self.peaks: dict[str, torch.Tensor] = {}

    def see(self, outputs: Any) -> None:
        loss = getattr(outputs, "loss", None)
        if loss is not None:
            self.losses.append(loss.detach().float().mean())

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module,
        **kwargs,
    ) -> None:
        super().on_train_begin(args, state, control, model=model, **kwargs)
        self.num_skipped, self.losses, self.peaks = 0, [], {}
        model = extract_model_from_parallel(model, keep_torch_compile=False)
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and parameter.numel():
                self._watch(name, parameter)

    def on_pre_optimizer_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        **kwargs,
    ) -> None:
        losses, peaks = self.losses, self.peaks
        self.losses, self.peaks = [], {}
        if self._is_finite(args, [*losses, *peaks.values()]):
            self.num_skipped = 0
            return
        if getattr(optimizer, "scaler", None) is not None and self.num_skipped < self.max_skipped:
            self.num_skipped += 1
            return
        self._remove()
        raise FloatingPointError(self._explain(args, state, model, losses, peaks))

    def _watch(self, name: str, parameter: nn.Parameter) -> None:
        # In the backward pass, because clipping, before any callback, spreads a NaN to all gradients.
        def after_accumulation(parameter: nn.Parameter) -> None:
            gradient = parameter.grad.detach()
            if isinstance(gradient, DTensor):
                gradient = gradient.to_local()
            if gradient.numel():  # empty in some processes if the parameter is small
                self.peaks[name] = torch.linalg.vector_norm(gradient, torch.inf, dtype=torch.float32)

        self.handles.append(parameter.register_post_accumulate_grad_hook(after_accumulation))

    @staticmethod
    def _is_finite(args: TrainingArguments, values: list[torch.Tensor]) -> bool:
        device = values[0].device if values else args.device
        finite = torch.ones((), dtype=torch.int32, device=device)
        if values:
            finite = torch.stack([value.to(device) for value in values]).isfinite().all().int()
        if args.world_size > 1:
            # If one process stopped alone, the others would wait, or save.
            torch.distributed.all_reduce(finite, torch.distributed.ReduceOp.MIN)
        return bool(finite)

    def _explain(
        self,
        args: TrainingArguments,
        state: TrainerState,
        model: nn.Module,
        losses: list[torch.Tensor],
        peaks: dict[str, torch.Tensor],
    ) -> str:
        found = []
        if bad := [f"{loss.item():g}" for loss in losses if not loss.isfinite()]:
            found.append(f"the loss is {bad[0]}")
        if bad := [name for name, peak in peaks.items() if not peak.isfinite()]:
            more = f" and {len(bad) - 5} more" if len(bad) > 5 else ""
            found.append(
                f"the gradients of {len(bad)} of {len(peaks)} parameters are not finite, from the loss "
                f"backwards {', '.join(bad[:5])}{more}"
            )
        if not found:
            found.append("a loss or a gradient in another process is not finite")
        after = f", after {self.num_skipped} skipped steps" if self.num_skipped else ""
        remedies = [
            f"a lower learning_rate (now {args.learning_rate:g}) or a longer warm-up",
            f"a lower max_grad_norm (now {args.max_grad_norm:g})"
            if args.max_grad_norm
            else "max_grad_norm=1 (now off)",
        ]
        if args.fp16:
            remedies.insert(0, "bf16 instead of fp16")
        config = getattr(model, "config", None)
        if getattr(config, "patch_selector", None) or getattr(config, "token_reducer", None):
            remedies.append("a higher num_selected_patches or keep_rate, or a slower keep_rate_schedule")
        return (
            f"Step {state.global_step + 1} of {state.max_steps}{after}: {'; '.join(found)}. Weights and "
            f"checkpoints in {args.output_dir} were not changed. Try {'; '.join(remedies)}. A resumed run "
            "keeps the saved learning rates: to change them, start a new run from the last checkpoint's "
            "weights."
        )


class ReproducibleTraining(TrainerCallback):
    """Makes the random numbers of a training step depend on seed, step and process alone.

    So dropout does not depend on how often a loader was started or an evaluation was run. It also sets the
    epoch of the training data, also when a run resumes within an epoch: `accelerate` does so for data that
    have `set_epoch`, but not in every process, and not for the sampler after skipped batches.
    """

    def on_epoch_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        train_dataloader: Any,
        **kwargs,
    ) -> None:
        epoch = int(state.epoch)
        train_dataloader.dataset.set_epoch(epoch)
        # Batch samplers are nested; the innermost shuffles.
        sampler = train_dataloader.batch_sampler
        while sampler is not None:
            if hasattr(sampler, "set_epoch"):
                sampler.set_epoch(epoch)
            sampler = getattr(sampler, "batch_sampler", getattr(sampler, "sampler", None))

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs
    ) -> None:
        entropy = (args.seed, state.global_step, args.process_index)
        set_seed(int(np.random.SeedSequence(entropy).generate_state(1)[0]))


logger = logging.get_logger(__name__)

# Weights to resume training from; model.safetensors holds the average.
UNAVERAGED_WEIGHTS_NAME = "unaveraged.safetensors"


def ema_decay_at(step: int, decay: float) -> float:
    """Computes the decay of the average at a step: low at first, to forget the initial weights soon.

    Warm-up of TensorFlow's `ExponentialMovingAverage`: min(decay, (1 + step) / (10 + step)).
    """
    return min(decay, (1 + step) / (10 + step))


class EmaCallback(TrainerCallback):
    """Averages the weights over training steps; between steps the model holds the average.

    So evaluation, checkpoints, and the choice and loading of the best model use the average; only training
    steps use the unaveraged weights. A checkpoint's `model.safetensors` is the average; the weights to resume
    from are in `unaveraged.safetensors`, and resuming is exact. At the end the model is the average, or the
    best average if `load_best_model_at_end`.

    Works in one process, or in several that each hold the whole model (DDP); resume from a checkpoint in
    `output_dir`.

    Args:
        decay: fraction of the average that a step keeps, in [0, 1); .999 suits runs of some thousand steps.

    Raises:
        ValueError: for a decay out of range.
    """

    def __init__(self, decay: float = 0.999):
        if not 0 <= decay < 1:
            raise ValueError(
                f"decay (ema_decay) is {decay}; it must be at least 0 and below 1, such as 0.999"
            )
        self.decay = decay
        # The value of each parameter that the model does not hold: in a step the average, else its own.
        self.others: list[torch.Tensor] = []
        self.model_is_average = False

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module,
        **kwargs,
    ) -> None:
        model = _unwrap(model)
        is_sharded = any(isinstance(parameter, DTensor) for parameter in model.parameters())
        if args.fsdp or args.deepspeed or is_sharded:
            raise ValueError(
                "EmaCallback (ema_decay) needs the whole model in each process: remove it, or do not use "
                "FSDP or DeepSpeed"
            )
        # On resuming, the model was loaded from a checkpoint, which holds the average.
        self.others = [parameter.detach().clone() for parameter in model.parameters()]
        self.model_is_average = False
        if state.global_step > 0:
            _load_unaveraged(model, _checkpoint(args, state))

    def on_step_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module,
        **kwargs,
    ) -> None:
        if self.model_is_average:
            self._swap(model)

    @torch.no_grad()
    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module,
        **kwargs,
    ) -> None:
        update = get_ema_multi_avg_fn(ema_decay_at(state.global_step, self.decay))
        update(self.others, [parameter.detach() for parameter in _unwrap(model).parameters()], None)
        self._swap(model)

    def on_save(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module,
        **kwargs,
    ) -> None:
        if args.should_save:
            names = [name for name, _ in _unwrap(model).named_parameters()]
            path = _checkpoint(args, state)
            # Renamed when complete, because a run can be killed while writing.
            save_file(dict(zip(names, self.others, strict=True)), path.with_suffix(".part"))
            os.replace(path.with_suffix(".part"), path)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs
    ) -> None:
        self.others = []

    def _swap(self, model: nn.Module) -> None:
        # Storage is exchanged, not copied; the optimizer keeps the same parameters.
        for index, parameter in enumerate(_unwrap(model).parameters()):
            parameter.data, self.others[index] = self.others[index], parameter.data
        self.model_is_average = not self.model_is_average


def _unwrap(model: nn.Module) -> nn.Module:
    return extract_model_from_parallel(model, keep_torch_compile=False)


def _checkpoint(args: TrainingArguments, state: TrainerState) -> Path:
    return Path(args.output_dir, f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}", UNAVERAGED_WEIGHTS_NAME)


@torch.no_grad()
def _load_unaveraged(model: nn.Module, path: Path) -> None:
    if not path.is_file():
        logger.warning(
            f"There is no {path}: the checkpoint was made without EmaCallback, or is elsewhere. Training "
            "resumes from its averaged weights."
        )
        return
    weights = load_file(path)
    for name, parameter in model.named_parameters():
        parameter.copy_(weights[name])
