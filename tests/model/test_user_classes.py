"""A user's own encoding, selector and reducer: used, saved, and loaded elsewhere."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, AutoModel
from transformers.utils import PushToHubMixin

from tests.helpers.models import tiny_config
from tests.helpers.remote_code import run_elsewhere
from vit_hf import (
    PATCH_SELECTORS,
    POSITION_ENCODINGS,
    TOKEN_REDUCERS,
    AdaptiveViTForImageClassification,
    AdaptiveViTImageProcessor,
    AdaptiveViTModel,
    PositionEncoding,
    push_to_hub,
    register_patch_selector,
    register_position_encoding,
)
from vit_hf.hub.code_bundle import reachable_modules
from vit_hf.hub.remote_code import NoSourceFileError, RemoteCodeError, generated_file, rewrite_imports


POSITIONS = """
from dataclasses import dataclass

import torch
from torch import nn
from transformers import initialization as init

from vit_hf import PatchTokens, PositionEncoding, register_position_encoding

from .ring_distance import distance_to_centre


@register_position_encoding("rings")
class Rings(PositionEncoding):
    '''Says how far from the centre of the image a patch is.'''

    @dataclass
    class Options:
        power: float = 1.0

        def __post_init__(self):
            if self.power <= 0:
                raise ValueError(f"power={self.power} must be above 0.")

    def __init__(self, config):
        super().__init__(config)
        self.weight = nn.Parameter(torch.empty(config.hidden_size))
        self.power = self.options.power

    @classmethod
    def check(cls, config, options):
        if config.hidden_size < options.power:
            raise ValueError(f"power={options.power} is above hidden_size={config.hidden_size}.")

    def add(self, tokens: PatchTokens) -> PatchTokens:
        distance = distance_to_centre(tokens.coordinates, tokens.grid) ** self.power
        return tokens.with_features(tokens.features + distance.unsqueeze(-1) * self.weight)

    def reset_parameters(self, std: float) -> None:
        init.constant_(self.weight, 0.5)
"""
DISTANCE = """
def distance_to_centre(coordinates, grid):
    return (coordinates - (grid.unsqueeze(1) - 1) / 2).norm(dim=-1)
"""

SELECTORS = """
from selector_parts import brightness
from vit_hf.model.selection import PatchSelector; from math import pi
from vit_hf import (
    Reduction as Result,
    TokenReducer,
)


class Brightest(PatchSelector):
    def score(self, patches, num_selected, probe):
        return brightness(patches.pixels) * pi


class EveryOther(TokenReducer):
    inside_block = False

    def forward(self, tokens, states, dense_fraction):
        import torch

        number = tokens.features.shape[1]
        kept = torch.arange(0, number, 2, device=tokens.features.device).expand(len(tokens.features), -1)
        assignment = torch.full((len(tokens.features), number), -1, device=kept.device)
        assignment[:, ::2] = torch.arange(kept.shape[1], device=kept.device)
        return Result(tokens.gather(kept), assignment)
"""
PARTS = """
def brightness(pixels):
    return pixels.float().mean(dim=(-3, -2, -1)).flatten(1)
"""
MODEL = """
from vit_hf import AdaptiveViTForImageClassification


class Doubling(AdaptiveViTForImageClassification):
    def forward(self, pixel_values, **kwargs):
        outputs = super().forward(pixel_values, **kwargs)
        outputs.logits = 2 * outputs.logits
        return outputs
"""
PROCESSOR = """
from vit_hf import AdaptiveViTImageProcessorPil


class Inverting(AdaptiveViTImageProcessorPil):
    def _preprocess(self, images, *args, **kwargs):
        return super()._preprocess([255 - image for image in images], *args, **kwargs)
