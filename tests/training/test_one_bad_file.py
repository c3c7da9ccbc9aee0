"""One file's fault is an error of that one file, and one kind of checkpoint has one answer, whoever reads
it."""

import struct
import zlib

import datasets
import numpy as np
import PIL.Image
import pytest
import tifffile
import timm
import torch
from transformers import (
    AutoImageProcessor,
    AutoModelForImageClassification,
    TimmWrapperConfig,
    TimmWrapperForImageClassification,
    ViTImageProcessor,
)

from tests.helpers.classifiers import vit
from vit_hf import AdaptiveViTImageProcessor, predict_tiled
from vit_hf.app.pictures import read_picture
from vit_hf.arguments import TilingArguments
from vit_hf.checkpoints.loading import load_classifier
from vit_hf.comparison.predictors import WholeImages
from vit_hf.data.augmentation import TrainingExamples
from vit_hf.data.boxes import BoxedImages
from vit_hf.data.collation import ImageCollator
from vit_hf.data.images import check_header, decode_image, prepare_images
from vit_hf.data.loading import LabeledImages
from vit_hf.data.masks import MaskedImages
from vit_hf.explanations.model_view import load_upright
from vit_hf.inference.predict import predict_files, predict_files_tiled
from vit_hf.inference.streamed_patches import StreamedImage
from vit_hf.inference.tiles import with_options


PIXELS = np.random.default_rng(0).integers(0, 256, (64, 48, 3), dtype=np.uint8)
SIZE = {"height": 32, "width": 32}
PROCESSORS = {
    "ours": AdaptiveViTImageProcessor(size=SIZE, patch_size=8),
    "transformers'": ViTImageProcessor(size=SIZE),
}


def with_chunk(content, kind, body):
    """A PNG with a chunk behind its header."""
    checksum = struct.pack(">I", zlib.crc32(kind + body))
    return content[:33] + struct.pack(">I", len(body)) + kind + body + checksum + content[33:]


@pytest.fixture
def folder(tmp_path):
    """Two good files around one of each kind of fault."""
    for name in ("a_good.png", "z_good.png"):
        PIL.Image.fromarray(PIXELS).save(tmp_path / name)
    good = (tmp_path / "a_good.png").read_bytes()
    (tmp_path / "junk_exif.png").write_bytes(with_chunk(good, b"eXIf", b"junkjunk"))
    (tmp_path / "junk_text.png").write_bytes(with_chunk(good, b"zTXt", b"a\0\7junk"))
    (tmp_path / "cut.png").write_bytes(good[:3000])
    tifffile.imwrite(tmp_path / "wide.tif", PIXELS[..., 0].astype(np.int32) * 300)
    tifffile.imwrite(tmp_path / "bands.tif", np.zeros((64, 48, 5), np.uint8), photometric="minisblack")
    return tmp_path


READABLE = {"a_good.png", "z_good.png", "junk_exif.png", "junk_text.png"}


@pytest.mark.parametrize("tiled", [False, True], ids=["whole", "tiled"])
@pytest.mark.parametrize("processor", PROCESSORS)
def test_answers_for_all_that_can_be_read(processor, tiled, folder):
    files = sorted(map(str, folder.iterdir()))
    predict, options = (
        (predict_files_tiled, {"tiling": TilingArguments(tile=32)}) if tiled else (predict_files, {})
    )
    predictions = list(predict(vit(), PROCESSORS[processor], files, batch_size=3, **options))
    assert [prediction.file for prediction in predictions] == files
    answered = {file.rsplit("/", 1)[1] for file in files} - {
        prediction.file.rsplit("/", 1)[1] for prediction in predictions if prediction.error
    }
    assert answered == READABLE
    for prediction in predictions:
        assert (prediction.result is None) == (prediction.error is not None)
        assert prediction.error is None or prediction.file in prediction.error
    by_name = {prediction.file.rsplit("/", 1)[1]: prediction.result for prediction in predictions}
    assert by_name["junk_exif.png"]["score"] == by_name["a_good.png"]["score"]


def rows_of(path):
    rows = datasets.Dataset.from_dict({"image": [str(path)], "mask": [str(path)]})
    return rows.cast_column("image", datasets.Image(decode=False)).cast_column(
        "mask", datasets.Image(decode=False)
    )


def boxed(path):
    none = [np.zeros((0, 4))], [np.zeros(0, np.int64)]
    return np.asarray(BoxedImages(rows_of(path), "image", *none, [(48, 64)]).read(0))


def labelled(path):
    images = LabeledImages(rows_of(path), "image", np.zeros(1, np.int64))
    return TrainingExamples(images, lambda pixels: pixels)[0]["image"].permute(1, 2, 0).numpy()


def collated(path):
    image = {"image": decode_image(str(path)), "labels": np.int64(0)}
    processor = ViTImageProcessor(do_resize=False, do_rescale=False, do_normalize=False)
    return ImageCollator(processor)([image])["pixel_values"][0].permute(1, 2, 0).numpy()


READERS = {
    "boxes": boxed,
    "training": labelled,
    "collator": collated,
    "page": lambda path: np.asarray(read_picture(path, 3)),
    "explanation": lambda path: np.asarray(load_upright(path, as_rgb=True)),
}


