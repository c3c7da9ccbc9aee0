"""Choice of the number of patches: statistics, the search on planted accuracies, and runs of tiny models."""

import shlex

import numpy as np
import pytest
import torch

from tests.helpers.classifiers import SIZE, resnet
from tests.helpers.models import tiny_config
from tests.helpers.runs import CLASSES, write_images
from tests.helpers.scripts import command
from vit_hf import AdaptiveViTForImageClassification, AdaptiveViTImageProcessor
from vit_hf.arguments import ComparedDataArguments, ComparisonArguments
from vit_hf.cli.parsing import parse, read_arguments
from vit_hf.cli.train import make_parser
from vit_hf.comparison import running
from vit_hf.comparison.choosing import between, choose_tokens, find_fewest, format_table, powers_below
from vit_hf.comparison.measuring import Measurement
from vit_hf.comparison.report import advise
from vit_hf.comparison.results import Row, images_needed, paired_difference, read_rows
from vit_hf.comparison.running import compare
from vit_hf.comparison.strategies import Dense


compare_command = command("compare")


class TestImagesNeeded:
    @pytest.mark.parametrize(
        ("gained", "lost", "number", "margin"),
        [(0, 0, 50, 0.01), (4, 4, 200, 0.02), (5, 3, 400, 0.01), (9, 0, 300, 0.05), (0, 6, 100, 0.03)],
    )
    def test_is_the_first_number_whose_interval_is_within_the_margin(self, gained, lost, number, margin):
        rest = number - gained - lost
        right = [True] * gained + [False] * lost + [True] * rest
        other = [False] * gained + [True] * lost + [True] * rest
        loss = max(0, (gained - lost) / number)
        disagreement = (gained + lost) / number

        def bound(images):
            # Half an image is added to each of the four cells.
            first = (images * (disagreement + loss) / 2 + 0.5) / (images + 2)
            second = (images * (disagreement - loss) / 2 + 0.5) / (images + 2)
            variance = (first + second - (first - second) ** 2) / (images + 2)
            return first - second + 1.959964 * variance**0.5

        expected = next(images for images in range(1, 100_000) if bound(images) <= margin)
        assert images_needed(right, other, margin) == expected

    def test_bound_is_that_of_the_paired_difference(self):
        right, other = [True] * 20, [True] * 20
        needed = images_needed(right, other, 0.02)
        assert paired_difference([True] * needed, [True] * needed)[2] <= 0.02
        assert paired_difference([True] * (needed - 1), [True] * (needed - 1))[2] > 0.02

    def test_no_number_is_enough_for_a_loss_of_the_margin(self):
        assert images_needed([True] * 100, [False] + [True] * 99, 0.01) is None


