"""Check of the installed packages, before anything of them is imported."""

import importlib
import importlib.metadata
import shlex
import sys

import pytest

import vit_hf
from vit_hf.requirements import check_versions


DECLARED = ["torch>=2.11", "transformers>=5.17", "safetensors", 'gradio>=99; extra == "app"']


@pytest.fixture
def install(monkeypatch):
    """Makes packages look installed: a version by name, None for one that is missing."""

    def pretend(declared=DECLARED, **versions):
        def version(name):
            found = ({"torch": "2.11.0", "transformers": "5.17.0", "safetensors": "0.1"} | versions)[name]
            if found is None:
                raise importlib.metadata.PackageNotFoundError(name)
            return found

        monkeypatch.setattr(importlib.metadata, "requires", lambda name: declared)
        monkeypatch.setattr(importlib.metadata, "version", version)

    return pretend


@pytest.mark.parametrize(
    "versions",
    [
        {},
        {"torch": "2.11.0+cu128", "transformers": "5.30.1"},
        {"torch": "2.12.0.dev20260101", "transformers": "6.0.0.dev0"},
    ],
)
def test_supported_versions(install, versions):
    install(**versions)
    check_versions()


@pytest.mark.parametrize(
    ("versions", "reasons"),
    [
        ({"torch": "2.10.1"}, ["torch>=2.11 is needed, and 2.10.1 is installed"]),
        ({"transformers": "4.57.0"}, ["transformers>=5.17 is needed, and 4.57.0 is installed"]),
        ({"transformers": "5.17.0.dev0"}, ["transformers>=5.17 is needed, and 5.17.0.dev0 is installed"]),
        ({"safetensors": None}, ["safetensors is needed, and it is not installed"]),
        (
            {"torch": None, "transformers": "4.0"},
            ["torch>=2.11 is needed, and it is not", "transformers>=5.17 is needed, and 4.0 is installed"],
        ),
    ],
)
def test_unsupported_versions(install, versions, reasons):
    install(**versions)
    with pytest.raises(ImportError) as caught:
        check_versions()
    text = str(caught.value)
    assert all(reason in text for reason in reasons) and text.count("is needed") == len(reasons)
    assert text.startswith("vit_hf: ") and "gradio" not in text
    words = shlex.split(text.partition(" Run: ")[2])
    assert words[:5] == [sys.executable, "-m", "pip", "install", "--upgrade"]
    assert words[5:] == [reason.partition(" is needed")[0] for reason in reasons]


def test_import_checks_first(install, monkeypatch):
    """The message comes instead of an error from inside of an old library."""
    install(torch="1.13.1")
    for name in [name for name in sys.modules if name.partition(".")[0] == "vit_hf"]:
        monkeypatch.delitem(sys.modules, name)
    # Not imported before the check.
    monkeypatch.setitem(sys.modules, "vit_hf.auto", None)
    with pytest.raises(ImportError, match=r"torch>=2\.11 is needed, and 1\.13\.1 is installed"):
        importlib.import_module("vit_hf")


def test_a_folder_that_is_not_installed_is_not_checked(monkeypatch):
    def requires(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "requires", requires)
    check_versions()


def test_the_lower_bounds_are_declared():
    declared = importlib.metadata.requires(vit_hf.__name__)
    assert {"torch>=2.11", "transformers>=5.17"} <= set(declared)
