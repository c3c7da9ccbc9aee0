"""Parts with options: how they are given, checked, kept and saved."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import get_args, get_type_hints

import pytest
import torch
from transformers import AutoConfig, ViTConfig

import vit_hf
from tests.helpers.models import TINY, tiny_config, tiny_swin_config
from vit_hf import (
    PATCH_SELECTORS,
    POSITION_ENCODINGS,
    TOKEN_REDUCERS,
    AdaptiveSwinConfig,
    AdaptiveSwinModel,
    AdaptiveViTConfig,
    AdaptiveViTForImageClassification,
    AdaptiveViTImageProcessor,
)
from vit_hf.model.options import Options, read_options
from vit_hf.model.patch_embeddings import PATCH_EMBEDDINGS
from vit_hf.model.sizes import thumbnail_sides


# Every part whose class reads options, by the field that names it.
TABLES = {
    "position_encoding": POSITION_ENCODINGS,
    "patch_selector": PATCH_SELECTORS,
    "token_reducer": TOKEN_REDUCERS,
    "patch_embedding": PATCH_EMBEDDINGS,
}
PARTS = [(field, name) for field, table in TABLES.items() for name in table]
every_part = pytest.mark.parametrize(("field", "name"), PARTS)
# What goes with a part that is named alone.
BESIDE = {
    "patch_selector": {"num_selected_patches": 6},
    "token_reducer": {"keep_rate": 0.6, "reduction_layers": [0, 1]},
}
# A value of every option that is not its default, where a type does not tell one.
OTHERS = {
    "num_groups": 8,
    "hidden_sizes": [32],
    "depths": [1],
    "coordinates": "native",
    "interpolation": "bilinear",
    "reduction": "max",
    "thumbnail_size": 16,
    "reference_grid": [3, 3],
    "num_layers": 1,
    "exploration": 0.5,
    "coverage": 0.5,
    "sampling": 0.5,
    "batch_fraction": 0.5,
    "jitter": 1.5,
    "rescale": 2.0,
    "shift": 0.5,
    "num_features": 16,
    "hidden_size": 16,
    "num_heads": 4,
    "sigma": 0.5,
    "num_samples": 3,
    "seed": 7,
    "r": 2,
}


def config_of(field: str, name: str, **options) -> AdaptiveViTConfig:
    fields = dict(BESIDE.get(field, {}))
    if "r" in options:
        fields["keep_rate"] = 1.0
    return AdaptiveViTConfig(**{**TINY, **fields, field: {"type": name, **options}})


def other_options(options_class: type) -> dict:
    """Legal options of which none has its default."""
    options = {}
    for entry in dataclasses.fields(options_class):
        default = entry.default
        if entry.name in OTHERS:
            options[entry.name] = OTHERS[entry.name]
        elif isinstance(default, bool):
            options[entry.name] = not default
        else:
            options[entry.name] = default * 2
    if "hidden_sizes" in options:
        options["num_groups"] = 8
    return options


@every_part
def test_part_with_every_option_saves_and_loads(field, name, tmp_path):
    options = other_options(TABLES[field][name].Options)
    if field == "patch_selector" and name in ("attention", "distilled"):
        options["num_layers"] = 2
    config = config_of(field, name, **options)
    assert getattr(config, field) == ({"type": name, **options} if options else name)
    model = AdaptiveViTForImageClassification(config).eval()
    model.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    if field != "patch_embedding" or name != "linear" or options:
        assert saved.get(field, "learned") == getattr(config, field)
    again, report = AdaptiveViTForImageClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values())
    images = torch.randn(2, 3, 48, 40)
    assert torch.equal(model(images).logits, again.eval()(images).logits)


@every_part
def test_misspelt_option_is_refused_with_the_legal_ones(field, name):
    legal = [entry.name for entry in dataclasses.fields(TABLES[field][name].Options)]
    wrong = f"{legal[0]}z" if legal else "size"
    with pytest.raises(Exception, match=f"{field}='{name}' has no option '{wrong}'") as error:
        config_of(field, name, **{wrong: 1})
    assert all(repr(option) in str(error.value) for option in legal)
    assert ("Did you mean" in str(error.value)) == bool(legal)


@every_part
def test_option_of_a_wrong_type_is_refused(field, name):
    for entry in dataclasses.fields(TABLES[field][name].Options):
        with pytest.raises(Exception, match=f"{field}='{name}'.*{entry.name}"):
            config_of(field, name, **{entry.name: {"wrong": "type"}})


@every_part
def test_options_that_are_floats_take_whole_numbers(field, name):
    cls = TABLES[field][name].Options
    for option, hint in get_type_hints(cls).items():
        default = getattr(cls(), option)
        if float in (get_args(hint) or (hint,)) and isinstance(default, float) and default == int(default):
            assert getattr(config_of(field, name, **{option: int(default)}), field) == name


def test_a_users_option_that_is_a_float_takes_a_whole_number():
    @dataclasses.dataclass(kw_only=True)
    class Own(Options):
        scale: float = 1.0
        shift: float | None = None
        number: int = 1

    read = read_options(Own, "position_encoding", {"type": "own", "scale": 2, "shift": 3, "number": 4})
    assert [type(value) for value in (read.scale, read.shift, read.number)] == [float, float, int]
    with pytest.raises(ValueError, match="scale"):
        read_options(Own, "position_encoding", {"type": "own", "scale": True})


@every_part
def test_defaults_and_a_lone_type_are_the_plain_name(field, name):
    options = TABLES[field][name].Options()
    given = {entry.name: getattr(options, entry.name) for entry in dataclasses.fields(options)}
    if "num_layers" in given or "num_groups" in given:
        given = {}  # more than the tiny model has
    assert getattr(config_of(field, name, **given), field) == name
    assert getattr(config_of(field, name), field) == name


@pytest.mark.parametrize("field", [*TABLES, "final_norm", "feed_forward", "segmentation_decoder"])
@pytest.mark.parametrize(
    ("value", "words"), [({}, "needs the name"), ({"base": 1}, "needs the name"), ("larned", "unknown")]
)
def test_what_names_no_part_is_refused(field, value, words):
    with pytest.raises(Exception, match=f"{field}=.*{words}"):
        AdaptiveViTConfig(**{**TINY, **BESIDE.get(field, {}), field: value})


@pytest.mark.parametrize(
    ("field", "legal"),
    [
        ("final_norm", {"type": "pooled", "eps": 0.01}),
        ("feed_forward", {"type": "gated", "bias": False, "norm": True}),
        ("segmentation_decoder", {"type": "linear", "ignore_index": 3}),
        ("attention", {"norm": True, "projection_bias": False}),
        ("layer_sizes", {"intermediate_size": [8, 16, 24]}),
        ("masked_autoencoder", {"mask_ratio": 0.5}),
        ("elastic_space", {"depths": [2, 3]}),
    ],
)
def test_other_options_are_kept_and_checked(field, legal, tmp_path):
    fields = {**TINY, "pooling": "mean", field: legal}
    config = AdaptiveViTConfig(**fields)
    config.save_pretrained(tmp_path)
    assert getattr(AutoConfig.from_pretrained(tmp_path), field) == legal
    *_, option = legal
    with pytest.raises(Exception, match=f"(?s){field}.*no option '{option}s'.*Did you mean '{option}'"):
        AdaptiveViTConfig(**{**fields, field: {**legal, f"{option}s": 1}})


@pytest.mark.parametrize("field", ["layer_sizes", "attention", "masked_autoencoder", "elastic_space"])
def test_options_alone_have_no_type(field):
    with pytest.raises(Exception, match=f"{field}=.*no option 'type'"):
        AdaptiveViTConfig(**{**TINY, field: {"type": "learned"}})


def test_a_plain_name_keeps_the_options_of_a_checkpoint_that_has_the_part(tmp_path):
    own = {"type": "policy", "hidden_size": 8, "thumbnail_size": 16}
    encoding = {"type": "rotary", "base": 10.0}
    model = AdaptiveViTForImageClassification(tiny_config(patch_selector=own, position_encoding=encoding))
    model.save_pretrained(tmp_path)

    def load(**fields):
        return AdaptiveViTForImageClassification.from_pretrained(tmp_path, **fields).config

    config = load(patch_selector="policy", num_selected_patches=3, position_encoding="rotary")
    assert (config.patch_selector, config.position_encoding) == (own, encoding)
    assert load(position_encoding={"type": "rotary"}).position_encoding == "rotary"
    assert load(patch_selector="variance").patch_selector == "variance"
    auto = AutoConfig.from_pretrained(tmp_path, patch_selector="policy", position_encoding="alibi")
    assert (auto.patch_selector, auto.position_encoding) == (own, "alibi")


def test_swin_options(tmp_path):
    own = {"type": "random", "seed": 3, "exploration": 0.5}
    config = tiny_swin_config(patch_selector=own, num_selected_windows=2)
    model = AdaptiveSwinModel(config)
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["patch_selector"] == own
    again = AdaptiveSwinModel.from_pretrained(tmp_path, patch_selector="random")
    assert again.config.patch_selector == own and again.selector.seed == 3
    for wrong in ({"type": "random", "sed": 3}, {"type": "saliency", "seed": 3}):
        with pytest.raises(Exception, match="has no option"):
            tiny_swin_config(patch_selector=wrong, num_selected_windows=2)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"type": "random", "sed": 3}, "no option 'sed'. Did you mean 'seed'"),
        ({"type": "variance", "seed": 3}, "'variance' has no option 'seed'.*coverage"),
        ({"type": "random", "exploration": 0.5}, "no option 'exploration'"),
        ({"seed": 3}, "needs the name"),
        ({"type": "attention"}, "cannot run in an image processor"),
    ],
)
def test_image_processor_options(wrong, words):
    with pytest.raises(ValueError, match=words):
        AdaptiveViTImageProcessor(patch_selector=wrong, num_selected_patches=4)


def test_saved_configuration_has_what_differs_and_what_transformers_writes(tmp_path):
    sizes = {"hidden_size": 32, "num_attention_heads": 4, "image_size": 32, "patch_size": 8}
    config = AdaptiveViTConfig(**sizes, position_encoding={"type": "rotary", "base": 10.0}, qkv_bias=True)
    config.save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    ViTConfig(**sizes).save_pretrained(tmp_path / "stock")
    stock = json.loads((tmp_path / "stock" / "config.json").read_text())
    assert written.keys() - stock.keys() - {"auto_map", "vit_hf_version"} == {"position_encoding"}
    assert stock.keys() <= written.keys()
    assert AutoConfig.from_pretrained(tmp_path).to_dict() | {"_name_or_path": ""} == config.to_dict() | {
        "_name_or_path": ""
    }


@pytest.mark.parametrize("config_class", [AdaptiveViTConfig, AdaptiveSwinConfig])
def test_number_of_fields(config_class):
    assert len(config_class.__annotations__) <= 50


@pytest.mark.parametrize(
    ("size", "sides"),
    [
        (None, (6, 32, 32)),
        (True, (6, 32, 32)),
        (16, (6, 16, 16)),
        ((8, 24), (6, 8, 24)),
        ([2, 8, 24], (2, 8, 24)),
    ],
)
def test_thumbnail_sides(size, sides):
    assert thumbnail_sides(tiny_config(num_frames=6), size) == sides
    if len(sides) == 3 and (size is None or size is True or isinstance(size, int) or len(size) == 2):
        assert thumbnail_sides(tiny_config(), size) == sides[1:]


def test_configurations_need_no_torch():
    """They load where torch is not installed, and neither they nor what they import ask for it."""
    folder = Path(vit_hf.__file__).parent
    code = f"""
