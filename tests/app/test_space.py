"""The folder of a Space, and what of it reaches the Hub."""

import ast
import base64
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

from tests.helpers.app import photo, save_checkpoint
from tests.helpers.scripts import command
from vit_hf.app.space import write_space


pytestmark = pytest.mark.skipif(find_spec("gradio") is None, reason="pip install vit_hf[app]")


@pytest.fixture
def checkpoint(tmp_path) -> Path:
    """A small checkpoint with what training leaves beside it, and examples."""
    folder = save_checkpoint(tmp_path / "trained", patch_selector="variance")
    (folder / "training_args.bin").write_bytes(b"x")
    (folder / "checkpoint-10").mkdir()
    (folder / ".git").mkdir()
    (folder / "_run_arguments.json").write_text('{"dataset": "/home/somebody"}')
    (folder / "examples").mkdir()
    photo(64, 64).save(folder / "examples" / "a.png")
    return folder


def header_of(folder: Path) -> dict:
    _, header, text = (folder / "README.md").read_text().split("---\n", 2)
    assert text.lstrip().startswith("# ")
    return yaml.safe_load(header)


def test_everything_is_in_the_folder(tmp_path, checkpoint):
    folder = write_space(tmp_path / "space", str(checkpoint), [checkpoint / "examples" / "a.png"], "Digits")
    header = header_of(folder)
    assert (header["title"], header["sdk"], header["app_file"]) == ("Digits", "gradio", "app.py")
    assert isinstance(header["python_version"], str) and isinstance(header["sdk_version"], str)
    assert "models" not in header
    assert {path.name for path in folder.iterdir()} == {
        "README.md",
        "app.py",
        "examples",
        "model",
        "requirements.txt",
        "vit_hf",
    }
    saved = {path.name for path in (folder / "model").iterdir()}
    assert {"config.json", "model.safetensors", "preprocessor_config.json"} <= saved
    others = {"training_args.bin", "checkpoint-10", "examples", ".git", "_run_arguments.json"}
    assert not saved & others
    assert [path.name for path in (folder / "examples").iterdir()] == ["0_a.png"]
    assert (folder / "vit_hf" / "app" / "page.py").is_file()
    assert not list(folder.rglob("__pycache__"))
    requirements = (folder / "requirements.txt").read_text().split()
    names = {line.partition(">")[0].partition("=")[0].partition("<")[0] for line in requirements}
    assert {"torch", "transformers", "pillow"} <= names
    assert not names & {"gradio", "vit_hf", "pytest"}
    ast.parse((folder / "app.py").read_text())


def test_a_checkpoint_of_the_hub_is_named(tmp_path):
    folder = write_space(tmp_path, "somebody/their-model")
    assert header_of(folder)["models"] == ["somebody/their-model"]
    assert "'somebody/their-model'" in (folder / "app.py").read_text()
    assert not (folder / "model").exists()


def test_what_is_there_is_not_overwritten(tmp_path, checkpoint):
    with pytest.raises(FileExistsError, match="is not empty"):
        write_space(checkpoint, str(checkpoint))
    with pytest.raises(FileNotFoundError, match=r"no folder \./nowhere"):
        write_space(tmp_path / "space", "./nowhere")
    with pytest.raises(FileNotFoundError, match=r"no example .*b\.png"):
        write_space(tmp_path / "space", str(checkpoint), [tmp_path / "b.png"])
    assert not (tmp_path / "space").exists()


class Hub(BaseHTTPRequestHandler):
    """As much of the Hub as the upload of small files to a Space needs."""

    requests: list[tuple[str, list[dict] | dict]]

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        lines = [json.loads(line) for line in body.splitlines()]
        content = lines if self.path.endswith("/commit/main") else lines[0]
        self.requests.append((self.path, content))
        url = f"http://{self.headers['Host']}/spaces/me/page"
        answer = {"url": url, "commitUrl": f"{url}/commit/0", "commitOid": "0"}
        if "/preupload/" in self.path:
            files = [{"path": file["path"], "uploadMode": "regular"} for file in content["files"]]
            answer = {"files": [file | {"shouldIgnore": False} for file in files]}
        self.reply(200 if self.headers.get("Authorization") == "Bearer hf_right" else 401, answer)

    def do_GET(self):
        there = [
            {"type": "file", "path": name, "size": 1, "oid": "0"} for name in ("model/old.bin", "mine.md")
        ]
        info = {"sha": "0", "id": "me/page", "siblings": [], "private": True}
        self.reply(200, there if "/tree/" in self.path else info)

    def reply(self, status: int, answer: dict) -> None:
        data = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args):
        pass