class TestSearch:
    def test_numbers(self):
        assert powers_below(100) == [64, 32, 16, 8, 4, 2, 1]
        assert powers_below(64) == [32, 16, 8, 4, 2, 1] and powers_below(1) == []
        assert between(32, 64) == [56, 48, 40] and between(2, 4) == [3] and between(0, 1) == []

    @pytest.mark.parametrize("most", [1, 2, 7, 64, 100, 4816])
    def test_finds_the_fewest_that_are_enough(self, most):
        """The numbers that are tried are a quarter of the larger one apart, at most."""
        for enough in {1, 2, 3, 5, 17, 40, most // 3 + 1, most - 1, most} & set(range(1, most + 1)):
            found = find_fewest(lambda number, enough=enough: number >= enough, most)
            assert enough <= found <= max(enough, 1.25 * enough)

    def test_stops_at_the_first_refusal(self):
        asked = []
        assert find_fewest(lambda number: asked.append(number) or number in (32, 16, 14, 4), 64) == 14
        assert asked == [32, 16, 8, 14, 12]


def planted(needed, number=2000, noise=0, broken=(), obstacle=()):
    """Returns a function that measures.

    Args:
        needed: by selector, the patches with which it is as accurate as all, which is 90 %. With fewer, 5 %
            of the images are lost.
        number: images.
        noise: images in a thousand that are right by all patches alone, and as many by selected ones alone.
        broken: selectors that fail.
        obstacle: numbers of patches that do not fit; None stands for all.
    """

    def measure(selector, budget):
        name = f"{budget} patches, {selector}"
        if selector in broken or budget in obstacle:
            return Row(name, "select", selector, budget, reason="out of memory")
        right = np.arange(number) % 10 > 0
        if selector is not None:
            flipped = number * noise // 1000
            right[np.flatnonzero(right)[:flipped]] = False
            right[np.flatnonzero(np.arange(number) % 10 == 0)[:flipped]] = True
            if budget < needed[selector]:
                right[-number // 20 :] = False
        return Row(name, "select", selector, budget, right=right.tolist(), variant=name)

    return measure


def choose(needed, margin=0.01, **options):
    measure = planted(needed, **options)
    return choose_tokens(measure, list(needed), 1024, margin, 0.1, lambda text: None)


class TestChoice:
    def test_planted_number_is_found(self):
        choice = choose({"uniform": 2000, "variance": 200, "saliency": 90, "random": 700})
        assert (choice.row.selector, choice.row.budget) == ("saliency", 96)
        assert choice.shown is choice.estimated and choice.row.within_margin == "shown"
        text = choice.describe()
        assert text.startswith("Keep 96 of 1024 patches by saliency: 90.0%, and 90.0% with all 1024, on the")
        assert "within the margin of 1.0 points" in text and "--adapt STEPS" in text
        assert "20 steps with one seed" in choice.describe(adapt=20)
        verdicts = {(row.selector, row.budget): row.within_margin for row in choice.rows}
        assert verdicts["saliency", 128] == "shown" and verdicts["saliency", 80] == "no"
        assert verdicts["random", 96] == "no"  # the baseline
        assert not {name for name, _ in verdicts} & {"uniform"}
        assert "all 1024  -" in format_table(choice)

    def test_few_images_show_nothing_and_the_number_of_images_is_told(self):
        choice = choose({"variance": 100, "saliency": 300}, number=100)
        assert choice.shown is None and (choice.row.selector, choice.row.budget) == ("variance", 112)
        assert choice.row.within_margin == "estimated"
        choice.num_labeled = 900
        text = choice.describe()
        assert "100 images are too few to show that fewer patches lose at most 1.0 points" in text
        # Without any disagreement, half an image in each cell remains.
        assert "about 194 images like these are needed (the split has 900; --limit 0 takes all)" in text

    def test_disagreement_needs_more_images(self):
        choice = choose({"variance": 100}, number=2000, noise=50)
        assert choice.shown is None and choice.row.budget == 112
        needed = images_needed(choice.reference.right, choice.row.right, 0.01)
        assert 2000 < needed < 5000 and f"about {needed} images" in choice.describe()
        assert choose({"variance": 100}, number=2000, noise=50, margin=0.02).shown.budget == 112

    def test_every_number_may_lose_too_much(self):
        choice = choose({"variance": 1024, "saliency": 1024})
        assert choice.row is None and choice.describe().startswith("Keep all patches")

    def test_the_most_that_fit_may_be_needed(self):
        choice = choose({"variance": 256}, obstacle=(None, 512))
        assert choice.row is None and "Keep 256 patches: on 2000 images" in choice.describe()

    def test_more_accurate_numbers_are_named(self):
        """A small number is as accurate as all patches, and another one more accurate."""
        plain = planted({"variance": 10})

        def measure(selector, budget):
            row = plain(selector, budget)
            return Row(row.name, "select", selector, budget, right=[True] * 2000) if budget == 64 else row

        text = choose_tokens(measure, ["variance"], 1024, 0.01, 0.1, lambda text: None).describe()
        assert "Keep 10 of 1024 patches by variance: 90.0%" in text
        assert "The most accurate number is 64 of 1024 patches by variance: 100.0%." in text

    def test_chance_allows_no_choice(self):
        measured = []

        def measure(selector, budget):
            measured.append(budget)
            return Row("all patches", "dense", right=[True] * 12 + [False] * 88)

        choice = choose_tokens(measure, ["variance"], 64, 0.01, 0.1)
        assert measured == [None] and "not clearly above chance (10%)" in choice.describe()

    def test_the_most_that_fit_stand_for_all(self):
        choice = choose({"variance": 100, "saliency": 400}, obstacle=(None, 512, 1024))
        assert choice.reference.budget == 256 and choice.row.budget == 112
        text = choice.describe()
        assert text.startswith("All 1024 patches do not fit (out of memory), so that fewer are compared with")
        assert "256 by variance" in text

    def test_broken_selectors_are_left_out(self):
        needed = {"variance": 100, "saliency": 200}
        assert choose(needed, broken=("variance",)).row.selector == "saliency"
        with pytest.raises(ValueError, match=r"none of the selectors variance, saliency .* out of memory"):
            choose(needed, broken=tuple(needed))


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Noise of three classes, 3 of each to train and 10 to measure on; 16 patches."""
    root = tmp_path_factory.mktemp("photos")
    for index, name in enumerate(CLASSES):
        for split, number in (("train", 3), ("test", 10)):
            write_images(root / split / name, number, seed=index, size=(32, 32))
    return root


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoints") / "tiny model"
    torch.manual_seed(0)
    labels = dict(enumerate(CLASSES))
    named = {"id2label": labels, "label2id": {name: number for number, name in labels.items()}}
    config = tiny_config(num_labels=3, position_encoding="rotary", **named)
    AdaptiveViTForImageClassification(config).save_pretrained(folder)
    AdaptiveViTImageProcessor(size=SIZE, patch_size=8).save_pretrained(folder)
    return folder


@pytest.fixture
def plant(monkeypatch):
    """Plants accuracies: all images are right with at least 10 patches, and a third with fewer."""

    def measure_strategy(strategy, path, images, examples, typical, largest, folder, *args):
        folder.mkdir(parents=True)
        enough = strategy.budget is None or strategy.budget >= 10
        right = [enough or index % 3 == 0 for index in range(len(images))]
        figures = {"batch_size": 2, "gflops_counted": 1.0}
        return Measurement({"": right}, figures, predicted={"": ["cat"] * 3})

    monkeypatch.setattr(running, "measure_strategy", measure_strategy)


@pytest.fixture
def compare_them(photos, checkpoint, tmp_path):
    """Compares numbers of patches by variance, and returns the result and what was said."""
    values = {"tokens": ["auto"], "selectors": ["variance"], "repeats": 1, "isolate": False, "use_cpu": True}
    values |= {"model_name_or_path": str(checkpoint), "output": str(tmp_path / "out")}

    def run(**arguments):
        said = []
        data = ComparedDataArguments(dataset=str(photos), validation_fraction=0.0)
        return compare(ComparisonArguments(**values | arguments), data, said.append), said

    return run


@pytest.fixture
def flags(photos, checkpoint, tmp_path):
    return [
        *(
            "--model",
            str(checkpoint),
            "--data",
            str(photos),
            "--tokens",
            "auto",
            "--use_cpu",
            "--repeats",
            "1",
        ),
        *("--isolate", "false", "--output", str(tmp_path / "out"), "--selectors", "variance", "random"),
    ]


def test_planted_number_from_command_to_report(flags, plant, photos, checkpoint, tmp_path, capsys):
    compare_command([*flags, "--margin", "15", "--card", str(tmp_path / "card")])
    out = capsys.readouterr().out
    # 8 are too few, and 10 is the lowest number that is tried above it.
    assert "Keep 10 of 16 patches by variance: 100.0%, and 100.0% with all 16, on the same 30 images" in out
    following = out.partition("To go on:\n  ")[2].splitlines()[0]
    words = shlex.split(following)
    assert words[:2] == ["vit-hf", "finetune"]
    parser = make_parser("finetune")
    model, data, *_ = parse(
        parser, [w for w in read_arguments(parser, words[2:]) if w != "--output_dir"][:-1]
    )
    assert (model.model_name_or_path, data.dataset) == (str(checkpoint), str(photos))
    assert (model.patch_selector, model.num_selected_patches) == ("variance", 10)
    assert model.native_resolution and model.return_patches

    rows = {row["name"]: row for row in read_rows(tmp_path / "out" / "results.csv")}
    assert rows["10 patches, variance"]["within_margin"] == "shown"
    assert float(rows["8 patches, variance"]["behind_all"]) == pytest.approx(2 / 3, abs=1e-4)
    assert float(rows["8 patches, variance"]["p_value_all"]) < 1e-4
    assert rows["all patches"]["within_margin"] == ""
    page = (tmp_path / "out" / "report.html").read_text()
    assert "How many patches?" in page and "<td>10</td><td>variance</td><td>100.0%</td>" in page
    assert "--num_selected_patches 10" in page
    card = (tmp_path / "card" / "README.md").read_text()
    assert "| 10 | variance | 100.0% |" in card and following in card


def test_rows_are_reused(compare_them, plant):
    result, said = compare_them()
    assert not any("as before" in line for line in said) and "30 images are too few" in advise(result)
    again, later = compare_them(margin=2.0)
    assert sum("as before" in line for line in later) == len(again.rows) == len(result.rows)
    assert "by turns" in said[-1] and not any("by turns" in line for line in later)
    assert "lose at most 2.0 points" in advise(again)


def test_tiny_models(compare_them, tmp_path, monkeypatch):
    """Real measurements, with and without fine-tuning, and of a model whose full grid does not fit."""
    # Models of noise are at the level of chance, which allows no choice.
    monkeypatch.setattr(running, "chance_of", lambda *args: 0.0)

    result, _ = compare_them(margin=99.0)
    assert result.choice.row.budget == 1 and result.choice.obstacle is None
    assert all(row.reason is None and row.latency_ms > 0 for row in result.rows)

    def load(self, path, device):
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(Dense, "load", load)
        result, _ = compare_them(output=str(tmp_path / "full"))
        assert result.choice.reference.budget == 8
        assert "All 16 patches do not fit (out of memory)" in advise(result)
        assert "--num_selected_patches" in result.choice.command

    result, _ = compare_them(output=str(tmp_path / "adapted"), adapt=1, adapt_batch_size=2, margin=99.0)
    assert all(row.reason is None and row.adapt_steps == 1 for row in result.rows)
    assert result.choice.row.budget == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tokens": ["auto", "4"]}, "tokens are auto 4; give numbers of at least 1 patch, or auto alone"),
        ({"tokens": ["many"]}, "tokens are many; give numbers"),
        ({"margin": 0.0}, "margin is 0.0; give percentage points between 0 and 100"),
        ({"tokens": [4], "margin": 1.0}, "margin is for --tokens auto"),
        ({"strategies": ["tiles"]}, "leave --strategies out"),
        ({"hybrid": "other"}, "leave --hybrid out"),
    ],
)
def test_refused_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        ComparisonArguments(**{"tokens": ["auto"]} | arguments)


def test_refused_data_and_models(checkpoint, photos, tmp_path):
    unlabeled, few = tmp_path / "unlabeled", tmp_path / "few"
    write_images(unlabeled, 30)
    for index, name in enumerate(CLASSES):
        write_images(few / name, 4, seed=index)
    resnet().save_pretrained(tmp_path / "resnet")
    AdaptiveViTImageProcessor(size=SIZE, patch_size=8).save_pretrained(tmp_path / "resnet")
    for data, model, message in (
        (unlabeled, checkpoint, "label"),
        (few, checkpoint, r"images to measure on, and needs at least 20.*--limit"),
        (photos, tmp_path / "resnet", "no number of patches can be chosen: .*'resnet' cannot be converted"),
    ):
        arguments = {"model_name_or_path": str(model), "output": str(tmp_path / "out"), "use_cpu": True}
        with pytest.raises((OSError, ValueError), match=message):
            compare(
                ComparisonArguments(tokens=["auto"], **arguments), ComparedDataArguments(dataset=str(data))
            )
