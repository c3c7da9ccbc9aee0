"""transformers' own suites, which its source distribution has and the installed package has not."""

import os
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import transformers


# What the suites import of files that the source distribution lacks.
LACKING = {
    "transformers_tests/__init__.py": "",
    "transformers_tests/exporters/__init__.py": "",
    "transformers_tests/exporters/test_export.py": "class ExportTesterMixin: ...\n",
    "transformers_tests/generation/__init__.py": "",
    "transformers_tests/generation/test_utils.py": "class GenerationTesterMixin: ...\n",
    "fetch_hub_objects_for_ci.py": "url_to_local_path = str\n",
}


@pytest.fixture(scope="module")
def suites(tmp_path_factory) -> Path:
    """A folder with `transformers_tests`, of the installed version."""
    pytest.importorskip("parameterized", reason="pip install parameterized")
    folder = tmp_path_factory.mktemp("suites")
    package = f"transformers=={transformers.__version__}"
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--no-deps",
        "--no-binary=:all:",
        package,
        "-d",
        folder,
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    archives = list(folder.glob("transformers-*.tar.gz"))
    if done.returncode or not archives:
        pytest.skip(f"cannot download the source distribution of {package}: {done.stderr.strip()[-200:]}")
    with tarfile.open(archives[0]) as archive:
        for member in archive.getmembers():
            if found := re.fullmatch(r"[^/]+/tests/(test_\w+\.py)", member.name):
                path = folder / "transformers_tests" / found[1]
                path.parent.mkdir(exist_ok=True)
                path.write_bytes(archive.extractfile(member).read())
    for name, text in LACKING.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    return folder


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_transformers_suites(suites):
    root = Path(__file__).parents[1]
    paths = os.pathsep.join([str(root), str(suites), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", "pytest", "-q", "-rf", str(root / "tests" / "transformers_suites.py")]
    # A configuration of its own: the suites have markers that ours does not know.
    (suites / "pytest.ini").write_text("[pytest]\n")
    command += ["-c", str(suites / "pytest.ini"), "--rootdir", str(root), "-p", "no:cacheprovider"]
    done = subprocess.run(
        command, cwd=root, env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True
    )
    failed = re.findall(r"^(?:SUB)?FAILED.*|^E  .*", done.stdout, re.MULTILINE)
    assert done.returncode == 0, "\n".join([*failed[-60:], done.stdout[-200:], done.stderr[-2000:]])
