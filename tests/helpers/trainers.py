"""Models trained by a plain `Trainer`."""

import torch
from safetensors.torch import load_file
from transformers import Trainer, TrainerCallback, TrainingArguments

from tests.helpers.models import tiny_config
from vit_hf import AdaptiveViTForImageClassification
from vit_hf.training.callbacks import KeepRateSchedule, LogSelectionLoss, NonFiniteGuard


class Images(torch.utils.data.Dataset):
    """Images of a bright square, whose class is the column it lies in."""

    def __len__(self):
        return 16

    def __getitem__(self, index):
        image = torch.zeros(3, 40, 40)
        generator = torch.Generator().manual_seed(index)
        row = int(torch.randint(5, (), generator=generator))
        column = index % 5
        image[:, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8] = torch.randn(
            3, 8, 8, generator=generator
        )
        return {"pixel_values": image, "labels": column}


def train(tmp_path, model=None, callbacks=(), resume=None, **arguments) -> Trainer:
    torch.manual_seed(0)
    if model is None:
        config = tiny_config(patch_selector="variance", num_selected_patches=4, initializer_range=0.02)
        model = AdaptiveViTForImageClassification(config)
    defaults = {
        "max_steps": 3,
        "learning_rate": 1e-2,
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "save_strategy": "no",
    }
    args = TrainingArguments(
        output_dir=str(tmp_path), dataloader_pin_memory=False, **{**defaults, **arguments}
    )
    trainer = Trainer(model, args, train_dataset=Images(), eval_dataset=Images(), callbacks=list(callbacks))
    trainer.train(resume_from_checkpoint=resume)
    return trainer


class Interrupt(TrainerCallback):
    """Ends the process, as far as a test can, after a number of steps."""

    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise KeyboardInterrupt


def assert_same_weights(left, right):
    left, right = load_file(left / "model.safetensors"), load_file(right / "model.safetensors")
    assert left.keys() == right.keys()
    assert [name for name in left if not torch.equal(left[name], right[name])] == []


REDUCTION = {"keep_rate": 0.6, "reduction_layers": [0, 1]}
FAMILIES = {
    **{
        name: {"patch_selector": name}
        for name in ("variance", "attention", "distilled", "policy", "perturbed", "cross_attention")
    },
    **{name: {"token_reducer": name, **REDUCTION} for name in ("attentive", "merge", "gumbel", "sample")},
    "policy_and_gumbel": {
        "patch_selector": "policy",
        "thumbnail_context": True,
        "token_reducer": "gumbel",
        **REDUCTION,
    },
}


def make_trainer(folder, fields, callbacks=(), **arguments) -> Trainer:
    torch.manual_seed(0)
    model = AdaptiveViTForImageClassification(tiny_config(**fields, initializer_range=0.1))
    args = TrainingArguments(
        output_dir=str(folder),
        **{
            "max_steps": 8,
            "per_device_train_batch_size": 4,
            "learning_rate": 1e-3,
            "logging_steps": 1,
            "save_strategy": "no",
            "report_to": "none",
            "disable_tqdm": True,
            "use_cpu": True,
            "dataloader_pin_memory": False,
            **arguments,
        },
    )
    schedule = [KeepRateSchedule()] if fields else []
    callbacks = [*schedule, NonFiniteGuard(), LogSelectionLoss(), *callbacks]
    return Trainer(model, args, train_dataset=Images(), eval_dataset=Images(), callbacks=callbacks)


def weights(model):
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
