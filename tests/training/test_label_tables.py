"""Labels in files: what is wrong is named with file and line, before anything is trained."""

import json

import numpy as np
import PIL.Image
import pytest

from vit_hf.arguments import DataArguments
from vit_hf.data.box_sources import load_boxed_images
from vit_hf.data.label_tables import read_table
from vit_hf.data.loading import load_image_dataset
from vit_hf.data.masks import find_ignored, load_masked_images


def write(folder, content: str | bytes, name: str = "metadata.csv", number: int = 4) -> str:
    """Images 0.png, 1.png, ... beside a table."""
    folder.mkdir(exist_ok=True)
    for index in range(number):
        PIL.Image.new("L", (8, 8), index).save(folder / f"{index}.png")
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(folder)


def table(*labels: str) -> str:
    return "\n".join(["file_name,label", *(f"{index}.png,{label}" for index, label in enumerate(labels))])


@pytest.mark.parametrize("word", ["None", "NA", "null", "nan", "N/A"])
def test_words_for_missing_values_are_classes_among_words(tmp_path, word):
    data = load_image_dataset(write(tmp_path, table(word, "crack", word, "crack")), validation_fraction=0)
    assert sorted(data.label2id) == sorted([word, "crack"])
    assert f"2 rows have {word!r} in the column label" in data.notes[0]


@pytest.mark.parametrize("word", ["NA", "", "null"])
@pytest.mark.parametrize(("number", "match"), [("1", "has no label"), ("1.5", "has no finite value")])
def test_missing_numbers_are_named(tmp_path, word, number, match):
    with pytest.raises(ValueError, match=rf"metadata\.csv, line 3 {match}.*remove"):
        load_image_dataset(write(tmp_path, table(number, word, "2", "3")))


