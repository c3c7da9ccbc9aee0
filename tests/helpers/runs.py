"""Small folders of images, and runs on them."""

import datasets
import numpy as np
import PIL.Image
import pytest

from vit_hf.arguments import AugmentationArguments, DataArguments, FinetuningArguments, ModelArguments
from vit_hf.training.arguments import RunArguments
from vit_hf.training.classification import Classification
from vit_hf.training.task import prepare


CLASSES = ("bird", "cat", "train-station")


MODEL = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "hidden_dropout_prob": 0.1,
    "initializer_range": 0.2,
}


@pytest.fixture(scope="session", autouse=True)
def dataset_cache(tmp_path_factory):
    """`datasets` caches somewhere else than in the home directory, and without bars."""
    before = datasets.config.HF_DATASETS_CACHE
    datasets.config.HF_DATASETS_CACHE = tmp_path_factory.mktemp("datasets")
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()
    datasets.config.HF_DATASETS_CACHE = before


def write_images(folder, number: int, seed: int = 0, size: tuple[int, int] = (40, 48)) -> None:
    """`number` PNG files of noise, height and width `size`."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(seed)
    for index in range(number):
        pixels = generator.integers(0, 256, (*size, 3), dtype=np.uint8)
        PIL.Image.fromarray(pixels).save(folder / f"{index}.png")


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory):
    """Three classes of four images, one folder named like a split."""
    root = tmp_path_factory.mktemp("images")
    for index, name in enumerate(CLASSES):
        write_images(root / name, 4, seed=index)
    return root


@pytest.fixture
def make_run(image_folder, tmp_path):
    """A function of `output_dir` and arguments (flat, as on the command line) to a prepared run."""

    def make(output_dir="run", dataset=image_folder, **arguments):
        values = {
            "config_overrides": MODEL,
            "patch_selector": "variance",
            "num_selected_patches": 2,
            "image_size": 32,
            "dataset": str(dataset),
            "validation_fraction": 0.3,
            "output_dir": str(tmp_path / output_dir),
            "num_train_epochs": 2,
            "per_device_train_batch_size": 2,
            "learning_rate": 1e-2,
            "logging_steps": 1,
            "disable_tqdm": True,
            "use_cpu": True,
            **arguments,
        }
        groups = []
        for group in (
            ModelArguments,
            DataArguments,
            AugmentationArguments,
            FinetuningArguments,
            RunArguments,
        ):
            names = group.__dataclass_fields__.keys() & values.keys()
            groups.append(group(**{name: values.pop(name) for name in names}))
        assert not values
        *arguments, training = groups
        return prepare(Classification(*arguments), training)

    return make


def voc(folder, name, objects, size=(48, 40), image=None):
    """An image and its XML file; objects are (name, left, top, right, bottom)."""
    folder.mkdir(parents=True, exist_ok=True)
    parts = "".join(
        f"<object><name>{label}</name><bndbox><xmin>{x0}</xmin><ymin>{y0}</ymin><xmax>{x1}</xmax><ymax>{y1}</ymax>"
        "</bndbox></object>"
        for label, x0, y0, x1, y1 in objects
    )
    (folder / f"{name}.xml").write_text(
        f"<annotation><filename>{image or f'{name}.png'}</filename>{parts}</annotation>"
    )
    PIL.Image.new("RGB", size, (90, 120, 90)).save(folder / f"{name}.png")
