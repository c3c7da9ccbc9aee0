"""FilePrediction on a local Ray cluster of two workers."""

import importlib.util
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pyarrow
import pytest
from pyarrow import parquet

from tests.helpers.models import tiny_config
from tests.helpers.runs import write_images
from tests.helpers.scripts import command
from vit_hf import AdaptiveViTForImageClassification, AdaptiveViTImageProcessor
from vit_hf.arguments import CollectionArguments, PredictionArguments
from vit_hf.checkpoints.loading import load_classifier
from vit_hf.data.collections import Stores, make_parts
from vit_hf.data.images import find_images
from vit_hf.inference.parquet_output import ParquetWriter
from vit_hf.inference.predict import FilePrediction, predict_files


pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.xdist_group("ray"),  # they share a cluster, and count the processes of it
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs ray: pip install vit_hf[ray]"),
]

ROOT = Path(__file__).parents[2]
DAMAGED = {"7.png", "23.png"}


@pytest.fixture(scope="module")
def cluster() -> str:
    """The address of a cluster with room for two workers."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    import ray

    for is_last in (False, False, True):
        try:
            ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False)
            break
        except Exception:  # it gives itself half a minute, which is too little on a busy machine
            ray.shutdown()
            if is_last:
                raise
    yield ray.get_runtime_context().gcs_address
    ray.shutdown()


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("model")
    AdaptiveViTForImageClassification(tiny_config(patch_selector="variance")).save_pretrained(folder)
    AdaptiveViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """Forty images, two of them damaged."""
    folder = tmp_path_factory.mktemp("photos")
    write_images(folder, 40)
    for name in DAMAGED:
        (folder / name).write_bytes((folder / name).read_bytes()[:200])
    return folder


def prepare(model, inputs, output, part_size=4, concurrency=2, **options):
    from vit_hf.inference.ray_prediction import prepare_collection

    arguments = PredictionArguments(
        model_name_or_path=model, output=str(output), use_cpu=True, **({"batch_size": 3} | options)
    )
    collection = CollectionArguments(engine="ray", part_size=part_size, concurrency=concurrency)
    return prepare_collection(arguments, collection, [str(name) for name in inputs])


def rows_of(folder) -> list[dict]:
    return parquet.read_table(str(folder)).to_pylist()


def predict_script():
    return command("predict")


def workers() -> list[psutil.Process]:
    """The processes that hold the model."""
    found = psutil.process_iter(["cmdline"])
    return [process for process in found if "ray::MapWorker" in "".join(process.info["cmdline"] or [])]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_answers_are_those_of_the_other_engine(cluster, model, photos, tmp_path, num_workers):
    run = prepare(model, [photos], tmp_path / "answers", with_patches=True, top_k=2, num_workers=num_workers)
    assert sum(run.execute()) == run.num_images == 40
    told = {
        row["file"]: {name: value for name, value in row.items() if value is not None}
        for row in rows_of(tmp_path / "answers")
    }
    files = find_images([str(photos)])
    assert sorted(told) == sorted(files)
    classifier, processor = load_classifier(model)
    for expected in predict_files(classifier, processor, files, top_k=2, with_patches=True):
        row = told[expected.file]
        if expected.error is not None:
            assert row == {"file": expected.file, "error": expected.error}
            continue
        assert row.keys() == expected.result.keys()
        assert row["score"] == pytest.approx(expected.result["score"], abs=2e-6)
        for name in ("label", "grid", "selected_patches"):
            assert row[name] == expected.result[name]
        assert [entry["label"] for entry in row["top_k"]] == [
            entry["label"] for entry in expected.result["top_k"]
        ]
    num_rows, num_errors, errors = run.summary(1)
    assert (num_rows, num_errors, len(errors)) == (40, len(DAMAGED), 1)


def test_parquet_in_and_out_of_a_store(cluster, model, photos, tmp_path):
    """Through the file systems that object stores go through; the answer is that of the file."""
    contents = [(photos / f"{index}.png").read_bytes() for index in range(10)]
    table = pyarrow.table({"image": [{"bytes": one, "path": f"{i}.png"} for i, one in enumerate(contents)]})
    (tmp_path / "tables").mkdir()
    for name in ("a", "b"):
        parquet.write_table(table, tmp_path / "tables" / f"{name}.parquet", row_group_size=3)
    # One more worker than there is room for.
    run = prepare(model, [f"file://{tmp_path}/tables"], f"file://{tmp_path}/answers", concurrency=3)
    assert sum(run.execute()) == 20
    rows = rows_of(tmp_path / "answers")
    by_place = {(Path(row["table"]).name, row["row"]): row for row in rows}
    assert sorted(by_place) == [(f"{name}.parquet", index) for name in "ab" for index in range(10)]
    classifier, processor = load_classifier(model)
    for index, expected in enumerate(
        predict_files(classifier, processor, [str(photos / f"{index}.png") for index in range(10)])
    ):
        for name in "ab":
            row = by_place[f"{name}.parquet", index]
            assert row["file"] == f"{index}.png"
            if expected.error is None:
                assert row["score"] == pytest.approx(expected.result["score"], abs=2e-6)
            else:
                assert f"{name}.parquet#{index}" in row["error"]


def test_a_killed_worker_loses_and_doubles_nothing(cluster, model, photos, tmp_path):
    run = prepare(model, [photos], tmp_path / "answers", part_size=1)
    killed = None
    while workers():  # those of the run before end by themselves
        time.sleep(0.1)
    for count, _ in enumerate(run.execute()):
        if count == 5:
            assert len(workers()) == 2
            killed = workers()[0]
            killed.send_signal(signal.SIGKILL)
    assert not killed.is_running()
    rows = rows_of(tmp_path / "answers")
    assert sorted(row["file"] for row in rows) == sorted(find_images([str(photos)]))
    assert {Path(row["file"]).name for row in rows if row["error"]} == DAMAGED
    # Nothing is left to do, and nothing is done again.
    again = prepare(model, [photos], tmp_path / "answers", part_size=1)
    assert again.num_pending == 0 and list(again.execute()) == []


def test_goes_on_after_the_whole_run_was_killed(cluster, model, photos, tmp_path):
    """With other parts, too, and with images that came since."""
    answers = tmp_path / "answers"
    script = [
        sys.executable,
        str(ROOT / "scripts" / "predict.py"),
        str(photos),
        "--model_name_or_path",
        model,
    ]
    flags = [
        "--engine",
        "ray",
        "--output",
        str(answers),
        "--part_size",
        "1",
        "--concurrency",
        "2",
        "--use_cpu",
    ]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "RAY_ADDRESS": cluster}
    process = subprocess.Popen([*script, *flags], env=environment, stdout=subprocess.DEVNULL)
    while len(list(answers.glob("*.parquet"))) < 5:
        assert process.poll() is None
        time.sleep(0.02)
    process.kill()
    process.wait()
    # Its workers end by themselves, somewhat later.
    while workers():
        time.sleep(0.1)
    done = len(list(answers.glob("*.parquet")))
    assert done < 40
    write_images(tmp_path / "new", 3, seed=9)
    run = prepare(model, [tmp_path / "new", photos], answers)
    assert (run.num_images, run.num_pending) == (43, 43 - done)
    assert f"43; {done} are done; {43 - done} in" in run.describe()
    assert sum(run.execute()) == 43 - done
    names = sorted(row["file"] for row in rows_of(answers))
    assert names == sorted(find_images([str(photos), str(tmp_path / "new")]))


def test_an_image_that_kills_workers_is_found(cluster, model, photos, tmp_path, monkeypatch):
    """As a decoder with a fault does, or an image for which there is not enough memory."""
    from vit_hf.inference import ray_prediction

    class Fragile(ray_prediction.Worker):
        def predict(self, part):
            if any(name.endswith("/11.png") for name in part.names()):
                os._exit(1)
            super().predict(part)

    monkeypatch.setattr(ray_prediction, "Worker", Fragile)
    run = prepare(model, [photos], tmp_path / "answers")
    assert sum(run.execute()) == 40
    errors = {Path(row["file"]).name: row["error"] for row in rows_of(tmp_path / "answers") if row["error"]}
    assert errors.keys() == DAMAGED | {"11.png"}
    assert errors["11.png"].endswith("11.png: 3 workers died that read it")


def test_a_failure_that_is_not_an_images_ends_the_run(cluster, model, photos, tmp_path, monkeypatch):
    from vit_hf.inference import ray_prediction

    class Failing(ray_prediction.Worker):
        def predict(self, part):
            raise ConnectionResetError("the store does not answer")

    monkeypatch.setattr(ray_prediction, "Worker", Failing)
    run = prepare(model, [photos], tmp_path / "answers")
    with pytest.raises(RuntimeError, match="and what follows it: ConnectionResetError: the store does not"):
        list(run.execute())
    assert prepare(model, [photos], tmp_path / "answers").num_pending == 40


def test_the_command_line(cluster, model, photos, tmp_path):
    script = [
        sys.executable,
        str(ROOT / "scripts" / "predict.py"),
        str(photos),
        "--model_name_or_path",
        model,
    ]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "RAY_ADDRESS": cluster}

    flags = ["--engine", "ray", "--use_cpu", "--output", str(tmp_path / "answers")]
    result = subprocess.run([*script, *flags], env=environment, capture_output=True, text=True)
    assert result.returncode == 1
    assert "Images:  40; 40 in 1 parts to do" in result.stdout
    assert f"Output:  40 images in {tmp_path / 'answers'}" in result.stdout
    assert result.stderr.rstrip().endswith("2 of 40 images could not be used")
    assert all(name in result.stderr for name in DAMAGED)
    assert "ray" not in result.stderr.lower()


@pytest.mark.parametrize(
    "flags, message",
    [
        ("--output {answers} --top_k 2", "top_k was 5 and is 2"),
        ("--output {answers} --image_column scan", "image_column was None and is scan"),
        ("", "name a folder as output"),
        ("--output {other} --tile 32", "engine ray sees images whole"),
        ("--output {other} --part_size 0", "part_size is 0"),
        ("--output {answers}/file", "is a file; name a folder"),
    ],
)
def test_says_what_is_wrong(model, photos, tmp_path, flags, message, capsys):
    answers = ParquetWriter(str(tmp_path / "answers"), Stores())
    answers.begin()
    (part,) = make_parts(["1.png"], [], 1)
    origin = prepare(model, [photos], tmp_path / "other").settings.schema
    answers.write(part, [FilePrediction("1.png", error="")], origin)
    (tmp_path / "answers" / "file").write_text("")
    flags = flags.format(answers=tmp_path / "answers", other=tmp_path / "other").split()
    with pytest.raises(SystemExit) as exit:
        predict_script()([str(photos), "--model_name_or_path", model, "--engine", "ray", "--use_cpu", *flags])
    assert exit.value.code == 2
    assert message in capsys.readouterr().err
