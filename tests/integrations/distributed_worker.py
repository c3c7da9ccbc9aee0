"""What each process does; `launch` of tests/integrations/test_distributed.py starts them."""

import json
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from vit_hf.model.options import type_of


def draws(fields: dict) -> bool:
    """Whether training draws at random, which it does differently in each process."""
    return bool(
        {"random", "policy", "perturbed", "gumbel"}
        & {type_of(fields.get(part)) for part in ("patch_selector", "token_reducer")}
    )


def compare_gradients(folder: Path) -> None:
    """DDP's gradients, and those of one process over the same images, for everything that selects or
    reduces."""
    from torch.nn.parallel import DistributedDataParallel

    from tests.helpers.models import SELECTIONS, tiny_config
    from vit_hf import AdaptiveViTForImageClassification

    dist.init_process_group("gloo")
    rank, size = dist.get_rank(), dist.get_world_size()
    torch.manual_seed(0)
    images, labels = torch.randn(4, 3, 64, 64), torch.tensor([0, 1, 2, 3])
    results = {}
    for name, fields in SELECTIONS.items():
        torch.manual_seed(1)
        model = AdaptiveViTForImageClassification(tiny_config(**fields)).train()
        alone = gradients(model, images, labels)
        model.zero_grad()
        # A parameter without a gradient in any step would be an error in the step after it.
        wrapped = DistributedDataParallel(model, find_unused_parameters=False)
        for _ in range(2):
            model.zero_grad()
            together = gradients(wrapped, images[rank::size], labels[rank::size])
        gathered = [torch.zeros_like(together) for _ in range(size)]
        dist.all_gather(gathered, together)
        results[name] = {
            "apart": (together - alone).abs().max().item() / alone.abs().max().item(),
            "between processes": max((other - together).abs().max().item() for other in gathered),
        }
    if rank == 0:
        (folder / "gradients.json").write_text(json.dumps(results))
    dist.destroy_process_group()


def gradients(model, images, labels) -> torch.Tensor:
    model(pixel_values=images, labels=labels).loss.backward()
    return torch.cat([value.grad.flatten() for value in model.parameters()]).clone()


def compare_sharded(folder: Path) -> None:
    """A step of training with FSDP2 as Accelerate and transformers shard, and the same step of one
    process."""
    from tests.helpers.models import SELECTIONS, tiny_config
    from vit_hf import POSITION_ENCODINGS, AdaptiveViTForImageClassification

    dist.init_process_group("gloo")
    rank, size = dist.get_rank(), dist.get_world_size()
    torch.manual_seed(0)
    images, labels = torch.randn(4, 3, 64, 64), torch.tensor([0, 1, 2, 3])
    cases = {name: fields for name, fields in SELECTIONS.items() if not draws(fields)}
    cases |= {
        f"variance {name}": {"patch_selector": "variance", "position_encoding": name}
        for name in POSITION_ENCODINGS
    }
    results = {}
    for name, fields in cases.items():
        torch.manual_seed(1)
        model = AdaptiveViTForImageClassification(tiny_config(**fields | {"thumbnail_context": True})).train()
        path = folder / name
        if rank == 0:
            model.save_pretrained(path)
        dist.barrier()
        step(model, images, labels)
        expected = model.state_dict()
        for way, shard in {"accelerate": by_accelerate, "transformers": by_transformers}.items():
            sharded = shard(AdaptiveViTForImageClassification, path).train()
            local = sum(value.to_local().numel() for value in sharded.parameters())
            step(sharded, images[rank::size], labels[rank::size])
            state = {key: value.full_tensor() for key, value in sharded.state_dict().items()}
            if rank == 0:
                assert state.keys() == expected.keys()
                results[f"{way} {name}"] = {
                    "apart": max((state[key] - expected[key]).abs().max().item() for key in expected),
                    "share held": local / model.num_parameters(),
                    "blocks sharded": sum(
                        type(layer).__name__.startswith("FSDP") for layer in sharded.vit.layers
                    ),
                }
    if rank == 0:
        (folder / "sharded.json").write_text(json.dumps(results))
    dist.destroy_process_group()


def by_accelerate(model_class, path: Path):
    """What `accelerate launch --use_fsdp --fsdp_version 2` does on accelerators; it ignores FSDP on CPUs."""
    from accelerate import Accelerator, FullyShardedDataParallelPlugin
    from accelerate.utils.fsdp_utils import fsdp2_prepare_model

    accelerator = Accelerator(cpu=True)
    accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2, auto_wrap_policy="transformer_based_wrap", cpu_ram_efficient_loading=False
    )
    return fsdp2_prepare_model(accelerator, model_class.from_pretrained(path))


def by_transformers(model_class, path: Path):
    return model_class.from_pretrained(path, distributed_config={"fsdp_size": dist.get_world_size()})


def step(model, images, labels) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(pixel_values=images, labels=labels).loss.backward()
    optimizer.step()


def train(folder: Path, batch_size: str, checkpoint: str = "") -> None:
    """Two epochs of four steps, four images a step, however many processes share them; or the rest of
    them."""
    from tests.helpers.models import tiny_config
    from tests.helpers.trainers import train as run
    from vit_hf import AdaptiveViTForImageClassification, KeepRateSchedule

    torch.manual_seed(0)
    config = tiny_config(patch_selector="distilled", num_selected_patches=4, initializer_range=0.05)
    model = AdaptiveViTForImageClassification(config)
    trainer = run(
        folder,
        model,
        [KeepRateSchedule()],
        resume=checkpoint or None,
        per_device_train_batch_size=int(batch_size),
        max_steps=8,
        save_strategy="steps",
        save_steps=3,
        # Gradients that are nothing but rounding, as those of the keys' biases, shall not be blown up.
        adam_epsilon=1e-3,
    )
    assert trainer.state.global_step == 8
    trainer.save_model(folder / "model")


def train_elastic(folder: Path) -> None:
    """Both ways of training an elastic classifier: without distillation no process may wait for what has
    no gradient."""
    from tests.helpers.models import tiny_config
    from tests.helpers.trainers import train as run
    from vit_hf import AdaptiveViTForElasticImageClassification

    for distils in (False, True):
        torch.manual_seed(0)
        config = tiny_config(
            elastic_space={"hidden_sizes": [16, 32], "depths": [1, 2, 3], "distillation": distils}
        )
        model = AdaptiveViTForElasticImageClassification(config)
        drawn = []
        sample = model.space.sample
        object.__setattr__(
            model.space,
            "sample",
            lambda generator, sample=sample, drawn=drawn: drawn.append(sample(generator)) or drawn[-1],
        )
        run(folder / str(distils), model, max_steps=4, ddp_find_unused_parameters=not distils)
        everyone = [None] * dist.get_world_size()
        state = {name: value.double().sum().item() for name, value in model.state_dict().items()}
        dist.all_gather_object(everyone, (drawn, state))
        assert len(set(drawn)) > 1 and len(drawn) == (8 if distils else 4)
        assert everyone[0] == everyone[1]


if __name__ == "__main__":
    globals()[sys.argv[1]](Path(sys.argv[2]), *sys.argv[3:])
    sys.stdout.flush()
    os._exit(0)
