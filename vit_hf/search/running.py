"""Architecture search, from arguments to checkpoints, a table and a plot."""

import copy
import hashlib
import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch
from transformers import AutoImageProcessor, PreTrainedModel
from transformers.image_processing_utils import BaseImageProcessor

from ..arguments import (
    COSTS,
    AugmentationArguments,
    DataArguments,
    FinetuningArguments,
    ModelArguments,
    SearchArguments,
)
from ..data.augmentation import EvaluationExamples
from ..data.collation import ImageCollator
from ..data.loading import ImageDataset
from ..inference.metrics import BEST_MODEL_METRIC, compute_metrics_for
from ..measure import alternate
from ..model.configuration_adaptive_vit import AdaptiveViTConfig
from ..model.elastic import AdaptiveViTForElasticImageClassification
from ..model.elastic_space import SearchSpace, SubNetwork, subnetwork_config
from ..model.modeling_adaptive_vit import AdaptiveViTForImageClassification
from ..training.arguments import RunArguments
from ..training.classification import Classification
from ..training.output_dir import find_last_checkpoint
from ..training.task import build, prepare
from .evolution import evolve, hand_made_networks
from .fitness import History, PreparedSplit, measure_costs, timed_forward
from .report import Row, write_report


# Holds the metrics of a complete training.
DONE_NAME = "done.json"
# Fields of a configuration that each run sets itself.
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


def check_model_arguments(arguments: ModelArguments, search: SearchArguments) -> None:
    """Raises ValueError if a model and a supernet are both given."""
    if search.supernet is not None and (arguments.model_name_or_path or arguments.config_overrides):
        raise ValueError("supernet is the model: leave model_name_or_path and config_overrides out")


@dataclass
class Recipe:
    """Arguments of fine-tuning for all runs of a search."""

    model: ModelArguments
    data: DataArguments
    augmentation: AugmentationArguments
    method: FinetuningArguments
    training: RunArguments

    def task(self, model: ModelArguments | None = None) -> Classification:
        """Returns the task that trains a model, by default the supernet."""
        return Classification(model or self.model, self.data, self.augmentation, self.method)

    def train(
        self, folder: Path, seed: int, model: ModelArguments | None = None, factor: float = 1.0
    ) -> dict[str, float]:
        """Trains in a folder, or resumes there; a complete training is not repeated.

        Args:
            folder: folder of the run.
            seed: number added to the seed of the arguments.
            model: arguments of the model; the supernet by default.
            factor: factor of the number of steps or epochs.

        Returns:
            Metrics of `Run.execute`.
        """
        done = folder / DONE_NAME
        if done.is_file():
            return json.loads(done.read_text())
        training = copy.deepcopy(self.training)
        training.output_dir, training.seed = str(folder), training.seed + seed
        training.num_train_epochs *= factor
        if training.max_steps > 0:
            training.max_steps = round(training.max_steps * factor)
        # A run that was killed before its first checkpoint starts over.
        training.overwrite_output_dir = folder.exists() and find_last_checkpoint(folder) is None
        metrics = prepare(self.task(model), training).execute()
        done.write_text(json.dumps(metrics, indent=2))
        return metrics

    def model_of(self, config: AdaptiveViTConfig, network: SubNetwork) -> ModelArguments:
        """Returns arguments to train a sub-network from scratch, with the images of the supernet."""
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
        """Returns a recipe that prepares images as `processor` does."""
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


# Costs may exceed a budget by rounding.
TOLERANCE = 1 + 1e-9
LATENCY_REPEATS = 15


