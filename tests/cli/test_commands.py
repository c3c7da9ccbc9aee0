"""`vit-hf`: what it says, and how it reads arguments, before torch is imported."""

import dataclasses
import importlib
import importlib.metadata
import json
import os
import subprocess
import sys

import PIL.Image
import pytest
import yaml
from transformers import TrainingArguments

import vit_hf
from tests.helpers.models import tiny_config
from vit_hf import arguments
from vit_hf.cli import COMMANDS, TRAINING, main
from vit_hf.cli.choices import read_choices, read_fields, trainer_flags
from vit_hf.cli.parsing import CONFIGS, TABLES, config_names, parse, read_arguments
from vit_hf.cli.train import COMMANDS as TRAINING_COMMANDS
from vit_hf.cli.train import make_parser as make_training_parser
from vit_hf.training.arguments import RunArguments


NAMES = [name for commands in COMMANDS.values() for name in commands]
WITHOUT_TORCH = """
import contextlib, io, sys
sys.argv = ["vit-hf"]
from vit_hf.cli import main
for argv in {calls!r}:
    with contextlib.redirect_stdout(io.StringIO()) as said:
        try:
            main(argv)
        except SystemExit as end:
            assert not end.code, (argv, end.code)
    assert said.getvalue().startswith("usage: vit-hf"), argv
    assert "torch" not in sys.modules, argv
print("done")
"""


def parser_of(name):
    if name in TRAINING:
        return make_training_parser(name)
    return importlib.import_module(f"vit_hf.cli.{name}").make_parser()


def test_help_of_every_command_needs_no_torch():
    calls = [[], ["--help"], *([name, "--help"] for name in NAMES)]
    result = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH.format(calls=calls)],
        capture_output=True,
        text=True,
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
        check=False,
    )
    assert result.stdout == "done\n", result.stderr


FIRST_LINE = """
import importlib, sys
sys.argv = ["vit-hf"]
from vit_hf.cli import TRAINING

def announce(text, imports=True):
    assert "torch" not in sys.modules, text
    print(text)
    sys.exit()

for name, argv in {calls!r}.items():
    module = importlib.import_module(f"vit_hf.cli.{{'train' if name in TRAINING else name}}")
    module.announce = announce
    try:
        module.run(name, argv)
    except SystemExit as end:
        assert not end.code, (name, end.code)
"""
TRAINED = ["--dataset", "photos", "--output_dir", "run"]
CALLS = {
    **dict.fromkeys([*TRAINING, "tune", "search"], TRAINED),
    "predict": ["a.png", "--model_name_or_path", "m"],
    "evaluate": ["--dataset", "photos", "--model_name_or_path", "m"],
    "compare": ["--demo"],
    "explain": ["--images", "a.png", "--model_name_or_path", "m"],
    "app": ["--model_name_or_path", "m"],
    "convert": ["m", "--output", "o"],
    "push": ["m", "me/m"],
}


def test_every_command_says_a_line_before_torch_is_imported():
    assert CALLS.keys() == set(NAMES) - {"configs"}  # which answers at once
    result = subprocess.run(
        [sys.executable, "-c", FIRST_LINE.format(calls=CALLS)], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert [line.partition(":")[0] for line in lines] == [f"vit-hf {name}" for name in CALLS]


def test_commands_load_saved_models_in_a_process_of_their_own(tmp_path):
    model = vit_hf.AdaptiveViTForImageClassification(tiny_config(patch_selector="variance"))
    model.save_pretrained(tmp_path / "model")
    processor = vit_hf.AdaptiveViTImageProcessor(size={"height": 32, "width": 32})
    processor.save_pretrained(tmp_path / "model")
    PIL.Image.new("RGB", (40, 40)).save(tmp_path / "a.png")
    command = [sys.executable, "-m", "vit_hf", "predict", "a.png", "--model_name_or_path", "model"]
    result = subprocess.run(
        [*command, "--with_patches", "--use_cpu"], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["patches"] == "6 of 16"


def test_the_package_installs_the_command():
    [script] = importlib.metadata.entry_points(group="console_scripts", name="vit-hf")
    assert script.load() is main


@pytest.mark.parametrize("command", [[sys.executable, "-m", "vit_hf"]])
def test_module_runs_as_the_command_does(command):
    result = subprocess.run([*command, "--version"], capture_output=True, text=True, check=True)
    assert result.stdout == f"vit-hf {vit_hf.__version__}\n"


def test_overview_names_every_command(capsys):
    assert main([]) == 0
    text = capsys.readouterr().out
    assert all(f"\n  {name} " in text for name in NAMES)
    assert max(map(len, text.splitlines())) <= 110


@pytest.mark.parametrize(
    ("typed", "meant"), [("finetun", "finetune"), ("explian", "explain"), ("pus", "push")]
)
def test_misspelt_command(typed, meant, capsys):
    assert main([typed]) == 2
    assert f"there is no command '{typed}'. Did you mean '{meant}'?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (
            ["finetune", "--patch_selektor", "variance"],
            "there is no flag --patch_selektor; did you mean --patch_selector?",
        ),
        (
            ["finetune", "--learning_rat=1e-4"],
            "there is no flag --learning_rat; did you mean --learning_rate?",
        ),
        (["predict", "a.png", "--modle_name_or_path", "x"], "did you mean --model_name_or_path?"),
        (["convert", "x", "--outptu", "y"], "did you mean --output?"),
        (["finetune", "--config", "smal_digits"], "there is no configuration 'smal_digits'"),
        (["finetune", "--config"], "--config needs a file or a name"),
        (["finetune", "missing.yaml"], "there is no configuration 'missing.yaml'"),
        (["convert", "x", "--output", "mine", "--to", "npz"], "must end in .npz, not mine"),
        (["configs", "nothing"], "there is no configuration 'nothing'"),
    ],
)
def test_wrong_arguments_end_with_the_remedy(argv, message, capsys):
    with pytest.raises(SystemExit) as end:
        main(argv)
    assert end.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("name", NAMES)
