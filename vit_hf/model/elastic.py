"""Elastic classifiers: one set of weights, many sub-networks to run, train and extract. See
`elastic_space.py`."""

import random
from collections import OrderedDict

import torch
from torch import nn
from transformers import initialization as init
from transformers.initialization import no_init_weights
from transformers.utils.generic import can_return_tuple

from .elastic_space import (
    CHOICES,
    SearchSpace,
    SubNetwork,
    is_elastic,
    read_elastic_options,
    subnetwork_config,
)
from .heads import distillation_loss
from .modeling_adaptive_vit import AdaptiveViTForImageClassification, AdaptiveViTImageClassifierOutput


# Meta models that are kept: where heads and ratios are chosen for each block, hardly any is asked for twice.
NUM_META_MODELS = 16
# What a configuration may be told after meta models were made.
RUNTIME_FIELDS = ("_attn_implementation", "problem_type", "output_hidden_states", "output_attentions")


class AdaptiveViTForElasticImageClassification(AdaptiveViTForImageClassification):
    """A classifier whose sub-networks share weights; every training step runs some of them.

    AutoFormer (Chen et al., 2021); with `"distillation"` in `config.elastic_space` as "Universally Slimmable
    Networks" (Yu & Huang, 2019) and BigNAS (Yu et al., 2020). `config.elastic_space` says what may differ
    between sub-networks. In evaluation it is the largest, or what `set_subnetwork` says. Its checkpoint is
    that of the largest as an ordinary `AdaptiveViTForImageClassification` as well, and `extract` makes one of
    any other.

    A sub-network runs as an ordinary model of its own configuration, without storage (on the meta device),
    which is given the first parts of the supernet's parameters. `extract` copies the same parts, so that
    outputs are the same to the bit.

    With DistributedDataParallel all processes run the same sub-networks; without distillation some parameters
    get no gradient in a step, so that it needs `ddp_find_unused_parameters=True`. FSDP, which shards
    parameters, and activation checkpointing are not for it; a class of the user's own must take its first
    channels for a narrower one.
    """

    # Recomputing a block would find the meta model without the parameters that it was given.
    supports_gradient_checkpointing = False
    _keys_to_ignore_on_load_missing = [r"^elastic_steps$"]

    def __init__(self, config):
        if not is_elastic(config):
            raise ValueError(
                f"Nothing of this configuration is elastic: set elastic_space with one of {list(CHOICES)}."
            )
        super().__init__(config)
        # Saved with the model, so that a run that is resumed goes on with the sub-networks that would have
        # come.
        self.register_buffer("elastic_steps", torch.zeros((), dtype=torch.int64))
        self.space = SearchSpace.of(config)
        self.elastic_options = read_elastic_options(config)
        self.subnetwork = self.space.uniform(-1)
        self._meta_models: OrderedDict[SubNetwork, nn.Module] = OrderedDict()

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        labels: torch.Tensor | None = None,
        interpolate_pos_encoding: bool | None = None,
        **kwargs,
    ) -> AdaptiveViTImageClassifierOutput:
        """Runs the active sub-network; see `AdaptiveViTForImageClassification.forward`.

        While training, of one that is drawn; or, with `distillation` in `config.elastic_space`, of the
        largest, with the mean loss of all that were run (the papers sum; a mean leaves learning rate and
        clipping what they are for one network).

        Raises:
            ValueError: for training with distillation without labels.
        """
        inputs = {
            "pixel_values": pixel_values,
            "labels": labels,
            "interpolate_pos_encoding": interpolate_pos_encoding,
            **kwargs,
        }
        if not self.training:
            return self._run(self.subnetwork, inputs)
        generator = self._next_generator()
        if not self.elastic_options.distillation:
            return self._run(self.space.sample(generator), inputs)
        if labels is None:
            raise ValueError(
                "distillation of elastic_space learns from labels that the model is given. "
                "Trainer's label_smoothing_factor keeps "
                "them from it: set that to 0."
            )
        return self._sandwich(generator, inputs)

    def set_subnetwork(self, subnetwork: SubNetwork | None) -> None:
        """Sets the sub-network that runs in evaluation; None for the largest.

        Raises:
            ValueError: if it is none of the space.
        """
        subnetwork = subnetwork or self.space.uniform(-1)
        self.space.check(subnetwork)
        self.subnetwork = subnetwork

    @torch.no_grad()
    def extract(self, subnetwork: SubNetwork | None = None):
        """A sub-network, by default the one that is set, as an `AdaptiveViTForImageClassification` with
        weights of its own.

        Raises:
            ValueError: if it is none of the space.
        """
        subnetwork = subnetwork or self.subnetwork
        self.space.check(subnetwork)
        with no_init_weights():
            network = AdaptiveViTForImageClassification(self._config_of(subnetwork))
        network = network.to(self.device, self.dtype).train(self.training)
        tensors = network.state_dict()
        for name, part in self._parts(network).items():
            tensors[name].copy_(part)
        return network

    def num_parameters_of(self, subnetwork: SubNetwork) -> int:
        """Parameters of a sub-network.

        Raises:
            ValueError: if it is none of the space.
        """
        self.space.check(subnetwork)
        return sum(parameter.numel() for parameter in self._meta_model(subnetwork).parameters())

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if module is self and hasattr(self, "elastic_steps"):
            init.zeros_(self.elastic_steps)

    def _next_generator(self) -> random.Random:
        """Random numbers of a training step: equal in every process, and when the step is repeated."""
        step = int(self.elastic_steps)
        self.elastic_steps += 1
        return random.Random(f"0 {step}")

    def _sandwich(
        self, generator: random.Random, inputs: dict[str, torch.Tensor]
    ) -> AdaptiveViTImageClassifierOutput:
        outputs = self._run(self.space.uniform(-1), inputs)
        losses, teacher = [outputs.loss], outputs.logits.detach()
        drawn = [self.space.sample(generator) for _ in range(self.elastic_options.num_sampled)]
        for subnetwork in (self.space.uniform(0), *drawn):
            student = self._run(subnetwork, inputs)
            loss = self._distance(student.logits, teacher)
            # What a selector or reducer learns from is the student's own.
            losses.append(loss if student.selection_loss is None else loss + student.selection_loss)
        outputs.loss = torch.stack(losses).mean()
        return outputs

    def _distance(self, logits: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
        if self.config.problem_type == "regression":
            return nn.functional.mse_loss(logits.float(), teacher.float())
        return distillation_loss(logits, teacher, self.config.problem_type)

    def _run(
        self, subnetwork: SubNetwork, inputs: dict[str, torch.Tensor]
    ) -> AdaptiveViTImageClassifierOutput:
        if subnetwork == self.space.uniform(-1):
            return super().forward(**inputs, return_dict=True)
        network = self._meta_model(subnetwork)
        network.train(self.training)
        network.set_dense_fraction(self.vit.dense_fraction)
        for name in RUNTIME_FIELDS:
            if getattr(network.config, name) != getattr(self.config, name):
                setattr(network.config, name, getattr(self.config, name))
        outputs = torch.func.functional_call(
            network, self._parts(network), kwargs={**inputs, "return_dict": True}
        )
        # Where the first labels decide.
        self.config.problem_type = network.config.problem_type
        return outputs

    def _parts(self, network: nn.Module) -> dict[str, torch.Tensor]:
        """Slices the first parts of parameters and buffers, in the shapes of a sub-network's.

        Raises:
            ValueError: if they are no longer there by their names.
        """
        own = {**dict(self.named_parameters()), **dict(self.named_buffers())}
        parts = {}
        for name, target in (*network.named_parameters(), *network.named_buffers()):
            if name not in own:
                raise ValueError(
                    f"There is no {name} to take a part of: its layer was replaced or wrapped, as "
                    "LoRA and DataParallel do. "
                    "Train with DistributedDataParallel, and adapt an ordinary model that extract() gives."
                )
            part = own[name]
            for axis, length in enumerate(target.shape):
                if length < part.shape[axis]:
                    part = part.narrow(axis, 0, length)
            # Products of strided matrices might be rounded otherwise than those of an extracted network.
            parts[name] = part.contiguous()
        return parts

    def _meta_model(self, subnetwork: SubNetwork) -> nn.Module:
        """A sub-network as a model without storage."""
        network = self._meta_models.pop(subnetwork, None)
        if network is None:
            with torch.device("meta"), no_init_weights():
                network = AdaptiveViTForImageClassification(self._config_of(subnetwork))
        self._meta_models[subnetwork] = network
        if len(self._meta_models) > NUM_META_MODELS:
            self._meta_models.popitem(last=False)
        return network

    def _config_of(self, subnetwork: SubNetwork):
        config = subnetwork_config(self.config, subnetwork)
        config.architectures = [AdaptiveViTForImageClassification.__name__]
        return config


def active_subnetwork(model: nn.Module) -> nn.Module:
    """The sub-network of an elastic classifier that runs in evaluation; any other model unchanged."""
    return model.extract() if isinstance(model, AdaptiveViTForElasticImageClassification) else model


__all__ = ["AdaptiveViTForElasticImageClassification"]