@dataclass
class SearchRun:
    """Validated search, ready to start.

    Attributes:
        recipe: arguments of all trainings.
        search: arguments of the search.
        data: all splits; networks are chosen on "validation".
        space: search space.
        hand_made: networks to compare with, from small to large.
        folder: folder of all results.
    """

    recipe: Recipe
    search: SearchArguments
    data: ImageDataset
    space: SearchSpace
    hand_made: list[SubNetwork]
    folder: Path
    budgets: list[float] = field(default_factory=list)

    def execute(self) -> str:
        """Trains, searches, extracts and compares; steps that are complete in the folder are not repeated.

        Returns:
            Table, as in `results.md`; it is written with `results.json` and `pareto.png` after each seed.
        """
        rows, histories, table = [], [], ""
        for seed in range(self.search.num_seeds):
            found, history = self._execute_seed(seed)
            rows += found
            histories.append(history)
            table = write_report(
                self.folder, rows, histories, self.search.budget, *BEST_MODEL_METRIC[self.data.problem_type]
            )
        return table

    def describe(self) -> str:
        """Returns a summary of data, search space and search in a few lines."""
        sizes = ", ".join(f"{len(images)} {split}" for split, images in self.data.splits.items())
        choices = "; ".join(
            f"{name.replace('_', ' ')} {', '.join(map(str, values))}"
            for name, values in asdict(self.space).items()
            if values != (None,)
        )
        evolution = self.search.evolution(0)
        supernet = self.search.supernet or "to be trained"
        return "\n".join(
            [
                f"Data:     {sizes} images; networks are chosen on validation",
                *(f"          {note}" for note in self.data.describe_left_out()),
                f"Space:    {choices}",
                f"Supernet: {supernet}",
                f"Search:   {evolution.generations} generations of {evolution.population} "
                "networks for each budget of "
                f"{self.search.budget}; {self.search.num_seeds} seed(s)",
            ]
        )

    def _execute_seed(self, seed: int) -> tuple[list[Row], History]:
        folder = self.folder / f"seed-{seed}"
        supernet, processor = self._supernet(folder, seed)
        bench = Bench(supernet, processor, self.data, self.recipe.training, folder / "history.jsonl")
        if not self.budgets:
            kind = self.search.budget
            self.budgets = self.search.budgets or [bench.cost(network, kind) for network in self.hand_made]
        rows = []
        for number, budget in enumerate(self.budgets, start=1):
            rows += self._search(bench, folder, seed, number, budget)
        recipe = self.recipe.prepared_as(processor) if self.search.supernet else self.recipe
        for number, network in enumerate(self.hand_made, start=1):
            row = Row("hand-made", number, seed, network, str(folder / f"hand-made-{number}"))
            rows.append(self._trained(recipe, bench, row))
            rows.append(bench.measure(replace(row, way="hand-made, weights of the supernet", folder="")))
        if self.search.retrain:
            for row in [row for row in rows if row.way == "found"]:
                again = replace(row, way="found, retrained", folder=f"{row.folder}-retrained")
                rows.append(self._trained(recipe, bench, again))
        bench.time(rows)
        return rows, bench.history

    def _supernet(
        self, folder: Path, seed: int
    ) -> tuple[AdaptiveViTForElasticImageClassification, BaseImageProcessor]:
        path = self.search.supernet
        if path is None:
            path = str(folder / "supernet")
            self.recipe.train(folder / "supernet", seed, factor=self.search.supernet_factor)
        model = AdaptiveViTForElasticImageClassification.from_pretrained(path)
        return model.to(self.recipe.training.device).eval(), AutoImageProcessor.from_pretrained(path)

    def _search(self, bench: "Bench", folder: Path, seed: int, number: int, budget: float) -> list[Row]:
        kind = self.search.budget

        def report(generation: int, network: SubNetwork, fitness: float) -> None:
            print(
                f"budget {budget:.4g}, generation {generation + 1}: best {abs(fitness):.4f} with "
                f"{bench.cost(network, kind):.4g}",
                flush=True,
            )

        try:
            results = evolve(
                self.space,
                bench.fitness,
                lambda network: bench.cost(network, kind) <= budget * TOLERANCE,
                self.search.evolution(1000 * seed + number),
                report,
            )
        except ValueError as error:
            least = bench.cost(self.space.uniform(0), kind)
            raise ValueError(f"{kind} of {budget:.4g}: {error} (it has {least:.4g})") from error
        network, _ = results[0]
        path = folder / f"found-{number}"
        model = bench.supernet.extract(network)
        model.save_pretrained(path)
        bench.processor.save_pretrained(path)
        return [bench.measure(Row("found", number, seed, network, str(path)))]

    def _trained(self, recipe: Recipe, bench: "Bench", row: Row) -> Row:
        path = Path(row.folder)
        recipe.train(path, row.seed, recipe.model_of(bench.supernet.config, row.network))
        model = AdaptiveViTForImageClassification.from_pretrained(path).to(bench.supernet.device).eval()
        return bench.measure(row, model)