"""
FIELDS = {
    "patch_selector": "my_selectors.Brightest",
    "num_selected_patches": 8,
    "token_reducer": "my_selectors.EveryOther",
    "keep_rate": 0.5,
    "reduction_layers": [1],
}


@pytest.fixture
def own_files(tmp_path, monkeypatch):
    """Files of a user in a package of his own, forgotten again afterwards."""
    (tmp_path / "own").mkdir()
    files = {"__init__": "", "my_positions": POSITIONS, "ring_distance": DISTANCE}
    for name, text in {**files, "my_model": MODEL, "my_processor": PROCESSOR}.items():
        (tmp_path / "own" / f"{name}.py").write_text(text)
    (tmp_path / "my_selectors.py").write_text(SELECTORS)
    (tmp_path / "selector_parts.py").write_text(PARTS)
    monkeypatch.syspath_prepend(tmp_path)
    tables = [(table, dict(table)) for table in (POSITION_ENCODINGS, PATCH_SELECTORS, TOKEN_REDUCERS)]
    yield tmp_path
    forget()
    for table, before in tables:
        table.clear()
        table.update(before)


def forget():
    """As in a fresh process."""
    for table in (POSITION_ENCODINGS, PATCH_SELECTORS, TOKEN_REDUCERS):
        for name in [name for name in table if "." in name or name == "rings"]:
            del table[name]
    for name in [
        name for name in sys.modules if name.partition(".")[0] in ("own", "my_selectors", "selector_parts")
    ]:
        del sys.modules[name]


def save_with_expected(model, path):
    model.save_pretrained(path)
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.save({"images": images, "logits": model.eval()(images).logits}, path / "expected.pt")


@pytest.fixture
def saved(own_files):
    """A checkpoint with an encoding registered by a decorator, a selector and a reducer named with a dot."""
    import own.my_positions  # noqa: F401

    model = AdaptiveViTForImageClassification(
        tiny_config(position_encoding={"type": "rings", "power": 2.0}, **FIELDS)
    )
    save_with_expected(model, own_files / "saved")
    forget()
    return own_files / "saved"


LOAD = """
import torch
from transformers import AutoModelForImageClassification

