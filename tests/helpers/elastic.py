"""Small elastic networks."""

import torch

from tests.helpers.models import tiny_config
from vit_hf import AdaptiveViTForElasticImageClassification


def supernet(**fields) -> AdaptiveViTForElasticImageClassification:
    """A tiny one; `elastic_space` overrides its choices one by one."""
    space = {**ELASTIC, **fields.pop("elastic_space", {})}
    if fields.get("token_reducer") == "gumbel":
        space["hidden_sizes"] = None
    return AdaptiveViTForElasticImageClassification(tiny_config(**fields, elastic_space=space))


def batch() -> dict[str, torch.Tensor]:
    return {"pixel_values": torch.randn(2, 3, 40, 32), "labels": torch.tensor([0, 3])}


ELASTIC = {
    "hidden_sizes": [16, 24, 32],
    "depths": [2, 3],
    "num_attention_heads": [1, 2, 4],
    "mlp_ratios": [0.5, 1.5, 2],
}
