"""Intervals, fronts, FLOPs, rows and advice of a comparison, on numbers that are known."""

import sys

import numpy as np
import PIL.Image
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import ViTConfig, ViTForImageClassification

from tests.helpers.models import tiny_config
from vit_hf import AdaptiveViTConfig, AdaptiveViTForImageClassification, AdaptiveViTImageProcessor
from vit_hf.comparison.measuring import count_flops, tallying
from vit_hf.comparison.predictors import WholeImages
from vit_hf.comparison.report import recommend
from vit_hf.comparison.results import (
    Row,
    digits,
    mark,
    mcnemar,
    paired_difference,
    pareto_front,
    read_rows,
    wilson_interval,
    write_rows,
)
from vit_hf.comparison.running import Comparison


class TestIntervals:
    # Newcombe (1998), "Two-sided confidence intervals for the single proportion", table I, method 3.
    @pytest.mark.parametrize(
        ("right", "number", "low", "high"),
        [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
    )
    def test_wilson(self, right, number, low, high):
        assert wilson_interval(right, number) == pytest.approx((low, high), abs=5e-5)

    def test_wilson_refuses(self):
        for right, number in ((0, 0), (3, 2), (-1, 2)):
            with pytest.raises(ValueError, match=f"{right} of {number} images"):
                wilson_interval(right, number)

    def test_mcnemar(self):
        one = np.array([True] * 10 + [False] * 2 + [True] * 30)
        other = np.array([False] * 10 + [True] * 2 + [True] * 30)
        # 2 * P(X <= 2) of 12 fair coins.
        assert mcnemar(one, other) == pytest.approx(2 * (1 + 12 + 66) / 2**12)
        assert mcnemar(one, other) == mcnemar(other, one)
        assert mcnemar(one, one) == 1
        with pytest.raises(ValueError, match="42 and 3 images"):
            mcnemar(one, other[:3])

    def test_paired_difference(self):
        generator = np.random.default_rng(0)
        covered = 0
        for _ in range(400):
            one, other = generator.random((2, 80)) < np.array([[0.7], [0.5]])
            difference, low, high = paired_difference(one, other)
            assert difference == pytest.approx(one.mean() - other.mean())
            covered += low <= 0.2 <= high
        assert 0.92 < covered / 400 < 0.98


def test_a_thumbnail_needs_every_patch():
    config = tiny_config(thumbnail_context=True, patch_selector="variance", num_selected_patches=4)
    model = AdaptiveViTForImageClassification(config).eval()
    processor = AdaptiveViTImageProcessor(do_resize=False, patch_size=8)
    images = [PIL.Image.effect_noise(size, 60).convert("RGB") for size in ((64, 48), (48, 48))]
    predictor = WholeImages(model, processor)
    assert predictor(images)[""].shape == (2, model.config.num_labels)
    assert predictor.picture(images[0]).shape == (48, 64, 3)


numbers = st.sampled_from([0.0, 0.5, 1.0, 2.0, 3.5])


class TestPareto:
    def test_known_points(self):
        costs, values = [1, 2, 3, 4, 2, 1], [0.2, 0.5, 0.4, 0.9, 0.5, 0.1]
        assert pareto_front(costs, values) == [0, 1, 4, 3]
        assert pareto_front([], []) == []

    @given(st.lists(st.tuples(numbers, numbers), max_size=12))
    def test_exactly_what_nothing_dominates(self, points):
        def dominated(cost, value):
            return any(
                other_cost <= cost and other_value >= value and (other_cost, other_value) != (cost, value)
                for other_cost, other_value in points
            )

        front = pareto_front([cost for cost, _ in points], [value for _, value in points])
        assert sorted(front) == [place for place, point in enumerate(points) if not dominated(*point)]
        assert [points[place][0] for place in front] == sorted(points[place][0] for place in front)


class TestFlops:
    @pytest.mark.parametrize("size", [(32, 32), (48, 40)])
    def test_formula_is_what_is_counted(self, size):
        """Of a plain ViT both are the same number, and that of transformers' own ViT."""
        fields = {
            "hidden_size": 48,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "intermediate_size": 80,
        }
        fields |= {"image_size": size, "patch_size": 8, "num_labels": 7}
        model = AdaptiveViTForImageClassification(AdaptiveViTConfig(**fields)).eval()
        images = torch.randn(2, 3, *size)
        with tallying(model) as tally:
            counted = count_flops(lambda: model(images))
        patches = size[0] * size[1] // 64
        length, hidden, wide = patches + 1, 48, 80
        blocks = 3 * (4 * length * hidden**2 + 2 * length**2 * hidden + 2 * length * hidden * wide)
        assert tally.formula == 2 * 2 * (blocks + patches * 3 * 64 * hidden + hidden * 7)
        assert counted == tally.formula
        assert (tally.tokens, tally.tokens_out) == (2 * patches, 2 * patches)
        stock = ViTForImageClassification(ViTConfig(**fields)).eval()
        assert count_flops(lambda: stock(images)) == counted

    def test_selection_and_reduction(self):
        images = torch.randn(1, 3, 64, 64)
        # Looking places up in a table of positions is a matrix product, too.
        dense, chosen, reduced = (
            tiny_config(position_encoding="none", **fields)
            for fields in (
                {},
                {"patch_selector": "variance", "num_selected_patches": 6},
                {"token_reducer": "attentive", "keep_rate": 0.5, "reduction_layers": [1]},
            )
        )
        results = []
        for config in (dense, chosen, reduced):
            model = AdaptiveViTForImageClassification(config).eval()
            with tallying(model) as tally:
                results.append((count_flops(lambda model=model: model(images)), tally))
        assert [tally.tokens for _, tally in results] == [64, 6, 64]
        assert [tally.tokens_out for _, tally in results] == [64, 6, 33]  # the dropped ones in one
        assert results[1][0] == results[1][1].formula < results[0][1].formula / 9
        # The CLS row of attention, once more, is what the reducer itself costs.
        counted, tally = results[2]
        assert 0 < counted - tally.formula < 0.01 * tally.formula < 0.01 * results[0][1].formula

    @pytest.mark.parametrize("selector", ["attention", "cross_attention"])
    def test_what_selects_is_not_in_the_formula(self, selector):
        tallies = []
        for name in ("random", selector):
            config = tiny_config(patch_selector=name, num_selected_patches=6)
            model = AdaptiveViTForImageClassification(config).eval()
            with tallying(model) as tally, torch.no_grad():
                model(torch.randn(1, 3, 64, 64))
            tallies.append((tally.formula, tally.tokens))
        assert tallies[0] == tallies[1]


def make_row(name, accuracy, latency, number=200, strategy="resize", seed=0, **fields):
    """A row that is right about the first so many of a shuffled list, the same for one seed."""
    order = np.random.default_rng(seed).permutation(number)
    right = (order < round(accuracy * number)).tolist()
    defaults = {"images_per_s": 1.0, "gflops_counted": latency / 10}
    return Row(name, strategy, latency_ms=latency, right=right, **{**defaults, **fields})


def advice(*rows, chance=0.1, adapt=100):
    rows = list(rows)
    mark(rows)
    return recommend(rows, chance, adapt)


def chosen(name, accuracy, latency, budget=24, **fields):
    selector = name.split(", ")[1]
    return make_row(name, accuracy, latency, strategy="select", selector=selector, budget=budget, **fields)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.02908, "0.0291"), (3.694, "3.69"), (999.4, "999"), (999.6, "1,000"), (3228.93, "3,229")],
)
def test_digits(value, text):
    assert digits(value) == text


