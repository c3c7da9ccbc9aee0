"""Learned selectors and reducers: perturbed top-K, the policy, distillation, and `gumbel`."""

import itertools
import math

import pytest
import torch
from torch import nn

from tests.helpers.models import cut, tiny_config, tiny_selector
from tests.helpers.reduction import PREFIX, make, plain_logits
from tests.helpers.selection import batch, learn
from vit_hf import AdaptiveViTForImageClassification, AdaptiveViTModel
from vit_hf.measure import peak_memory
from vit_hf.model import selectors
from vit_hf.model.heads import distillation_loss
from vit_hf.model.selectors import draw_plackett_luce, perturbed_top_k, plackett_luce_log_prob, reinforce_loss


def within(estimates: torch.Tensor, expected: torch.Tensor) -> None:
    """The mean of independent `estimates` `(n, ...)` is as near as chance allows, and chance allows
    little."""
    error = estimates.std(0) / len(estimates) ** 0.5
    assert ((estimates.mean(0) - expected).abs() <= 4.5 * error + 1e-6).all()
    assert error.max() < 0.05 * expected.abs().max()


class TestGumbel:
    layers = (0, 2)
    free = {"type": "gumbel", "ratio_weight": 0.0, "distillation_weight": 0.0, "token_weight": 0.0}

    def reference(self, model, image, decide, shares):
        """DynamicViT, section 3: what was dropped is no key for anybody. `decide(logits, present)` says
        what stays."""

        def before(index, x, log_sizes):
            if index not in self.layers:
                return x, log_sizes
            predictor = model.vit.reducers[str(index)]
            present = log_sizes[PREFIX:] == 0
            states = nn.functional.gelu(predictor.input(predictor.norm(x[PREFIX:])))
            context = states[present][:, 16:].mean(0).expand(len(states), 16)
            states = torch.cat((states[:, :16], context), dim=1)
            states = nn.functional.gelu(predictor.hidden1(states))
            logits = predictor.output(nn.functional.gelu(predictor.hidden2(states)))
            stays = decide(logits, present) & present
            shares.append(stays.float().mean())
            return x, torch.cat((log_sizes[:PREFIX], torch.where(stays, 0, -torch.inf)))

        return plain_logits(model, image, before=before)

    def test_gathered_tokens_equal_a_masked_dense_pass(self):
        model, images = make("gumbel", self.layers, keep_rate=0.5), torch.randn(3, 3, 48, 48)

        def decide(logits, present):
            scores = (logits[:, 0] - logits[:, 1]).masked_fill(~present, -torch.inf)
            kept = scores.argsort(descending=True)[: math.ceil(present.sum() / 2)]
            return torch.zeros_like(present).index_fill(0, kept, True)

        expected = torch.stack([self.reference(model, image, decide, []) for image in images])
        torch.testing.assert_close(model(images).logits, expected, atol=1e-4, rtol=1e-4)

    @pytest.mark.parametrize("implementation", ["eager", "sdpa"])
    def test_training_hides_what_was_dropped(self, implementation, monkeypatch):
        model, images = make(self.free, self.layers).train(), torch.randn(3, 3, 48, 48)
        model.set_attn_implementation(implementation)

        def likely(logits, present=None, **_):  # no chance
            preference = logits[..., 0] - logits[..., 1]
            return preference > preference.median(dim=-1, keepdim=True).values

        monkeypatch.setattr(
            nn.functional,
            "gumbel_softmax",
            lambda logits, tau, hard: likely(logits).unsqueeze(-1).float() + logits - logits.detach(),
        )
        output, shares = model(images), []
        expected = torch.stack([self.reference(model, image, likely, shares) for image in images])
        torch.testing.assert_close(output.logits, expected, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(output.token_sizes.mean(1), torch.stack(shares[1::2]))
        assert 0 < min(shares) < max(shares) < 1

    def test_ratio_loss_by_hand_and_what_is_dropped_stays_dropped(self, monkeypatch):
        counts = iter([9, 36])  # the first stage keeps the first nine, the second would keep all

        def chosen(logits, tau, hard):
            stays = (torch.arange(logits.shape[1]) < next(counts)).expand(logits.shape[:2])
            return torch.stack((stays, ~stays), dim=-1).float()

        monkeypatch.setattr(nn.functional, "gumbel_softmax", chosen)
        model = make({**self.free, "ratio_weight": 3.0}, self.layers, keep_rate=0.5).train()
        images = cut([torch.randn(3, 48, 48), torch.randn(3, 24, 32)])  # 36 and 12 patches
        output = model(**images, labels=torch.tensor([0, 1]))
        assert torch.equal(output.token_sizes, (torch.arange(36) < 9).float().expand(2, 36))
        stages = [((9 / 36 - wanted) ** 2 + (9 / 12 - wanted) ** 2) / 2 for wanted in (1 / 2, 1 / 4)]
        torch.testing.assert_close(output.selection_loss, torch.tensor(3 * sum(stages) / 2))

    @pytest.mark.parametrize("pooling", ["cls", "mean"])
    @pytest.mark.parametrize("implementation", ["eager", "sdpa"])
    def test_the_task_alone_teaches_the_predictor(self, pooling, implementation):
        model = make(self.free, self.layers, pooling=pooling).train()
        model.set_attn_implementation(implementation)
        model(torch.randn(2, 3, 48, 48), labels=torch.tensor([1, 2])).loss.backward()
        for name, value in model.vit.reducers.named_parameters():
            assert torch.isfinite(value.grad).all() and value.grad.abs().max() > 1e-8, name

    def test_the_gradient_of_staying_is_that_of_a_weight_in_attention(self, monkeypatch):
        """With soft decisions the loss is smooth, and its gradient can be had by differences."""
        model = make(self.free, (1,)).double().train()
        images, labels = torch.randn(2, 3, 48, 48, dtype=torch.double), torch.tensor([1, 2])
        stays = torch.rand(2, 36, dtype=torch.double).mul(0.9).add(0.1).requires_grad_()
        monkeypatch.setattr(
            nn.functional, "gumbel_softmax", lambda logits, tau, hard: torch.stack((stays, 1 - stays), -1)
        )
        (gradient,) = torch.autograd.grad(model(images, labels=labels).loss, stays)
        direction, step = torch.randn_like(stays), 1e-5
        with torch.no_grad():
            stays += step * direction
            above = model(images, labels=labels).loss
            stays -= 2 * step * direction
            below = model(images, labels=labels).loss
        slope = (above - below) / (2 * step)
        torch.testing.assert_close((gradient * direction).sum(), slope, atol=1e-7, rtol=1e-3)

    def test_nothing_to_distil_where_all_stay(self, monkeypatch):
        weights = {"ratio_weight": 0.0, "distillation_weight": 9.0, "token_weight": 9.0}
        images, labels, losses = torch.randn(2, 3, 48, 48), torch.tensor([1, 2]), []
        for bias in (50.0, 0.0):
            model = make({"type": "gumbel", **weights}, self.layers).train()
            for reducer in model.vit.reducers.values():
                reducer.output.weight.data.zero_()
                reducer.output.bias.data = torch.tensor([bias, -bias])
            losses.append(model(images, labels=labels).selection_loss)
        assert abs(losses[0]) < 1e-6 and losses[1] > 0.1

    @pytest.mark.parametrize("pooling", ["cls", "mean"])
    def test_the_teacher_is_the_answer_of_all_patches(self, pooling):
        reducer, problem = {**self.free, "distillation_weight": 1.0}, "single_label_classification"
        model = make(reducer, self.layers, pooling=pooling, problem_type=problem).train()
        dense = AdaptiveViTForImageClassification(
            tiny_config(image_size=48, num_register_tokens=PREFIX - 1, pooling=pooling)
        )
        dense.load_state_dict(model.state_dict(), strict=False)
        images = cut([torch.randn(3, 48, 48), torch.randn(3, 24, 32)])
        output, teacher = model(**images, labels=torch.tensor([0, 1])), dense(**images).logits
        log_student, log_teacher = output.logits.log_softmax(-1), teacher.log_softmax(-1)
        expected = (log_teacher.exp() * (log_teacher - log_student)).sum(-1).mean()
        torch.testing.assert_close(output.selection_loss, expected)

    def test_of_several_labels_each_is_a_yes_or_no(self):
        student, teacher = torch.randn(2, 4, 5), torch.randn(2, 4, 5)
        expected = 0
        for sign in (1, -1):
            expected = expected + (sign * teacher).sigmoid() * (
                nn.functional.logsigmoid(sign * teacher) - nn.functional.logsigmoid(sign * student)
            )
        got = distillation_loss(student, teacher, "multi_label_classification")
        torch.testing.assert_close(got, expected.mean())


def in_rows(kept: list[int], greedy: list[int]) -> list[int]:
    """The patches `kept`, each favorite in its own row and newcomers in those of greedy that left."""
    newcomers = iter(sorted(set(kept) - set(greedy)))
    return [favorite if favorite in kept else next(newcomers) for favorite in greedy]


def exact_top_2(scores: torch.Tensor, sigma: float) -> torch.Tensor:
    """Expected indicators `(2, N)` of the two highest of N Gaussians, by an integral over the lower of the
    two."""
    points = torch.linspace(-8, 8, 20001, dtype=torch.double) * sigma + scores.mean()
    standard = (points[:, None] - scores) / sigma
    density = torch.exp(-(standard**2) / 2) / (sigma * math.sqrt(2 * math.pi))
    below = torch.special.ndtr(standard)
    expected = torch.zeros(2, len(scores), dtype=torch.double)
    for pair in itertools.combinations(range(len(scores)), 2):
        a, b = pair
        others = [other for other in range(len(scores)) if other not in pair]
        lower = density[:, a] * (1 - below[:, b]) + density[:, b] * (1 - below[:, a])
        chance = torch.trapezoid(lower * below[:, others].prod(dim=1), points)
        rows = torch.tensor(in_rows(pair, sorted(scores.topk(2).indices.tolist())))
        expected = expected + chance * nn.functional.one_hot(rows, len(scores))
    return expected


class TestPerturbed:
    scores = torch.tensor([0.3, 0.5, 0.1, 0.42, 0.47])

    def with_noise(self, monkeypatch, noise, chunk):
        monkeypatch.setattr(selectors, "noise_chunks", lambda scores, number, seed: noise.split(chunk, dim=1))

    def test_forward_is_the_mean_of_indicators(self, monkeypatch):
        scores, noise = torch.rand(2, 7), torch.randn(2, 40, 7)
        scores[1, 5:] = -torch.inf
        self.with_noise(monkeypatch, noise, 40)
        for counts in (None, [3, 2]):
            expected = torch.zeros(2, 3, 7)
            for image in range(2):
                number = 3 if counts is None else counts[image]
                greedy = sorted(scores[image].topk(number).indices.tolist())
                for sample in noise[image]:
                    kept = (scores[image] + 0.3 * sample).topk(number).indices.tolist()
                    for row, patch in enumerate(in_rows(kept, greedy)):
                        expected[image, row, patch] += 1 / 40
            got = perturbed_top_k(scores, 3, 40, 0.3, counts and torch.tensor(counts))
            torch.testing.assert_close(got, expected, atol=1e-6, rtol=0)
            torch.testing.assert_close(got.sum(-1), (expected.sum(-1) > 0).float())

    def test_chunks_change_nothing(self, monkeypatch):
        scores, noise = torch.rand(3, 9), torch.randn(3, 25, 9)
        scores[2, 6:] = -torch.inf
        counts, direction, results = torch.tensor([4, 1, 3]), torch.randn(3, 4, 9), []
        for chunk in (25, 4, 1):
            self.with_noise(monkeypatch, noise, chunk)
            leaf = scores.clone().requires_grad_()
            rows = perturbed_top_k(leaf, 4, 25, 0.2, counts)
            results.append((rows.detach(), *torch.autograd.grad((rows * direction).sum(), leaf)))
        torch.testing.assert_close(results[1:], [results[0]] * 2, atol=1e-5, rtol=1e-5)
        assert (results[0][1][2, 6:] == 0).all() and (results[0][1] != 0).any(1).all()

    def test_noise_is_that_of_the_seed_in_chunks_that_fit(self, monkeypatch):
        monkeypatch.setattr(selectors, "NOISE_CHUNK_SIZE", 3000)
        scores = torch.zeros(2, 100)
        first, again = (list(selectors.noise_chunks(scores, 500, 7)) for _ in range(2))
        assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))
        assert [noise.shape for noise in first] == [(2, 15, 100)] * 33 + [(2, 5, 100)]
        noise = torch.cat(first, dim=1)
        assert abs(noise.mean()) < 0.02 and abs(noise.std() - 1) < 0.02 and len(noise.unique()) > 90_000

    @pytest.mark.parametrize("sigma", [0.05, 0.3])
    @pytest.mark.parametrize(("batch", "samples"), [(60000, 2), (40, 2500)])
    def test_value_and_gradient_of_the_expectation(self, sigma, batch, samples, monkeypatch):
        """Two samples a time tell whether the baseline in the gradient leaves a bias."""
        monkeypatch.setattr(selectors, "NOISE_CHUNK_SIZE", 2**18)
        direction = torch.randn(2, 5)
        exact = self.scores.double().requires_grad_()
        expected = exact_top_2(exact, sigma)
        torch.testing.assert_close(expected.sum(1), torch.ones(2, dtype=torch.double))
        (gradient,) = torch.autograd.grad((expected * direction).sum(), exact)
        leaf = self.scores.repeat(batch, 1).requires_grad_()
        rows = perturbed_top_k(leaf, 2, samples, sigma)
        within(rows.detach(), expected.detach().float())
        within(torch.autograd.grad((rows * direction).sum(), leaf)[0], gradient.float())

    def test_without_noise_it_is_the_top_k(self):
        rows = perturbed_top_k(self.scores[None], 3, 10, 1e-6)[0]
        torch.testing.assert_close(rows, nn.functional.one_hot(torch.tensor([1, 3, 4]), 5).float())
        config = tiny_config(patch_selector=tiny_selector("perturbed", sigma=1e-7, num_samples=5))
        model, images = AdaptiveViTForImageClassification(config), torch.randn(2, 3, 64, 48)
        mixed, kept = model.train()(images), model.eval()(images)
        torch.testing.assert_close(mixed.logits, kept.logits, atol=1e-5, rtol=1e-5)

    @pytest.mark.parametrize("autocast", [False, True])
    def test_patches_are_mixed_by_their_weights(self, autocast, monkeypatch):
        """Pixels and places are means by the rows of the expectation, which mixed precision must not blur."""
        seen = []
        spy = lambda *args: seen.append(perturbed_top_k(*args)) or seen[-1]  # noqa: E731
        monkeypatch.setattr(selectors, "perturbed_top_k", spy)
        config = tiny_config(patch_selector=tiny_selector("perturbed", sigma=0.2), position_encoding="none")
        model, images = AdaptiveViTModel(config).train(), torch.randn(2, 3, 256, 240)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            output = model(images, output_hidden_states=True)
        (weights,) = seen
        assert weights.dtype == torch.float32
        torch.testing.assert_close(weights.sum(-1), torch.ones(2, 6))
        rows, columns = torch.meshgrid(torch.arange(32.0), torch.arange(30.0), indexing="ij")
        places = torch.stack((rows.flatten(), columns.flatten()), dim=-1)
        torch.testing.assert_close(output.patch_coordinates, weights @ places, atol=1e-4, rtol=1e-5)
        pixels = nn.functional.unfold(images, 8, stride=8).transpose(1, 2)  # (B, N, C*P*P)
        kernel = model.embeddings.patch_embeddings.projection
        embedded = weights @ pixels @ kernel.weight.flatten(1).T + kernel.bias
        entered = output.hidden_states[0][:, 1:].float()
        torch.testing.assert_close(entered, embedded, atol=0.05 if autocast else 1e-4, rtol=0)

    @pytest.mark.slow
    def test_memory(self):
        """Indicators of every sample would take 1.5 GiB: 500 x 196 x 4096 numbers."""
        growth = peak_memory(large_perturbed_step)
        assert growth is None or 1 < growth < 1000