path = {path!r}
model = AutoModelForImageClassification.from_pretrained(path, trust_remote_code=True)
expected = torch.load(path + "/expected.pt")
torch.testing.assert_close(model(expected["images"]).logits, expected["logits"], atol=0, rtol=0)
assert type(model.vit.selector).__name__ == "Brightest"
assert model(expected["images"]).token_coordinates.shape[1] == 4
"""


class TestUse:
    def test_class_of_a_module(self, own_files):
        model = AdaptiveViTModel(tiny_config(position_encoding="own.my_positions.Rings"))
        assert (model.embeddings.position_encoding.weight == 0.5).all()
        model(torch.randn(2, 3, 32, 32)).last_hidden_state.sum().backward()
        assert model.embeddings.position_encoding.weight.grad.abs().sum() > 0

    @pytest.mark.parametrize(
        ("options", "words"),
        [
            ({"powr": 2.0}, "no option 'powr'. Did you mean 'power'"),
            ({"power": "much"}, "power.*float.*str"),
            ({"power": -1.0}, "power=-1.0 must be above 0"),
            ({"power": 99.0}, "power=99.0 is above hidden_size=32"),
        ],
    )
    @pytest.mark.parametrize("name", ["rings", "own.my_positions.Rings"])
    def test_options_are_checked_as_ours_are(self, own_files, options, words, name):
        import own.my_positions  # noqa: F401

        with pytest.raises(StrictDataclassError, match=words):
            tiny_config(position_encoding={"type": name, **options})

    def test_options_of_a_class_that_is_not_imported_are_checked_with_the_model(self, own_files):
        config = tiny_config(position_encoding={"type": "own.my_positions.Rings", "powr": 2.0})
        with pytest.raises(ValueError, match="Did you mean 'power'"):
            AdaptiveViTModel(config)
        model = AdaptiveViTModel(
            tiny_config(position_encoding={"type": "own.my_positions.Rings", "power": 2.0})
        )
        assert model.embeddings.position_encoding.power == 2.0

    def test_selector_chooses_what_it_says(self, own_files):
        images = torch.zeros(1, 3, 32, 32)
        images[:, :, 8:16, 24:32] = 1
        config = tiny_config(patch_selector="my_selectors.Brightest", num_selected_patches=1)
        assert AdaptiveViTModel(config)(images).selected_patches.tolist() == [[1 * 4 + 3]]

    def test_stock_checkpoint_takes_one_without_trust(self, own_files):
        from tests.helpers.models import stock

        stock().save_pretrained(own_files / "stock")
        model = AdaptiveViTForImageClassification.from_pretrained(
            own_files / "stock", position_encoding="own.my_positions.Rings"
        )
        assert type(model.vit.embeddings.position_encoding).__name__ == "Rings"

    def test_defined_in_a_notebook_is_refused_at_save_and_keeps_the_weights(
        self, own_files, caplog, monkeypatch
    ):
        namespace = {"__name__": "__main__"}
        exec(POSITIONS.replace("from .ring_distance", "from own.ring_distance"), namespace)
        model = AdaptiveViTModel(tiny_config(position_encoding="rings"))
        assert "save_pretrained will refuse this model" in caplog.text
        with pytest.raises(NoSourceFileError, match=r"Put the class into a file of its own") as refused:
            model.save_pretrained(own_files / "saved")
        assert "The rest of the checkpoint was saved to" in refused.value.__notes__[0]
        # Training goes on: `Trainer` needs its checkpoints.
        model.save_pretrained(own_files / "checkpoint-7")
        assert "The code of your classes was not saved: Rings is defined in a notebook" in caplog.text
        again = AdaptiveViTModel.from_pretrained(own_files / "saved")
        assert type(again.embeddings.position_encoding) is namespace["Rings"]
        monkeypatch.delitem(POSITION_ENCODINGS, "rings")
        for folder in ("saved", "checkpoint-7"):
            for trust in (False, True):
                with pytest.raises(ValueError, match="carries no code of it: when it was saved"):
                    AdaptiveViTModel.from_pretrained(own_files / folder, trust_remote_code=trust)


class TestTravel:
    def test_files_go_along(self, saved):
        files = {"my_positions.py", "ring_distance.py", "my_selectors.py", "selector_parts.py"}
        assert files <= {path.name for path in saved.iterdir()}
        assert "vit_hf" not in (saved / "my_positions.py").read_text()
        generated = "from .modeling_adaptive_vit import"
        names = "PatchTokens, PositionEncoding, register_position_encoding"
        assert f"{generated} {names}" in (saved / "my_positions.py").read_text()
        assert f"{generated} Reduction as Result" in (saved / "my_selectors.py").read_text()
        assert {path.name for path in saved.glob("*.py")} == files | {"modeling_adaptive_vit.py"}

    def test_loads_without_the_package(self, saved, tmp_path):
        run_elsewhere(LOAD.format(path=str(saved)), tmp_path / "own")

    @pytest.mark.slow
    def test_loads_beside_the_package(self, saved, tmp_path):
        run_elsewhere("import vit_hf\n" + LOAD.format(path=str(saved)), tmp_path / "own", installed=True)

    @pytest.mark.slow
    def test_saves_again_wherever_it_came_from(self, saved, tmp_path):
        for installed in (True, False):
            again = str(tmp_path / f"again_{installed}")
            start = "import vit_hf\n" if installed else ""
            save = f"model.save_pretrained({again!r})\n"
            run_elsewhere(start + LOAD.format(path=str(saved)) + save, tmp_path / "own", installed)
            shutil.copy(saved / "expected.pt", again)
            run_elsewhere(LOAD.format(path=again), tmp_path / "own")

    @pytest.mark.parametrize(
        "elsewhere", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["saved", "loaded_elsewhere"]
    )
    def test_subclasses_of_models_and_image_processors_go_along(self, own_files, tmp_path, elsewhere):
        from own.my_model import Doubling
        from own.my_processor import Inverting

        saved = own_files / "saved"
        save_with_expected(Doubling(tiny_config(position_encoding="own.my_positions.Rings")), saved)
        Inverting(do_normalize=False).save_pretrained(saved)
        assert (
            "from .image_processing_adaptive_vit import AdaptiveViTImageProcessorPil"
            in (saved / "my_processor.py").read_text()
        )
        config = json.loads((saved / "config.json").read_text())
        assert config["auto_map"]["AutoModelForImageClassification"] == "my_model.Doubling"
        assert config["auto_map"]["AutoModel"] == "modeling_adaptive_vit.AdaptiveViTModel"
        options = json.loads((saved / "preprocessor_config.json").read_text())
        assert options["auto_map"]["AutoImageProcessor"] == "my_processor.Inverting"
        if elsewhere:
            run_elsewhere(
                f"""
                import numpy, torch
                from transformers import AutoImageProcessor, AutoModelForImageClassification

                path = {str(saved)!r}
                model = AutoModelForImageClassification.from_pretrained(path, trust_remote_code=True)
                expected = torch.load(path + "/expected.pt")
                assert torch.equal(model(expected["images"]).logits, expected["logits"])
                processor = AutoImageProcessor.from_pretrained(path, trust_remote_code=True)
                pixels = processor(numpy.zeros((50, 50, 3), numpy.uint8), return_tensors="pt").pixel_values
                assert pixels.shape[1:] == (3, 224, 224) and (pixels == 1).all()
                """,
                tmp_path / "own",
            )

    @pytest.mark.parametrize("way", ["push_to_hub", "save_pretrained"])
    def test_uploaded_with_the_model(self, own_files, monkeypatch, way):
        uploaded = []

        class Hub:
            def create_repo(self, repo_id, **kwargs):
                return type("Url", (), {"repo_id": repo_id})()

        def upload(self, working_dir, repo_id, *args, **kwargs):
            uploaded.append(
                (repo_id, kwargs["commit_message"], {path.name for path in Path(working_dir).iterdir()})
            )

        for module in ("utils.hub", "modeling_utils"):
            monkeypatch.setattr(f"transformers.{module}.hf_api", Hub)
        monkeypatch.setattr(PushToHubMixin, "_upload_modified_files", upload)
        model = AdaptiveViTModel(tiny_config(position_encoding="own.my_positions.Rings"))
        if way == "push_to_hub":
            model.push_to_hub("me/rings", commit_message="rings")
        else:
            folder = own_files / "rings"
            model.save_pretrained(folder, push_to_hub=True, repo_id="me/rings", commit_message="rings")
        [(repo_id, message, files)] = uploaded
        assert (repo_id, message) == ("me/rings", "rings")
        assert {
            "model.safetensors",
            "my_positions.py",
            "ring_distance.py",
            "modeling_adaptive_vit.py",
        } <= files

    def test_needs_trust(self, saved):
        sys.path.pop(0)  # the files are no longer to be found
        with pytest.raises(ValueError, match=r"position_encoding='rings'.*trust_remote_code=True"):
            AdaptiveViTForImageClassification.from_pretrained(saved)

    def test_does_not_import_what_a_checkpoint_names(self, saved):
        """Though the module could be found, it was the checkpoint that named it."""
        with pytest.raises(ValueError, match="trust_remote_code=True"):
            AdaptiveViTForImageClassification.from_pretrained(saved, position_encoding="none")
        assert "my_selectors" not in sys.modules

    def test_imported_before_it_needs_no_trust(self, saved):
        import my_selectors
        import own.my_positions

        model = AdaptiveViTForImageClassification.from_pretrained(saved)
        assert type(model.vit.embeddings.position_encoding) is own.my_positions.Rings
        assert type(model.vit.selector) is my_selectors.Brightest
        assert model.config.position_encoding == {"type": "rings", "power": 2.0}
        assert model.vit.embeddings.position_encoding.power == 2.0
        expected = torch.load(saved / "expected.pt")
        assert torch.equal(model(expected["images"]).logits, expected["logits"])

    def test_each_checkpoint_has_its_own(self, saved, tmp_path):
        """Two that give different classes the same name."""
        shutil.copytree(saved, tmp_path / "other")
        file = tmp_path / "other" / "my_positions.py"
        file.write_text(file.read_text().replace(") ** self.power", ") * 0"))
        images = torch.load(saved / "expected.pt")["images"]
        sys.path.pop(0)
        load = AdaptiveViTForImageClassification.from_pretrained
        answers = [
            load(path, trust_remote_code=True)(images).logits for path in (saved, tmp_path / "other", saved)
        ]
        assert torch.equal(answers[0], answers[2]) and not torch.equal(answers[0], answers[1])
        first = load(saved, trust_remote_code=True)
        load(tmp_path / "other", trust_remote_code=True)
        first.save_pretrained(tmp_path / "again")
        again = load(tmp_path / "again", trust_remote_code=True)
        assert torch.equal(again(images).logits, answers[0])

    def test_configuration_of_a_checkpoint_imports_nothing(self, saved):
        """Not even where a model is built from it anew."""
        config = AutoConfig.from_pretrained(saved)
        with pytest.raises(ValueError, match="trust_remote_code=True"):
            AutoModel.from_config(config)
        assert "my_selectors" not in sys.modules


class TestErrors:
    def test_our_names_are_taken(self):
        with pytest.raises(ValueError, match="'rotary' is the name of a position_encoding"):
            register_position_encoding("rotary")

    def test_no_dots_in_registered_names(self):
        with pytest.raises(ValueError, match="without a dot"):
            register_patch_selector("my.selector")

    def test_wrong_kind(self):
        with pytest.raises(ValueError, match=r"must be a class derived from vit_hf\.PatchSelector"):
            register_patch_selector("mine")(PositionEncoding)

    def test_unknown_name(self):
        with pytest.raises(StrictDataclassError) as caught:
            tiny_config(position_encoding="rigns")
        assert "'rigns' is unknown" in str(caught.value.__cause__) and "rotary" in str(caught.value.__cause__)

    @pytest.mark.parametrize(
        "name, message",
        [
            ("absent_module.Rings", r"no module 'absent_module' on Python's path"),
            ("own.absent.Rings", r"no module 'own\.absent' on Python's path"),
            ("own.my_positions.Absent", r"has no Absent"),
            (
                "own.ring_distance.distance_to_centre",
                r"must be a class derived from vit_hf\.PositionEncoding",
            ),
        ],
    )
    def test_class_that_is_not_there(self, own_files, name, message):
        with pytest.raises(ValueError, match=message):
            AdaptiveViTModel(tiny_config(position_encoding=name))


class TestWhatRemoteCodeError:
    """The model works, with a warning before training; it is not saved without its code, but no weights
    are lost."""

    @pytest.mark.parametrize(
        "text, message",
        [
            ("from . import ring_distance", r"line 1: only `from .file import name`"),
            ("from .sub.mod import x", r"line 1: only `from .file import name`"),
            ("from ..base import x", r"line 1: only `from .file import name`"),
            ("a = 1; from vit_hf import PatchTokens", r"line 1: put this import on a line of its own"),
            ("import ring_distance", r"line 1: write `from ring_distance import ...`"),
            ("'''Text\nfrom .nowhere import x\n'''", r"'from .nowhere import' *, which transformers takes"),
        ],
    )
    def test_imports(self, own_files, text, message):
        path = own_files / "own" / "my_positions.py"
        path.write_text(text)
        with pytest.raises(RemoteCodeError, match=message):
            rewrite(path)

    def test_name_of_a_file_of_ours(self, own_files, caplog):
        shutil.copy(own_files / "own" / "my_positions.py", own_files / "own" / "modeling_adaptive_vit.py")
        model = AdaptiveViTModel(tiny_config(position_encoding="own.modeling_adaptive_vit.Rings"))
        assert "modeling_adaptive_vit.py has the name of a file that vit_hf generates" in caplog.text
        with pytest.raises(RemoteCodeError, match=r"has the name of a file that vit_hf generates") as caught:
            model.save_pretrained(own_files / "saved")
        assert "The rest of the checkpoint was saved" in caught.value.__notes__[0]
        assert "class Rings" not in (own_files / "saved" / "modeling_adaptive_vit.py").read_text()
        again = AdaptiveViTModel.from_pretrained(own_files / "saved")
        assert torch.equal(
            again.embeddings.position_encoding.weight, model.embeddings.position_encoding.weight
        )

    def test_import_that_cannot_travel_is_refused(self, own_files, caplog):
        file = own_files / "own" / "my_positions.py"
        file.write_text(
            "from vit_hf import PositionEncoding\n\n\ndef later():\n    import vit_hf\n\n\n"
            "class Rings(PositionEncoding):\n    pass\n"
        )
        model = AdaptiveViTForImageClassification(tiny_config(position_encoding="own.my_positions.Rings"))
        reason = r"my_positions\.py, line 5: write `from vit_hf import \.\.\.`"
        assert "save_pretrained will refuse this model" in caplog.text
        with pytest.raises(RemoteCodeError, match=reason):
            model.save_pretrained(own_files / "saved")
        with pytest.raises(RemoteCodeError, match=reason):
            push_to_hub(model, AdaptiveViTImageProcessor(), "me/rings")

    def test_two_files_of_one_name(self, own_files, caplog):
        (own_files / "other").mkdir()
        (own_files / "other" / "__init__.py").write_text("")
        shutil.copy(own_files / "my_selectors.py", own_files / "other" / "my_positions.py")
        fields = FIELDS | {
            "patch_selector": "other.my_positions.Brightest",
            "token_reducer": "other.my_positions.EveryOther",
        }
        AdaptiveViTModel(tiny_config(position_encoding="own.my_positions.Rings", **fields))
        assert "have the same name. Rename one" in caplog.text


def rewrite(path):
    """The text of a user's file in a checkpoint, and the files in its folder that it imports."""
    code_file, roots = generated_file(tiny_config())
    return rewrite_imports(path, code_file, reachable_modules(roots))[:2]


def test_code_is_rewritten_where_it_stands(tmp_path):
    """Code on the line of an import stays; names that the generated file cannot hold still come from
    the package."""
    path = tmp_path / "mine.py"
    path.write_text(
        "é = 1; b = 2\n"
        "if é:\n    from vit_hf import PositionEncoding, explain, POSITION_ENCODINGS; import math\n"
        "from vit_hf.model.selection import keep_top as top  # a comment\n"
        "from vit_hf import (\n    PatchTokens,\n)\n"
    )
    text, siblings = rewrite(path)
    assert text == (
        "é = 1; b = 2\n"
        "if é:\n    from .modeling_adaptive_vit import PositionEncoding, POSITION_ENCODINGS\n"
        "    from vit_hf import explain\n    import math\n"
        "from .modeling_adaptive_vit import keep_top as top  # a comment\n"
        "from .modeling_adaptive_vit import PatchTokens\n"
    )
    assert not siblings
