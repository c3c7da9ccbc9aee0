"""Files of a large collection that are read, by whom and under which name; and which answers are there. No
cluster."""

import importlib
import sys

import datasets
import fsspec
import pyarrow
import pytest
from pyarrow import fs, parquet

from tests.helpers.models import tiny_config
from tests.helpers.runs import write_images
from vit_hf import AdaptiveViTForImageClassification
from vit_hf.arguments import CollectionArguments
from vit_hf.data.collections import Stores, decode_stored, find_collection, make_parts, path_of, read_part
from vit_hf.inference.parquet_output import ParquetWriter, prediction_schema
from vit_hf.inference.predict import FilePrediction


@pytest.fixture
def stores() -> Stores:
    return Stores()


@pytest.fixture(params=["", "memory://"], ids=["here", "store"])
def place(request):
    """A function of a folder to where it is then: there, or in a store that pyarrow knows by fsspec alone."""
    if not request.param:
        yield str
        return
    filesystem = fsspec.filesystem("memory")

    def upload(folder) -> str:
        filesystem.put(str(folder), f"/bucket{folder}", recursive=True)
        return f"memory:///bucket{folder}"

    yield upload
    filesystem.rm("/bucket", recursive=True)


@pytest.fixture
def photos(tmp_path):
    """Five images in a folder, two of them further down."""
    write_images(tmp_path / "photos", 3)
    write_images(tmp_path / "photos" / "more", 2, seed=1)
    (tmp_path / "photos" / "notes.txt").write_text("")
    return tmp_path / "photos"


def write_table(path, **columns):
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pyarrow.table(columns), path, row_group_size=2)
    return path


def decode_all(parts, stores, batch_size=2) -> dict[str, tuple]:
    """Size and first pixel of each image by name, or its error."""
    results = {}
    for part in parts:
        for batch in read_part(part, stores, batch_size):
            assert len(batch) <= batch_size
            for name, source in batch.items():
                assert name not in results
                try:
                    image = decode_stored(name, source, stores)
                    results[name] = (path_of(source), image.size, image.getpixel((0, 0)))
                except ValueError as error:
                    results[name] = str(error)
    return results


def test_folders_and_stores_are_searched_alike(photos, stores, place):
    location = place(photos)
    files, tables = find_collection([location], stores)
    names = ["0.png", "1.png", "2.png", "more/0.png", "more/1.png"]
    assert (files, tables) == ([f"{location}/{name}" for name in names], [])
    results = decode_all(make_parts([*files, f"{location}/3.png"], [], 2), stores)
    originals = decode_all(make_parts([str(photos / name) for name in names], [], 2), stores)
    assert [result[1:] for result in results.values()][:5] == [result[1:] for result in originals.values()]
    assert "3.png': " in list(results.values())[5]
    assert find_collection([f"file://{photos}"], stores) == ([str(photos / name) for name in names], [])


def test_inputs_may_overlap_and_match_patterns(photos, stores, monkeypatch):
    monkeypatch.chdir(photos)
    files, _ = find_collection(["more/*.png", ".", "missing.png", str(photos / "0.png")], stores)
    names = ["more/0.png", "more/1.png", "0.png", "1.png", "2.png", "missing.png"]
    assert files == [str(photos / name) for name in names]
    files, _ = find_collection(["."], stores, without=str(photos / "more"))
    assert files == [str(photos / name) for name in ("0.png", "1.png", "2.png")]


