"""Training on images that are read a band at a time: the loss and the gradients that the whole images
would give."""

import gc
import weakref
from functools import partial

import numpy as np
import PIL.Image
import pytest
import torch
from transformers import Trainer, TrainingArguments

from tests.helpers.models import tiny_config, tiny_selector
from tests.helpers.streaming import PROCESSOR, classifier, narrow_bands, picture  # noqa: F401  (for every test)
from vit_hf import (
    PATCH_SELECTORS,
    AdaptiveViTForImageClassification,
    AdaptiveViTImageProcessor,
    AdaptiveViTModel,
    ImageSource,
    StreamingCollator,
    predict_streaming,
    stream_images,
)
from vit_hf.measure import peak_memory
from vit_hf.readers.opening import ArraySource


every_selector = pytest.mark.parametrize("name", PATCH_SELECTORS)
LABELS = torch.tensor([1, 3])
PADDED = AdaptiveViTImageProcessor(patch_size=8, do_resize=False, return_patches=True)


def step(model, inputs):
    """Loss, outputs and gradients, by name, with the same chance whatever the inputs are."""
    model.zero_grad()
    torch.manual_seed(3)
    outputs = model(**inputs, labels=LABELS)
    outputs.loss.backward()
    return outputs, {name: value.grad for name, value in model.named_parameters() if value.grad is not None}


def assert_same_step(model, images):
    same_size = len({image.shape for image in images}) == 1
    whole, expected = step(model, (PROCESSOR if same_size else PADDED)(images, return_tensors="pt"))
    streamed, gradients = step(model, {"pixel_values": stream_images(model, images, PROCESSOR)})
    assert torch.equal(streamed.selected_patches, whole.selected_patches)
    torch.testing.assert_close(streamed.loss, whole.loss)
    torch.testing.assert_close(streamed.selection_loss, whole.selection_loss)
    torch.testing.assert_close(streamed.patch_scores, whole.patch_scores, atol=1e-4, rtol=1e-4)
    assert gradients.keys() == expected.keys()
    for key, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected[key], atol=1e-4, rtol=1e-3, msg=key)
    return gradients


@every_selector
@pytest.mark.parametrize("sizes", [[(48, 75), (48, 75)], [(48, 75), (66, 32)]])
def test_equals_the_whole_images(name, sizes):
    model = classifier(name).train()
    gradients = assert_same_step(
        model, [picture(height, width, seed) for seed, (height, width) in enumerate(sizes)]
    )
    learned = {key for key, _ in model.named_parameters() if ".selector." in key}
    assert learned <= gradients.keys()
    assert all((gradients[key] != 0).any() for key in learned)


@every_selector
@pytest.mark.parametrize("number", [1, 2])
def test_images_of_fewer_patches_than_are_kept(name, number):
    model = classifier(name, num_selected_patches=30)
    small, large = picture(32, 40, 0), picture(66, 75, 1)
    model.train()
    labels = torch.zeros(number, dtype=torch.long)
    assert torch.isfinite(model(stream_images(model, [small] * number, PROCESSOR), labels=labels).loss)
    model.eval()
    alone = model(stream_images(model, [small] * number, PROCESSOR)).logits
    beside = model(stream_images(model, [small, large], PROCESSOR)).logits
    torch.testing.assert_close(alone[0], beside[0], atol=1e-5, rtol=1e-4)


def test_choices_from_outside_among_images_of_many_sizes():
    model = classifier("variance")
    images = [picture(48, 75, 0), picture(66, 32, 1)]
    patches = stream_images(model, images, PROCESSOR)
    chosen = model(patches).selected_patches
    torch.testing.assert_close(model(patches, selected_patches=chosen).logits, model(patches).logits)
    with pytest.raises(ValueError, match="selected_patches has 1000"):
        model(patches, selected_patches=torch.tensor([[1, 2], [3, 1000]]))


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ({"type": "variance", "exploration": 0.5}, {}),
        (tiny_selector("cross_attention", exploration=0.5), {}),
        ("policy", {"thumbnail_context": True}),
        ("perturbed", {"num_selected_patches": 0.3}),
        ("cross_attention", {"num_selected_patches": 0.3, "thumbnail_context": True}),
        ("entropy", {"token_reducer": "gumbel", "keep_rate": 0.6, "reduction_layers": [1]}),
        ("cross_attention", {"token_reducer": "merge", "keep_rate": 0.6, "reduction_layers": [1]}),
        ("attention", {"hidden_dropout_prob": 0.3}),
        (tiny_selector("distilled", batch_fraction=0.5), {}),
    ],
)
@pytest.mark.parametrize("dense_fraction", [0.0, 0.3, 1.0])
def test_equals_them_with_options(name, fields, dense_fraction):
    model = classifier(name, **fields).train()
    model.set_dense_fraction(dense_fraction)
    assert_same_step(model, [picture(48, 75), picture(48, 75, seed=1)])


