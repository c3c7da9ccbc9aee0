"""Images with boxes: cutting and mirroring, Pascal VOC and COCO, and what is refused."""

import json

import datasets
import numpy as np
import PIL.Image
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers.runs import voc
from vit_hf.arguments import DataArguments
from vit_hf.data.box_sources import fit_boxes, load_boxed_images, read_voc
from vit_hf.data.boxes import BoxExamples, area, count_tiles, crop_boxes, flip_boxes, from_coco, tile, to_coco


numbers = st.integers(0, 60)
boxes_of_an_image = st.lists(
    st.tuples(numbers, numbers, st.integers(1, 30), st.integers(1, 30)), max_size=5
).map(lambda found: from_coco(np.array(found, float).reshape(-1, 4)))


def paint(boxes: np.ndarray, size: int = 100) -> np.ndarray:
    """`(T, size, size)`, the pixels of each box."""
    masks = np.zeros((len(boxes), size, size), bool)
    for mask, (left, top, right, bottom) in zip(masks, boxes.astype(int), strict=True):
        mask[top:bottom, left:right] = True
    return masks


class TestArithmetic:
    @settings(max_examples=50)
    @given(boxes_of_an_image, numbers, numbers, st.integers(1, 60), st.floats(0, 1))
    def test_cut_boxes_are_what_is_left_of_their_pixels(self, boxes, left, top, side, min_area_fraction):
        right, bottom = min(left + side, 100), min(top + side, 100)
        cut, stay = crop_boxes(boxes, (left, top, right, bottom), min_area_fraction)
        inside = paint(boxes)[:, top:bottom, left:right]
        share = inside.sum((1, 2)) / area(boxes)
        assert [*stay] == [i for i, part in enumerate(share) if part and part >= min_area_fraction - 1e-6]
        assert np.array_equal(paint(cut)[:, : bottom - top, : right - left], inside[stay])

    @given(boxes_of_an_image, st.integers(0, 1))
    def test_flipped_boxes_are_their_flipped_pixels(self, boxes, axis):
        flipped = flip_boxes(boxes, 100, axis)
        assert np.array_equal(paint(flipped), np.flip(paint(boxes), 2 - axis))
        assert np.array_equal(flip_boxes(flipped, 100, axis), boxes)

    @given(boxes_of_an_image)
    def test_coco_and_back(self, boxes):
        assert np.array_equal(from_coco(to_coco(boxes)), boxes)

    @given(st.integers(1, 300), st.integers(1, 300), st.integers(20, 120))
    def test_tiles_cover_an_image_and_stay_on_it(self, width, height, side):
        covered = np.zeros((height, width), bool)
        columns, rows = count_tiles(width, height, side)
        for index in range(columns * rows):
            left, top, right, bottom = tile(index, width, height, side)
            assert right - left == bottom - top == side
            assert (right <= width or width < side) and (bottom <= height or height < side)
            covered[top:bottom, left:right] = True
        assert covered.all()

    def test_boxes_a_little_beyond_the_image_are_no_mistake(self):
        boxes = np.array([[-1, 0, 20, 30.5], [0, 0, 22, 10], [5, 5, 5, 9], [8, 5, 3, 9], [30, 3, 40, 9]])
        cut, wrong = fit_boxes(boxes, (20, 30))
        assert wrong.tolist() == [False, True, True, True, True]
        assert cut[0].tolist() == [0, 0, 20, 30]


def load(path, **arguments):
    options = {
        name: arguments.pop(name) for name in ("label_column", "validation_fraction") if name in arguments
    }
    return load_boxed_images(
        DataArguments(dataset=str(path), **({"validation_fraction": 0.0} | options)), **arguments
    )


