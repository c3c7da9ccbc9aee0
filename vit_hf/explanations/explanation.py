"""Result of `vit_hf.explain`.

Shapes: H, W pixels; R, S rows and columns of the full grid of patches; K patches kept; J objects.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..arguments import IMAGE_PICTURES
from ..notebooks import notebook_png
from ..overlays import dim_dropped, enlarge
from .object_statistics import image_statistics
from .stages import Stage, WindowStage


if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass
class Prediction:
    """Prediction of a model for one image.

    Attributes:
        logits: `(num_labels,)` float32.
        probabilities: `(num_labels,)` float32; None for regression.
        answers: name of the most probable class; of multi-label models, all of at least 50 %; none for
            regression.
        truths: the true classes, or the true value as text, if given.
        top: up to five (name, probability), highest first; (name, value) for regression.
    """

    logits: np.ndarray
    probabilities: np.ndarray | None
    answers: list[str]
    truths: list[str] | None
    top: list[tuple[str, float]]

    @property
    def summary(self) -> str:
        """The predicted classes, with the probability if it is one; the values of a regression."""
        if self.probabilities is None:
            return ", ".join(f"{value:.4g}" for _, value in self.top)
        certainty = f" ({self.top[0][1]:.1%})" if len(self.answers) == 1 else ""
        return (", ".join(self.answers) or "none of the classes") + certainty

    @property
    def correct(self) -> bool | None:
        """True if predicted and true classes are the same; None if the truth is unknown or for regression."""
        if self.truths is None or self.probabilities is None:
            return None
        return sorted(self.answers) == sorted(self.truths)


@dataclass(repr=False)
class Explanation:
    """Numbers behind a prediction, and pictures of them.

    Grids are NaN where a number does not exist, which is not zero: a patch that was dropped before the
        encoder
    did not get zero attention, it was never seen.

    Attributes:
        name: name of the image, and first part of the names of its files.
        picture: `(h, w, 3)` uint8, at most 1024 pixels a side: the input image or, if the image processor
            crops or pads, the processed one, on which the grid lies.
        picture_size: (H, W) of the picture before it was shrunk for drawing.
        input_size: (H, W) of the model's input.
        patch_span: height and width of the picture in patches, with fractions: the model does not see beyond
            whole patches.
        grid: (R, S).
        kept_patches: `(K,)` int64 raster indices, ascending.
        stages: result of each reduction inside the encoder, first to last; empty without a token reducer.
        prediction: see `Prediction`.
        patch_scores: `(R, S)` float32 of the selector, in the model or in the image processor; None without
            one.
        selection_probabilities: `(R, S)` float32, probability that a policy draws each patch first in
            training; None for other selectors.
        attention: `(R, S)` float32, attention of the classifier's token (the mean over patches for
            `pooling="mean"`) to each patch in the last block that sees all kept patches, mean over heads;
            None if tokens are dropped before any block.
        rollout: `(R, S)` float32, the same traced back through all blocks (Abnar & Zuidema, 2020); None if
            the sequence was longer than `max_rollout_tokens`.
        attention_block: number, from 1, of the block of `attention`.
        settings: the model's options that the pictures mention.
        boxes: `(J, 4)` float [x0, y0, x1, y1] of the objects in pixels of a picture of `picture_size`; they
            reach beyond it where the image processor cropped. None if unknown.
        windows: windows that each stage of a Swin computed on, first to last; empty without a selector.
        files: path of each written picture, by its name.
    """

    name: str
    picture: np.ndarray
    picture_size: tuple[int, int]
    input_size: tuple[int, int]
    patch_span: tuple[float, float]
    grid: tuple[int, int]
    kept_patches: np.ndarray
    stages: list[Stage]
    prediction: Prediction
    patch_scores: np.ndarray | None
    selection_probabilities: np.ndarray | None
    attention: np.ndarray | None
    rollout: np.ndarray | None
    attention_block: int | None
    settings: dict[str, Any]
    boxes: np.ndarray | None = None
    windows: list[WindowStage] = field(default_factory=list)
    files: dict[str, Path] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"Explanation({self.name!r}: {self.prediction.summary}, {self.amount})"

    def _repr_png_(self) -> bytes | None:
        """Shows the overview in a notebook."""
        return notebook_png(self.figure)

    @property
    def amount(self) -> str:
        """Says how many of how many patches were kept, such as "196 of 4816 patches kept"."""
        return f"{len(self.kept_patches)} of {self.grid[0] * self.grid[1]} patches kept"

    @property
    def kept(self) -> np.ndarray:
        """Mask `(R, S)`, True for kept patches."""
        mask = np.zeros(self.grid[0] * self.grid[1], dtype=bool)
        mask[self.kept_patches] = True
        return mask.reshape(self.grid)

    @property
    def kept_boxes(self) -> np.ndarray:
        """Boxes `(K, 4)` [x0, y0, x1, y1] of the kept patches in pixels of a picture of `picture_size`."""
        rows, columns = np.divmod(self.kept_patches, self.grid[1])
        height, width = (size / span for size, span in zip(self.picture_size, self.patch_span, strict=True))
        return np.stack((columns * width, rows * height, (columns + 1) * width, (rows + 1) * height), axis=1)

    @property
    def statistics(self) -> dict[str, int | float | None]:
        """Counts of patches and tokens, and how well they cover the objects; see `image_statistics`."""
        return image_statistics(self)

    def figure(self, picture: str = "overview") -> "Figure":
        """Draws one of `IMAGE_PICTURES`.

        Raises:
            ValueError: for a picture that is not in `pictures`.
        """
        from .drawing import draw_explanation

        return draw_explanation(self, picture)

    @property
    def pictures(self) -> tuple[str, ...]:
        """Pictures that can be drawn of this image."""
        shown = {
            "scores": self.patch_scores,
            "attention": self.attention,
            "rollout": self.rollout,
            "stages": self.stages or None,
            "windows": self.windows or None,
        }
        return tuple(name for name in IMAGE_PICTURES if shown.get(name, self.picture) is not None)


def kept_picture(explanation: "Explanation") -> np.ndarray:
    """Returns the picture `(h, w, 3)` with dropped patches in pale gray."""
    return dim_dropped(enlarge(explanation.picture), explanation.kept, explanation.patch_span)
