"""Releases that learn or draw: SSD, the purifier, and noise on scores."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mibench.defenses import SSD, Purifier, ScoreNoise
from mibench.defenses.release.purifier import autoencoder
from mibench.defenses.release.ssd import uniform_of
from mibench.seeding import generator, seeded
from mibench.store import Work
from mibench.types import ImageSet
from tests.golden import TIGHT, check_gradients, fill, read, wave

GOLDEN: Any = read("defenses/10-output-and-low-rank")
TOLD: Any = GOLDEN["SSD"]
A, B = 0.7, 0.2
NO_IMAGES = torch.zeros(6, 1, 1, 1)


def rows(name: str) -> Tensor:
    return torch.tensor(TOLD[name], dtype=torch.float64)


def means() -> Tensor:
    return (wave((5, 5), A, B) + 4 * torch.eye(5)).softmax(1)


def scores() -> Tensor:
    """Returns the rows of scores to all digits."""
    scale = torch.tensor([1, 2, 4, 6, 0.5, 9], dtype=torch.float64)
    f = (scale[:, None] * wave((6, 5), 1.3 * A, B + 0.5)).softmax(1)
    f[3] = 0.97 * means()[1] + 0.03 / 5
    return f


DRAWN = TOLD["inputs"]["drawn class y (in place of the draw)"]

# SSD --------------------------------------------------------------------------------------


def test_ssd_draws_and_answers_as_released() -> None:
    f, q = scores(), means()[DRAWN]
    torch.testing.assert_close(f, rows("f"), rtol=0, atol=1e-11)
    without = f.clone()
    without[0, 0] = 0  # these golden numbers are of a first row with an exact 0
    without /= without.sum(1, keepdim=True)
    chances = rows("probabilities of the draw softmax(f/T)")
    torch.testing.assert_close(SSD().chances(without), chances, rtol=TIGHT, atol=TIGHT)
    moved = SSD().moved(f, q)
    torch.testing.assert_close(moved, rows("answer"), rtol=0, atol=1e-11)
    assert moved.argmax(1).tolist() == TOLD["argmax after"]
    distance = (moved - f).abs().sum(1).tolist()
    assert distance == pytest.approx(TOLD["L1 distance of answer to f"], abs=1e-11)
    assert [torch.equal(a, b) for a, b in zip(moved, q, strict=True)] == TOLD[
        "answered by the row itself"
    ]


def test_ssd_answers_where_a_score_or_a_mean_is_exactly_0() -> None:
    """The released code answers NaN."""
    f, q = scores(), means()[DRAWN]
    f[0, 0], q[1, 2], f[2, 1], q[2, 1] = 0, 0, 0, 0
    f, q = f / f.sum(1, keepdim=True), q / q.sum(1, keepdim=True)
    moved = SSD().moved(f, q)
    torch.testing.assert_close(moved.sum(1), torch.ones(6, dtype=torch.float64))
    budget = -0.5 * torch.xlogy(f, f).sum(1)
    assert ((moved - f).abs().sum(1) <= budget + 1e-9).all()
    sure = torch.eye(5, dtype=torch.float64)[:1]
    assert torch.equal(SSD().moved(sure, q[:1]), sure)  # no entropy, no budget


def test_ssd_without_a_budget_changes_nothing_and_with_a_large_one_answers_a_mean() -> None:
    f, q = scores(), means()[DRAWN]
    torch.testing.assert_close(SSD(epsilon=0).moved(f, q), f)
    assert torch.equal(SSD(epsilon=100).moved(f, q), q)


def test_ssd_draws_a_class_by_the_image_and_in_proportion_to_its_chance() -> None:
    x = torch.rand(4000, 1, 2, 2, generator=generator("x"))
    probs = torch.tensor([[0.5, 0.3, 0.2]]).expand(4000, 3)
    state = {"means": torch.eye(3)}
    release = SSD(epsilon=100, temperature=0.5)
    answers = release(probs, x, state, generator("a"))
    assert torch.equal(answers, release(probs, x, state, generator("b")))
    shares = answers.mean(0)
    torch.testing.assert_close(shares, (probs[0] / 0.5).softmax(0), rtol=0, atol=0.03)
    near = (x + 1e-4).clamp(max=1)  # the same pixels, as bytes, nearly everywhere
    agreeing = (release(probs, near, state, generator("c")) == answers).all(1).double().mean()
    assert 0.85 < agreeing < 1
    u = uniform_of(x)
    assert 0 <= u.min() < 0.01 < 0.99 < u.max() < 1


def test_ssd_learns_the_mean_scores_of_each_class() -> None:
    held_out = ImageSet(torch.zeros(5, 1, 1, 1).byte(), torch.tensor([0, 0, 1, 2, 2]))
    said = torch.rand(5, 3, generator=generator("said"))
    state = SSD().fit(lambda _: said, held_out, generator("fit"), Work())
    want = torch.stack([said[:2].mean(0), said[2], said[3:].mean(0)])
    torch.testing.assert_close(state["means"], want)


# The purifier -----------------------------------------------------------------------------


def test_the_purifier_has_the_golden_loss_and_gradients() -> None:
    told = GOLDEN["Purifier 2020"]
    f = (3 * wave((6, 10), 1.1 * A, B + 0.3)).softmax(1)
    with seeded("test"):
        network = autoencoder(10)
    fill(network, A, B)
    with torch.no_grad():
        for matrix in (w for w in network.parameters() if w.dim() == 2):
            matrix.mul_(5)
    purified = network.train()(f)
    want = torch.tensor(told["purified"], dtype=torch.float64)
    torch.testing.assert_close(purified, want, rtol=1e-9, atol=1e-9)
    loss = Purifier(lambda_=0.2).loss(purified, f).item()
    assert loss == pytest.approx(
        told["loss as in the paper (squared norm per row, mean over rows, + lambda CE), own"],
        rel=TIGHT,
    )
    # The other code has the mean over entries: a tenth of both terms, of ten times the weight.
    released = Purifier(lambda_=2.0).loss(purified, f) / 10
    name = "loss as released (mean over entries + lambda CE)"
    assert released.item() == pytest.approx(told[name], rel=TIGHT)
    released.backward()  # type: ignore[no-untyped-call]
    check_gradients(network, told["gradients of the loss as released"], TIGHT)


def test_the_purifier_learns_to_repeat_scores_and_lets_out_scores() -> None:
    said = (12 * torch.rand(40, 6, generator=generator("said"))).softmax(1)
    held_out = ImageSet(torch.zeros(40, 1, 1, 1).byte(), torch.arange(40) % 6)

    def purified(steps: int) -> Tensor:
        release = Purifier(steps=steps)
        with seeded("fit"):
            state = release.fit(lambda _: said, held_out, generator("fit"), Work())
        out = release(said, torch.zeros(40, 1, 1, 1), state, generator("ask"))
        assert ((out >= 0) & (out <= 1)).all()
        assert out.dtype == said.dtype
        return out

    early, late = purified(1), purified(400)
    gaps = [(out - said).square().sum(1).mean().item() for out in (early, late)]
    assert gaps[1] < gaps[0] / 2


def test_the_purifiers_layers_get_narrower() -> None:
    with torch.device("meta"):
        widths = [m.out_features for m in autoencoder(30) if isinstance(m, nn.Linear)]
    assert widths == [21, 12, 21, 30]


# Noise ------------------------------------------------------------------------------------


def noisy(release: ScoreNoise, probs: Tensor, draw: int = 0) -> Tensor:
    return release(probs, torch.zeros(len(probs), 1, 1, 1), {}, generator("noise", draw))


def test_noise_is_added_cut_off_at_0_and_scaled() -> None:
    f = scores()
    want = f + 0.1 * torch.randn(f.shape, generator=generator("noise", 0), dtype=f.dtype)
    want = want.clamp(min=0)
    torch.testing.assert_close(noisy(ScoreNoise(0.1), f), want / want.sum(1, keepdim=True))
    torch.testing.assert_close(noisy(ScoreNoise(0), f), f)


def test_where_noise_leaves_nothing_all_classes_are_equally_likely() -> None:
    probs = torch.tensor([[0.5, 0.5]]).expand(400, 2)
    out = noisy(ScoreNoise(50), probs)
    torch.testing.assert_close(out.sum(1), torch.ones(400))
    equal = (out == 0.5).all(1)
    assert 0.15 < equal.double().mean() < 0.35  # both are negative in a fourth of them


def test_the_most_likely_class_is_kept_only_where_it_is_asked_for() -> None:
    f = scores().repeat(50, 1)
    kept, free = (noisy(ScoreNoise(0.3, keep=keep), f) for keep in (True, False))
    assert torch.equal(kept.argmax(1), f.argmax(1))
    assert not torch.equal(free.argmax(1), f.argmax(1))
    torch.testing.assert_close(kept.sort(1).values, free.sort(1).values)  # they change places


def test_the_mean_of_many_noisy_answers_is_near_the_scores() -> None:
    f = scores()
    one = noisy(ScoreNoise(0.1), f)
    mean = torch.stack([noisy(ScoreNoise(0.1), f, draw) for draw in range(200)]).mean(0)
    assert (mean - f).abs().mean() < (one - f).abs().mean() / 2
