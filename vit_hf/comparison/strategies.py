"""Strategies: methods of using a checkpoint on large images.

A strategy is a class that lists its `variants` for a setting, and a line of `STRATEGIES`.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

from .checkpoints import Checkpoint
from .predictors import Predictor, TiledImages, WholeImages


# Removes the selector and reducer that a checkpoint may have been trained with.
PLAIN = {"patch_selector": "none", "token_reducer": "none"}
BASELINES = ("random", "uniform")


@dataclass(frozen=True)
class Setting:
    """Setting for which strategies make their variants.

    Attributes:
        checkpoint: checkpoint of most strategies.
        hybrid: checkpoint with a convolutional stem, or None.
        budgets: numbers of patches, ascending.
        selectors, token_reducers: names.
        keep_rates: keep rates of token reducers.
        aggregations, tile, overlap: options of tiles; see `predict_tiled`.
        side: side in pixels of a square with the area of a typical image.
        num_patches: patches of a typical image.
        new_head: True if the data have other classes than the checkpoint.
    """

    checkpoint: Checkpoint
    hybrid: Checkpoint | None
    budgets: tuple[int, ...]
    selectors: tuple[str, ...]
    token_reducers: tuple[str, ...]
    keep_rates: tuple[float, ...]
    aggregations: tuple[str, ...]
    tile: int
    overlap: float
    side: int
    num_patches: int
    new_head: bool = False

    @property
    def own_training(self) -> dict[str, Any]:
        """Fields of `ModelArguments` to fine-tune the checkpoint at its own size."""
        return {"image_size": self.checkpoint.side}

    def side_of(self, budget: int) -> int:
        """Returns the side in pixels of the smallest square with at least `budget` patches."""
        patch = self.checkpoint.patch_size
        return patch * next(count for count in range(1, budget + 1) if count**2 >= budget)


@dataclass(frozen=True, kw_only=True)
class Strategy(ABC):
    """Base class of strategies.

    Attributes:
        name: unique name.
        checkpoint: checkpoint to use.
        changes: changes for `load_classifier`.
        training: fields of `ModelArguments` for fine-tuning. Strategies with the same fields share weights.
            None: it is measured with the weights of the checkpoint.
        options: options of the predictor.
        budget: number of patches to compare it at; None for no particular one.
    """

    predictor: ClassVar[type[Predictor]] = WholeImages
    needs_ours: ClassVar[bool] = True

    name: str
    checkpoint: Checkpoint
    changes: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] | None = None
    options: dict[str, Any] = field(default_factory=dict)
    budget: int | None = None

    @classmethod
    @abstractmethod
    def variants(cls, setting: Setting) -> list[Self]:
        """Lists all variants to measure."""

    @property
    def family(self) -> str:
        """Key in `STRATEGIES`."""
        return next(name for name, strategy in STRATEGIES.items() if type(self) is strategy)

    def load(self, path: str, device: str) -> Predictor:
        """Loads the predictor, with weights from `path`.

        Raises:
            OSError, TypeError, ValueError: if the checkpoint does not support the strategy.
        """
        if self.needs_ours and self.checkpoint.obstacle:
            raise ValueError(self.checkpoint.obstacle)
        model, processor = self.checkpoint.load(path, **self.changes)
        # Torch's counter of FLOPs fails on parameters with a gradient in inference mode.
        model = model.to(device).eval().requires_grad_(False)
        return self.predictor(model, processor, **self.options)


class Resize(Strategy):
    """Resizes the image to the checkpoint's own size, twice that, and a square for each budget."""

    needs_ours = False

    @classmethod
    def variants(cls, setting: Setting) -> list[Self]:
        checkpoint = setting.checkpoint
        budgets = {setting.side_of(budget): budget for budget in setting.budgets}
        sides = sorted({*budgets, checkpoint.side, 2 * checkpoint.side})
        return [
            cls(
                name=f"resize to {side}x{side}",
                checkpoint=checkpoint,
                changes={"resolution": side} | plain(checkpoint),
                training={"image_size": side},
                budget=budgets.get(side),
            )
            for side in sides
            if side < setting.side or side == checkpoint.side
        ]


class Tiles(Strategy):
    """Overlapping tiles at full resolution, each through the unchanged model; all aggregations of one pass.

    Not fine-tuned, since labels describe whole images, and most tiles show nothing of the labeled object.
    With a new head, the model is fine-tuned on images resized to its own size.
    """

    predictor = TiledImages
    needs_ours = False

    @classmethod
    def variants(cls, setting: Setting) -> list[Self]:
        return [
            cls(
                name=f"tiles of {setting.tile}x{setting.tile}",
                checkpoint=setting.checkpoint,
                changes={"resolution": setting.checkpoint.side} | plain(setting.checkpoint),
                training=setting.own_training if setting.new_head else None,
                options={
                    "tile": setting.tile,
                    "overlap": setting.overlap,
                    "aggregations": setting.aggregations,
                },
            )
        ]


