"""Training what a search compares, each in a folder of its own, once."""

import copy
import json
from dataclasses import dataclass, replace
from pathlib import Path

from transformers.image_processing_utils import BaseImageProcessor

from ..model.configuration_adaptive_vit import AdaptiveViTConfig
from ..model.elastic_space import SubNetwork, subnetwork_config
from ..training.arguments import DataArguments, FinetuningArguments, ModelArguments, RunArguments
from ..training.augmentation import AugmentationArguments
from ..training.classification import Classification
from ..training.runs import find_last_checkpoint
from ..training.task import prepare


# Written when a training is complete: its metrics.
DONE_NAME = "done.json"
# What a configuration says of its labels and its file, which a run finds out for itself.
OWN_FIELDS = {
    "_name_or_path",
    "architectures",
    "auto_map",
    "dtype",
    "id2label",
    "label2id",
    "model_type",
    "problem_type",
    "transformers_version",
    "vit_hf_version",
}


@dataclass
class Recipe:
    """Arguments of `scripts/finetune.py` for all runs of a search."""

    model: ModelArguments
    data: DataArguments
    augmentation: AugmentationArguments
    method: FinetuningArguments
    training: RunArguments

    def train(
        self, folder: Path, seed: int, model: ModelArguments | None = None, factor: float = 1.0
    ) -> dict[str, float]:
        """Trains in a folder, or goes on there; what was complete already is not trained again.

        Args:
            folder: of the run.
            seed: added to that of the arguments.
            model: another than the supernet.
            factor: of the number of steps or epochs.

        Returns:
            Metrics, as `execute` of a run.
        """
        done = folder / DONE_NAME
        if done.is_file():
            return json.loads(done.read_text())
        training = copy.deepcopy(self.training)
        training.output_dir, training.seed = str(folder), training.seed + seed
        training.num_train_epochs *= factor
        if training.max_steps > 0:
            training.max_steps = round(training.max_steps * factor)
        # What was killed where there is nothing to go on from begins again.
        training.overwrite_output_dir = folder.exists() and find_last_checkpoint(folder) is None
        run = prepare(
            Classification(model or self.model, self.data, self.augmentation, self.method), training
        )
        metrics = run.execute()
        done.write_text(json.dumps(metrics, indent=2))
        return metrics

    def model_of(self, config: AdaptiveViTConfig, network: SubNetwork) -> ModelArguments:
        """A sub-network as a model to be trained from scratch, on images prepared as the supernet's."""
        ordinary = subnetwork_config(config, network)
        fields = {name: value for name, value in ordinary.to_diff_dict().items() if name not in OWN_FIELDS}
        known = AdaptiveViTConfig().to_dict().keys()
        return ModelArguments(
            config_overrides={name: value for name, value in fields.items() if name in known},
            image_size=self.model.image_size,
            native_resolution=self.model.native_resolution,
            longest_edge=self.model.longest_edge,
            return_patches=self.model.return_patches,
        )

    def prepared_as(self, processor: BaseImageProcessor) -> "Recipe":
        """The same with images prepared as an image processor of ours does."""
        size = dict(processor.size or {}) if processor.do_resize else {}
        return replace(
            self,
            model=ModelArguments(
                image_size=size.get("height"),
                longest_edge=size.get("longest_edge"),
                native_resolution=not processor.do_resize,
                return_patches=processor.return_patches,
            ),
        )