class TestRecommendation:
    random = chosen("24 patches, random", 0.11, 4.0, seed=1)
    resize = make_row("resize to 80x80", 0.12, 2.0, budget=24, seed=2)

    def test_choosing_wins(self):
        text = advice(
            chosen("24 patches, variance", 0.70, 4.5), self.random, self.resize,
            make_row("all patches", 0.705, 90.0, strategy="dense"),
        )  # fmt: skip
        assert "most accurate is “all patches”, 70.5% (95 % interval 64% to 76%), at 90 ms" in text
        assert "Use “24 patches, variance”: with 70.0% the difference is not significant" in text
        assert "20.0 times less" in text
        assert "24 tokens give 11.0% with random patches and 12.0% with “resize to 80x80”" in text
        assert "selecting patches is worth it" in text
        assert "too long" not in text  # what is faster is at chance
        text = advice(
            chosen("24 patches, variance", 0.70, 4.5), make_row("resize to 112x112", 0.3, 2.0), self.resize
        )
        assert "If 4.5 ms is too long: “resize to 112x112”, 30.0% at 2 ms an image." in text
        assert "--adapt" not in text

    def test_few_images_show_nothing_to_be_as_good(self):
        def answers(*places):
            return [place in places for place in range(20)]

        dense = Row("all patches", "dense", latency_ms=90.0, right=answers(*range(8)))
        resize = Row("resize to 80x80", "resize", latency_ms=2.0, right=answers(0, 1, 9))
        assert resize.as_good_as(dense)
        text = advice(dense, resize)
        assert "Use it for now: 20 images are too few to distinguish any other strategy from it" in text
        assert "Use “resize" not in text
        # Above chance, but it may lose more than 5 points.
        close = Row("resize to 96x96", "resize", latency_ms=4.0, right=answers(*range(1, 8)))
        assert "Use it for now" in advice(dense, close)

    def test_choosing_is_not_shown_to_be_worth_it(self):
        text = advice(
            chosen("24 patches, variance", 0.62, 4.5, seed=3),
            chosen("24 patches, random", 0.60, 4.0, seed=4),
            self.resize,
            adapt=0,
        )
        assert "do not show that selecting patches beats random patches" in text
        assert "No strategy was fine-tuned" in text and "--adapt STEPS" in text

    def test_resizing_wins(self):
        text = advice(
            chosen("24 patches, variance", 0.30, 4.5, seed=3),
            make_row("resize to 80x80", 0.90, 2.0, budget=24), self.random,
        )  # fmt: skip
        assert "Use it: every other strategy is less accurate by more than chance explains." in text
        assert "30.0% with “24 patches, variance”" in text
        assert "selecting patches loses to “resize to 80x80”" in text

    def test_a_second_checkpoint_and_equal_times(self):
        text = advice(
            make_row("hybrid stem, all cells", 0.905, 17.2, strategy="hybrid"),
            make_row("hybrid stem, 24 cells", 0.90, 17.0, strategy="hybrid"),
            chosen("24 patches, variance", 0.70, 4.5), self.random, self.resize,
        )  # fmt: skip
        assert "“hybrid stem, all cells”, 90.5%" in text
        assert (
            "Use it: “hybrid stem, 24 cells” does not differ significantly from it on these images, "
            "and is not faster." in text
        )
        assert "The best of the first is “24 patches, variance”, 70.0% at 4.5 ms" in text

    def test_nothing_works(self):
        rows = (chosen("24 patches, variance", 0.12, 4.5, seed=3), self.random, self.resize)
        assert "not clearly above chance (10%), so nothing can be recommended." in advice(*rows)
        assert "nothing can be recommended: fine-tune first" in advice(*rows, adapt=0)

    def test_failures_and_missing_baselines(self):
        failed = Row("all patches", "dense", reason="memory")
        text = advice(chosen("24 patches, variance", 0.7, 4.5), failed)
        assert "One strategy could not be measured" in text
        assert "the value of selecting patches is unknown" in text
        assert advice(failed) == "No strategy could be measured; the table says why."


