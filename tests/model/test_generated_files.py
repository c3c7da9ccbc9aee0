"""Generated files of checkpoints run as the package does: one process without it loads one of every kind."""

import json
import re
from pathlib import Path

import pytest
import torch

import vit_hf
from tests.helpers.models import SELECTIONS, SWINS, tiny_config, tiny_swin_config
from tests.helpers.remote_code import run_elsewhere
from vit_hf import POSITION_ENCODINGS, AdaptiveViTImageProcessor
from vit_hf.hub.remote_code import generate, generated_file
from vit_hf.model.positions import VOLUME_ENCODINGS
from vit_hf.model.selectors import VOLUME_SELECTORS


VIDEO = {"num_frames": 4, "patch_selector": None}
CLASSIFIER = "AdaptiveViTForImageClassification"
VIDEOS = "AdaptiveViTForVideoClassification"
# Name of the class and fields of its configuration, by a name for the checkpoint.
KINDS = {
    **{f"position_{name}": (CLASSIFIER, {"position_encoding": name}) for name in POSITION_ENCODINGS},
    **{f"selection_{name}": (CLASSIFIER, fields) for name, fields in SELECTIONS.items()},
    **{f"video_{name}": (VIDEOS, {**VIDEO, "position_encoding": name}) for name in VOLUME_ENCODINGS},
    **{f"video_{name}": (VIDEOS, {**VIDEO, "patch_selector": name}) for name in VOLUME_SELECTORS},
    "base": ("AdaptiveViTModel", {}),
    "backbone": ("AdaptiveViTBackbone", {}),
    "masked_images": ("AdaptiveViTForMaskedImageModeling", {}),
    "pretraining": ("AdaptiveViTForPreTraining", {}),
    "segmentation": ("AdaptiveViTForSemanticSegmentation", {"segmentation_decoder": "convolutional"}),
    "convolutional": (CLASSIFIER, {"patch_embedding": "convolutional"}),
    "elastic": ("AdaptiveViTForElasticImageClassification", {"elastic_space": {"depths": [2, 3]}}),
    **{name: ("AdaptiveSwinForImageClassification", fields) for name, fields in SWINS.items()},
    "swin_backbone": ("AdaptiveSwinBackbone", {}),
}


def make(kind):
    name, fields = KINDS[kind]
    fields = dict(fields)
    if "num_selected_windows" in fields or name.startswith("AdaptiveSwin"):
        return getattr(vit_hf, name)(tiny_swin_config(**fields)).eval()
    return getattr(vit_hf, name)(tiny_config(**fields)).eval()


SCRIPT = """
import json, sys
from pathlib import Path
import torch
from transformers.dynamic_module_utils import get_class_from_dynamic_module

folder = Path({folder!r})
kinds = torch.load(folder / "expected.pt")
classes = {{}}
for kind, (name, inputs, expected) in kinds.items():
    config = json.loads((folder / kind / "config.json").read_text())
    file = config["auto_map"]["AutoConfig"].partition(".")[0]
    text = (folder / kind / f"{{file}}.py").read_bytes()
    cls = classes.get((name, text))
    if cls is None:
        source = next((known.source for (_, other), known in classes.items() if other == text), folder / kind)
        cls = classes[name, text] = get_class_from_dynamic_module(f"{{file}}.{{name}}", source)
        cls.source = source
    model = cls.from_pretrained(folder / kind).eval()
    assert type(model).__module__.startswith("transformers_modules."), kind
    torch.manual_seed(0)
    with torch.no_grad():
        outputs = model(inputs, return_dict=True)
    for key, value in expected.items():
        assert torch.equal(outputs[key], value), (kind, key)
    if kind in ("base", "elastic", "swin"):
        model.save_pretrained(folder / "again" / kind)
        assert [path.name for path in (folder / "again" / kind).glob("*.py")] == [f"{{file}}.py"]
        assert (folder / "again" / kind / f"{{file}}.py").read_bytes() == text
        assert json.loads((folder / "again" / kind / "config.json").read_text()) == config
print(len(kinds), "equal")
assert "vit_hf" not in sys.modules
"""


