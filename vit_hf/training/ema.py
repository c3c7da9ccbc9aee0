"""An exponential moving average of the weights, which is what gets evaluated and saved."""

import os
from pathlib import Path

import torch
from accelerate.utils import extract_model_from_parallel
from safetensors.torch import load_file, save_file
from torch import nn
from torch.distributed.tensor import DTensor
from torch.optim.swa_utils import get_ema_multi_avg_fn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from transformers.utils import logging


logger = logging.get_logger(__name__)

# Beside model.safetensors, which holds the average: the weights that training goes on from.
UNAVERAGED_WEIGHTS_NAME = "unaveraged.safetensors"


def ema_decay_at(step: int, decay: float) -> float:
    """How much of the average a step leaves: little at first, so that the initial weights are soon forgotten.

    The warm-up of TensorFlow's `ExponentialMovingAverage`: min(decay, (1 + step) / (10 + step)).
    """
    return min(decay, (1 + step) / (10 + step))


class EmaCallback(TrainerCallback):
    """Averages the weights over training steps; between steps the model *is* its average.

    So whatever happens between two steps, evaluation, checkpoints, the choice and loading of the best model, sees
    the average, and training alone sees the weights that it moves. A checkpoint's `model.safetensors` is the
    average; the weights to resume from are in `unaveraged.safetensors`, and resuming is exact. At the end the
    model is the average, or the best average if `load_best_model_at_end`.

    For one process, or several that each hold the whole model (DDP); resume from a checkpoint in `output_dir`.

    Args:
        decay: how much of the average a step leaves, in [0, 1); .999 suits runs of some thousand steps.

    Raises:
        ValueError: for a decay out of range.
    """

    def __init__(self, decay: float = 0.999):
        if not 0 <= decay < 1:
            raise ValueError(f"the decay of the moving average is {decay}; it must be at least 0 and below 1")
        self.decay = decay
        # Of each parameter, what the model does not hold: its average in a step, its own value between steps.
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
                "EmaCallback (ema_decay) needs the whole model in each process: leave it out, or leave out FSDP and "
                "DeepSpeed"
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
            # Renamed when complete, because a run can be killed at any moment.
            save_file(dict(zip(names, self.others, strict=True)), path.with_suffix(".part"))
            os.replace(path.with_suffix(".part"), path)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs
    ) -> None:
        self.others = []

    def _swap(self, model: nn.Module) -> None:
        # Storage changes hands and nothing is copied; the optimizer goes on with the same parameters.
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
            f"There is no {path}: that checkpoint was made without EmaCallback, or lies elsewhere. Training goes on "
            "from its averaged weights."
        )
        return
    weights = load_file(path)
    for name, parameter in model.named_parameters():
        parameter.copy_(weights[name])