import sys, types

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name == "torch" or name.startswith("torch."):
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

for name, place in (("vit_hf", ""), ("vit_hf.model", "/model")):
    package = types.ModuleType(name)
    package.__path__ = [{str(folder)!r} + place]
    sys.modules[name] = package
import transformers.utils
from transformers import AutoConfig, PreTrainedConfig, SwinConfig, ViTConfig
transformers.utils.is_torch_available = lambda: False
sys.meta_path.insert(0, Absent())
for name in [name for name in sys.modules if name.partition(".")[0] == "torch"]:
    sys.modules[name] = None
from vit_hf.model import configuration_adaptive_vit as vit, configuration_adaptive_swin as swin
config = vit.AdaptiveViTConfig(position_encoding={{"type": "rotary", "base": 10}}, elastic_space={{"depths": [6, 12]}})
assert config.to_diff_dict()["position_encoding"] == {{"type": "rotary", "base": 10}}
assert swin.AdaptiveSwinConfig(patch_selector="saliency", num_selected_windows=0.5).num_layers == 4
for wrong in ({{"num_selected_patches": 0}}, {{"position_encoding": {{"base": 1}}}}, {{"hidden_size": 33}}):
    try:
        vit.AdaptiveViTConfig(**wrong)
    except Exception as error:
        continue
    raise AssertionError(wrong)
print(sorted(name for name in sys.modules if name.startswith("vit_hf.model.")))
"""  # noqa: E501
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "vit_hf.model.positions" not in done.stdout and "vit_hf.model.budget" in done.stdout


@every_part
def test_option_beside_its_part_is_refused_with_the_part(field, name):
    for entry in dataclasses.fields(TABLES[field][name].Options):
        flat = f"{name}_{entry.name}"
        with pytest.raises(ValueError, match=f"(?s){flat}.*option"):
            AdaptiveViTConfig(**{flat: 1})
        with pytest.raises(ValueError, match=f"(?s){flat}.*option"):
            AdaptiveViTConfig.from_dict({flat: 1})


def test_unknown_fields_are_refused_and_notes_in_a_file_are_kept():
    with pytest.raises(ValueError, match=r"policy_reward.*nothing reads it"):
        AdaptiveViTConfig(policy_reward="correctness")
    config = AdaptiveViTConfig.from_dict({"trained_by": "Ada"})
    assert config.trained_by == AdaptiveViTConfig.from_dict(config.to_dict()).trained_by == "Ada"
    config.rotary_base = 10.0
    with pytest.raises(ValueError, match=r"rotary_base.*option of a part"):
        config.validate_architecture()
