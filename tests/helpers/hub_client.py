"""What `test_hub.py` runs in a process whose Hub is on this machine."""

import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch

from tests.helpers.models import tiny_config, tiny_swin_config


def environment(url: str, home: Path) -> dict[str, str]:
    return {
        "HF_ENDPOINT": url,
        "HF_HOME": str(home),
        "TMPDIR": str(home),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }


def make(seed: int = 0, **fields: Any) -> tuple[Any, Any]:
    """A model and its image processor; a Swin if it selects windows."""
    from vit_hf import (
        AdaptiveSwinForImageClassification,
        AdaptiveViTForImageClassification,
        AdaptiveViTImageProcessor,
    )

    torch.manual_seed(seed)
    if "num_selected_windows" in fields:
        model = AdaptiveSwinForImageClassification(tiny_swin_config(**fields)).eval()
    else:
        model = AdaptiveViTForImageClassification(tiny_config(**fields)).eval()
    return model, AdaptiveViTImageProcessor(size={"height": 32, "width": 32}, patch_size=8)


def picture(seed: int = 0) -> PIL.Image.Image:
    return PIL.Image.fromarray(np.random.default_rng(seed).integers(0, 256, (40, 50, 3), dtype=np.uint8))


@torch.no_grad()
def answer(model, image_processor) -> list[float]:
    return model(**image_processor(picture(), return_tensors="pt")).logits[0].tolist()


def logits_of(**how: Any) -> list[float]:
    return answer(*make(**how))


def push(
    repo_id: str,
    seed: int = 0,
    examples: int = 0,
    fields: dict | None = None,
    path: Path | None = None,
    **options: Any,
) -> dict[str, Any]:
    """What came of pushing a model, and its logits; `path` has classes of its own."""
    import vit_hf

    if path is not None:
        sys.path.insert(0, str(path))
    model, image_processor = make(seed, **fields or {})
    pictures = [picture(seed) for seed in range(examples)]
    try:
        info = vit_hf.push_to_hub(model, image_processor, repo_id, examples=pictures, **options)
    except (OSError, ValueError) as error:
        return {"type": type(error).__name__, "error": str(error), "notes": "\n".join(error.__notes__)}
    return {"oid": info.oid, "logits": answer(model, image_processor)}


def load(repo_id: str, **options: Any) -> dict[str, Any]:
    from transformers import AutoImageProcessor, AutoModelForImageClassification

    try:
        model = AutoModelForImageClassification.from_pretrained(repo_id, **options)
        image_processor = AutoImageProcessor.from_pretrained(repo_id, **options)
    except (OSError, ValueError) as error:
        return {"error": str(error)}
    return {"logits": answer(model, image_processor)}


def run_command(command: str) -> str:
    """A command that was printed for the user, with the programs of this environment."""
    program, *words = shlex.split(command)
    line = [str(Path(sys.executable).with_name(program)), *words]
    return subprocess.run(line, check=True, capture_output=True, text=True, env=os.environ).stdout


def train(repo_id: str, folder: Path, token: str, examples: int = 0, **options: Any) -> dict[str, Any]:
    """A run of Trainer that pushes; its logits."""
    from transformers import TrainingArguments

    from vit_hf.training.hub_trainer import HubTrainer

    model, image_processor = make(position_encoding="rotary")
    rows = [
        {"pixel_values": image_processor(picture(seed))["pixel_values"][0], "labels": seed % 5}
        for seed in range(8)
    ]
    arguments = TrainingArguments(
        str(folder),
        push_to_hub=True,
        hub_model_id=repo_id,
        hub_token=token,
        max_steps=2,
        eval_strategy="steps",
        eval_steps=1,
        use_cpu=True,
        disable_tqdm=True,
        **options,
    )
    trainer = HubTrainer(
        model,
        arguments,
        train_dataset=rows,
        eval_dataset=rows,
        processing_class=image_processor,
        compute_metrics=lambda _: {"accuracy": 0.5},
        card={"dataset": "birds", "license": "mit", "examples": [picture(n) for n in range(examples)]},
    )
    trainer.train()
    try:
        trainer.push_to_hub()
    except OSError as error:
        return {"error": str(error), "notes": "\n".join(error.__notes__)}
    return {"logits": answer(model.eval(), image_processor)}


def run_script(folder: Path, *words: str, token: str | None = None) -> dict[str, Any]:
    """Output and exit status of `vit-hf push`."""
    environment = os.environ | ({"HF_TOKEN": token} if token else {})
    script = str(Path(__file__).parents[2] / "scripts" / "push_to_hub.py")
    result = subprocess.run(
        [sys.executable, script, str(folder), *words], capture_output=True, text=True, env=environment
    )
    return {"out": result.stdout + result.stderr, "code": result.returncode}


def save(folder: Path, seed: int = 0) -> dict[str, Any]:
    model, image_processor = make(seed, patch_selector="attention")
    model.save_pretrained(folder)
    image_processor.save_pretrained(folder)
    return {"logits": answer(model, image_processor)}


def run_readme(code: list[str], folder: Path) -> str:
    """Runs pieces of the guide to the Hub one after the other; the last answer."""
    os.chdir(folder)
    picture().save("large.jpg")
    model, image_processor = make()
    names = {"model": model, "processor": image_processor, "name": "google/base"}
    for piece in code:
        exec(piece, names)
    return names["classify"]("large.jpg")[0]["label"]
