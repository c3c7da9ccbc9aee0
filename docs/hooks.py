"""Pages that `mkdocs build` makes from the code: reference, commands, measurements and home page.

The build is strict: it fails for a public name without a docstring or without a place in the reference, for a
field, option or flag without a meaning, and for a link to a file of the repository that does not exist.
"""

import argparse
import functools
import importlib
import inspect
import posixpath
import re
import sys
from collections.abc import Iterator
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File


ROOT = Path(__file__).parents[1]
REPOSITORY = "https://github.com/vit-hf/vit_hf"
# Addresses of the repository's files on GitHub: as a page, and raw.
LINK = re.compile(rf"{REPOSITORY}/(?:blob|tree|raw)/main/([^\s)#\"'>]+)")

# Public names by page of the reference; every name of `vit_hf.__all__` is on one.
NAMES = {
    "models": (
        "Models",
        [
            "AdaptiveViTModel",
            "AdaptiveViTForImageClassification",
            "AdaptiveViTForSemanticSegmentation",
            "AdaptiveViTForVideoClassification",
            "AdaptiveViTForPreTraining",
            "AdaptiveViTForMaskedImageModeling",
            "AdaptiveViTBackbone",
            "AdaptiveViTPreTrainedModel",
            "AdaptiveSwinModel",
            "AdaptiveSwinForImageClassification",
            "AdaptiveSwinForMaskedImageModeling",
            "AdaptiveSwinBackbone",
            "AdaptiveSwinPreTrainedModel",
        ],
    ),
    "images": (
        "Images",
        [
            "AdaptiveViTImageProcessor",
            "AdaptiveViTImageProcessorPil",
            "PatchCollator",
            "open_image",
            "ImageSource",
            "predict_tiled",
            "segment_tiled",
            "detect_tiled",
            "predict_streaming",
            "select_streaming",
            "stream_images",
            "StreamingCollator",
        ],
    ),
    "tools": (
        "Tools",
        ["convert", "explain", "explain_video", "measure_fidelity", "push_to_hub", "KeepRateSchedule"],
    ),
    "elastic": (
        "Elastic networks",
        ["AdaptiveViTForElasticImageClassification", "SearchSpace", "SubNetwork"],
    ),
    "own-parts": (
        "Base classes of parts",
        [
            "PositionEncoding",
            "PatchSelector",
            "TokenReducer",
            "ImagePatches",
            "PatchTokens",
            "Reduction",
            "register_position_encoding",
            "register_patch_selector",
            "register_token_reducer",
        ],
    ),
}
CONFIGS = ["AdaptiveViTConfig", "AdaptiveSwinConfig"]
# Constants have no docstring of their own.
CONSTANTS = {
    "POSITION_ENCODINGS": "Position encodings, by the name that `position_encoding` gives them.",
    "PATCH_SELECTORS": "Patch selectors, by the name that `patch_selector` gives them.",
    "TOKEN_REDUCERS": "Token reducers, by the name that `token_reducer` gives them.",
    "__version__": "Version of the package.",
}
# Not in `vit_hf.__all__`: what the guides import from a module.
OTHERS = [
    "vit_hf.training.hub_trainer.HubTrainer",
    "vit_hf.checkpoints.plain.to_transformers",
    "vit_hf.checkpoints.npz.save_npz",
    "vit_hf.inference.tiles.feature_map_tiled",
    "vit_hf.inference.vector_output.coco_annotations",
    "vit_hf.inference.vector_output.detection_features",
    "vit_hf.inference.vector_output.segmentation_features",
    "vit_hf.inference.vector_output.write_json",
    "vit_hf.inference.dense_pictures.picture_of",
    "vit_hf.training.callbacks.NonFiniteGuard",
    "vit_hf.training.callbacks.EmaCallback",
    "vit_hf.training.optimizer.FreezeBackbone",
    "vit_hf.data.megapixel_digits.megapixel_digits",
    "vit_hf.explanations.position_maps.position_similarity",
]
CARDS = {
    "selection": "Patch selectors and token reducers",
    "comparison": "Strategies for large images",
    "large_images": "Cost by image size",
    "megapixel-digits": "Model of the quickstart",
    "megapixel-protocol": "Megapixel MNIST",
    "positions": "Position encodings",
    "swin": "Swin",
    "volumes": "Video",
    "segmentation": "Segmentation",
    "detection": "Detection",
    "pretraining": "Pretraining",
    "distillation": "Distillation and coverage",
    "elastic": "Elastic networks",
}


