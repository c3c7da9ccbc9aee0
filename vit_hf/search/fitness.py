"""How good a model is on a split, quickly: the images are prepared once where memory allows."""

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset
from transformers import EvalPrediction


# Prepared images are kept up to so many bytes.
KEPT_BYTES = 2 * 2**30


class PreparedSplit:
    """Batches of a split, on a device.

    Args:
        examples: as a collator takes them.
        collate: makes a batch of a list of them, with "labels".
        batch_size: of a forward pass.
        num_workers: processes that prepare images.
        device: where the model is.
    """

    def __init__(
        self,
        examples: Dataset,
        collate: Callable[[list], dict[str, torch.Tensor]],
        batch_size: int,
        num_workers: int,
        device: torch.device,
    ):
        self.loader = DataLoader(examples, batch_size, collate_fn=collate, num_workers=num_workers)
        self.device = device
        self.kept: list[dict[str, torch.Tensor]] = []
        self.is_complete = False

    def batches(self) -> Iterator[dict[str, torch.Tensor]]:
        if self.is_complete:
            yield from self.kept
            return
        kept, size = [], 0
        for batch in self.loader:
            on_device = {name: values.to(self.device) for name, values in batch.items()}
            size += sum(values.nbytes for values in batch.values())
            if size <= KEPT_BYTES:
                kept.append(on_device)
            yield on_device
        if size <= KEPT_BYTES:
            self.kept, self.is_complete = kept, True

    def one_image(self) -> dict[str, torch.Tensor]:
        """The inputs of one image."""
        batch = next(iter(self.batches()))
        return {name: values[:1] for name, values in batch.items() if name != "labels"}

    @torch.no_grad()
    def evaluate(
        self, model: torch.nn.Module, compute_metrics: Callable[[EvalPrediction], dict[str, float]]
    ) -> dict[str, float]:
        """Metrics of a model in evaluation mode."""
        logits, labels = [], []
        for batch in self.batches():
            inputs = {name: values for name, values in batch.items() if name != "labels"}
            logits.append(model(**inputs).logits.float().cpu().numpy())
            labels.append(batch["labels"].cpu().numpy())
        return compute_metrics(EvalPrediction(np.concatenate(logits), np.concatenate(labels)))