def large_perturbed_step():
    scores, direction = torch.rand(1, 4096, requires_grad=True), torch.randn(1, 196, 4096)

    def step():
        (perturbed_top_k(scores, 196, 500, 0.05) * direction).sum().backward()

    return step


class TestPolicy:
    scores = torch.tensor([0.5, -1.0, 1.5, 0.2])
    draws = list(itertools.permutations(range(4), 2))
    # Of a set (smaller, larger).
    rewards = torch.tensor([[0, 1.5, 0.3, 4.0], [0, 0, 2.2, 3.1], [0, 0, 0, 0.7], [0, 0, 0, 0]])

    def orders(self) -> torch.Tensor:
        """All `(12, 4)` orders whose first two differ; what follows is never drawn."""
        rest = [[patch for patch in range(4) if patch not in draw] for draw in self.draws]
        return torch.tensor([[*draw, *others] for draw, others in zip(self.draws, rest, strict=True)])

    def reward(self, order) -> torch.Tensor:
        first, second = order[:, :2].sort(dim=1).values.unbind(1)
        return self.rewards[first, second]

    def test_log_probabilities_by_hand(self):
        got = plackett_luce_log_prob(self.scores.expand(12, 4), self.orders(), 2).exp()
        weights = self.scores.exp()
        expected = [
            weights[a] / weights.sum() * weights[b] / (weights.sum() - weights[a]) for a, b in self.draws
        ]
        torch.testing.assert_close(got, torch.stack(expected))
        torch.testing.assert_close(got.sum(), torch.tensor(1.0))

    def test_draws_have_these_frequencies(self):
        number = 60000
        drawn = draw_plackett_luce(self.scores.expand(number, 4))
        assert torch.equal(drawn.sort(dim=1).values, torch.arange(4).expand(number, 4))
        chances = plackett_luce_log_prob(self.scores.expand(12, 4), self.orders(), 2).exp()
        for draw, chance in zip(self.draws, chances.tolist(), strict=True):
            frequency = (drawn[:, :2] == torch.tensor(draw)).all(1).float().mean().item()
            assert abs(frequency - chance) < 4 * math.sqrt(chance * (1 - chance) / number)

    def test_padding_is_drawn_last_and_changes_nothing(self):
        scores = torch.tensor([[0.3, 1.0, -0.5, -torch.inf, -torch.inf]]).requires_grad_()
        orders = draw_plackett_luce(scores.expand(200, 5))
        assert (orders[:, :3] < 3).all()
        got = plackett_luce_log_prob(scores.expand(200, 5), orders, 3, torch.full((200,), 2))
        alone = plackett_luce_log_prob(scores[:, :3].expand(200, 3), orders[:, :3], 2)
        torch.testing.assert_close(got, alone)
        model = AdaptiveViTForImageClassification(tiny_config(patch_selector="policy")).train()
        images = cut([torch.randn(3, 64, 48), torch.randn(3, 16, 16), torch.randn(3, 24, 32)])
        model(**images, labels=torch.tensor([0, 1, 2])).loss.backward()
        for name, value in model.vit.selector.named_parameters():
            assert torch.isfinite(value.grad).all() and (value.grad != 0).any(), name

    def exact_gradient(self) -> torch.Tensor:
        """Of -E[R], by enumeration."""
        leaf = self.scores.clone().requires_grad_()
        chances = plackett_luce_log_prob(leaf.expand(12, 4), self.orders(), 2).exp()
        return torch.autograd.grad(-(chances * self.reward(self.orders())).sum(), leaf)[0]

    @pytest.mark.parametrize("baseline", [0.0, -7.0, 2.5])
    def test_a_baseline_changes_nothing_in_expectation(self, baseline):
        leaf = self.scores.clone().requires_grad_()
        log_prob = plackett_luce_log_prob(leaf.expand(12, 4), self.orders(), 2)
        advantage = (self.reward(self.orders()) - baseline) * log_prob.exp().detach()
        got = sum(
            reinforce_loss(log_prob[i : i + 1], advantage[i : i + 1], torch.zeros(1)) for i in range(12)
        )
        torch.testing.assert_close(
            torch.autograd.grad(got, leaf)[0], self.exact_gradient(), atol=1e-5, rtol=1e-5
        )

    @pytest.mark.parametrize("images", [1, 2, 8])
    def test_the_gradient_is_unbiased(self, images):
        """Of batches of so many images, with the reward of the greedy as the baseline."""
        leaf = self.scores.repeat(60000 // images, images, 1).requires_grad_()
        order = draw_plackett_luce(leaf.flatten(0, 1))
        log_prob = plackett_luce_log_prob(leaf.flatten(0, 1), order, 2).view(-1, images)
        reward = self.reward(order).view(-1, images)
        greedy = self.reward(self.scores.argsort(descending=True)[None]).expand_as(reward)
        loss = torch.vmap(reinforce_loss)(log_prob, reward, greedy).sum()
        within(torch.autograd.grad(loss, leaf)[0].sum(1), self.exact_gradient())


def seeing(choose, **fields):
    """A model that has learned to tell the labels from the patches that `choose(places)` says, and is
    frozen."""
    sizes = {"num_channels": 1, "num_labels": 2, "num_hidden_layers": 2, "initializer_range": 0.1}
    model = AdaptiveViTForImageClassification(tiny_config(num_selected_patches=1, **sizes, **fields))
    learn(model, model.parameters(), 60, choose).requires_grad_(False)
    model.vit.selector.requires_grad_(True)
    return model


def share_found(model, images, places) -> float:
    return (model(images).selected_patches[:, 0] == places).float().mean().item()


@pytest.mark.parametrize(
    ("steps", "fields"),
    [
        (100, {"patch_selector": "policy"}),
        (200, {"patch_selector": tiny_selector("perturbed", num_samples=50, sigma=0.3)}),
    ],
)
def test_finds_the_patch_that_tells(steps, fields):
    model = seeing(lambda places: places[:, None], **fields)
    images, labels, places = batch(300)
    while not 0.02 < share_found(model, images, places) < 0.5:  # neither clever nor blind by chance
        nn.init.normal_(model.vit.selector.scorer.output.weight)
    learn(model, model.vit.selector.parameters(), steps)
    assert share_found(model, images, places) > 0.95
    assert (model(images).logits.argmax(-1) == labels).float().mean() > 0.95


def test_foresees_what_the_last_block_attends_to():
    every = torch.arange(16)
    fields = {"patch_selector": {"type": "distilled", "loss_weight": 1.0, "num_layers": 1}}
    model = seeing(lambda places: every.expand(len(places), 16), **fields)
    images, _, _ = batch(100)
    dense = model(images, selected_patches=every.expand(100, 16), output_attentions=True)
    looked_at = dense.attentions[-1].mean(1)[:, 0, 1:].log()

    def correlation() -> float:
        pairs = torch.stack((model(images).patch_scores, looked_at), dim=1)
        return torch.stack([torch.corrcoef(pair)[0, 1] for pair in pairs]).mean().item()

    before = correlation()
    learn(model, model.vit.selector.parameters(), 120)
    assert correlation() > max(0.4, before + 0.2)
