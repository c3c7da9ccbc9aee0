"""Learning rates by layer, and freezing of the backbone."""

import math
import re
from typing import Any

from accelerate.utils import extract_model_from_parallel
from torch import nn
from transformers import PreTrainedModel, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..checkpoints.loading import part_of


class FreezeBackbone(TrainerCallback):
    """Trains predictors (selector, reducers) and head first, and the backbone afterwards.

    For the first `ratio` of the steps the backbone gets no gradient: it does not change, not even by weight
    decay, it does not count in gradient clipping, and its backward pass is computed only if predictors need
    it. A `ratio` above 0 makes training two-stage, 0 joint. It depends on the step alone, so a resumed run
    follows the same schedule.

    PatchDrop (Uzkent & Ermon 2020) trains its policy for a fixed classifier before both together; DynamicViT
    (Rao et al. 2021) freezes all but its predictors for 5 of 30 epochs. Both start from a trained head: in
    that case, set `head`. A new head must learn.

        Trainer(..., callbacks=[FreezeBackbone(0.3)])

    Works in one process, or in several that each hold the whole model (DDP, with
    `ddp_find_unused_parameters`).

    Args:
        ratio: fraction of the training steps, from 0 to 1.
        head: whether the head is frozen as well, so that only predictors learn.

    Raises:
        ValueError: for a ratio out of range.
    """

    def __init__(self, ratio: float = 0.1, head: bool = False):
        if not 0 <= ratio <= 1:
            raise ValueError(
                f"freeze_backbone_ratio is {ratio}; it is a fraction of the training steps, from 0 to 1"
            )
        self.ratio = ratio
        self.head = head
        self.parameters: list[nn.Parameter] = []

    def parameters_of(self, model: PreTrainedModel) -> list[nn.Parameter]:
        """Returns the parameters to freeze: trainable ones of the backbone and, if `head`, of the head.

        Raises:
            ValueError: if nothing else is left to learn.
        """
        learning = [
            (name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad
        ]
        parts = ("backbone", "head") if self.head else ("backbone",)
        still = [parameter for name, parameter in learning if part_of(model, name) in parts]
        if len(still) == len(learning) and self.ratio > 0:
            raise ValueError(
                f"freeze_backbone_ratio={self.ratio} with freeze_head={self.head} leaves nothing to learn: "
                f"{type(model).__name__} has no {'' if self.head else 'head and no '}patch selector or token "
                "reducer with parameters"
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
                "FreezeBackbone needs the whole model in each process: do not use fsdp or deepspeed"
            )
        if args.world_size > 1 and args.ddp_find_unused_parameters is False:
            raise ValueError("FreezeBackbone in several processes needs ddp_find_unused_parameters=True")
        # Of a training that failed.
        self._freeze(False)
        self.parameters = self.parameters_of(extract_model_from_parallel(model, keep_torch_compile=False))

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs
    ) -> None:
        self._freeze(state.global_step < round(self.ratio * state.max_steps))

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs
    ) -> None:
        self._freeze(False)
        self.parameters = []

    def _freeze(self, frozen: bool) -> None:
        for parameter in self.parameters:
            parameter.requires_grad_(not frozen)


# Learned vectors that are no weights of a linear map: decay to zero has no meaning for them.
UNDECAYED = re.compile(r"(cls|mask|distillation)_token|register_tokens|position_embeddings|_embedding$|bias")


def layerwise_parameter_groups(
    model: PreTrainedModel,
    learning_rate: float,
    weight_decay: float = 0.0,
    layer_decay: float = 1.0,
    backbone_lr_factor: float = 1.0,
) -> list[dict[str, Any]]:
    """Makes parameter groups for an optimizer, with the learning rates of BEiT (Bao et al. 2022, appendix).

    Layer i (from 0) of L encoder layers learns at `learning_rate * layer_decay ** (L - i)`; layers of a Swin
    are its blocks, and the patch merging after each stage. The embeddings learn at `learning_rate *
    layer_decay ** (L + 1)`, and everything else (final norm, head, trained patch selectors and token
    reducers) at the full rate. Rates of the base model, without selectors and reducers, are multiplied by
    `backbone_lr_factor`. Biases, norms, layer scales, tokens and position embeddings have no weight decay.

        from transformers import Trainer
        optimizer, options = Trainer.get_optimizer_cls_and_kwargs(args, model)
        groups = layerwise_parameter_groups(model, args.learning_rate, args.weight_decay, layer_decay=0.75)
        Trainer(..., optimizer_cls_and_kwargs=(optimizer, options | {"params": groups}))

    Args:
        model: model with layers named `layers.<i>`, as in transformers' ViT, or
            `encoder.layers.<stage>.blocks.<i>`, as in its Swin; frozen parameters are left out.
        learning_rate: learning rate of the head.
        weight_decay: weight decay of the parameters that have one.
        layer_decay: factor from one layer to the one below, in (0, 1]; 1 gives all the same rate.
        backbone_lr_factor: factor of the backbone's learning rates, in (0, 1]; DynamicViT (Rao et al. 2021)
            uses 0.01 with randomly initialized predictors.

    Returns:
        Groups with `params`, `lr` and `weight_decay`, the full rate first. Their order depends only on the
        model (and on whether `backbone_lr_factor` is 1), so that an optimizer's saved state fits.

    Raises:
        ValueError: for a factor out of range, or a model without numbered layers.
    """
    if not 0 < layer_decay <= 1:
        raise ValueError(f"layer_decay is {layer_decay}; it must be above 0 and at most 1 (1: no decay)")
    if not 0 < backbone_lr_factor <= 1:
        raise ValueError(
            f"backbone_lr_factor is {backbone_lr_factor}; it must be above 0 and at most 1. To freeze the "
            "backbone, set freeze_backbone_ratio"
        )
    layers = {name: _layer(name, model.base_model_prefix) for name, _ in model.named_parameters()}
    order = sorted({layer for layer in layers.values() if layer is not None})
    if not any(order):
        raise ValueError(
            f"layer_decay needs encoder layers named layers.0, layers.1, ...; {type(model).__name__} has none"
        )
    depths = {layer: depth for depth, layer in enumerate(order)}
    top = len(order)

    groups: dict[tuple[bool, int, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        depth = depths.get(layers[name], top)
        decayed = parameter.ndim > 1 and not UNDECAYED.search(name)
        full_rate = backbone_lr_factor == 1 or part_of(model, name) != "backbone"
        groups.setdefault((full_rate, depth, decayed), []).append(parameter)
    return [
        {
            "params": parameters,
            "lr": learning_rate * layer_decay ** (top - depth) * (1 if full_rate else backbone_lr_factor),
            "weight_decay": weight_decay if decayed else 0.0,
        }
        for (full_rate, depth, decayed), parameters in sorted(
            groups.items(), key=lambda item: item[0], reverse=True
        )
    ]


def _layer(name: str, prefix: str) -> tuple[float, ...] | None:
    """Returns the sort key of a parameter's layer: () for embeddings, None outside the encoder layers."""
    name = name.removeprefix(f"{prefix}.")
    if name.startswith("embeddings."):
        return ()
    layer = re.match(r"(?:encoder\.)?layers\.(\d+)\.(?:blocks\.(\d+)\.|(downsample)\.)?", name)
    if layer is None:
        return None
    stage, block, merging = layer.groups()
    if merging:
        return (int(stage), math.inf)
    return (int(stage),) if block is None else (int(stage), int(block))
