import json
from dataclasses import dataclass, field
from typing import Literal

import pytest

from tests.helpers.scripts import flag_parser, read_flags
from vit_hf.arguments import AugmentationArguments, DataArguments, FinetuningArguments, ModelArguments
from vit_hf.cli.parsing import format_metrics, given_flags, parse, read_arguments
from vit_hf.training.arguments import RunArguments


@dataclass
class Options:
    rate: float = field(default=0.5, metadata={"help": "how fast"})
    kind: Literal["a", "b"] = field(default="a", metadata={"help": "which"})
    names: list[str] = field(default_factory=list, metadata={"help": "several"})
    extra: dict | str | None = field(default=None, metadata={"help": "JSON"})
    is_on: bool = field(default=False, metadata={"help": "switch"})
    some_thing: int | None = field(default=None, metadata={"help": "number"})


@pytest.fixture
def parser():
    parser = flag_parser([Options])
    parser.add_argument("inputs", nargs="*")
    return parser


@pytest.fixture
def write(tmp_path):
    def write(text, name="config.yaml"):
        (tmp_path / name).write_text(text)
        return str(tmp_path / name)

    return write


def test_a_file_and_flags_that_override_it(parser, write):
    path = write(
        "rate: 1e-4  # text to YAML\nkind: b\nnames: [x, y]\nis_on: true\nsome_thing: null\ninputs: [one]\n"
    )
    options, namespace = parse(parser, read_arguments(parser, [path]))
    assert options == Options(rate=1e-4, kind="b", names=["x", "y"], is_on=True)
    assert namespace.inputs == ["one"]
    options, _ = parse(
        parser, read_arguments(parser, [path, "--rate", "2", "--is_on", "false", "--some-thing", "-3"])
    )
    assert (options.rate, options.is_on, options.some_thing, options.kind) == (2, False, -3, "b")


def test_json_and_mappings(parser, write):
    path = write(json.dumps({"extra": {"size": [1, 2]}, "rate": 3}), "config.json")
    options, _ = parse(parser, read_arguments(parser, [path]))
    assert json.loads(options.extra) == {"size": [1, 2]}
    assert options.rate == 3


def test_which_fields_are_given(parser, write):
    path = write("kind: a\nsome_thing: null\n")
    assert given_flags(parser, []) == set()
    assert given_flags(parser, read_arguments(parser, [path, "--some-thing", "-3", "--rate=0.5"])) == {
        "kind",
        "some_thing",
        "rate",
    }


@pytest.mark.parametrize(
    "text, message",
    [
        ("rat: 1", "there is no flag 'rat', perhaps 'rate'"),
        ("- rate", "must hold a mapping"),
        ("rate: [", "is no YAML or JSON"),
        ("kind: c", "invalid choice: 'c'"),
        ("rate: fast", "invalid float value: 'fast'"),
    ],
)
def test_refuses_bad_files(parser, write, text, message, capsys):
    with pytest.raises(SystemExit) as exit:
        parse(parser, read_arguments(parser, [write(text)]))
    assert exit.value.code == 2
    assert message in capsys.readouterr().err


def test_refuses_bad_flags(parser, capsys):
    for argv, message in [
        (["nowhere.yaml"], "there is no configuration 'nowhere.yaml'"),
        (["--rate", "1", "--unknown", "2"], "--unknown"),
        (["--rat", "1"], "--rat"),
    ]:
        with pytest.raises(SystemExit):
            parse(parser, read_arguments(parser, argv))
        assert message in capsys.readouterr().err


def test_help_shows_defaults_and_each_flag_once(parser):
    text = parser.format_help()
    assert "\n    indented" in text
    assert "how fast (default: 0.5)" in text
    assert "--some_thing SOME_THING" in text
    assert "--some-thing" not in text.split("options:")[1]
    assert "None" not in text


FINETUNING = [ModelArguments, DataArguments, AugmentationArguments, FinetuningArguments, RunArguments]