class Bench:
    """Measures sub-networks of a supernet and caches the results.

    Args:
        supernet: supernet in evaluation mode.
        processor: image processor of the supernet.
        data: data with a validation split, and optionally a test split.
        training: batch size and workers of evaluation.
        path: file of the history.

    Raises:
        ValueError: if the history belongs to another supernet or other data.
    """

    def __init__(
        self,
        supernet: AdaptiveViTForElasticImageClassification,
        processor: BaseImageProcessor,
        data: ImageDataset,
        training: RunArguments,
        path: Path,
    ):
        self.supernet, self.processor = supernet, processor
        self.splits = {
            name: PreparedSplit(
                EvaluationExamples(images),
                ImageCollator(processor),
                training.per_device_eval_batch_size,
                training.dataloader_num_workers,
                supernet.device,
            )
            for name, images in data.splits.items()
            if name != "train"
        }
        self.metric, self.more_is_better = BEST_MODEL_METRIC[data.problem_type]
        self.compute_metrics = compute_metrics_for(data.problem_type, data.num_labels)
        sizes = {name: len(images) for name, images in data.splits.items()}
        self.history = History(path, {"supernet": fingerprint(supernet), "images": sizes})

    def cost(self, network: SubNetwork, kind: str) -> float:
        """Returns one of `COSTS` of a sub-network."""
        known = self.history.get(network, kind)
        if known is None:
            if kind == "parameters":
                known = self.supernet.num_parameters_of(network) / 1e6
            else:
                model = self.supernet.extract(network)
                known = measure_costs(model, self.splits["validation"].one_image(), (kind,))[kind]
            self.history.add(network, **{kind: known})
        return known

    def fitness(self, network: SubNetwork) -> float:
        """Returns the validation metric with the supernet's weights; negated if lower is better."""
        value = self.history.get(network, self.metric)
        if value is None:
            value = self._score("validation", self.supernet.extract(network))
            self.history.add(network, **{self.metric: value})
        return value if self.more_is_better else -value

    def measure(self, row: Row, model: AdaptiveViTForImageClassification | None = None) -> Row:
        """Adds the metrics of `model`, by default of the extracted sub-network, to a row."""
        model = model or self.supernet.extract(row.network)
        test = self._score("test", model) if "test" in self.splits else None
        return replace(row, validation=self._score("validation", model), test=test)

    def time(self, rows: list[Row]) -> None:
        """Adds costs to rows; latencies are measured in turns."""
        inputs = self.splits["validation"].one_image()
        models = {network: self.supernet.extract(network) for network in {row.network for row in rows}}
        calls = [timed_forward(model, inputs) for model in models.values()]
        latencies = dict(zip(models, alternate(calls, LATENCY_REPEATS, warmup=2), strict=True))
        for row in rows:
            row.costs = measure_costs(models[row.network], inputs, ("parameters", "gflops"))
            row.costs["latency"] = latencies[row.network] * 1e3

    def _score(self, split: str, model: AdaptiveViTForImageClassification) -> float:
        return self.splits[split].evaluate(model, self.compute_metrics)[self.metric]


def fingerprint(model: PreTrainedModel) -> str:
    """Returns a hash of all weights."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


def prepare_search(
    model_arguments: ModelArguments,
    data_arguments: DataArguments,
    augmentation: AugmentationArguments,
    method: FinetuningArguments,
    search: SearchArguments,
    training: RunArguments,
) -> SearchRun:
    """Checks a search, loads its data and builds the supernet, up to the first step.

    Raises:
        OSError, TypeError, ValueError: for wrong arguments or data.
    """
    check_model_arguments(model_arguments, search)
    if search.budget not in COSTS:
        raise ValueError(f"budget is {search.budget!r}; choose one of {', '.join(COSTS)}")
    if training.world_size > 1:
        raise ValueError(
            "a search runs in one process: train the supernet by torchrun and vit-hf finetune, with the "
            "choices as config_overrides, and name it as supernet"
        )
    if training.push_to_hub:
        raise ValueError("push_to_hub is not for a search, which makes many models: use vit-hf push")
    if training.overwrite_output_dir:
        raise ValueError(
            "overwrite_output_dir is not for a search, which has a folder of runs: name another output_dir"
        )
    supernet_arguments = replace(
        model_arguments,
        config_overrides=model_arguments.config_overrides | search.elastic_fields(),
        model_name_or_path=search.supernet or model_arguments.model_name_or_path,
    )
    recipe = Recipe(supernet_arguments, data_arguments, augmentation, method, training)
    task = recipe.task()
    model, _, _ = build(task, training, needs_validation=True)
    if not isinstance(model, AdaptiveViTForElasticImageClassification):
        raise ValueError(
            "the search space has a single network: give elastic_hidden_sizes, elastic_depths, "
            "elastic_num_attention_heads, elastic_mlp_ratios or elastic_keep_rates"
        )
    hand_made = hand_made_networks(model.space, search.num_hand_made)
    return SearchRun(recipe, search, task.data, model.space, hand_made, Path(training.output_dir))