@pytest.fixture
def hub():
    """Its address, and what it was asked."""
    handler = type("Recording", (Hub,), {"requests": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", handler.requests
    server.shutdown()
    thread.join()
    server.server_close()


def push(folder: Path, address: str, token: str) -> subprocess.CompletedProcess:
    """In a process of its own, as the client reads its settings once."""
    code = (
        f"from vit_hf.app.space import push_space; print(push_space({str(folder)!r}, 'me/page', "
        "private=True))"
    )
    environment = {
        **os.environ,
        "HF_ENDPOINT": address,
        "HF_TOKEN": token,
        "HF_HOME": str(folder.parent / "home"),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_OFFLINE": "0",
    }
    command = [sys.executable, "-c", code]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200)


@pytest.mark.slow
def test_uploads(tmp_path, hub):
    address, requests = hub
    folder = write_space(tmp_path / "space", "somebody/their-model")
    result = push(folder, address, "hf_right")
    assert result.returncode == 0, result.stderr
    created = dict(requests)["/api/repos/create"]
    assert (created["type"], created["sdk"], created["name"]) == ("space", "gradio", "page")
    assert created.get("visibility") == "private" or created.get("private")
    ((_, lines),) = [request for request in requests if request[0].endswith("/commit/main")]
    sent = {line["value"]["path"]: line["value"]["content"] for line in lines if line["key"] == "file"}
    here = {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file()}
    # The Hub's client leaves files out that have no content, as some __init__.py have.
    assert {name for name, path in here.items() if path.stat().st_size} <= sent.keys() <= here.keys()
    for name in ("README.md", "app.py", "vit_hf/app/page.py"):
        assert base64.b64decode(sent[name]) == here[name].read_bytes()
    # Of the checkpoint that was there before.
    assert [line["value"]["path"] for line in lines if line["key"] == "deletedFile"] == ["model/old.bin"]


@pytest.mark.slow
def test_a_wrong_token_is_said(tmp_path, hub):
    address, requests = hub
    folder = write_space(tmp_path / "space", "somebody/their-model")
    result = push(folder, address, "hf_wrong")
    assert result.returncode != 0
    assert "401" in result.stderr and "hf_wrong" not in result.stderr
    assert all(not path.endswith("/commit/main") for path, _ in requests)


main = command("app")


def test_the_script_writes_a_space(tmp_path, checkpoint, capsys):
    main(["--model_name_or_path", str(checkpoint), "--write_space", str(tmp_path / "space")])
    assert "python app.py" in capsys.readouterr().out
    assert (tmp_path / "space" / "examples" / "0_a.png").is_file()
    with pytest.raises(SystemExit, match=r"vit-hf app: .*is not empty"):
        main(["--model_name_or_path", str(checkpoint), "--write_space", str(tmp_path / "space")])


def test_the_script_uploads_a_space(checkpoint, capsys, monkeypatch):
    uploaded = {}

    def push_space(folder, repo_id, private):
        uploaded.update(
            repo_id=repo_id, private=private, files={path.name for path in Path(folder).iterdir()}
        )
        return "https://huggingface.co/spaces/me/page"

    monkeypatch.setattr("vit_hf.app.space.push_space", push_space)
    main(["--model_name_or_path", str(checkpoint), "--space", "me/page", "--private"])
    assert capsys.readouterr().out.strip() == "https://huggingface.co/spaces/me/page"
    assert (uploaded["repo_id"], uploaded["private"]) == ("me/page", True)
    assert {"app.py", "model", "vit_hf"} <= uploaded["files"]


def test_the_script_says_which_checkpoint_it_needs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as exit:
        main([])
    assert exit.value.code == 2
    assert "which checkpoint? Give --model_name_or_path" in capsys.readouterr().err
    with pytest.raises(SystemExit) as exit:
        main(["--model_name_or_path", "m/m", "--examples", "nowhere/*.png"])
    assert exit.value.code == 2
    assert "no file matches nowhere" in capsys.readouterr().err


def test_the_script_takes_the_quickstart_model_by_default(tmp_path, monkeypatch, checkpoint):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    checkpoint.rename(tmp_path / "runs" / "quickstart")
    main(["--write_space", "space"])
    assert (tmp_path / "space" / "model" / "config.json").is_file()