def test_help_fits_and_shows_every_flag(name, capsys):
    parser = parser_of(name)
    text = parser.format_help()
    flags = [action for action in parser._actions if action.option_strings]
    assert all(any(option in text for option in action.option_strings) for action in flags)
    assert all(action.help for action in parser._actions), name
    assert max(len(line) for line in text.splitlines() if "{" not in line) <= 110  # choices are one word
    for field, (_, table) in TABLES.items():
        if any(action.dest == field for action in flags):
            names = getattr(vit_hf, table)
            assert all(f"\n  {choice:<30}" in text for choice in names)


@pytest.mark.parametrize(("module", "table"), TABLES.values())
def test_choices_are_those_of_the_tables(module, table):
    choices = read_choices(module, table)
    assert list(choices) == list(getattr(importlib.import_module(f"vit_hf.{module}"), table))
    assert all(choices.values())


def test_fields_read_from_sources_are_those_of_the_classes():
    assert set(trainer_flags()) == {
        field.name for field in dataclasses.fields(TrainingArguments) if field.init
    }
    own = read_fields("training.arguments", "RunArguments")
    assert own.keys() == RunArguments.__annotations__.keys()
    assert own["hub_license"] == RunArguments.__dataclass_fields__["hub_license"].metadata["help"]


@pytest.mark.parametrize("name", TRAINING)
def test_complete_parser_knows_the_same_flags(name):
    parser = make_training_parser(name)
    foreseen = set(parser.known_flags())
    parser.complete()
    assert set(parser.known_flags()) <= foreseen


@pytest.mark.parametrize("name", TRAINING)
def test_commands_have_the_arguments_of_their_tasks(name):
    module, task = TRAINING_COMMANDS[name].task
    task = getattr(importlib.import_module(f"vit_hf.training.{module}"), task)
    assert task.argument_groups == arguments.TASKS[name]
    module, run_arguments = TRAINING_COMMANDS[name].run_arguments
    assert task.run_arguments is getattr(importlib.import_module(f"vit_hf.{module}"), run_arguments)


def test_help_shows_the_defaults_of_the_task(capsys):
    for flag in ("--help", "--help-all"):
        with pytest.raises(SystemExit):
            main(["distill", flag])
        said = capsys.readouterr().out
        assert "--lora_rank" in said and "peak learning rate of AdamW" in said


@pytest.mark.parametrize("name", config_names())
def test_configurations_are_read_by_name(name):
    if name.startswith("accelerate"):  # for `accelerate launch --config_file`
        return
    entries = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())
    command = next(
        (word for word in TRAINING if word in name.split("_")), "search" if "search" in name else "finetune"
    )
    argv = read_arguments(parser_of(command), ["--config", name, "--output_dir", "elsewhere"])
    assert argv[-2:] == ["--output_dir", "elsewhere"]
    given = {entry for entry, value in entries.items() if value is not None} | {"output_dir", "config"}
    assert {word[2:] for word in argv if word.startswith("--")} == given


def test_configs_lists_and_prints(capsys):
    assert main(["configs"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == config_names()
    assert all(len(line.split()) > 2 for line in lines)
    main(["configs", "small_digits"])
    assert capsys.readouterr().out == (CONFIGS / "small_digits.yaml").read_text()


def test_flags_override_a_file(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("model_name_or_path: runs/a\ninputs: [a.png, b.png]\ntop_k: 3\n")
    parser = parser_of("predict")
    values, *_, namespace = parse(parser, read_arguments(parser, [str(file), "--top_k", "2"]))
    assert (values.model_name_or_path, values.top_k, namespace.inputs) == ("runs/a", 2, ["a.png", "b.png"])


@pytest.mark.parametrize("name", ["finetune", "tune", "evaluate"])
def test_help_all_describes_every_flag(name, capsys):
    with pytest.raises(SystemExit) as end:
        main([name, "--help-all"])
    assert not end.value.code
    text = capsys.readouterr().out
    assert ("--adam_beta1" in text) == (name != "evaluate") and "--config NAME" in text


def test_a_reader_that_has_enough_is_no_error():
    command = f"{sys.executable} -m vit_hf configs token_reduction | head -1"
    result = subprocess.run(command, shell=True, capture_output=True, text=True, check=True)
    assert result.stdout.startswith("#") and not result.stderr


def test_a_list_in_a_file_leaves_positional_arguments_alone(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("model_name_or_path: runs/a\nscales: [1, 0.5]\n")
    parser = parser_of("predict")
    *_, namespace = parse(parser, read_arguments(parser, [str(file), "scenes/"]))
    assert namespace.inputs == ["scenes/"]


@pytest.mark.parametrize("argv", [["--config=small_digits"], ["--config", "small_digits"]])
def test_both_ways_to_name_a_configuration_are_read(argv):
    parser = parser_of("finetune")
    assert "--dataset" in read_arguments(parser, [*argv, "--output_dir", "x"])


def test_a_switch_in_a_file_is_a_switch(tmp_path):
    for value in (True, False):
        (tmp_path / "mine.yaml").write_text(f"demo: {str(value).lower()}\n")
        parser = parser_of("compare")
        *_, namespace = parse(parser, read_arguments(parser, [str(tmp_path / "mine.yaml")]))
        assert namespace.demo is value


def test_fields_that_are_no_json_are_named(capsys):
    with pytest.raises(SystemExit):
        main(["convert", "x", "--output", "y", "--fields", "{"])
    assert "fields is not valid JSON" in capsys.readouterr().err