class Dense(Strategy):
    """All patches at full resolution, positions interpolated."""

    needs_ours = False

    @classmethod
    def variants(cls, setting: Setting) -> list[Self]:
        return [
            cls(
                name="all patches",
                checkpoint=setting.checkpoint,
                changes=NATIVE | plain(setting.checkpoint),
                training=train_native(setting.checkpoint),
            )
        ]


class Select(Strategy):
    """Selected patches at full resolution, by each selector and for each budget."""

    @classmethod
    def variants(cls, setting: Setting) -> list[Self]:
        return [
            cls(
                name=f"{budget} patches, {selector}",
                checkpoint=setting.checkpoint,
                changes=NATIVE | PLAIN | select(selector, budget),
                training=train_native(setting.checkpoint, selector, budget),
                budget=budget,
            )
            for selector in setting.selectors
            for budget in setting.budgets
        ]


class Reduce(Strategy):
    """Token reduction inside the encoder, of all patches and of those that a heuristic selected.

    Reducers without training use weights that were fine-tuned without them.
    """

    @classmethod
    def variants(cls, setting: Setting) -> list[Self]:
        checkpoint, strategies = setting.checkpoint, []
        before = [("all patches", {}, train_native(checkpoint))]
        adaptive = [name for name in setting.selectors if name not in BASELINES]
        if adaptive:
            selector = "saliency" if "saliency" in adaptive else adaptive[0]
            budget = setting.budgets[-1]
            chosen = select(selector, budget), train_native(checkpoint, selector, budget)
            before.append((f"{budget} patches, {selector}", *chosen))
        for name, selection, training in before:
            for reducer in setting.token_reducers:
                for rate in setting.keep_rates:
                    reduction = {
                        "token_reducer": reducer,
                        "keep_rate": rate,
                        "reduction_layers": reduction_layers(checkpoint.num_layers),
                    }
                    learned = reduction if reducer == "gumbel" else {}
                    strategies.append(
                        cls(
                            name=f"{name}, {reducer} {rate:g}",
                            checkpoint=checkpoint,
                            changes=NATIVE | PLAIN | selection | reduction,
                            training=training | learned,
                        )
                    )
        return strategies


class Hybrid(Strategy):
    """Convolutional stem on the whole image; all cells of its map, or those that a heuristic selects."""

    @classmethod
    def variants(cls, setting: Setting) -> list[Self]:
        if setting.hybrid is None:
            return []
        adaptive = [name for name in setting.selectors if name not in BASELINES]
        selector = "saliency" if "saliency" in adaptive else next(iter(adaptive), None)
        choices = [("hybrid stem, all cells", None, None)]
        if selector is not None:
            choices += [
                (f"hybrid stem, {budget} cells, {selector}", selector, budget) for budget in setting.budgets
            ]
        return [
            cls(
                name=name,
                checkpoint=setting.hybrid,
                changes=NATIVE | PLAIN | (select(chosen, budget) if chosen else {}),
                # Its stem reads whole images.
                training=train_native(setting.hybrid, chosen, budget) | {"return_patches": False},
                budget=budget,
            )
            for name, chosen, budget in choices
        ]


NATIVE = {"resolution": "native"}

STRATEGIES: dict[str, type[Strategy]] = {
    "resize": Resize,
    "tiles": Tiles,
    "dense": Dense,
    "select": Select,
    "reduce": Reduce,
    "hybrid": Hybrid,
}


def plain(checkpoint: Checkpoint) -> dict[str, str]:
    return PLAIN if checkpoint.obstacle is None else {}


def select(selector: str, budget: int) -> dict[str, Any]:
    return {"patch_selector": selector, "num_selected_patches": budget}


def train_native(
    checkpoint: Checkpoint, selector: str | None = None, budget: int | None = None
) -> dict[str, Any]:
    """Returns fields of `ModelArguments` for images in native resolution, of mixed sizes."""
    native = {"native_resolution": True, "return_patches": checkpoint.takes_cut_patches}
    return native | (select(selector, budget) if selector else {})


def reduction_layers(num_layers: int) -> list[int]:
    """Returns the blocks at 1/4, 1/2 and 3/4 of the encoder, as in DynamicViT and EViT."""
    return sorted({num_layers * part // 4 for part in (1, 2, 3)})
