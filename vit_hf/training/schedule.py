"""How many patches and tokens a training step may use: all of them at first, the target at the end."""

import math

from accelerate.utils import extract_model_from_parallel
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..model.options import type_of


def dense_fraction_at(
    step: int,
    max_steps: int,
    warmup_ratio: float = 0.1,
    final_ratio: float = 0.2,
    num_buckets: int = 8,
    initial: float = 1.0,
) -> float:
    """How far selection is relaxed at a training step: 1 keeps every patch, 0 keeps the target.

    Dense for the first `warmup_ratio` of the steps, at the target for the last `final_ratio`; between them
    (1 + cos(pi t)) / 2 for t from 0 to 1, the keep-rate schedule of EViT (Liang et al. 2022), rounded to
    `num_buckets` values strictly between 1 and 0 so that shapes change seldom.

    It is a function of the step alone, so a resumed run sees what an uninterrupted one does.

    Args:
        step: optimizer steps completed.
        max_steps: optimizer steps of the whole run.
        warmup_ratio: share of the steps that are dense.
        final_ratio: share of the steps that are at the target.
        num_buckets: how many values the decay takes.
        initial: dense_fraction of the first steps, which all others are scaled to. Where every patch is more than
            memory or patience allow, begin with as many as they do.

    Raises:
        ValueError: for a share outside [0, 1], shares whose sum exceeds 1, or no bucket.
    """
    _check_schedule(warmup_ratio, final_ratio, num_buckets, initial)
    # Whole steps, because shares that add up to 1 need not do so in floating point.
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
            raise ValueError(f"{name} is {ratio}; it is a share of the training steps, from 0 to 1")
    if not 0 <= initial <= 1:
        raise ValueError(f"initial is {initial}; it must lie between 0 (the target) and 1 (every patch)")
    if warmup_ratio + final_ratio > 1:
        raise ValueError(
            f"warmup_ratio {warmup_ratio} and final_ratio {final_ratio} add up to more than the whole run (1): "
            "lower one of them"
        )
    if num_buckets < 1:
        raise ValueError(f"num_buckets is {num_buckets}; the decay needs at least 1")


def selecting_part(model: nn.Module) -> nn.Module | None:
    """The model itself or, of a detector, its backbone: the outermost part that can be relaxed."""
    modules = extract_model_from_parallel(model, keep_torch_compile=False).modules()
    return next((part for part in modules if callable(getattr(part, "set_dense_fraction", None))), None)


class KeepRateSchedule(TrainerCallback):
    """Lets the model see all patches first and leads it to its target, for training that is stable.

    In training a patch selector keeps `round(K + r (N - K))` of N patches and a token reducer the share
    `keep_rate + d (1 - keep_rate)` (or `"merge"` merges `round((1 - d) r)` tokens), d being
    `dense_fraction_at` of the step; evaluation always measures the target. The dense_fraction is logged as
    `dense_fraction`.

        Trainer(..., callbacks=[KeepRateSchedule(warmup_ratio=0.1, final_ratio=0.2)])

    Args:
        warmup_ratio: share of the steps that are dense.
        final_ratio: share of the steps that are at the target.
        num_buckets: how many values the decay takes.
        initial: dense_fraction of the first steps, which all others are scaled to.

    Raises:
        ValueError: for a share outside [0, 1], shares whose sum exceeds 1, or no bucket.
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
                f"KeepRateSchedule needs a model that selects patches or reduces tokens, with a method "
                f"set_dense_fraction(float); "
                f"{type(extract_model_from_parallel(model, keep_torch_compile=False)).__name__} has none. Take the callback "
                "away, or train an AdaptiveViT model."
            )
        config = unwrapped.config
        if config.patch_selector is None and config.token_reducer is None:
            raise ValueError(
                "KeepRateSchedule has nothing to lead to: the model has neither patch_selector nor token_reducer. Take "
                "the callback away, or set one of them in the model (an image processor that selects leaves no choice)."
            )
        if getattr(kwargs.get("processing_class"), "patch_selector", None) and config.token_reducer is None:
            raise ValueError(
                f"KeepRateSchedule has no effect where the image processor selects already, by "
                f"patch_selector={type_of(kwargs['processing_class'].patch_selector)!r}. Take it away there: the model selects."
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
