"""Masked image modelling with plain Trainer: masked patches are filled in from those that are seen."""

import torch
from transformers import AutoModelForMaskedImageModeling, Trainer, TrainingArguments

from tests.helpers.models import tiny_config
from vit_hf import AdaptiveViTForMaskedImageModeling


class Stripes(torch.utils.data.Dataset):
    """Images of one grey each, a part of whose patches is masked: any patch that is seen tells what is
    hidden."""

    def __len__(self):
        return 64

    def __getitem__(self, index):
        generator = torch.Generator().manual_seed(index)
        grey = torch.rand((), generator=generator) * 2 - 1
        masked = torch.rand(16, generator=generator) < 0.5
        return {"pixel_values": grey.expand(3, 32, 32), "bool_masked_pos": masked}


def test_fills_in_what_is_masked(tmp_path):
    model = AdaptiveViTForMaskedImageModeling(tiny_config(initializer_range=0.05))
    args = TrainingArguments(
        str(tmp_path / "run"),
        max_steps=120,
        learning_rate=5e-3,
        per_device_train_batch_size=16,
        remove_unused_columns=False,
        save_strategy="no",
        use_cpu=True,
        disable_tqdm=True,
    )
    trainer = Trainer(model, args, train_dataset=Stripes())
    trainer.train()
    trainer.save_model(tmp_path / "model")
    again = AutoModelForMaskedImageModeling.from_pretrained(tmp_path / "model")
    items = [Stripes()[index] for index in range(8)]
    images = torch.stack([item["pixel_values"] for item in items])
    masks = torch.stack([item["bool_masked_pos"] for item in items])
    # What stands under the mask is replaced before the model sees it.
    hidden = images.masked_fill(
        masks.view(8, 1, 4, 1, 4, 1).expand(8, 3, 4, 8, 4, 8).reshape(images.shape), 9.0
    )
    with torch.no_grad():
        filled = again(hidden, bool_masked_pos=masks).reconstruction
    error = (filled - images).abs().mean().item()
    spread = (images - images.mean()).abs().mean().item()
    assert error < 0.3 * spread