def test_rows_to_file_and_back(tmp_path):
    rows = [
        make_row("good", 0.9, 1.0), make_row("same but slower", 0.9, 2.0), make_row("dear", 0.95, 10.0),
        Row("broken", "dense", reason="out of memory, says torch"),
    ]  # fmt: skip
    mark(rows)
    write_rows(rows, tmp_path / "results.csv")
    good, slower, dear, broken = read_rows(tmp_path / "results.csv")
    assert [row["on_front_of_latency"] for row in (good, slower, dear, broken)] == [
        "True",
        "False",
        "True",
        "False",
    ]
    assert float(good["accuracy"]) == 0.9 and float(good["behind_best"]) == pytest.approx(0.05)
    assert float(good["accuracy_low"]) < 0.9 < float(good["accuracy_high"])
    # 10 more right, none fewer: 2 / 2^10.
    assert float(good["p_value"]) == pytest.approx(2 / 2**10, rel=1e-4)
    assert (broken["reason"], broken["accuracy"]) == ("out of memory, says torch", "")
    assert "right" not in good and "pictures" not in good


class TestNotebook:
    def comparison(self) -> Comparison:
        rows = [
            Row("all patches", "dense", right=[True] * 9 + [False], tokens=4816, tokens_out=4816),
            Row("196 patches", "select", "variance", 196, right=[True] * 8 + [False] * 2, tokens=196),
            Row("<tiles>", "tiles", reason="out of memory"),
        ]
        rows[1].tokens_out = 98
        for row in rows[:2]:
            row.latency_ms, row.gflops_counted, row.variant = row.tokens / 10, row.tokens / 100, row.name
        mark(rows)
        facts = {"own_side": 224, "image_size": "1376x896", "num_images": 10, "data": "photos"}
        facts |= {
            "num_classes": 3,
            "new_head": False,
            "adapt": 0,
            "is_multi_label": False,
            "machine": "a CPU",
            "num_patches": 4816,
        }
        return Comparison(rows, [], facts)

    def test_short_text(self):
        text = "Comparison(3 strategies on 10 images of photos; most accurate: all patches, 90.0%)"
        assert repr(self.comparison()) == text
        nothing = Comparison([Row("tiles", "tiles", reason="no")], [], self.comparison().facts)
        assert "none could be measured" in repr(nothing)

    def test_shows_recommendation_plot_and_table(self, monkeypatch):
        page = self.comparison()._repr_html_()
        assert "On 10 images the most accurate is" in page and "data:image/png;base64," in page
        assert "<td>196 of 4816 → 98</td>" in page and "<td>4816</td>" in page
        assert "&lt;tiles&gt;" in page and "not measured: out of memory" in page
        monkeypatch.setitem(sys.modules, "vit_hf.comparison.report", None)  # as without matplotlib
        assert self.comparison()._repr_html_() is None
