"""What a training step tells beside its loss: where numbers stopped being finite, and what selection costs."""

from typing import Any

import torch
from accelerate.utils import extract_model_from_parallel
from torch import nn
from torch.distributed.tensor import DTensor
from torch.utils.hooks import RemovableHandle
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments


class OutputWatch(TrainerCallback):
    """Sees what the model puts out in training; nothing of it where the model is compiled."""

    def __init__(self):
        self.handles: list[RemovableHandle] = []

    def see(self, outputs: Any) -> None:
        """Called after each forward pass in training."""
        raise NotImplementedError

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module,
        **kwargs,
    ) -> None:
        # Those of training that failed.
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

    Beside `loss` in Trainer's logs: the mean over the steps since the last log, in the main process. Models without
    such a part log nothing.
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

    Without it Trainer goes on with weights that are NaN, logs losses that look well (`logging_nan_inf_filter`), and
    overwrites good checkpoints with bad ones. The error names the parameters, in the order in which the backward pass
    came to them; it is raised before the optimizer moves, in all processes at once, so checkpoints are as they were.

    With fp16 a scaled gradient that overflows is nothing unusual: the scaler halves the scale and leaves out the
    step. Only when `max_skipped` steps in a row were left out it is not the scale's fault.

    It costs one norm of each gradient, and one look at them all in each step. For one process, or several that each
    hold the whole model (DDP) or a part of each parameter (FSDP2); where parameters are flattened together (FSDP1), it
    sees the loss alone.

    Args:
        max_skipped: steps in a row that may be left out with fp16. A scale begins at 2**16, so 16 halvings make
            it 1, which scales nothing.
    """

    def __init__(self, max_skipped: int = 16):
        super().__init__()
        self.max_skipped = max_skipped
        self.num_skipped = 0
        self.losses: list[torch.Tensor] = []
        # Of each parameter, in the order of the backward pass, its gradient's greatest number.
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
        # In the backward pass, because clipping, which comes before any callback, spreads a NaN over all gradients.
        def after_accumulation(parameter: nn.Parameter) -> None:
            gradient = parameter.grad.detach()
            if isinstance(gradient, DTensor):
                gradient = gradient.to_local()
            if gradient.numel():  # of a small parameter, some processes have no part
                self.peaks[name] = torch.linalg.vector_norm(gradient, torch.inf, dtype=torch.float32)

        self.handles.append(parameter.register_post_accumulate_grad_hook(after_accumulation))

    @staticmethod
    def _is_finite(args: TrainingArguments, values: list[torch.Tensor]) -> bool:
        device = values[0].device if values else args.device
        finite = torch.ones((), dtype=torch.int32, device=device)
        if values:
            finite = torch.stack([value.to(device) for value in values]).isfinite().all().int()
        if args.world_size > 1:
            # One process that stopped alone would leave the others waiting, or saving.
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
                f"the gradients of {len(bad)} of {len(peaks)} parameters are not finite, from the loss backwards "
                f"{', '.join(bad[:5])}{more}"
            )
        if not found:
            found.append("a loss or a gradient in another process is not finite")
        after = f", after {self.num_skipped} steps that were left out for it" if self.num_skipped else ""
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
            remedies.append("a higher num_selected_patches or keep_rate, or a slower schedule towards it")
        return (
            f"Step {state.global_step + 1} of {state.max_steps}{after}: {'; '.join(found)}. The weights were not "
            f"changed by it, and checkpoints in {args.output_dir} are as they were. Try {'; '.join(remedies)}. A run "
            "that is resumed keeps the learning rates that were saved: to change these, begin a new run from the last "
            "checkpoint's weights."
        )