def on_config(config):
    """Lets the generators import this checkout's package."""
    sys.path[:0] = [str(ROOT)]
    return config


def on_files(files, config):
    """Adds the generated pages."""
    for path, text in pages().items():
        files.append(File.generated(config, path, content=text))
    for name in CARDS:
        for picture in (ROOT / "model_cards" / name).glob("*.png"):
            path = f"measurements/{name}/{picture.name}"
            files.append(File.generated(config, path, abs_src_path=str(picture)))
    return files


def on_page_markdown(markdown, page, config, files):
    """Turns links that work on GitHub into those of this site; checks links to files of the repository."""
    markdown = re.sub(
        r"\]\(\.\./\.\./model_cards/([\w-]+)/README\.md\)", r"](../measurements/\1.md)", markdown
    )
    markdown = markdown.replace("](../../CONTRIBUTING.md", "](../contributing.md")
    for path in LINK.findall(markdown):
        if not (ROOT / path).exists():
            raise PluginError(f"{page.file.src_uri} links to {path}, which the repository does not have.")
    return markdown


def pages() -> dict[str, str]:
    """Returns the text of each generated page, by its path below `docs/`."""
    check_public_names()
    pages = {
        "index.md": localized((ROOT / "README.md").read_text(encoding="utf-8"), "."),
        "contributing.md": localized((ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"), "."),
        "changelog.md": localized((ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), "."),
        "reference/index.md": overview_page(),
        "reference/configuration.md": configuration_page(),
        "reference/parts.md": parts_page(),
        "reference/others.md": others_page(),
        "reference/commands.md": commands_page(),
        "reference/trainer.md": trainer_page(),
    }
    for name, (title, members) in NAMES.items():
        blocks = [autodoc(member) for member in members]
        pages[f"reference/{name}.md"] = "\n\n".join([f"# {title}", *blocks]) + "\n"
    for name in CARDS:
        text = (ROOT / "model_cards" / name / "README.md").read_text(encoding="utf-8")
        text = re.sub(r"\A---\n.*?\n---\n", "", text, flags=re.DOTALL)
        # Pictures lie in a folder of the card's name; other links start from the folder of the card.
        text = re.sub(r"\]\((\w[\w.-]*\.png)\)", rf"]({name}/\1)", text)
        text = text.replace("](../../", f"]({REPOSITORY}/blob/main/")
        pages[f"measurements/{name}.md"] = localized(text, "measurements")
    return pages


def localized(text: str, folder: str) -> str:
    """Turns links to pages and pictures on GitHub into links to those of this site.

    Args:
        text: Markdown.
        folder: folder of the page, below `docs/`.
    """

    def local(match: re.Match) -> str:
        path = match[1]
        if card := re.fullmatch(r"model_cards/([^/]+)/README\.md", path):
            path = f"docs/measurements/{card[1]}.md"
        elif path.startswith("model_cards/") and path.endswith(".png"):
            path = path.replace("model_cards/", "docs/measurements/")
        elif path in ("CONTRIBUTING.md", "CHANGELOG.md"):
            path = f"docs/{path.lower()}"
        if not path.startswith("docs/"):
            return match[0]
        return posixpath.relpath(path.removeprefix("docs/"), folder)

    return LINK.sub(local, text)


# Public names


def check_public_names() -> None:
    """Checks that every public name has a docstring and a place in the reference.

    Raises:
        PluginError: naming those that have not.
    """
    import vit_hf

    placed = [name for _, members in NAMES.values() for name in members] + CONFIGS + list(CONSTANTS)
    problems = [f"{name} has no page in docs/hooks.py" for name in set(vit_hf.__all__) - set(placed)]
    problems += [f"{name} of docs/hooks.py is not public" for name in set(placed) - set(vit_hf.__all__)]
    problems += [
        f"{name} is there {placed.count(name)} times" for name in set(placed) if placed.count(name) > 1
    ]
    for name in set(placed) - set(CONSTANTS):
        thing = getattr(vit_hf, name, None)
        problems += [f"{where} has no docstring" for where in undocumented(name, thing)]
    if problems:
        raise PluginError("Reference: " + "; ".join(sorted(problems)))


def undocumented(name: str, thing: Any) -> Iterator[str]:
    """Yields what has no docstring: a class or function, or a public method that the class defines itself.

    A method may have that of the same method of a base class.
    """
    if not (thing.__doc__ or "").strip():
        yield name
    if inspect.isclass(thing):
        for member, value in vars(thing).items():
            function = value.fget if isinstance(value, property) else getattr(value, "__func__", value)
            own = inspect.isfunction(function) and function.__module__.startswith("vit_hf")
            if own and not member.startswith("_") and not inspect.getdoc(getattr(thing, member)):
                yield f"{name}.{member}"


def home_of(name: str) -> str:
    """Returns the full name of a public name where it is defined."""
    import vit_hf

    thing = getattr(vit_hf, name)
    return f"{thing.__module__}.{thing.__qualname__}"


def autodoc(name: str) -> str:
    """Returns what mkdocstrings replaces by the documentation of a public name."""
    return f"::: {home_of(name)}\n    options:\n      heading: vit_hf.{name}\n      toc_label: {name}"


def overview_page() -> str:
    """Lists all public names."""
    import vit_hf

    lines = ["# Reference", "", "Generated from the docstrings of the package. Also:", ""]
    lines += ["- [All fields of configurations](configuration.md)"]
    lines += ["- [All parts and their options](parts.md)"]
    lines += ["- [All commands and their flags](commands.md)"]
    lines += ["- [More functions, in modules](others.md)", ""]
    for page, (title, members) in NAMES.items():
        lines += [f"## {title}", "", "| `vit_hf.` | |", "|---|---|"]
        lines += [
            f"| [`{name}`]({page}.md#{home_of(name)}) | {first_sentence(getattr(vit_hf, name).__doc__)} |"
            for name in members
        ]
        lines += [""]
    lines += ["## Configurations and constants", "", "| `vit_hf.` | |", "|---|---|"]
    lines += [
        f"| [`{name}`](configuration.md#{home_of(name)}) | {first_sentence(getattr(vit_hf, name).__doc__)} |"
        for name in CONFIGS
    ]
    for name, meaning in CONSTANTS.items():
        link = "" if name == "__version__" else f"parts.md#{name.lower().rstrip('s')}"
        lines += [f"| [`{name}`]({link}) | {meaning} |" if link else f"| `{name}` | {meaning} |"]
    return "\n".join(lines) + "\n"


def others_page() -> str:
    """Documents functions that guides import from modules."""
    blocks = ["# More functions", "Not in `vit_hf` itself: import them from their modules."]
    for name in OTHERS:
        module, _, member = name.rpartition(".")
        if not (getattr(importlib.import_module(module), member).__doc__ or "").strip():
            raise PluginError(f"Reference: {name} has no docstring")
        blocks.append(f"::: {name}\n    options:\n      heading: {name}\n      toc_label: {member}")
    return "\n\n".join(blocks) + "\n"


# Docstrings and tables


def first_sentence(docstring: str | None) -> str:
    """Returns the first sentence of a docstring, fit for a table."""
    text = " ".join(inspect.cleandoc(docstring or "").partition("\n\n")[0].split())
    return cell(re.split(r"(?<=[.:])\s+(?=[A-Z])", text)[0])


def cell(text: str) -> str:
    """Escapes a text for a cell of a table."""
    return " ".join(str(text).split()).replace("|", "\\|").replace("<", "&lt;")


def code(value: Any) -> str:
    """Returns a value as code in a cell of a table."""
    return f"`{str(value).replace('|', chr(92) + '|')}`"


def name_code(name: str) -> str:
    """Returns a name as code that may break after an underscore, on narrow screens."""
    return f"<code>{name.replace('_', '_<wbr>')}</code>"


def argument_meanings(docstring: str | None) -> dict[str, str]:
    """Returns the meaning of each argument in the section `Args` of a docstring.

    One entry may be about several, as in "width, height: in pixels".
    """
    lines = inspect.cleandoc(docstring or "").splitlines()
    if "Args:" not in lines:
        return {}
    entries: list[str] = []
    for line in lines[lines.index("Args:") + 1 :]:
        if line and not line.startswith(" "):
            break
        if re.match(r" {4}\S", line):
            entries.append(line.strip())
        elif entries and line.strip():
            entries[-1] += f" {line.strip()}"
    meanings = {}
    for entry in entries:
        # Names, perhaps type and default in parentheses, and the meaning.
        if parts := re.match(r"(\w+(?:, \w+)*)\s*(?:\((?:[^()]|\([^()]*\))*\))?:\s*(.*)", entry):
            meanings |= dict.fromkeys(parts[1].split(", "), parts[2])
    return meanings


def default_of(entry: Any) -> Any:
    """Returns the default of a field of a dataclass."""
    return entry.default if entry.default_factory is MISSING else entry.default_factory()


def meanings_of(options: type, what: str) -> dict[str, str]:
    """Returns the meaning of each option of a dataclass, from its docstring or those of its bases.

    Raises:
        PluginError: for an option without one.
    """
    meanings = {}
    for base in reversed(options.__mro__):
        meanings |= argument_meanings(vars(base).get("__doc__"))
    for entry in fields(options):
        if not meanings.get(entry.name):
            raise PluginError(
                f"Reference: option {entry.name} of {what} has no meaning in {options.__name__}"
            )
    return meanings


# Configurations


def configuration_page() -> str:
    """Lists the fields of both configurations with defaults and meanings."""
    import transformers

    import vit_hf

    stock = {"AdaptiveViTConfig": transformers.ViTConfig, "AdaptiveSwinConfig": transformers.SwinConfig}
    blocks = ["# Configurations", CONFIGURATION_TEXT]
    for name in CONFIGS:
        config = getattr(vit_hf, name)
        blocks.append(
            autodoc(name) + "\n      members: false\n      show_docstring_parameters: false\n"
            "      merge_init_into_class: false\n      show_signature: false"
        )
        ours, theirs = argument_meanings(config.__doc__), argument_meanings(stock[name].__doc__)
        theirs = {field: text for field, text in theirs.items() if field not in ours}
        common = {entry.name for entry in fields(transformers.PreTrainedConfig)}
        table = {}
        for entry in fields(config):
            field = entry.name.lstrip("_")
            if field in common:
                continue
            meaning = ours.get(field) or theirs.get(field)
            if not meaning:
                raise PluginError(f"Reference: field {field} of {name} has no meaning in its docstring")
            table[field] = (code(repr(default_of(entry))), cell(meaning))
        for title, group in ((f"Fields of {name}", ours), (f"Fields from {stock[name].__name__}", theirs)):
            blocks.append(f"### {title}")
            rows = [
                f"| {name_code(field)} | {' | '.join(table[field])} |" for field in table if field in group
            ]
            blocks.append("\n".join(["| field | default | meaning |", "|---|---|---|", *rows]))
    return "\n\n".join(blocks) + "\n"


CONFIGURATION_TEXT = """\
Every field may be given to `from_pretrained`, to the configuration, or to `vit-hf finetune` by
`--config_overrides`:

```text
AdaptiveViTForImageClassification.from_pretrained(name, patch_selector="attention", num_selected_patches=196)
AdaptiveViTConfig(position_encoding={"type": "rotary", "base": 10.0})
vit-hf finetune --config_overrides '{"drop_path_rate": 0.1}' ...
```

A part with options is a name, or a dictionary with the name as `type`:
[all parts and their options](parts.md). Common fields of transformers, such as `num_labels` and `id2label`,
are those of
[`PreTrainedConfig`](https://huggingface.co/docs/transformers/main_classes/configuration)."""


def parts_page() -> str:
    """Lists the classes that each field of a configuration may name, with their options."""
    from vit_hf.model.part_checks import options_classes

    blocks = ["# Parts and their options", PARTS_TEXT]
    last = None
    for field, name, options in [*options_classes(), *volume_parts()]:
        if field != last:
            blocks += [f"## {field}", FIELDS_OF_PARTS.get(field, "")]
        last = field
        blocks.append(f"### {field}: {name}" if name else f"### Options of {field}")
        blocks.append(meaning_of_part(field, name, options))
        blocks.append(options_table(options, f"{field}={name!r}"))
    return "\n\n".join(block for block in blocks if block) + "\n"


PARTS_TEXT = """\
A part is named by a field of the configuration: `position_encoding="rotary"`, or, with options,
`position_encoding={"type": "rotary", "base": 10.0}`. Fields with options alone take a dictionary without
`type`. A misspelt name or option is an error that lists the legal ones. A class of your own:
[own parts](../guides/own-parts.md)."""
FIELDS_OF_PARTS = {
    "position_encoding": "Keys of `vit_hf.POSITION_ENCODINGS`. Which one: [choose](../guides/positions.md).",
    "patch_selector": "Keys of `vit_hf.PATCH_SELECTORS`. Which one: [choose](../guides/choose.md).",
    "token_reducer": "Keys of `vit_hf.TOKEN_REDUCERS`. Which one: [choose](../guides/choose.md).",
    "videos and volumes": "For `num_frames`, in addition to the parts above.",
}


def volume_parts() -> Iterator[tuple[str, str, type]]:
    """Yields the parts that are for videos and volumes alone."""
    from vit_hf.model.registry import VOLUME_TABLES

    for table in VOLUME_TABLES.values():
        for name, part in table.items():
            yield "videos and volumes", name, part.Options


def part_class(field: str, name: str | None) -> Any:
    """Returns the class or function whose docstring describes a part; None if only its options have one."""
    from vit_hf.model import layers, patch_embeddings, pixel_scorers, registry, segmentation

    scorers = pixel_scorers.PIXEL_SCORERS | pixel_scorers.VOLUME_SCORERS
    if field in ("patch_selector", "videos and volumes") and name in scorers:
        return scorers[name]
    tables = {**registry.TABLES, "patch_embedding": patch_embeddings.PATCH_EMBEDDINGS}
    tables |= {
        "feed_forward": layers.FEED_FORWARDS,
        "segmentation_decoder": segmentation.SEGMENTATION_DECODERS,
    }
    tables["videos and volumes"] = {
        k: v for table in registry.VOLUME_TABLES.values() for k, v in table.items()
    }
    return tables.get(field, {}).get(name)


def meaning_of_part(field: str, name: str | None, options: type) -> str:
    """Returns the docstring of a part without its sections, or the first sentence of its options."""
    described = part_class(field, name)
    if described is None:
        text = "" if options.__name__ == "Options" else inspect.cleandoc(options.__doc__ or "")
    else:
        text = inspect.cleandoc(described.__doc__ or "")
        if not text:
            raise PluginError(f"Reference: {field}={name!r} has no docstring")
    return re.split(r"\n\n(?=\w+:\n)", text)[0]


def options_table(options: type, what: str) -> str:
    """Returns a table of options with defaults and meanings; a sentence if there are none."""
    entries = fields(options)
    if not entries:
        return "No options."
    meanings = meanings_of(options, what)
    rows = [
        f"| {name_code(entry.name)} | {code(repr(default_of(entry)))} | {cell(meanings[entry.name])} |"
        for entry in entries
    ]
    return "\n".join(["| option | default | meaning |", "|---|---|---|", *rows])


# Commands


@functools.cache
def parser_of(command: str) -> argparse.ArgumentParser:
    """Returns the parser of a command, with all flags of Trainer if it trains."""
    from vit_hf.cli import TRAINING

    module = importlib.import_module(f"vit_hf.cli.{'train' if command in TRAINING else command}")
    parser = module.make_parser(command)
    parser.complete()
    return parser


def flags_of(actions: list[argparse.Action], command: str) -> str:
    """Returns a table of flags with defaults and meanings.

    Raises:
        PluginError: for a flag without a meaning.
    """
    rows = []
    for action in actions:
        if action.help is argparse.SUPPRESS or action.dest == "help":
            continue
        if not action.help:
            raise PluginError(f"Reference: {action.dest} of vit-hf {command} has no help")
        # --patch_selector and --patch-selector both work; one is enough to read.
        spellings = [name for name in action.option_strings if "-" not in name[2:]] or action.option_strings
        names = ", ".join(map(name_code, spellings)) or name_code(action.metavar or action.dest)
        default = "required" if action.required else ""
        if not action.required and action.default not in (None, argparse.SUPPRESS, [], {}):
            default = code(action.default)
        text = action.help.replace("%(default)s", str(action.default)).replace("%%", "%")
        if action.choices:
            text += f" ({', '.join(map(str, action.choices))})"
        rows.append(f"| {names} | {default} | {cell(text)} |")
    return "\n".join(["| flag | default | meaning |", "|---|---|---|", *rows]) if rows else ""


def is_of_trainer(action: argparse.Action) -> bool:
    """Tells whether a flag is one of Trainer's that this package leaves as they are."""
    from transformers import TrainingArguments

    from vit_hf.training.arguments import RunArguments

    name = action.dest.removeprefix("no_")
    return (
        name in TrainingArguments.__dataclass_fields__ and name not in vars(RunArguments)["__annotations__"]
    )


def commands_page() -> str:
    """Describes every command with its flags."""
    from vit_hf.cli import COMMANDS

    blocks = ["# Commands", COMMANDS_TEXT]
    for heading, commands in COMMANDS.items():
        rows = [f"| [`vit-hf {name}`](#{name}) | {cell(summary)} |" for name, summary in commands.items()]
        blocks.append("\n".join([f"| {heading} | |", "|---|---|", *rows]))
    for command in [name for commands in COMMANDS.values() for name in commands]:
        parser = parser_of(command)
        blocks += [f"## {command}", f"```text\n{inspect.cleandoc(parser.description or '')}\n```"]
        for group in parser._action_groups:
            actions = [action for action in group._group_actions if not is_of_trainer(action)]
            if table := flags_of(actions, command):
                title = "Arguments" if group.title in ("positional arguments", "options") else group.title
                blocks += [f"**{command}: {title}**", table]
        if any(is_of_trainer(action) for group in parser._action_groups for action in group._group_actions):
            blocks.append("And all flags of [Trainer](trainer.md).")
    return "\n\n".join(blocks) + "\n"


COMMANDS_TEXT = """\
`vit-hf COMMAND --help` says the same in a terminal; `--help-all` adds all flags of Trainer.
`python -m vit_hf` is the same as `vit-hf`. Every flag can stand in a YAML or JSON file:
`vit-hf finetune my.yaml --learning_rate 1e-4`, or `vit-hf finetune --config small_digits` for one that
`vit-hf configs` lists; flags override it."""


def trainer_page() -> str:
    """Lists the flags of Trainer that the training commands take unchanged."""
    parser = parser_of("finetune")
    actions = [action for group in parser._action_groups for action in group._group_actions]
    table = flags_of([action for action in actions if is_of_trainer(action)], "finetune")
    return "\n\n".join(["# Flags of Trainer", TRAINER_TEXT, table]) + "\n"


TRAINER_TEXT = """\
`vit-hf finetune`, `segment`, `detect`, `pretrain`, `tune` and `search` hand these to transformers'
[`TrainingArguments`](https://huggingface.co/docs/transformers/main_classes/trainer), whose words these are.
Those whose defaults differ here stand with [each command](commands.md)."""