@pytest.mark.parametrize("reader", READERS)
def test_every_reader(reader, folder):
    for name in sorted(READABLE):
        assert np.array_equal(READERS[reader](folder / name), PIXELS)
    for name in ("cut.png", "wide.tif", "bands.tif"):
        with pytest.raises(ValueError, match=r"Cannot|its int32 values") as error:
            READERS[reader](folder / name)
        # A page's visitor and an explanation have one file only.
        assert name in str(error.value) or reader in ("page", "explanation")


def test_a_mask_keeps_its_numbers(tmp_path):
    """What makes pixels of an image must not touch the classes of a mask."""
    classes = np.arange(64 * 48).reshape(64, 48) % 21
    for name, dtype in (("a.png", np.uint8), ("b.png", np.uint16), ("c.tif", np.int32), ("d.tif", np.uint16)):
        path = tmp_path / name
        if name.endswith("png"):
            PIL.Image.fromarray(classes.astype(dtype)).save(path)
        else:
            tifffile.imwrite(path, classes.astype(dtype))
        assert np.array_equal(MaskedImages(rows_of(path), "image", "mask")[0]["mask"], classes)


@pytest.mark.parametrize("embedded", [False, True])
def test_large_photo(embedded, tmp_path, monkeypatch):
    path = tmp_path / "large.png"
    PIL.Image.fromarray(PIXELS).save(path)
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", 1000)
    source = {"bytes": path.read_bytes(), "path": "large.png"} if embedded else str(path)
    for read in [decode_image] if embedded else [decode_image, check_header]:
        with pytest.raises(ValueError, match=r"large\.png.*exceeds limit.*--tile.*MAX_IMAGE_PIXELS") as error:
            read(source)
        assert "undamaged" not in str(error.value)


# -- checkpoints of timm as transformers wraps them


@pytest.fixture(scope="module")
def timm_checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("timm")
    torch.manual_seed(0)
    config = timm.create_model("test_vit", pretrained=False).pretrained_cfg | {"num_classes": 3}
    wrapper = TimmWrapperConfig(architecture="test_vit", num_labels=3, pretrained_cfg=config)
    TimmWrapperForImageClassification(wrapper).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def timm_parts(timm_checkpoint):
    model = AutoModelForImageClassification.from_pretrained(timm_checkpoint).eval()
    return model, AutoImageProcessor.from_pretrained(timm_checkpoint)


def test_timm_is_predicted_as_transformers_does(timm_checkpoint, timm_parts, tmp_path):
    model, processor = timm_parts
    path = tmp_path / "a.png"
    image = PIL.Image.fromarray(np.random.default_rng(1).integers(0, 256, (200, 260, 3), dtype=np.uint8))
    image.save(path)
    with torch.no_grad():
        expected = model(**processor(image, return_tensors="pt")).logits
    score = expected.softmax(-1).max().item()
    loaded, its_processor = load_classifier(timm_checkpoint)
    for found in (
        list(predict_files(model, processor, [str(path)])),
        list(predict_files(loaded.eval(), its_processor, [str(path)])),
    ):
        assert found[0].result["score"] == pytest.approx(score, abs=1e-4)
    batch = ImageCollator(processor)([{"image": image, "labels": np.int64(0)}])
    torch.testing.assert_close(batch["pixel_values"], processor(image, return_tensors="pt")["pixel_values"])
    torch.testing.assert_close(WholeImages(model, processor)([image])[""], expected)
    assert WholeImages(model, processor).picture(image).shape[2] == 3


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "I;16"])
def test_timm_takes_pictures_of_every_mode(mode, timm_parts):
    image = PIL.Image.new(mode, (70, 60))
    assert prepare_images(timm_parts[1], [image])["pixel_values"].shape[1] == 3


def test_timm_by_tiles(timm_parts):
    """A tile of the model's own size reaches it as timm would give it, its borders included."""
    model, processor = timm_parts
    _, height, width = processor.data_config["input_size"]
    pixels = np.random.default_rng(1).integers(0, 256, (height, width, 3), dtype=np.uint8)
    tile = predict_tiled(model, pixels, tile=(height, width), image_processor=processor)
    mean, std = (torch.tensor(processor.data_config[name])[:, None, None] for name in ("mean", "std"))
    inputs = (torch.from_numpy(pixels).permute(2, 0, 1) / 255 - mean) / std
    with torch.no_grad():
        expected = model(pixel_values=inputs[None]).logits[0]
    torch.testing.assert_close(tile.logits, expected, atol=1e-4, rtol=1e-4)


def test_timm_by_bands(timm_parts):
    source = PIL.Image.fromarray(PIXELS)
    from vit_hf import open_image

    with open_image(source) as image:
        prepared = StreamedImage(image, (8, 8), with_options(timm_parts[1])).prepare(PIXELS)
    assert prepared.shape == (1, 3, 64, 48)


@pytest.mark.parametrize(
    "changes", [{"resolution": 64}, {"patch_selector": "variance", "num_selected_patches": 4}], ids=str
)
def test_timm_cannot_be_changed_in_silence(changes, timm_checkpoint):
    with pytest.raises(ValueError, match=f"timm checkpoint.*{next(iter(changes))}.*convert"):
        load_classifier(timm_checkpoint, **changes)