class TestPascalVoc:
    def test_boxes_names_and_images_of_background(self, tmp_path):
        voc(tmp_path, "b", [("tree", 1, 2, 30, 40), ("dead tree", 0, 0, 9, 9)])
        voc(tmp_path, "a", [])
        PIL.Image.new("L", (9, 9)).save(tmp_path / "other.png")
        data = load(tmp_path)
        images = data.splits["train"]
        assert data.names == ["dead tree", "tree"] and images.sizes == [(48, 40)] * 2
        assert [found.tolist() for found in images.boxes] == [[], [[1, 2, 30, 40], [0, 0, 9, 9]]]
        assert images.classes[1].tolist() == [1, 0]
        assert data.notes == ["left out: 1 image without a Pascal VOC file (other.png)"]

    def test_splits_by_folder(self, tmp_path):
        voc(tmp_path / "training", "a", [("tree", 1, 2, 30, 40)])
        voc(tmp_path / "val", "b", [("tree", 1, 2, 30, 40)] * 2)
        data = load(tmp_path, validation_fraction=0.5)
        assert {name: images.num_boxes for name, images in data.splits.items()} == {
            "train": 1,
            "validation": 2,
        }

    def test_one_class_and_named_classes(self, tmp_path):
        voc(tmp_path, "a", [("oak", 1, 2, 30, 40), ("elm", 0, 0, 9, 9)])
        assert load(tmp_path, single_class=True).names == ["object"]
        data = load(tmp_path, class_names=["elm", "ash", "oak"])
        assert data.splits["train"].classes[0].tolist() == [2, 0]
        assert load(tmp_path, known_names=["oak", "elm", "ash"]).names == ["oak", "elm", "ash"]
        assert load(tmp_path, known_names=["oak"]).names == ["elm", "oak"]

    @pytest.mark.parametrize(
        ("box", "clipped"), [((40, 2, 60, 12), [[40, 2, 48, 12]]), ((9, 9, 9, 12), []), ((60, 2, 70, 9), [])]
    )
    def test_wrong_boxes_are_named_or_clipped(self, tmp_path, box, clipped):
        voc(tmp_path, "a", [("tree", 1, 2, 30, 40), ("tree", *box)])
        with pytest.raises(ValueError, match=rf"a.png: the box \[{box[0]}.*48x40 pixels.*clip_boxes"):
            load(tmp_path)
        data = load(tmp_path, clip_boxes=True)
        assert data.splits["train"].boxes[0][1:].tolist() == clipped
        assert data.notes == ["1 boxes were cut at the border of their image, or dropped as empty"]

    def test_missing_image(self, tmp_path):
        voc(tmp_path, "a", [("tree", 1, 2, 30, 40)], image="gone.png")
        with pytest.raises(FileNotFoundError, match=r"a.xml annotates gone.png, which is not in"):
            load(tmp_path)

    def test_damaged_image(self, tmp_path):
        voc(tmp_path, "a", [("tree", 1, 2, 30, 40)])
        (tmp_path / "a.png").write_bytes(b"no image")
        with pytest.raises(ValueError, match=r"a.png"):
            load(tmp_path)

    @pytest.mark.parametrize(
        ("text", "match"),
        [
            ("<annotation>", "is not valid XML"),
            ("<html/>", "names no image"),
            ("<a><filename>a.png</filename><object><name>x</name></object></a>", "object 0 lacks a number"),
        ],
    )
    def test_damaged_annotation(self, tmp_path, text, match):
        voc(tmp_path, "a", [])
        (tmp_path / "a.xml").write_text(text)
        with pytest.raises(ValueError, match=match):
            read_voc(tmp_path / "a.xml")

    def test_unknown_and_missing_classes(self, tmp_path):
        voc(tmp_path, "a", [("tree", 1, 2, 30, 40)])
        with pytest.raises(
            ValueError, match=r"a.png has an object of the class 'tree'; the classes are car, bus"
        ):
            load(tmp_path, class_names=["car", "bus"])
        voc(tmp_path, "b", [("", 1, 2, 30, 40)])
        with pytest.raises(ValueError, match=r"b.png has an object without a class.*single_class"):
            load(tmp_path)
        assert load(tmp_path, single_class=True).splits["train"].num_boxes == 2

    def test_no_box_anywhere(self, tmp_path):
        voc(tmp_path, "a", [])
        with pytest.raises(ValueError, match=r"no image of .* has a box"):
            load(tmp_path)


def rows_of(objects, feature=None):
    columns = {"image": [PIL.Image.new("RGB", (48, 40))] * len(objects), "objects": objects}
    rows = datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image())
    return rows if feature is None else rows.cast_column("objects", feature)


