"""The Python of README.md, CONTRIBUTING.md and docs/ runs, on small models and images under the names that it
uses; commands there have the flags that they are given; error messages that are quoted exist."""

import ast
import configparser
import re
import runpy
import shlex
import sys
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from datasets import Dataset
from transformers import (
    SwinConfig,
    SwinForImageClassification,
    Trainer,
    TrainingArguments,
    VideoMAEConfig,
    VideoMAEForVideoClassification,
    VideoMAEVideoProcessor,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
)

import vit_hf
import vit_hf.cli
from tests.helpers.dense import detr, segformer
from tests.helpers.rasters import write_geotiff
from vit_hf import (
    POSITION_ENCODINGS,
    AdaptiveViTConfig,
    AdaptiveViTForImageClassification,
    AdaptiveViTImageProcessor,
    AdaptiveViTModel,
)
from vit_hf.cli.parsing import config_names
from vit_hf.data.measurement_images import write_tiff
from vit_hf.model import positions


ROOT = Path(__file__).parents[1]
# Twelve blocks, as reducers and backbones there are given the numbers of a ViT-B.
SMALL = {"hidden_size": 24, "num_attention_heads": 2, "intermediate_size": 24, "num_hidden_layers": 12}
SMALL |= {"image_size": 96, "num_labels": 3}
# Another test sends these to a server.
TESTED_APART = "## Share it"
PAGES = ["README.md", *sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").rglob("*.md"))]


def blocks_of(name: str, language: str) -> list[str]:
    text = (ROOT / name).read_text()
    before, heading, rest = text.partition(TESTED_APART)
    rest = rest.partition("\n## ")[2] if heading else ""
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", before + rest, re.DOTALL | re.MULTILINE)
    return [block for fence, block in blocks if fence == language]


def is_slow(code: str) -> bool:
    return "OnnxExporter" in code


PYTHON = [
    pytest.param(name, code, id=f"{name}-{number}", marks=[pytest.mark.slow] * is_slow(code))
    for name in PAGES
    for number, code in enumerate(blocks_of(name, "python"))
]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """One that transformers could have written."""
    folder = tmp_path_factory.mktemp("vit")
    torch.manual_seed(0)
    ViTForImageClassification(ViTConfig(**SMALL)).save_pretrained(folder)
    ViTImageProcessor(size={"height": 96, "width": 96}).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def swin_checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("swin")
    config = SwinConfig(embed_dim=8, depths=[1, 2], num_heads=[1, 2], window_size=4, image_size=96)
    SwinForImageClassification(config).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def video_checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videomae")
    fields = {name: value for name, value in SMALL.items() if name != "num_hidden_layers"}
    VideoMAEForVideoClassification(VideoMAEConfig(**fields, num_hidden_layers=2)).save_pretrained(folder)
    VideoMAEVideoProcessor(size={"height": 96, "width": 96}, do_center_crop=False).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def dense_checkpoints(tmp_path_factory):
    """A segmentation model and a detector, by the names that the guides use."""
    folders = {}
    for name, build in {"nvidia/segformer": segformer, "facebook/detr": detr}.items():
        folders[name] = str(tmp_path_factory.mktemp("dense"))
        for saved in build():
            saved.save_pretrained(folders[name])
    return folders


@pytest.fixture
def names(checkpoint, tmp_path, monkeypatch):
    """What stands before a piece of code in a reader's mind, in a folder with the files that it names."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    noise = np.random.default_rng(0)
    for name, side in {"large.jpg": 512, "small.png": 64, "scan.png": 300}.items():
        PIL.Image.fromarray(noise.integers(0, 255, (side, side, 3), np.uint8)).save(name)
    for name in ("slide.tif", "other.tif"):
        write_tiff(Path(name), 512)
    pixels = noise.integers(0, 255, (100, 150, 3), np.uint8)
    write_geotiff(Path("scene.tif"), pixels, (0.5, 0.0, 4e5, 0.0, -0.5, 5.5e6))
    fields = {"patch_selector": "variance", "num_selected_patches": 20}
    model = AdaptiveViTForImageClassification.from_pretrained(checkpoint, **fields)
    processor = AdaptiveViTImageProcessor.from_pretrained(checkpoint, do_resize=False)
    for saved in (model, processor):
        saved.save_pretrained("runs/photos")
    images = [PIL.Image.open("large.jpg")] * 2
    return {
        **{name: getattr(vit_hf, name) for name in vit_hf.__all__},
        "torch": torch,
        "Image": PIL.Image,
        "Trainer": Trainer,
        "args": TrainingArguments("runs/trainer", remove_unused_columns=False, dataloader_pin_memory=False),
        "model": model,
        "processor": processor,
        "name": checkpoint,
        "pixel_values": torch.randn(2, 3, 96, 96),
        "video": torch.randint(0, 256, (16, 3, 120, 140), dtype=torch.uint8),
        "labels": torch.tensor([0, 1]),
        "rows": [{"image": "slide.tif", "label": 1}],
        "dataset": Dataset.from_dict({"image": images, "label": [0, 1]}),
    }


@pytest.mark.parametrize("page, code", PYTHON)
def test_python_of_pages(page, code, names, checkpoint, swin_checkpoint, video_checkpoint, dense_checkpoints):
    code = re.sub(r'"google/vit-[^"]*"', repr(checkpoint), code)
    code = re.sub(r'"microsoft/swin-[^"]*"', repr(swin_checkpoint), code)
    code = re.sub(r'"MCG-NJU/[^"]*"', repr(video_checkpoint), code)
    for name, folder in dense_checkpoints.items():
        code = re.sub(rf'"{name}-[^"]*"', repr(folder), code)
    code = code.replace("1024, 1024", "96, 96").replace("halo=32", "halo=8")
    # Small images have fewer patches.
    code = re.sub(r"\b(392|196|98)\b", "20", code)
    code = code.replace("num_selected_patches=1000", "num_selected_patches=100")
    if file := re.match(r"# (my_\w+\.py)\n", code):
        Path(file[1]).write_text(code)
    exec(compile(code, page, "exec"), names)
    if file:
        AdaptiveViTModel(AdaptiveViTConfig(**SMALL, position_encoding="my_positions.Rings"))(
            names["pixel_values"]
        )
    if "trainer" in names:
        names["trainer"].train()


def test_contributing(monkeypatch):
    (code,) = blocks_of("CONTRIBUTING.md", "python")
    names = dict(vars(positions))  # where it says that this goes
    exec(compile(code.replace("{...,", "{**POSITION_ENCODINGS,"), "CONTRIBUTING.md", "exec"), names)
    (new,) = names["POSITION_ENCODINGS"].keys() - POSITION_ENCODINGS.keys()
    monkeypatch.setitem(POSITION_ENCODINGS, new, names["POSITION_ENCODINGS"][new])
    pixels = torch.randn(2, 3, 96, 96)
    fields = SMALL | {"initializer_range": 0.2, "patch_selector": "variance", "num_selected_patches": 20}
    model = AdaptiveViTModel(AdaptiveViTConfig(**fields, position_encoding=new)).eval()
    nowhere = AdaptiveViTModel(AdaptiveViTConfig(**fields, position_encoding="none")).eval()
    nowhere.load_state_dict(model.state_dict())
    difference = model(pixels).last_hidden_state - nowhere(pixels).last_hidden_state
    assert difference.abs().max() > 0.01


HOOKS = runpy.run_path(str(ROOT / "docs" / "hooks.py"))
COMMANDS = {name for commands in vit_hf.cli.COMMANDS.values() for name in commands}


def commands_of(page: str) -> list[str]:
    """Commands of a page, a line each, without comments."""
    blocks = "".join(blocks_of(page, "")).replace("\\\n", " ")
    blocks = re.sub(r"'[^']*'", lambda quoted: quoted[0].replace("\n", " "), blocks)
    return [line for line in re.sub(r"(^|\s)#.*", "", blocks).splitlines() if line.strip()]


def check_vit_hf(words: list[str]) -> None:
    """Checks name and flags of a command of `vit-hf`."""
    command, *arguments = words
    if command == "--help":
        return
    assert command in COMMANDS, command
    if command == "configs":
        assert {word for word in arguments if word != "--path"} <= set(config_names()), arguments
    flags = {option for action in HOOKS["parser_of"](command)._actions for option in action.option_strings}
    for flag, value in zip(arguments, [*arguments[1:], ""], strict=True):
        if flag == "--config":
            assert value in config_names(), value
        elif flag.startswith("--"):
            assert flag in flags | {"--help", "--help-all"}, f"{command} {flag}"


@pytest.mark.parametrize("page", [*PAGES, "CONTRIBUTING.md"])
def test_commands_of_pages_exist(page):
    setup = configparser.RawConfigParser()
    setup.read(ROOT / "setup.cfg")
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for line in commands_of(page):
        words = shlex.split(line)
        if words[0] == "make":
            assert words[1] in targets, line
        elif words[0] == "pip":
            extras = re.findall(r"\[([\w,]+)\]", line)
            assert set(",".join(extras).split(",")) - {""} <= set(setup["options.extras_require"]), line
        elif words[0] == "python":
            assert (ROOT / words[1]).is_file(), line
        elif words[0] == "vit-hf":
            check_vit_hf(words[1:])
        elif words[0] in ("torchrun", "accelerate"):
            check_vit_hf(words[words.index("vit_hf") + 1 :])
            for inner in re.findall(r"\$\(vit-hf (.*?)\)", line):
                check_vit_hf(shlex.split(inner))
        else:
            assert words[0] == "hf", line


def test_readme_renders_on_a_package_index():
    text = (ROOT / "README.md").read_text()
    links = re.findall(r"\]\((.*?)\)", re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE))
    assert links
    assert all(link.startswith("https://") for link in links)
    assert len(text.splitlines()) <= 150


def literal(node: ast.AST) -> str:
    """Text of a string with … for what is filled in."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(literal(value) if isinstance(value, ast.Constant) else "…" for value in node.values)
    return "…"


def test_quoted_errors_exist():
    nodes = (
        node for path in (ROOT / "vit_hf").rglob("*.py") for node in ast.walk(ast.parse(path.read_text()))
    )
    known = {literal(node) for node in nodes if isinstance(node, ast.JoinedStr | ast.Constant)}
    quoted = re.findall(r"^### (.*)$", (ROOT / "docs/guides/questions.md").read_text(), re.MULTILINE)
    assert quoted
    for heading in quoted:
        wanted = re.compile(".*".join(map(re.escape, heading.split("…"))), re.DOTALL)
        assert any(wanted.search(message) for message in known), heading


def test_reference_refuses_what_is_undocumented():
    class Documented:
        """Has a docstring."""

        def method(self): ...

    Documented.method.__module__ = "vit_hf.model"
    assert list(HOOKS["undocumented"]("Documented", Documented)) == ["Documented.method"]
    assert list(HOOKS["undocumented"]("function", lambda: None)) == ["function"]
    docstring = """Text.

    Args:
        one, two,
            three (list of `int`, defaults to [1]): several, of
            two lines.
        four: the last.

    Returns:
        five: no argument.
    """
    meanings = dict.fromkeys(("one", "two", "three"), "several, of two lines.") | {"four": "the last."}
    assert HOOKS["argument_meanings"](docstring) == meanings