@pytest.mark.parametrize("start", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_byte_order_marks_and_line_ends(tmp_path, start, end):
    content = start + table("café", "thé", "café", "thé").replace("\n", end).encode()
    data = load_image_dataset(write(tmp_path, content), validation_fraction=0)
    assert sorted(data.label2id) == ["café", "thé"]


def test_codes_stay_text_and_numbers_numbers(tmp_path):
    assert set(load_image_dataset(write(tmp_path, table("007", "7", "07", "7"))).label2id) == {
        "007",
        "07",
        "7",
    }
    data = load_image_dataset(write(tmp_path, table("10", "9", "9", "10")))
    assert data.id2label == {0: "9", 1: "10"}


BAD_TABLES = {
    "latin1": (table("café", "a").encode("latin1"), r"line 2 is not UTF-8.*caf\\xe9.*iconv"),
    "utf16": (table("a", "b").encode("utf-16"), "is UTF-16: save it as UTF-8"),
    "empty label": (table("a", "", "b"), "line 3 has no label"),
    "semicolons": (table("a", "b").replace(",", ";"), "separated by ';'"),
    "extra comma": (table("a", "b,c"), "line 3 has 3 values, and the header 2"),
    "header alone": ("file_name,label", "has no rows"),
    "nothing": ("", "has no rows"),
    "no file_name": (table("a", "b").replace("file_name", "file"), "no column file_name.*file, label"),
    "two columns": ("file_name,a,a\n0.png,1,2", "several columns 'a'"),
    "no name": ("file_name,label\n0.png,a\n,b", "line 3 has no file_name"),
    "missing file": ("file_name,label\n0.png,a\ngone.png,b", "line 3 names gone.png, which is not in"),
    "twice": ("file_name,label\n0.png,a\n1.png,b\n0.png,b", "line 4 names 0.png, as .*line 2 does"),
    "outside": ("file_name,label\n../0.png,a\n1.png,b", "line 2 names ../0.png: files must be in"),
    "absolute": ("file_name,label\n/etc/passwd,a\n1.png,b", "line 2 names /etc/passwd: files must be in"),
    "unclosed": ('file_name,label\n0.png,"a\n1.png,b', "line 2 is not valid CSV"),
}


@pytest.mark.parametrize("content, match", BAD_TABLES.values(), ids=BAD_TABLES)
def test_bad_tables_are_named_with_the_line(tmp_path, content, match):
    with pytest.raises((ValueError, FileNotFoundError), match=rf"metadata\.csv.*{match}"):
        load_image_dataset(write(tmp_path, content))


@pytest.mark.parametrize(
    ("lines", "match"),
    [
        (
            [{"file_name": "0.png", "label": "a"}, {"file_name": "1.png", "label": None}],
            "line 2 has no label",
        ),
        ([{"file_name": "0.png", "label": "a"}, {"file_name": "1.png", "label": ""}], "line 2 has no label"),
        ([{"file_name": "0.png", "label": "a"}, {"file_name": "1.png"}], "line 2 has no label"),
        (
            [{"file_name": "0.png", "label": "a"}, {"file_name": "1.png", "label": 1}],
            "values of several types",
        ),
        ([{"file_name": "0.png", "label": "a"}, ["1.png"]], "line 2 must be an object"),
        ([{"file_name": "0.png", "label": "a"}, {"file_name": 1, "label": "b"}], "line 2 names the file 1"),
    ],
)
def test_bad_json_lines_are_named_with_the_line(tmp_path, lines, match):
    with pytest.raises(ValueError, match=rf"metadata\.jsonl.*{match}"):
        load_image_dataset(write(tmp_path, "\n".join(map(json.dumps, lines)), "metadata.jsonl"))


def test_damaged_json_line(tmp_path):
    with pytest.raises(ValueError, match=r"metadata\.jsonl, line 2 is not valid JSON"):
        load_image_dataset(write(tmp_path, '{"file_name": "0.png"}\n{"file_name": ', "metadata.jsonl"))


def test_splits_are_typed_alike_and_a_test_split_may_lack_labels(tmp_path):
    write(tmp_path / "train", table("1", "2", "1", "2"))
    write(tmp_path / "val", table("3", "1"))
    write(tmp_path / "test", "file_name\n0.png\n1.png")
    data = load_image_dataset(str(tmp_path))
    assert {name: len(images) for name, images in data.splits.items()} == {"train": 4, "validation": 2}
    assert any("the test split, none of whose 2 images has a label" in note for note in data.notes)
    assert any("no image of train is of the class '3'" in note for note in data.notes)
    assert any("4 images that no metadata file names" in note for note in data.notes)


def test_one_table_above_the_splits(tmp_path):
    lines = ["file_name,label"]
    for split in ("train", "test"):
        write(tmp_path / split, "x", "notes.txt", 2)
        lines += [f"{split}/0.png,a", f"{split}/1.png,b"]
    (tmp_path / "metadata.csv").write_text("\n".join(lines))
    data = load_image_dataset(str(tmp_path), validation_fraction=0)
    assert {name: len(images) for name, images in data.splits.items()} == {"train": 2, "test": 2}


def test_a_table_may_be_the_data_set(tmp_path):
    path = write(tmp_path, table("a", "b", "a", "b"), "labels.csv") + "/labels.csv"
    assert load_image_dataset(path, validation_fraction=0).splits["train"].read(3).size == (8, 8)
    assert len(read_table(tmp_path / "labels.csv").rows) == 4


class TestMasks:
    def write(self, folder, values: dict[str, list[list[int]]]) -> DataArguments:
        """For each split masks that have these values, one in each column."""
        for split, masks in values.items():
            lines = ["file_name,mask_file_name"]
            (folder / split / "masks").mkdir(parents=True)
            for index, found in enumerate(masks):
                PIL.Image.new("L", (len(found), 2)).save(folder / split / f"{index}.png")
                mask = np.tile(np.array(found, np.uint8), (2, 1))
                PIL.Image.fromarray(mask).save(folder / split / "masks" / f"{index}.png")
                lines.append(f"{index}.png,masks/{index}.png")
            (folder / split / "metadata.csv").write_text("\n".join(lines))
        return DataArguments(dataset=str(folder), validation_fraction=0.0)

    @pytest.mark.parametrize(
        ("values", "binary", "ignored"),
        [
            ([0, 255], True, None),
            ([0, 1, 255], True, 255),
            ([0, 1, 255], False, 255),
            ([*range(21), 255], False, 255),
            ([*range(151), 255], False, 255),
            ([0, 1, 2], False, 255),
        ],
    )
    def test_what_255_means(self, values, binary, ignored):
        counts = np.zeros(256, int)
        counts[values] = 1
        assert find_ignored(counts, binary, "auto") == ignored

    @pytest.mark.parametrize("binary", [False, True])
    @pytest.mark.parametrize("values", [[0, 128, 255], [0, 254, 255], [*range(256)]])
    def test_shades_are_refused_with_the_remedy(self, values, binary):
        counts = np.zeros(256, int)
        counts[values] = 1
        with pytest.raises(ValueError, match=r"look like shades.*ignore_label.*'none'"):
            find_ignored(counts, binary, "auto")
        assert find_ignored(counts, binary, "255") == 255

    def test_black_and_white(self, tmp_path):
        data = self.write(tmp_path, {"train": [[0, 255], [0, 0]]})
        with pytest.raises(ValueError, match=r"0, 255, and 255 would be ignored.*Set binary"):
            load_masked_images(data, False)
        found = load_masked_images(data, True)
        assert found.splits["train"][0]["mask"].tolist() == [[0, 1]] * 2
        with pytest.raises(ValueError, match="class 0: training needs at least two classes"):
            load_masked_images(data, True, "255")

    def test_what_is_ignored_is_said(self, tmp_path):
        data = self.write(tmp_path, {"train": [[0, 1, 1, 255]]})
        found = load_masked_images(data, False)
        assert found.notes == ["left out: 25.00% of all pixels, which have the value 255 (ignore_label)"]
        with pytest.raises(ValueError, match="255 is a class, and classes go from 0 to 254"):
            load_masked_images(data, False, "none")
        assert (
            load_masked_images(data, True, "none").splits["train"][0]["mask"].tolist() == [[0, 1, 1, 1]] * 2
        )

    def test_another_value_may_be_ignored(self, tmp_path):
        data = load_masked_images(self.write(tmp_path, {"train": [[0, 1, 2, 2]]}), False, "0")
        assert data.splits["train"][0]["mask"].tolist() == [[255, 1, 2, 2]] * 2
        assert data.names == ["0", "1", "2"] and "value 0 (ignore_label)" in data.notes[0]

    @pytest.mark.parametrize("split", ["validation", "test"])
    def test_classes_are_those_of_all_splits(self, tmp_path, split):
        data = load_masked_images(self.write(tmp_path, {"train": [[0, 1]], split: [[0, 6]]}), False)
        assert data.names == [str(number) for number in range(7)]
        assert data.notes == ["no mask of train has the classes 6, which other splits have"]

    @pytest.mark.parametrize("split", ["train", "validation"])
    def test_what_is_wrong_is_found_before_training(self, tmp_path, split):
        arguments = self.write(tmp_path, {"train": [[0, 1]], "validation": [[0, 1]]})
        mask = tmp_path / split / "masks" / "0.png"
        PIL.Image.new("L", (5, 5)).save(mask)
        with pytest.raises(ValueError, match=rf"{split}/metadata.csv, line 2: the mask has 5x5 pixels.*2x2"):
            load_masked_images(arguments, False)
        mask.write_bytes(b"")
        with pytest.raises(ValueError, match=rf"{split}/masks/0\.png"):
            load_masked_images(arguments, False)
        (tmp_path / split / "metadata.csv").write_text("file_name,mask_file_name\n0.png,\n")
        with pytest.raises(ValueError, match=rf"{split}/metadata.csv, line 2 has no mask"):
            load_masked_images(arguments, False)


class TestBoxes:
    def load(self, folder):
        return load_boxed_images(DataArguments(dataset=str(folder), validation_fraction=0.0))

    def test_lines_of_metadata_are_named(self, tmp_path):
        rows = [
            {"file_name": f"{i}.png", "objects": {"bbox": [[1, 1, 3, 3]], "category": ["a"]}}
            for i in range(2)
        ]
        rows[1]["objects"]["category"] = []
        folder = write(tmp_path, "\n".join(map(json.dumps, rows)), "metadata.jsonl")
        with pytest.raises(ValueError, match=r"metadata\.jsonl, line 2 has 1 boxes and 0 categories"):
            self.load(folder)
        rows[1]["objects"]["category"] = [None]
        write(tmp_path, "\n".join(map(json.dumps, rows)), "metadata.jsonl")
        with pytest.raises(ValueError, match=r"metadata\.jsonl, line 2 has the category None"):
            self.load(folder)

    def test_pascal_voc(self, tmp_path):
        text = (
            "<annotation><filename>0.png</filename><object><name>café</name><bndbox>"
            "<xmin>1</xmin><ymin>1</ymin>"
            "<xmax>5</xmax><ymax>5</ymax></bndbox></object></annotation>"
        )
        folder = write(tmp_path, b"\xef\xbb\xbf" + text.encode(), "0.xml", 1)
        assert self.load(folder).names == ["café"]
        (tmp_path / "0.xml").write_bytes(text.encode("latin1"))
        with pytest.raises(ValueError, match=r"0\.xml is not valid XML.*encoding="):
            self.load(folder)
        (tmp_path / "0.xml").write_bytes(b'<?xml version="1.0" encoding="latin1"?>' + text.encode("latin1"))
        assert self.load(folder).names == ["café"]
        (tmp_path / "1.xml").write_text(text)
        with pytest.raises(ValueError, match=r"1\.xml annotates 0\.png, as .*0\.xml does"):
            self.load(folder)