class TestColumns:
    def test_image_folder_as_hugging_face_describes_it(self, tmp_path):
        lines = []
        for name, objects in {
            "a": {"bbox": [[1, 2, 10, 20.5], [0, 0, 5, 5]], "categories": [10, 9]},
            "b": {"bbox": [], "categories": []},
        }.items():
            PIL.Image.new("RGB", (48, 40)).save(tmp_path / f"{name}.png")
            lines.append(json.dumps({"file_name": f"{name}.png", "objects": objects}))
        (tmp_path / "metadata.jsonl").write_text("\n".join(lines))
        data = load(tmp_path)
        assert data.names == ["9", "10"]
        assert data.splits["train"].boxes[0].tolist() == [[1, 2, 11, 22.5], [0, 0, 5, 5]]
        assert [found.tolist() for found in data.splits["train"].classes] == [[1, 0], []]

    @pytest.mark.parametrize("as_list", [False, True])
    def test_parquet_with_named_classes(self, tmp_path, as_list):
        classes = datasets.ClassLabel(names=["car", "bus"])
        box = datasets.List(datasets.Value("float32"))
        if as_list:
            objects = [[{"bbox": [1, 2, 10, 20], "category": 1}], []]
            feature = datasets.List({"bbox": box, "category": classes})
        else:
            objects = [{"bbox": [[1, 2, 10, 20]], "category": [1]}, {"bbox": [], "category": []}]
            feature = {"bbox": datasets.List(box), "category": datasets.List(classes)}
        rows_of(objects, feature).to_parquet(tmp_path / "rows.parquet")
        data = load(tmp_path / "rows.parquet")
        images = data.splits["train"]
        assert data.names == ["car", "bus"]
        assert images.boxes[0].tolist() == [[1, 2, 11, 22]] and images.classes[0].tolist() == [1]
        assert images.boxes[1].shape == (0, 4) and images.read(0).size == (48, 40)

    @pytest.mark.parametrize(
        ("objects", "match"),
        [
            ([{"bbox": [[1, 2, 3, 4]], "category": []}], "image 0 has 1 boxes and 0 categories"),
            ([{"bbox": [[1, 2, 3]], "category": [1]}], "image 0: a box is"),
            ([{"bbox": [[1, 2, 3, 4]], "kind": [1]}], "must have one of bbox.*they have bbox, kind"),
            (["tree"], "must hold, for each image"),
        ],
    )
    def test_refuses(self, tmp_path, objects, match):
        rows_of(objects).to_parquet(tmp_path / "rows.parquet")
        with pytest.raises(ValueError, match=match):
            load(tmp_path / "rows.parquet")

    def test_no_column_of_boxes(self, tmp_path):
        rows_of([1]).rename_column("objects", "label").to_parquet(tmp_path / "rows.parquet")
        with pytest.raises(ValueError, match=r"no column of boxes; the data have image, label.*label_column"):
            load(tmp_path / "rows.parquet")


class TestExamples:
    def test_digits(self):
        options = {"size": 96, "num_noise": 2, "num_train": 3, "num_test": 2, "num_digits": 2}
        arguments = DataArguments(
            dataset="megapixel_digits", dataset_options=options, validation_fraction=0.0
        )
        data = load_boxed_images(arguments)
        assert data.names == [str(digit) for digit in range(10)]
        images = data.splits["train"]
        assert images.sizes == [(96, 96)] * 3 and [len(found) for found in images.boxes] == [2] * 3
        ink = np.asarray(images.read(1))
        for left, top, right, bottom in images.boxes[1].astype(int):
            assert ink[top:bottom, left:right].max() > 200

    def test_pieces_show_what_their_boxes_say(self, tmp_path):
        """One bright box on a large dark photo, wherever it is cut and mirrored."""
        voc(tmp_path, "a", [("tree", 70, 30, 90, 60)], size=(150, 110))
        pixels = np.zeros((110, 150, 3), np.uint8)
        pixels[30:60, 70:90] = 255
        PIL.Image.fromarray(pixels).save(tmp_path / "a.png")
        images = load(tmp_path).splits["train"]
        flips = {"horizontal_flip": 0.5, "vertical_flip": 0.5}
        examples = BoxExamples(images, crop_size=64, min_area_fraction=0.0, random=True, **flips, seed=3)
        assert len(examples) == 6
        seen = set()
        for epoch in range(8):
            examples.set_epoch(epoch)
            for example in examples:
                assert example["image"].size == (64, 64)
                bright = np.argwhere(np.asarray(example["image"])[..., 0])
                expected = [] if not len(bright) else [[*bright.min(0)[::-1], *(bright.max(0) + 1)[::-1]]]
                assert example["boxes"].tolist() == expected
                seen.add(str(expected))
        assert len(seen) > 20
        examples.set_epoch(0)
        again = [example["boxes"].tolist() for example in examples]
        assert again == [examples[index]["boxes"].tolist() for index in range(6)]

    def test_small_images_are_filled_up_and_tiles_stay_where_they_are(self, tmp_path):
        voc(tmp_path, "a", [("tree", 10, 10, 40, 38)], size=(48, 40))
        examples = BoxExamples(load(tmp_path).splits["train"], crop_size=64)
        (example,) = examples
        assert example["image"].size == (64, 64) and example["boxes"].tolist() == [[10, 10, 40, 38]]
        assert not np.asarray(example["image"])[40:].any() and not np.asarray(example["image"])[:, 48:].any()

    def test_boxes_are_of_upright_images(self, tmp_path):
        voc(tmp_path, "a", [("tree", 0, 0, 40, 48)])
        picture = PIL.Image.new("RGB", (48, 40))
        exif = picture.getexif()
        exif[0x0112] = 6  # held upright, and stored lying on its side
        picture.save(tmp_path / "a.png", exif=exif)
        images = load(tmp_path).splits["train"]
        assert images.sizes == [(40, 48)] and images.read(0).size == (40, 48)