class Generated(ImageSource):
    """Drawn where it is looked at; counts the pixels that were read, and those that are alive."""

    def __init__(self, height: int, width: int):
        self.name, self.height, self.width = "drawn", height, width
        self.read_in_all = self.alive = self.most_alive = 0

    def _read(self, top, left, height, width):
        rows, columns = np.ogrid[top : top + height, left : left + width]
        pixels = ((rows * 31 + columns * 17) % 251 * (1 + columns // 64 % 3) // 3).astype(np.uint8)
        pixels = np.repeat(pixels[..., None], 3, axis=2)
        self.read_in_all += height * width
        self.alive += height * width
        self.most_alive = max(self.most_alive, self.alive)
        weakref.finalize(pixels, self.freed, height * width)
        return pixels

    def freed(self, number):
        self.alive -= number

    def thumbnail(self, height, width):
        raise AssertionError("not asked for")


# Patches that a forward pass in training reads beside a pass through the image; a policy also answers for its
# greedy.
CHOSEN = {"variance": 0, "cross_attention": 0, "random": 6, "attention": 6, "policy": 12, "perturbed": 6 * 20}


@pytest.mark.parametrize("name", CHOSEN)
def test_reads_bands_and_what_was_chosen(name):
    side, model = 1024, classifier(name).train()
    source = Generated(side, side)
    model(stream_images(model, [source], PROCESSOR), labels=LABELS[:1]).loss.backward()
    passes = 0 if name == "random" else side * side
    assert passes <= source.read_in_all <= passes + CHOSEN[name] * 64
    assert source.most_alive <= 2 * max(8 * side, CHOSEN[name] * 64)


def training_step(name: str, side: int):
    torch.set_num_threads(1)
    model = classifier(name, patch_size=16, image_size=64).train()

    def run(side):
        batch = stream_images(model, [Generated(side, side)], AdaptiveViTImageProcessor(patch_size=16))
        model(batch, labels=LABELS[:1]).loss.backward()

    run(256)  # what torch loads at the first step is not memory of an image
    return partial(run, side)


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", ["variance", "cross_attention", "policy"])
def test_memory_of_a_training_step(name):
    """Memory of an image that is 432 MiB as floats, beside one of a quarter of that, which is several bands
    as well."""
    # The least of some processes: what the allocator keeps beside what is used differs from run to run.
    small, large = (min(peak_memory(training_step, name, side) for _ in range(3)) for side in (3072, 6144))
    print(f"{name}: {small:.0f} MiB, {large:.0f} MiB")
    # A policy draws from all patches: their order, probabilities and gradients.
    per_patch = 2**-20 * (100 if name == "policy" else 0)
    assert large < 1.1 * small + 8 + per_patch * (6144 // 16) ** 2


def test_a_policys_favourites_are_read_once():
    model = classifier("policy", num_selected_patches=60).train()
    source = Generated(64, 64)
    model(stream_images(model, [source], PROCESSOR), labels=LABELS[:1]).loss.backward()
    assert source.read_in_all <= 64 * 64 + 64 * 64


def test_distilling_may_be_left_out():
    model = classifier(tiny_selector("distilled", loss_weight=0.0)).train()
    source = Generated(256, 256)
    model(stream_images(model, [source], PROCESSOR), labels=LABELS[:1]).loss.backward()
    assert source.read_in_all == 256 * 256 + 6 * 64


def test_what_was_seen_while_predicting_serves_training():
    model = classifier("perturbed", thumbnail_context=True)
    batch = stream_images(model, [picture(64, 64)], PROCESSOR)
    with torch.inference_mode():
        model(batch)
    model.train()(batch, labels=LABELS[:1]).loss.backward()


def test_the_full_grid():
    model = AdaptiveViTModel(tiny_config(patch_selector="gradient")).eval()
    images = [picture(48, 75), picture(66, 32)]
    streamed = model(stream_images(model, images, PROCESSOR), restore=True).restored_hidden_state
    whole = model(**PADDED(images, return_tensors="pt"), restore=True).restored_hidden_state
    torch.testing.assert_close(streamed, whole, atol=1e-5, rtol=1e-5)


def test_closes_what_it_opened(monkeypatch):
    closed = []
    monkeypatch.setattr(ArraySource, "close", lambda self: closed.append(self.name))
    model = classifier("variance")
    batch = stream_images(model, [picture(32, 32), ArraySource(picture(32, 32), "mine")], PROCESSOR)
    model(batch)
    assert closed == []
    del batch
    gc.collect()
    assert closed == ["a ndarray"]


def rows_of_files(folder, number=8):
    """Files of several sizes whose class is whether the one patch with contrast is bright above or below."""
    rows = []
    for index in range(number):
        rng = np.random.default_rng(index)
        height, width = (int(side) for side in rng.integers(64, 128, 2))
        pixels = rng.integers(90, 110, (height, width, 3)).astype(np.uint8)
        row, column, label = rng.integers(height // 8), rng.integers(width // 8), index % 2
        pixels[8 * row + 4 * label :, 8 * column :][:4, :8] = 255
        PIL.Image.fromarray(pixels).save(folder / f"{index}.png")
        rows.append({"image": str(folder / f"{index}.png"), "label": label})
    return rows


@pytest.mark.parametrize("name", ["policy", "cross_attention"])
def test_trainer(name, tmp_path):
    rows = rows_of_files(tmp_path)
    selector = name if name == "policy" else tiny_selector(name, exploration=0.2)
    model = AdaptiveViTForImageClassification(tiny_config(patch_selector=selector, num_labels=2))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    arguments = TrainingArguments(
        str(tmp_path / "run"),
        max_steps=3,
        per_device_train_batch_size=4,
        per_device_eval_batch_size=4,
        learning_rate=1e-3,
        remove_unused_columns=False,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
    )
    collate = StreamingCollator(model, PROCESSOR)
    trainer = Trainer(model, arguments, data_collator=collate, train_dataset=rows, eval_dataset=rows)
    assert np.isfinite(trainer.train().training_loss)
    unchanged = {key for key, value in model.state_dict().items() if torch.equal(value, before[key])}
    assert not any("selector" in key for key in unchanged)
    predictions = trainer.predict(rows)
    assert predictions.label_ids.tolist() == [row["label"] for row in rows]
    alone = [predict_streaming(model, row["image"], image_processor=PROCESSOR).logits[0] for row in rows]
    torch.testing.assert_close(
        torch.tensor(predictions.predictions), torch.stack(alone), atol=1e-5, rtol=1e-5
    )
    assert trainer.evaluate()["eval_loss"] == pytest.approx(predictions.metrics["test_loss"])


def test_rows_of_datasets(tmp_path):
    import datasets

    rows = rows_of_files(tmp_path, 2)
    data = datasets.Dataset.from_list(rows).cast_column("image", datasets.Image(decode=False))
    collate = StreamingCollator(classifier("variance"), PROCESSOR)
    batches = [collate([data[0], data[1]]), collate(rows)]
    assert torch.equal(batches[0]["labels"], batches[1]["labels"])
    taken = [batch["pixel_values"].gather().features for batch in batches]
    assert torch.equal(*taken) and taken[0].any()
    assert "labels" not in collate([{"image": rows[0]["image"]}])


class TestErrors:
    def test_columns_that_were_dropped(self):
        with pytest.raises(ValueError, match=r"'label'.*remove_unused_columns=False"):
            StreamingCollator(classifier("variance"))([{"label": 1}])

    def test_grey_models(self):
        with pytest.raises(ValueError, match="num_channels=1"):
            stream_images(classifier("variance", num_channels=1), [picture(64, 64)])

    def test_what_needs_whole_images(self):
        batch = stream_images(classifier("variance"), [picture(64, 64)], PROCESSOR)
        with pytest.raises(ValueError, match="give them in memory"):
            batch.to_images()