def test_tables_hold_images_or_their_paths(photos, stores, tmp_path, place):
    place(photos)
    contents = [(photos / f"{index}.png").read_bytes() for index in range(3)]
    features = datasets.Features({"image": datasets.Image()})
    images = [{"bytes": content, "path": f"{index}.png"} for index, content in enumerate(contents)]
    rows = datasets.Dataset.from_dict({"image": images}, features)
    tables = tmp_path / "tables"
    tables.mkdir()
    rows.to_parquet(str(tables / "datasets.parquet"))
    write_table(tables / "bytes.parquet", label=[0, 1, 0, 1, 0], photo=[*contents, None, contents[0][:50]])
    (tables / "0.png").write_bytes(contents[0])
    paths = ["0.png", str(photos / "1.png"), f"file://{photos}/2.png", "nowhere.png", None]
    write_table(tables / "paths.parquet", file_name=paths)
    prefix = place(tables)
    files, found = find_collection(
        [f"{prefix}/{name}.parquet" for name in ("bytes", "datasets", "paths")], stores
    )
    assert files == []
    assert [(table.column, table.num_rows) for table in found] == [
        ("photo", 5),
        ("image", 3),
        ("file_name", 5),
    ]
    results = decode_all(make_parts(files, found, 3), stores)
    original = list(
        decode_all(make_parts([str(photos / f"{i}.png") for i in range(3)], [], 3), stores).values()
    )
    for name in ("datasets", "bytes", "paths"):
        for row in range(3):
            assert results[f"{prefix}/{name}.parquet#{row}"][1:] == original[row][1:]
    assert results[f"{prefix}/datasets.parquet#1"][0] == "1.png"
    assert "bytes.parquet#3: there is no image in this row" in results[f"{prefix}/bytes.parquet#3"]
    assert "bytes.parquet#4: " in results[f"{prefix}/bytes.parquet#4"]
    assert "nowhere.png" in results[f"{prefix}/paths.parquet#3"]
    assert "no image in this row" in results[f"{prefix}/paths.parquet#4"]


