"""Which parameters are the pretrained backbone, and holding them still at the beginning of training."""

from typing import Literal

from accelerate.utils import extract_model_from_parallel
from torch import nn
from transformers import PreTrainedModel, TrainerCallback, TrainerControl, TrainerState, TrainingArguments


# What the base model has beside the backbone: networks that learn what to select and what to reduce.
PREDICTORS = ("selector.", "reducers.")


def part_of(model: PreTrainedModel, name: str) -> Literal["head", "predictor", "backbone"]:
    """Where the parameter `name` of `model` belongs; a base model by itself has no head."""
    prefix = "" if model.base_model is model else f"{model.base_model_prefix}."
    if not name.startswith(prefix):
        return "head"
    return "predictor" if name.removeprefix(prefix).startswith(PREDICTORS) else "backbone"


class FreezeBackbone(TrainerCallback):
    """Trains what predicts (selector, reducers) and the head first, and the backbone only afterwards.

    For the first `share` of the steps the backbone gets no gradient: it does not change, by weight decay neither, it
    has no part in gradient clipping, and its backward pass is not computed where nothing needs it. `share` above 0
    makes training two-stage, 0 joint. It is a function of the step alone, so a resumed run does what an
    uninterrupted one does.

    PatchDrop (Uzkent & Ermon 2020) trains its policy for a fixed classifier before both together; DynamicViT (Rao et
    al. 2021) fixes all but its predictors for 5 of 30 epochs. Both start from a head that knows the classes: there,
    set `head`. A new head must learn.

        Trainer(..., callbacks=[FreezeBackbone(0.3)])

    For one process, or several that each hold the whole model (DDP, with `ddp_find_unused_parameters`).

    Args:
        share: of the training steps, from 0 to 1.
        head: whether the head is held still as well, so that predictors alone learn.

    Raises:
        ValueError: for a share out of range.
    """

    def __init__(self, share: float = 0.1, head: bool = False):
        if not 0 <= share <= 1:
            raise ValueError(
                f"freeze_backbone_ratio is {share}; it is a share of the training steps, from 0 to 1"
            )
        self.share = share
        self.head = head
        self.parameters: list[nn.Parameter] = []

    def parameters_of(self, model: PreTrainedModel) -> list[nn.Parameter]:
        """What is held still: of the parameters that learn at all, those of the backbone, and perhaps of the head.

        Raises:
            ValueError: if nothing else is left to learn.
        """
        learning = [
            (name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad
        ]
        parts = ("backbone", "head") if self.head else ("backbone",)
        still = [parameter for name, parameter in learning if part_of(model, name) in parts]
        if len(still) == len(learning) and self.share > 0:
            raise ValueError(
                f"freeze_backbone_ratio={self.share} with freeze_head={self.head} leaves nothing to learn: "
                f"{type(model).__name__} has no {'' if self.head else 'head and no '}patch selector or token reducer "
                "with parameters of its own"
            )
        return still

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module,
        **kwargs,
    ) -> None:
        if args.fsdp or args.deepspeed:
            raise ValueError(
                "FreezeBackbone needs the whole model in each process: leave out fsdp and deepspeed"
            )
        if args.world_size > 1 and args.ddp_find_unused_parameters is False:
            raise ValueError("FreezeBackbone in several processes needs ddp_find_unused_parameters=True")
        # What training that failed has left frozen.
        self._freeze(False)
        self.parameters = self.parameters_of(extract_model_from_parallel(model, keep_torch_compile=False))

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs
    ) -> None:
        self._freeze(state.global_step < round(self.share * state.max_steps))

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs
    ) -> None:
        self._freeze(False)
        self.parameters = []

    def _freeze(self, frozen: bool) -> None:
        for parameter in self.parameters:
            parameter.requires_grad_(not frozen)