def test_every_kind_runs_as_the_package_does(tmp_path):
    expected, texts = {}, {}
    for kind in KINDS:
        model = make(kind)
        model.save_pretrained(tmp_path / kind)
        [file] = (tmp_path / kind).glob("*.py")
        texts.setdefault(file.read_bytes(), []).append(kind)
        inputs = torch.randn(2, 4, 3, 32, 32) if kind.startswith("video_") else torch.randn(2, 3, 32, 32)
        torch.manual_seed(0)
        with torch.no_grad():
            outputs = model(inputs, return_dict=True)
        tensors = {key: value for key, value in outputs.items() if isinstance(value, torch.Tensor)}
        expected[kind] = (type(model).__name__, inputs, tensors)
    assert sorted(len(kinds) for kinds in texts.values())[:-2] == [1], (
        "others than elastic ones have a file for each kind"
    )
    torch.save(expected, tmp_path / "expected.pt")
    out = run_elsewhere(SCRIPT.format(folder=str(tmp_path)), tmp_path)
    assert out.split() == [str(len(KINDS)), "equal"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("saved")
    make("base").save_pretrained(path)
    AdaptiveViTImageProcessor().save_pretrained(path)
    return path


def test_checkpoint_has_two_files_and_every_class_that_it_names(folder):
    files = {path.stem: path.read_text() for path in folder.glob("*.py")}
    assert files.keys() == {"modeling_adaptive_vit", "image_processing_adaptive_vit"}
    references = json.loads((folder / "config.json").read_text())["auto_map"]
    backends = references.pop("AutoImageProcessor")
    assert len(references) == 8 and len(backends) == 2
    for reference in [*references.values(), *backends.values()]:
        file, name = reference.split(".")
        assert f"\nclass {name}(" in files[file]
    assert len(files["modeling_adaptive_vit"].splitlines()) < 9000


def test_header_is_the_same_on_every_machine(folder):
    for path in folder.glob("*.py"):
        text = path.read_text()
        header = text.partition('\n"""\n')[0]
        assert "do not edit" in header and "trust_remote_code=True" in header and "AdaptiveViT" in header
        assert not re.search(r"20\d\d-|\d\d:\d\d", header)
        assert str(Path(vit_hf.__file__).parent) not in text and str(folder) not in text
        contents = header.partition("Contents, by line:\n")[2].splitlines()
        lines = text.splitlines()
        for number, entry in enumerate(contents, 1):
            line, file = entry.split()[:2]
            assert lines[int(line) - 1].startswith(f"# ==== {number}. {file} =")


def test_code_of_training_and_saving_stays_in_the_package(folder):
    text = (folder / "modeling_adaptive_vit.py").read_text()
    for word in ("import ast", "ElasticClassifier", "GeneratedFiles", "eval(", "exec("):
        assert not re.search(rf"(?<![.\w]){re.escape(word)}", text), word


def test_configuration_alone_carries_the_same_file(folder, tmp_path):
    tiny_config().save_pretrained(tmp_path)
    name = "modeling_adaptive_vit.py"
    assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()
    auto_maps = [json.loads((path / "config.json").read_text())["auto_map"] for path in (tmp_path, folder)]
    assert auto_maps[0] == auto_maps[1]


def test_no_service_is_asked_to_convert_pickles(tmp_path):
    """transformers does that for classes that are no remote code, also of models that were saved."""
    model = make("base")
    model.save_pretrained(tmp_path)
    assert type(model).is_remote_code() and type(model).is_custom_code()


def test_elastic_classifiers_carry_what_is_elastic(tmp_path):
    model = make("elastic")
    model.save_pretrained(tmp_path)
    reference = "modeling_adaptive_vit.AdaptiveViTForElasticImageClassification"
    assert model.config.auto_map["AutoModelForImageClassification"] == reference
    assert (tmp_path / "modeling_adaptive_vit.py").read_text() == generate(*generated_file(model))