def test_every_flag_of_finetuning_has_help(tmp_path):
    parser = flag_parser(FINETUNING)
    assert all(action.help for action in parser._actions if "--no_" not in action.option_strings[0])


@pytest.mark.parametrize(
    "flags, message",
    [
        (
            "--num_selected_patches many",
            "num_selected_patches='many' must be a number of patches of at least 1",
        ),
        ("--image_size 32 --native_resolution", "image_size and native_resolution exclude each other"),
        ("--longest_edge 0", "longest_edge is 0"),
        ("--config_overrides {", "config_overrides is not valid JSON"),
        ("--config_overrides 3", "config_overrides must be a JSON object"),
        ("--remove_unused_columns true", "remove_unused_columns must be false"),
        ("--resume_from_checkpoint x", "resume_from_checkpoint is not needed"),
        ("--horizontal_flip 2", "horizontal_flip is 2.0"),
        ("--reduction_layers 1 x", "invalid int value: 'x'"),
        ("--freeze_head", "freeze_head goes with freeze_backbone_ratio"),
    ],
)
def test_finetuning_refuses_nonsense(flags, message, capsys):
    argv = ["--dataset", "x", "--output_dir", "y", *flags.split()]
    with pytest.raises(SystemExit):
        read_flags(FINETUNING, argv)
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("text, value", [("98", 98), ("0.25", 0.25), ("1", 1), ("1.0", 1.0)])
def test_numbers_and_shares(text, value):
    parsed = ModelArguments(num_selected_patches=text).num_selected_patches
    assert parsed == value
    assert type(parsed) is type(value)


def test_reduction_from_flags_and_from_a_file(write):
    needed = ["--dataset", "x", "--output_dir", "y"]
    path = write("token_reducer: merge\nkeep_rate: 7e-1\nreduction_layers: [3, 6]\n")
    expected = {"token_reducer": "merge", "keep_rate": 0.7, "reduction_layers": [3, 6]}
    assert read_flags(FINETUNING, [path, *needed])[0].config_fields() == expected
    flags = ["--reduction_layers", "1", "--keep_rate", "1"]
    fields = read_flags(FINETUNING, [path, *needed, *flags])[0].config_fields()
    assert fields == expected | {"reduction_layers": [1], "keep_rate": 1.0}
    assert read_flags(FINETUNING, needed)[0].config_fields() == {}


def test_parts_with_options_from_flags_and_from_a_file(write):
    needed = ["--dataset", "x", "--output_dir", "y"]
    path = write("position_encoding:\n  type: rotary\n  base: 10\ntoken_reducer: {type: merge, r: 16}\n")
    flags = ["--patch_selector", '{"type": "attention", "num_layers": 2}', "--num_selected_patches", "9"]
    assert read_flags(FINETUNING, [path, *needed, *flags])[0].config_fields() == {
        "position_encoding": {"type": "rotary", "base": 10},
        "token_reducer": {"type": "merge", "r": 16},
        "patch_selector": {"type": "attention", "num_layers": 2},
        "num_selected_patches": 9,
    }


@pytest.mark.parametrize(
    ("text", "words"), [('{"base": 10}', "needs the name of a part"), ("{base", "not valid JSON")]
)
@pytest.mark.parametrize("name", ["position_encoding", "patch_selector", "token_reducer"])
def test_parts_that_are_none_are_refused(name, text, words):
    with pytest.raises(ValueError, match=f"{name}.*{words}"):
        ModelArguments(**{name: text})


def test_no_best_model_without_evaluation_or_checkpoints(tmp_path):
    assert RunArguments(output_dir=str(tmp_path)).load_best_model_at_end
    assert not RunArguments(output_dir=str(tmp_path), eval_strategy="no").load_best_model_at_end
    assert not RunArguments(output_dir=str(tmp_path), save_strategy="no").load_best_model_at_end


def test_format_metrics():
    text = format_metrics({"accuracy": 0.5, "steps": 3, "samples_per_second": 7.0})
    assert text == "accuracy      0.5000\nsteps              3"
