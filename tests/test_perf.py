"""What the hot paths are measured against computes the same."""

import pytest
import torch

from mibench.defenses import BiDO
from mibench.networks import MLP
from mibench.networks.fold import quick
from mibench.networks.generators.dcgan import InversionDiscriminator
from mibench.roles import Batch
from mibench.seeding import seeded
from perf import naive, precision
from perf.__main__ import Operations, Ratio, Timed, compare, measure, table
from perf.paths import Path


def test_the_straightforward_discriminator_is_ours(rng: torch.Generator) -> None:
    with seeded("test"):
        D = InversionDiscriminator(4, (1, 16, 16), 5, mbd=6, mbd_kernels=3)
        D.closeness.T.data /= 10
    x = torch.rand(7, 1, 16, 16, generator=rng)
    for got, want in zip(D(x), naive.judge(D, x), strict=True):
        torch.testing.assert_close(got, want)
    apart = D(x, [3, 4])[1]
    torch.testing.assert_close(
        apart, torch.cat([naive.judge(D, x[:3])[1], naive.judge(D, x[3:])[1]])
    )


@pytest.mark.parametrize("measure", ["nhsic", "coco_frobenius"])
def test_the_straightforward_regulariser_is_ours(measure: str, rng: torch.Generator) -> None:
    with seeded("test"):
        network = MLP().build((1, 8, 8), 5)
    x, y = torch.rand(16, 1, 8, 8, generator=rng), torch.arange(16) % 5
    want = naive.bido(network, x, y, measure, 0.5, 2.0)
    terms = BiDO(measure, lambda_x=0.5, lambda_y=2.0).loss_terms(network, Batch(x, y))
    torch.testing.assert_close(sum(terms.values()), want, rtol=1e-3, atol=1e-3)


def timed(name: str, seconds: list[float], against: str = "", *, costs: bool = False) -> Timed:
    return Timed(Path(name, 10, lambda: None, against=against, costs=costs), 2e9, seconds)


def test_ratios_are_taken_round_by_round() -> None:
    ours, theirs = timed("a", [1, 2, 4, 1, 1], "b"), timed("b", [3, 4, 20, 1, 2])
    assert compare([ours, theirs]) == {"a": Ratio(2, 2, 3)}
    assert compare([timed("a", [1, 2], "b", costs=True), timed("b", [2, 4])]) == {
        "a": Ratio(0.5, 0.5, 0.5)
    }
    assert compare([timed("a", [1.0], "missing")]) == {}


def test_the_table_has_a_line_for_every_path_and_a_column_for_a_peer() -> None:
    paths = [timed("a", [0.5, 1.0, 0.5], "b"), timed("b", [1, 2, 1])]
    lines = table(paths, 8e9, {"a": 2000})
    assert lines[2] == ("| a | 500.0 | 20 | 2.00 | 50 % | 2.00 (2.00-2.00) times as fast | 4.00 |")
    assert lines[3] == "| b | 1000.0 | 10 | 2.00 | 25 % |  |  |"
    assert "peer" not in "".join(table(paths, 8e9, {}))


def test_a_path_with_few_rounds_takes_part_in_no_more() -> None:
    runs = {"many": 0, "few": 0}

    def count(name: str) -> None:
        runs[name] += 1

    paths = [
        Path("many", 1, lambda: count("many"), steps=4),
        Path("few", 1, lambda: count("few"), rounds=1),
    ]
    found, rate = measure(paths, 3, torch.device("cpu"))
    assert runs == {"many": 2 + 3, "few": 1}  # a warm-up, a counted one, and the rounds
    assert [len(t.seconds) for t in found] == [3, 1]
    assert rate > 0


def test_operations_of_a_quick_discriminator_are_counted_like_those_of_a_plain_one(
    rng: torch.Generator,
) -> None:
    with seeded("test"):
        D = InversionDiscriminator(4, (3, 16, 16), 5, mbd=6, mbd_kernels=3).eval()
    x = torch.rand(7, 3, 16, 16, generator=rng)
    totals = []
    for network in (D, quick(D)):
        with Operations() as operations:  # type: ignore[no-untyped-call]
            network(x)
        totals.append(operations.total)
    assert totals[0] == totals[1] > 0


def test_a_round_counts_only_if_the_matrix_unit_was_free_before_and_after(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rates = iter([9.0, 9, 9, 4, 4, 9, 9, 9])  # before and after each step in bf16
    monkeypatch.setattr(precision, "rate", lambda mode, device: next(rates))
    path = Path("a product", 1, lambda: torch.ones(2, 4) @ torch.ones(4, 4))
    timed, made = precision.measure(lambda: path, 2, torch.device("cpu"), free=8)
    assert made == 4
    assert {mode: len(t.seconds) for mode, t in timed.items()} == {"float32": 2, "bf16": 2}
    monkeypatch.setattr(precision, "rate", lambda mode, device: 4.0)
    timed, made = precision.measure(lambda: path, 2, torch.device("cpu"), free=8)
    assert made == 2 * precision.PATIENCE
    assert not timed["bf16"].seconds
