"""An animation of which patches training uses: all of them at first, the target at the end.

Shapes: R, S rows and columns of the grid of patches; I images; F frames.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import extract_model_from_parallel
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.image_processing_utils import BaseImageProcessor
from transformers.utils import logging

from ..explanations.animation import Tile, tile_side, write_animation
from ..explanations.seen_images import load_upright, process, shrink, to_picture
from ..explanations.token_stages import record_reductions, to_stages
from ..model.modeling_adaptive_vit import AdaptiveViTModel
from ..model.sizes import to_pair


logger = logging.get_logger(__name__)

# Pixels of the longer side of all pictures together, and frames of an animation.
PICTURE_SIZE, MAX_FRAMES = 480, 60


@dataclass
class Frame:
    """What was kept of each image after a number of optimizer steps.

    Attributes:
        step: how many.
        masks: of each image `(R, S)` bool, True for patches that some token stands for at the end of the encoder.
        tokens: of each image, how many such tokens there are.
    """

    step: int
    masks: list[np.ndarray]
    tokens: list[int]

    @property
    def caption(self) -> str:
        """Such as "step 120: 512 of 1024 patches"; of images that differ, the mean share."""
        numbers = {
            (int(mask.sum()), mask.size, tokens) for mask, tokens in zip(self.masks, self.tokens, strict=True)
        }
        if len(numbers) > 1:
            share = np.mean([mask.mean() for mask in self.masks])
            return f"step {self.step}: {share:.0%} of the patches"
        ((kept, total, tokens),) = numbers
        merged = f" in {tokens} tokens" if tokens < kept else ""
        return f"step {self.step}: {kept} of {total} patches{merged}"


class CurriculumRecorder(TrainerCallback):
    """Draws an animated GIF of the patches that a model keeps of a few images while it is trained.

    A frame shows what the model would keep of an image in that training step, were it not for chance: the dense_fraction
    of the step (see `KeepRateSchedule`), but no dropout, no drawing and no exploration. Patches that a token reducer
    drops inside the encoder count as dropped, too. The last frame is the model as training left it, at its target.

    The GIF is written at each checkpoint and at the end, and the masks beside it, in a file of the same name that
    ends in .npz: so a run that is resumed goes on with the animation of its first part. Training is the same
    with and without: nothing is drawn from random generators, and modes of modules are as they were.

        Trainer(..., callbacks=[KeepRateSchedule(), CurriculumRecorder(image, processor, "run/curriculum.gif")])

    For one process, or several that each hold the whole model (DDP), of which the first records.

    Args:
        images: an image or several: Pillow images, paths, arrays.
        image_processor: what prepares the images in training.
        path: of the GIF.
        every_n_steps: optimizer steps from frame to frame; by default as many as make 60 frames of the run. Of
            more frames, 60 are shown.

    Raises:
        ValueError: without images, for a path that does not end in .gif, or steps below 1.
    """

    def __init__(
        self,
        images: Any,
        image_processor: BaseImageProcessor,
        path: str | os.PathLike,
        every_n_steps: int | None = None,
    ):
        self.images = list(images) if isinstance(images, list | tuple) else [images]
        self.image_processor = image_processor
        self.path = Path(path)
        self.every_n_steps = every_n_steps
        if not self.images:
            raise ValueError("CurriculumRecorder has no images: give at least one.")
        if self.path.suffix != ".gif":
            raise ValueError(f"path={str(path)!r} must end in .gif, which is what CurriculumRecorder writes.")
        if every_n_steps is not None and every_n_steps < 1:
            raise ValueError(f"every_n_steps={every_n_steps} must be at least 1, or None for 60 frames.")
        self.inputs: list[dict[str, torch.Tensor]] = []
        self.tiles: list[Tile] = []
        self.frames: list[Frame] = []

    @property
    def masks_path(self) -> Path:
        """Where the masks are kept for a run that goes on."""
        return self.path.with_suffix(".npz")

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
                "CurriculumRecorder needs the whole model in the first process: leave out fsdp and deepspeed"
            )
        if not state.is_world_process_zero:
            return
        vit = _encoder(model)
        self._prepare(vit)
        # Now, so that images that the model cannot take fail before training begins.
        frame = self._look(vit, state.global_step, dense_fraction=0.0)
        self.frames = []
        if state.global_step > 0 and self.masks_path.is_file():
            self.frames = [old for old in load_frames(self.masks_path) if old.step < state.global_step]
        grids = [mask.shape for mask in frame.masks]
        if any([mask.shape for mask in old.masks] != grids for old in self.frames):
            logger.warning(
                f"{self.masks_path} is about other images: the animation begins at step {state.global_step}."
            )
            self.frames = []

    def on_pre_optimizer_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module,
        **kwargs,
    ) -> None:
        # Of all that is called once in a step, this alone sees the step's weights and dense_fraction wherever this callback
        # stands among others.
        every = self.every_n_steps or max(1, -(-state.max_steps // (MAX_FRAMES - 1)))
        if state.is_world_process_zero and state.global_step % every == 0:
            vit = _encoder(model)
            self.frames.append(self._look(vit, state.global_step, vit.dense_fraction))

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs
    ) -> None:
        if state.is_world_process_zero:
            self._write()

    def on_train_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module,
        **kwargs,
    ) -> None:
        if state.is_world_process_zero:
            self.frames.append(self._look(_encoder(model), state.global_step, dense_fraction=0.0))
            self._write()
        self.inputs = []

    def _prepare(self, vit: AdaptiveViTModel) -> None:
        """Processes the images, once for all frames."""
        patch_height, patch_width = to_pair(vit.config.patch_size)
        side = tile_side(len(self.images), PICTURE_SIZE)
        self.inputs, self.tiles = [], []
        for image in self.images:
            image = load_upright(image, as_rgb=vit.config.num_channels == 3)
            with torch.random.fork_rng(devices=[]):  # it may select at random
                inputs, processed = process(self.image_processor, image)
            picture = shrink(to_picture(image, processed, self.image_processor), side)
            factor = side // max(picture.shape[:2])
            picture = picture.repeat(factor, axis=0).repeat(factor, axis=1)
            height, width = processed.shape[-2:]
            self.inputs.append(inputs)
            self.tiles.append(Tile(picture, (height / patch_height, width / patch_width)))

    def _look(self, vit: AdaptiveViTModel, step: int, dense_fraction: float) -> Frame:
        """What `vit` keeps of the images at a dense_fraction."""
        frame = Frame(step, [], [])
        with without_chance(vit):
            for inputs in self.inputs:
                inputs = {name: values.to(vit.device) for name, values in inputs.items()}
                with record_reductions(vit) as reductions:
                    outputs = vit(
                        **inputs, dense_fraction=dense_fraction, sample_selection=False, return_dict=True
                    )
                kept = outputs.selected_patches[0].cpu().numpy()
                kept = kept[kept >= 0]  # windows may reach beyond the image
                grid = tuple(outputs.spatial_shapes[0].tolist())
                mask = np.zeros(grid[0] * grid[1], dtype=bool)
                mask[kept] = True
                mask, tokens = mask.reshape(grid), len(kept)
                for stage in to_stages(reductions, kept, grid):
                    mask, tokens = stage.groups >= 0, stage.num_groups
                frame.masks.append(mask)
                frame.tokens.append(tokens)
        return frame

    def _write(self) -> None:
        if not self.frames:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        save_frames(self.masks_path, self.frames)
        shown = np.linspace(0, len(self.frames) - 1, min(len(self.frames), MAX_FRAMES)).round().astype(int)
        frames = [self.frames[index] for index in shown]
        write_animation(
            self.path, self.tiles, [frame.masks for frame in frames], [frame.caption for frame in frames]
        )


@contextmanager
def without_chance(vit: AdaptiveViTModel) -> Iterator[None]:
    """Puts a model into evaluation, without gradient, for a while; random numbers go on as if nothing had been."""
    modes = [(module, module.training) for module in vit.modules()]
    devices = [] if vit.device.type == "cpu" else [vit.device]
    device_type = vit.device.type if devices else "cuda"
    try:
        with torch.no_grad(), torch.random.fork_rng(devices, device_type=device_type):
            vit.eval()
            yield
    finally:
        for module, mode in modes:
            module.training = mode


def save_frames(path: Path, frames: Sequence[Frame]) -> None:
    """Writes frames of I images as compressed arrays: `step` `(F,)`, `tokens` `(F, I)`, `mask_<i>` `(F, R, S)`."""
    arrays = {
        f"mask_{index}": np.stack(masks)
        for index, masks in enumerate(zip(*[frame.masks for frame in frames], strict=True))
    }
    part = path.with_suffix(".part")
    with part.open("wb") as file:
        np.savez_compressed(
            file,
            step=np.array([frame.step for frame in frames]),
            tokens=np.array([frame.tokens for frame in frames]),
            **arrays,
        )
    # Renamed when complete, because a run can be killed at any moment.
    os.replace(part, path)


def load_frames(path: Path) -> list[Frame]:
    """What `save_frames` wrote."""
    with np.load(path) as arrays:
        steps, tokens = arrays["step"].tolist(), arrays["tokens"].tolist()
        masks = [arrays[f"mask_{index}"] for index in range(len(tokens[0]))]
    return [Frame(step, [mask[index] for mask in masks], tokens[index]) for index, step in enumerate(steps)]


def _encoder(model: nn.Module) -> AdaptiveViTModel:
    model = extract_model_from_parallel(model, keep_torch_compile=False)
    vit = getattr(model, getattr(model, "base_model_prefix", "vit"), model)
    if not hasattr(vit, "dense_fraction"):
        raise TypeError(
            f"CurriculumRecorder needs a model that selects patches; {type(model).__name__} does not. Take the callback "
            "away, or train an AdaptiveViT model."
        )
    return vit
