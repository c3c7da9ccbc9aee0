"""Joining modules into one file."""

import importlib.util
import logging
import sys

import pytest

from vit_hf.hub import code_bundle
from vit_hf.hub.code_bundle import BundleError, bundle


@pytest.fixture
def join(tmp_path, monkeypatch):
    """Writes a package `toy`; joins what `Model` of `toy.model` needs, and imports the result."""
    monkeypatch.setattr(code_bundle, "PACKAGE", "toy")
    monkeypatch.syspath_prepend(tmp_path)
    code_bundle.read_module.cache_clear()

    def join(files, **options):
        for name, text in {"__init__": "", **files}.items():
            path = tmp_path / "toy" / f"{name}.py"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        text = bundle([("Model", "toy.model")], "One file.", **options)
        (tmp_path / "joined.py").write_text(text)
        spec = importlib.util.spec_from_file_location("joined", tmp_path / "joined.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return text, module

    yield join
    code_bundle.read_module.cache_clear()
    for name in [name for name in sys.modules if name.partition(".")[0] == "toy"]:
        del sys.modules[name]


LOGGER = "import logging\n\nlogger = logging.getLogger(__name__)\n"
FILES = {
    "model": (
        '"""The model. More of it."""\nfrom .base import Base\nfrom .parts.sizes import SIZES\n\n\n'
        "class Model(Base):\n"
        "    def sizes(self) -> list[int]:\n"
        "        from .late import double\n\n"
        "        return [double(size) for size in SIZES]\n\n\n"
        "class Unused(Base):\n    pass\n\n\n"
        '__all__ = ["Model", "Unused"]\n'
    ),
    "base": LOGGER + "\n\nclass Base:\n    logger = logger\n",
    "parts/__init__": "",
    "parts/sizes": (
        '"""Sizes of parts."""\nimport math\nfrom ..base import Base\n' + LOGGER + "\n# Why three.\n"
        "SIZES = [1, 2, math.prod([1, 3])]\nUNUSED = Base\nSIZES.append(4)\n"
    ),
    "late": (
        '"""Doubles."""\nfrom functools import partial\n\n\n'
        "def double(size):\n    return partial(int, 2 * size)()\n"
    ),
}


def test_bundle_holds_what_is_needed_and_nothing_else(join):
    text, module = join(FILES)
    assert module.Model().sizes() == [2, 4, 6, 8]
    assert module.Model.logger is logging.getLogger("joined")
    assert "Unused" not in text and "UNUSED" not in text and "from ." not in text and "__all__" not in text
    assert text.count("logger = logging") == 1
    assert "# Why three.\nSIZES = [" in text


def test_bundle_reads_from_top_to_bottom(join):
    text, _ = join(FILES)
    lines = text.splitlines()
    contents = lines[lines.index("Contents, by line:") + 1 : lines.index('"""', 1)]
    assert [entry.split(maxsplit=2)[1:] for entry in contents] == [
        ["base.py", "base"],
        ["parts/sizes.py", "Sizes of parts."],
        ["model.py", "The model."],
        ["late.py", "Doubles."],
    ]
    for number, entry in enumerate(contents, 1):
        line, file, _ = entry.split(maxsplit=2)
        assert lines[int(line) - 1].startswith(f"# ==== {number}. {file} ")


def test_bundle_replaces_a_function(join):
    _, module = join(FILES, replaced={"double": "def double(size):\n    return -size"})
    assert module.Model().sizes() == [-1, -2, -3, -4]
    with pytest.raises(BundleError, match="no \\['absent'\\] to replace"):
        join(FILES, replaced={"absent": ""})


@pytest.mark.parametrize(
    "files, message",
    [
        (
            {"late": "def double(size):\n    return SIZES\n\n\nSIZES = 1\n"},
            "SIZES means one thing in .*sizes.py, line",
        ),
        (
            {"late": "from os import path as math\n\n\ndef double(size):\n    return math\n"},
            "math means one thing",
        ),
        (
            {"late": "def double(size):\n    return filter(size)\n\n\ndef filter(size):\n    pass\n"},
            "filter .*builtin",
        ),
        (
            {"late": "from .base import Base as Other\n\n\ndef double(size):\n    return Other\n"},
            "without `as`",
        ),
        ({"late": "from __future__ import annotations\n\n\ndef double(size): ...\n"}, "__future__"),
        (
            {"late": "import toy.base\n\n\ndef double(size):\n    return toy\n"},
            "write `from .file import name`",
        ),
        (
            {"late": "def double(size):\n    if size:\n        from .base import Base\n"},
            "nothing but imports",
        ),
        ({"late": "def single(size): ...\n"}, "imports double, which toy.late does not define"),
        ({"late": "a = 1; double = 2\n"}, "a line of its own"),
    ],
)
def test_what_cannot_be_joined_is_refused(join, files, message):
    with pytest.raises(BundleError, match=message):
        join({**FILES, **files})