@pytest.mark.parametrize(
    "inputs, message",
    [
        ("empty", "/empty, nor in the folders below"),
        ("*.gif", "no file matches"),
        ("memory:///nowhere/at/all", "there is nothing at memory:///nowhere/at/all"),
        ("gopher://me:secret@host/x?key=secret", "cannot open gopher://host/x: "),
        ("two.parquet", "several columns that may be images; name the right one of left, right"),
        ("none.parquet", "no column that may be images"),
        ("damaged.parquet", "damaged.parquet is not a valid Parquet file"),
    ],
)
def test_says_what_is_wrong(stores, tmp_path, monkeypatch, inputs, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    write_table(tmp_path / "two.parquet", left=[b""], right=[b""])
    write_table(tmp_path / "none.parquet", number=[1])
    (tmp_path / "damaged.parquet").write_bytes(b"PAR1 and so on")
    with pytest.raises((OSError, ValueError)) as error:
        find_collection([inputs], stores)
    assert message in str(error.value)
    assert "secret" not in str(error.value)


def test_the_column_may_be_named(stores, tmp_path):
    path = write_table(tmp_path / "two.parquet", left=[b""], right=[b""])
    assert find_collection([str(path)], stores, "right")[1][0].column == "right"
    with pytest.raises(ValueError, match="no image_column 'middle', but left, right"):
        find_collection([str(path)], stores, "middle")


def test_a_failing_store_is_not_an_images_fault(stores, monkeypatch):
    class Failing:
        def open_input_file(self, path):
            raise ConnectionResetError("try again")

    monkeypatch.setattr(stores, "open", lambda name: (Failing(), name))
    with pytest.raises(ConnectionResetError):
        decode_all(make_parts(["s3://bucket/1.png"], [], 2), stores)


@pytest.mark.parametrize("name", ["concurrency", "part_size"])
def test_numbers_are_checked(name):
    with pytest.raises(ValueError, match=f"{name} is 0"):
        CollectionArguments(**{name: 0})


ORIGIN = {"model_name_or_path": "model", "top_k": 2}


@pytest.fixture
def folder(place, tmp_path, stores) -> ParquetWriter:
    (tmp_path / "answers").mkdir()
    folder = ParquetWriter(place(tmp_path / "answers"), stores)
    folder.begin()
    return folder


def write_file(folder, name, content: bytes):
    filesystem, path = folder.stores.open(folder.name)
    with filesystem.open_output_stream(f"{path}/{name}") as stream:
        stream.write(content)


def names_in(folder) -> list[str]:
    return [name.rpartition("/")[2] for name in folder.stores.list(folder.name)]


def answer(folder, part, bad=()):
    predictions = [
        FilePrediction(name, error=f"{name} is bad")
        if name in bad
        else FilePrediction(
            name, {"file": name, "label": "a", "score": 1.0, "top_k": [{"label": "a", "score": 1.0}]}
        )
        for name in part.names()
    ]
    folder.write(part, predictions, prediction_schema(tiny_config(), False, ORIGIN))


def test_what_was_answered_is_not_pending(folder, stores, tmp_path):
    table = write_table(tmp_path / "table.parquet", image=[b""] * 5)
    files = [f"/photos/{index}.png" for index in range(7)]
    _, tables = find_collection([str(table)], stores)
    parts = list(make_parts(files, tables, 3))
    assert list(map(len, parts)) == [3, 3, 1, 3, 2]
    assert folder.pending(parts) == parts
    for index in (1, 3):
        answer(folder, parts[index], bad={"/photos/4.png"})
    assert folder.has(parts[1]) and not folder.has(parts[0])
    assert folder.pending(parts) == [parts[0], parts[2], parts[4]]

    # Other parts, and other files: what was answered stays answered.
    parts = list(make_parts(["/photos/new.png", *files], tables, 4))
    pending = folder.pending(parts)
    assert [name.rpartition("/")[2] for part in pending for name in part.names()] == [
        "new.png",
        "0.png",
        "1.png",
        "2.png",
        "6.png",
        "table.parquet#3",
        "table.parquet#4",
    ]
    for part in pending:
        answer(folder, part)
    assert folder.pending(parts) == []
    assert folder.summary(5) == (13, 1, ["/photos/4.png is bad"])


def test_only_whole_parts_count(folder):
    (part,) = make_parts(["/a.png"], [], 3)
    write_file(folder, f".{part.name}-0123.tmp", b"PAR1")
    assert folder.pending([part]) == [part]
    folder.begin()
    assert names_in(folder) == []
    answer(folder, part)
    answer(folder, part)  # by a worker that was taken for dead
    assert names_in(folder) == [f"{part.name}.parquet"]
    assert folder.summary(5)[0] == 1


def test_answers_of_something_else_are_refused(folder, tmp_path):
    folder.check_origin(ORIGIN)
    (part,) = make_parts(["/a.png"], [], 3)
    answer(folder, part)
    folder.check_origin(ORIGIN)
    with pytest.raises(ValueError, match=r"made with other settings: top_k was 2 and is 3\. Give the same"):
        folder.check_origin(ORIGIN | {"top_k": 3})
    path = write_table(tmp_path / "other.parquet", image=[b""])
    write_file(folder, f"{part.name}.parquet", path.read_bytes())
    with pytest.raises(ValueError, match="Parquet files of something else"):
        folder.check_origin(ORIGIN)
    with pytest.raises(NotADirectoryError, match="is a file; name a folder"):
        ParquetWriter(f"{folder.name}/{part.name}.parquet", folder.stores)


@pytest.mark.parametrize("fields", [{}, {"num_labels": 1}, {"problem_type": "regression"}])
@pytest.mark.parametrize("with_patches", [False, True])
def test_the_columns_hold_what_the_model_says(stores, tmp_path, fields, with_patches):
    """Nothing of an answer is lost on the way."""
    from vit_hf import AdaptiveViTImageProcessor
    from vit_hf.inference.predict import predict_files

    write_images(tmp_path / "photos", 2)
    (tmp_path / "photos" / "2.png").write_bytes(b"")
    model = AdaptiveViTForImageClassification(tiny_config(patch_selector="variance", **fields))
    processor = AdaptiveViTImageProcessor(size={"height": 32, "width": 32})
    files, _ = find_collection([str(tmp_path / "photos")], stores)
    (part,) = make_parts(files, [], 5)
    predictions = list(predict_files(model, processor, files, with_patches=with_patches))
    folder = ParquetWriter(str(tmp_path / "answers"), stores)
    folder.begin()
    folder.write(part, predictions, prediction_schema(model.config, with_patches, {}))
    rows = parquet.read_table(tmp_path / "answers").to_pylist()
    for prediction, row in zip(predictions, rows, strict=True):
        told = {name: value for name, value in row.items() if value is not None}
        assert told == (prediction.result or {"file": prediction.file, "error": prediction.error})


def test_without_ray_the_error_names_the_remedy(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "vit_hf.inference.ray_prediction", raising=False)
    with pytest.raises(ImportError, match=r"pip install vit_hf\[ray\]"):
        importlib.import_module("vit_hf.inference.ray_prediction")


def test_secrets_of_a_uri_are_not_told_of_an_empty_folder(tmp_path, monkeypatch):
    """`s3://KEY:SECRET@bucket/folder`, in which nothing is."""
    monkeypatch.setattr(
        "vit_hf.data.collections._filesystem_of",
        lambda uri: (fs.SubTreeFileSystem(str(tmp_path), fs.LocalFileSystem()), "bucket/photos"),
    )
    (tmp_path / "bucket" / "photos").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match="in the folder s3://bucket/photos, nor") as error:
        find_collection(["s3://me:secret@bucket/photos"], Stores())
    assert "secret" not in str(error.value)
