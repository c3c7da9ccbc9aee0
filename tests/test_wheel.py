"""The built wheel, installed outside the clone: every command has the files that it needs."""

import json
import os
import shutil
import socket
import subprocess
import sys
import sysconfig
import time
import urllib.error
import urllib.request
import zipfile
from pathlib import Path

import pytest

from vit_hf.cli.parsing import config_names


pytestmark = [pytest.mark.slow, pytest.mark.timeout(900), pytest.mark.xdist_group("wheel")]

CLONE = Path(__file__).parents[1]
SOURCES = ("pyproject.toml", "setup.cfg", "README.md", "LICENSE", "vit_hf")
DIGITS = {"task": "single", "size": 48, "num_noise": 0, "num_train": 60, "num_test": 20}
MODEL = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "patch_size": 16,
    "num_channels": 1,
}


def call(*command, **options) -> str:
    """Runs a command and returns what it printed."""
    result = subprocess.run(
        [*map(str, command)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=600,
        check=False,
        **options,
    )
    assert result.returncode == 0, result.stdout
    return result.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Builds from a copy: setuptools puts what an earlier build left in the folder into the wheel, too."""
    uv = shutil.which("uv", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if uv is None:
        pytest.skip("needs uv, which `make install` installs")
    folder = tmp_path_factory.mktemp("sources")
    for name in SOURCES:
        if (CLONE / name).is_dir():
            shutil.copytree(CLONE / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(CLONE / name, folder / name)
    call(uv, "build", "--wheel", "--quiet", "--out-dir", folder / "dist", folder)
    [built] = (folder / "dist").glob("*.whl")
    return uv, built


@pytest.fixture(scope="module")
def vit_hf_command(wheel, tmp_path_factory):
    """Returns a function that runs the command of the installed wheel in an empty folder, and that folder.

    Its environment has the packages of this one, and not this one's vit_hf: `.pth` files of a folder that a
    `.pth` file adds are not read, and an editable installation is one.
    """
    uv, built = wheel
    root = tmp_path_factory.mktemp("elsewhere")
    call(sys.executable, "-m", "venv", "--without-pip", root / "venv")
    python = root / "venv" / "bin" / "python"
    site = Path(call(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    paths = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    (site / "packages.pth").write_text("\n".join(sorted(paths)) + "\n")
    call(uv, "pip", "install", "--quiet", "--no-deps", "--python", python, built)
    folder = root / "work"
    folder.mkdir()
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    env |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(root / "cache"), "OMP_NUM_THREADS": "1"}
    options = {"cwd": folder, "env": env}
    location = call(python, "-c", "import vit_hf; print(vit_hf.__file__)", **options)
    assert Path(location.splitlines()[-1]).is_relative_to(site)

    def run(*arguments) -> str:
        return call(python.with_name("vit-hf"), *arguments, **options)

    run.folder, run.options, run.program = folder, options, python.with_name("vit-hf")
    return run


@pytest.fixture(scope="module")
def trained(vit_hf_command):
    """Trains for two steps by a configuration of the package, and returns the folder of the model."""
    flags = ["--max_steps", "2", "--per_device_train_batch_size", "8", "--dataloader_num_workers", "0"]
    flags += ["--config_overrides", json.dumps(MODEL), "--dataset_options", json.dumps(DIGITS)]
    flags += ["--validation_fraction", "0.2", "--use_cpu"]
    vit_hf_command("finetune", "--config", "small_digits", "--output_dir", "run", *flags)
    return vit_hf_command.folder / "run"


@pytest.fixture(scope="module")
def image(vit_hf_command):
    import PIL.Image

    path = vit_hf_command.folder / "noise.png"
    PIL.Image.effect_noise((64, 64), 60).save(path)
    return path


def test_wheel_has_package_data_and_nothing_else(wheel):
    names = zipfile.ZipFile(wheel[1]).namelist()
    for name in ("hub/card_template.md", "comparison/report.html"):
        assert f"vit_hf/{name}" in names
    assert {f"vit_hf/configs/{name}.yaml" for name in config_names()} <= set(names)
    assert {name.split("/")[0].partition("-")[0] for name in names} == {"vit_hf"}
    assert not any(".data/" in name for name in names)
    modules = {str(path.relative_to(CLONE)) for path in (CLONE / "vit_hf").rglob("*.py")}
    assert modules == {name for name in names if name.endswith(".py")}


def test_help_and_configurations(vit_hf_command):
    assert vit_hf_command("--help").startswith("usage: vit-hf")
    assert all(name in vit_hf_command("configs") for name in config_names())


def test_finetune_by_a_configuration_of_the_package(trained):
    names = {path.name for path in trained.iterdir()}
    assert {"config.json", "model.safetensors", "preprocessor_config.json"} <= names


CARD = """
import sys
from transformers import AutoModelForImageClassification
import vit_hf
from vit_hf.hub.model_card import make_model_card
model = AutoModelForImageClassification.from_pretrained(sys.argv[1])
print(make_model_card(model, model_name="digits"))
"""


def test_card_template_is_found(vit_hf_command, trained):
    said = call(vit_hf_command.program.with_name("python"), "-c", CARD, trained, **vit_hf_command.options)
    assert "## How to use" in said and "# digits" in said


def test_predict(vit_hf_command, trained, image):
    said = vit_hf_command("predict", image, "--model_name_or_path", trained)
    assert "noise.png" in said


def test_explain(vit_hf_command, trained, image):
    vit_hf_command(
        "explain",
        *("--model_name_or_path", trained, "--images", image, "--output", "pictures"),
        *("--patch_selector", "variance", "--num_selected_patches", "4"),
    )
    assert list((vit_hf_command.folder / "pictures").rglob("*.png"))


def test_compare(vit_hf_command, trained):
    options = DIGITS | {"size": 96, "num_train": 20}
    said = vit_hf_command(
        *("compare", "--demo", "--model", trained, "--hybrid", trained, "--adapt", "0", "--use_cpu"),
        *("--dataset_options", json.dumps(options), "--limit", "20", "--repeats", "1"),
        *("--strategies", "dense", "select", "--selectors", "variance", "--tokens", "9"),
        *("--output", "comparison", "--card", "card"),
    )
    assert "On 20 images" in said
    folder = vit_hf_command.folder
    assert "9 patches, variance" in (folder / "comparison" / "report.html").read_text()
    assert (folder / "card" / "README.md").is_file()


def test_app_answers(vit_hf_command, trained):
    pytest.importorskip("gradio", reason="the page needs gradio: pip install vit_hf[app]")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = vit_hf_command.folder / "app.log"
    with open(log, "w") as file:
        process = subprocess.Popen(
            [vit_hf_command.program, "app", "--model_name_or_path", trained, "--server_port", str(port)],
            stdout=file,
            stderr=subprocess.STDOUT,
            **vit_hf_command.options,
        )
    try:
        for _ in range(240):
            assert process.poll() is None, log.read_text()
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5) as answer:
                    assert "gradio" in answer.read().decode()
                break
            except (urllib.error.URLError, ConnectionError, TimeoutError):
                time.sleep(0.5)
        else:
            pytest.fail(f"the page did not answer: {log.read_text()}")
    finally:
        process.terminate()
        process.wait(timeout=30)
