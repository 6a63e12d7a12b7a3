"""Classes of equal score: no result depends on how classes are numbered."""

from dataclasses import dataclass, fields, replace
from itertools import permutations
from typing import Any, ClassVar
from unittest.mock import Mock

import pytest
import torch
from torch import Tensor

from mibench.attacks.access import Query
from mibench.data.synthetic import Blobs
from mibench.defenses import NoDefense, Recipe
from mibench.evaluation import METRICS, Compared, Evidence, Lens, Protocol
from mibench.evaluation.evidence import STORED
from mibench.evaluation.fid import compared
from mibench.evaluation.gathering import best_moment
from mibench.evaluation.lenses import EVALUATOR
from mibench.evaluation.pixels import PIXELS
from mibench.evaluation.traits import FIRST, SECOND
from mibench.networks import MLP
from mibench.reporting.gallery import Gallery
from mibench.reporting.page import pictures
from mibench.reporting.page.charts import leaks, utility
from mibench.running.stages import ClassifierStage, EvidenceStage, ImagesStage, RecordStage
from mibench.seeding import seeded
from mibench.store import Store, Work
from mibench.ties import drawn, in_top, votes
from mibench.training import train
from mibench.types import Classifier, ImageSet, Shape

INF = float("inf")
CLASSES, KNOWN, SAMPLES = 5, 7, 12
"""Attacked, known to the evaluators, and how often each is attacked."""
BY_PERSON: tuple[Lens, ...] = (FIRST, SECOND)
"""Lenses with a feature for each private person."""
ROUNDED = torch.tensor([[2, 1, 2, 0], [1, 1, 1, 1], [3, 2, 2, 2], [0, 1, 1, 2], [4, 3, 2, 1]])


@dataclass(frozen=True)
class Undecided(MLP):
    """A network that gives every class the same score."""

    name: ClassVar[str] = "undecided"

    def build(self, shape: Shape, num_classes: int) -> Any:
        network = super().build(shape, num_classes)
        for weight in network.last.parameters():
            torch.nn.init.zeros_(weight)
        return network


def undecided(shape: Shape, classes: int) -> Classifier:
    with seeded("tests"):
        network: Classifier = Undecided().build(shape, classes)
    return network.eval()


# The rule ---------------------------------------------------------------------------------


@pytest.mark.parametrize("top", [1, 2, 3, 4])
def test_a_hit_among_equals_is_the_mean_over_their_orders(top: int) -> None:
    orders = list(permutations(range(4)))
    for row in ROUNDED.double():
        for label in range(4):
            found = sum(
                label in sorted(range(4), key=lambda c: (-row[c].item(), order[c]))[:top]
                for order in orders
            )
            ours = in_top(row[None], torch.tensor([label]), top).item()
            assert ours == pytest.approx(found / len(orders), rel=1e-12)


def test_what_is_not_a_number_is_no_hit() -> None:
    logits = torch.tensor([[torch.nan, 1.0], [1.0, torch.nan], [torch.nan, torch.nan]])
    assert in_top(logits, torch.tensor([0, 0, 1])).tolist() == [0, 0, 0]


def test_scores_that_differ_are_hits_or_none_to_the_bit(rng: torch.Generator) -> None:
    logits = torch.randn(500, KNOWN, generator=rng)
    labels = torch.randint(KNOWN, (500,), generator=rng)
    for top in (1, 5):
        hits = (logits.topk(top, dim=1).indices == labels[:, None]).any(1)
        assert torch.equal(in_top(logits, labels, top), hits.double())


def test_equals_share_a_vote() -> None:
    assert votes(torch.tensor([[1.0, 3.0, 3.0], [2.0, 0.0, 1.0]])).tolist() == [
        [0, 0.5, 0.5],
        [1, 0, 0],
    ]


def test_an_answer_among_equals_is_drawn_and_any_other_is_not(rng: torch.Generator) -> None:
    clear = torch.randn(50, 4, generator=rng)
    assert torch.equal(drawn(clear), clear.argmax(1))  # and the global generator stays
    with seeded("tests"):
        answers = drawn(torch.tensor([[1.0, 0.0, 1.0, 1.0]]).expand(3000, 4))
    counts = answers.bincount(minlength=4)
    assert counts[1] == 0
    assert counts[[0, 2, 3]].min() > 900


def test_a_target_that_answers_with_labels_names_each_of_the_equals() -> None:
    ask = Query(undecided((1, 2, 2), 3), "labels", Work())
    with seeded("tests"):
        answers = ask(torch.zeros(300, 1, 2, 2))
    assert answers.bincount(minlength=3).min() > 70


# Metrics ----------------------------------------------------------------------------------


@pytest.fixture
def evidence(rng: torch.Generator) -> Evidence:
    """Rounded scores, most of them with equals; a third of the attacked classes stand out."""
    n, m, t = CLASSES * SAMPLES, 8 * CLASSES, 40

    def scores(*shape: int) -> Tensor:
        return torch.randint(3, shape, generator=rng).float()

    labels = torch.arange(CLASSES).repeat(SAMPLES)
    logits = scores(n, KNOWN)
    logits[torch.arange(0, n, 3), labels[::3]] = 3.0
    return Evidence(
        labels=labels,
        block=labels // 3,
        passes=torch.arange(SAMPLES).repeat_interleave(CLASSES),
        logits=logits,
        features={
            lens: Compared(*(torch.randn(rows, 4, generator=rng) for rows in (n, m)))
            for lens in (*STORED, PIXELS)
        }
        | {  # errors to each person
            lens: Compared(*(1 + scores(rows, CLASSES) for rows in (n, m))) for lens in BY_PERSON
        },
        real_labels=torch.arange(CLASSES).repeat(8),
        test_logits=scores(t, CLASSES),
        test_labels=torch.arange(CLASSES).repeat(8),
        others=scores(2, n, KNOWN),
        target_logits=scores(n, CLASSES),
        ssim=torch.rand(n, generator=rng),
        control_logits=scores(n, KNOWN),
        control_labels=labels,
    )


def renumbered(e: Evidence, order: Tensor) -> Evidence:
    """Returns the same evidence where class c is called order[c]."""
    new: dict[str, Any] = {}
    for field in fields(e):
        value = getattr(e, field.name)
        if field.name.endswith("labels"):
            new[field.name] = order[value]
        elif field.name.endswith("logits") or field.name == "others":
            new[field.name] = torch.empty_like(value)
            new[field.name][..., order[: value.shape[-1]]] = value
    at = order[:CLASSES].argsort()
    new["features"] = dict(e.features)
    for lens in BY_PERSON:
        errors = e.features[lens]
        new["features"][lens] = Compared(errors.reconstructed[:, at], errors.real[:, at])
    return replace(e, **new)


def orders(rng: torch.Generator) -> list[Tensor]:
    """Returns some numberings of the classes, the attacked ones before the others."""
    return [
        torch.cat(
            [
                torch.randperm(CLASSES, generator=rng),
                CLASSES + torch.randperm(KNOWN - CLASSES, generator=rng),
            ]
        )
        for _ in range(5)
    ]


@pytest.mark.parametrize("keep", [0, 4])
@pytest.mark.parametrize("name", METRICS)
def test_no_metric_depends_on_how_classes_are_numbered(
    name: str, keep: int, evidence: Evidence, rng: torch.Generator
) -> None:
    protocol = Protocol(keep=keep)

    def value(e: Evidence) -> Tensor:
        found = torch.as_tensor(METRICS[name].compute(protocol.view(e)), dtype=torch.float64)
        return found.flatten().sort().values  # views and values per class are in class order

    want = value(evidence)
    for order in orders(rng):
        found = value(renumbered(evidence, order))
        torch.testing.assert_close(found, want, rtol=1e-9, atol=1e-9)


def test_undecided_evaluators_score_what_blind_guesses_do(evidence: Evidence) -> None:
    blind = replace(
        evidence,
        logits=torch.zeros_like(evidence.logits),
        others=torch.zeros(2, len(evidence.labels), KNOWN),
        test_logits=torch.zeros_like(evidence.test_logits),
    )

    def mean(name: str) -> float:
        return float(torch.as_tensor(METRICS[name].compute(blind)).mean())

    assert mean("accuracy") == pytest.approx(100 / CLASSES)
    assert mean("attack_acc") == mean("attack_acc_vote") == pytest.approx(100 / KNOWN)
    assert mean("attack_acc5") == pytest.approx(500 / KNOWN)
    assert mean("attack_acc_all") == pytest.approx(100 / KNOWN)
    assert mean("attack_acc_any") == pytest.approx(100 / KNOWN)
    assert mean("evaluator_agreement") == pytest.approx(100 / KNOWN)
    assert mean("evaluator_kappa") == pytest.approx(0, abs=1e-12)


def test_a_success_is_what_the_evaluator_gives_the_class_alone(evidence: Evidence) -> None:
    logits = torch.zeros_like(evidence.logits)
    logits[:20].scatter_(1, evidence.labels[:20, None], 1.0)
    reconstructed, _ = compared(replace(evidence, logits=logits), "fid_successful")
    assert torch.equal(reconstructed, evidence.through(EVALUATOR).reconstructed[:20])


# Selection --------------------------------------------------------------------------------


def test_an_undecided_network_is_selected_by_chance_not_by_its_first_class() -> None:
    images = ImageSet(torch.zeros(6, 1, 2, 2, dtype=torch.uint8), torch.zeros(6, dtype=torch.long))
    assert train._accuracy(undecided((1, 2, 2), 4), images, 0) == 25


def test_an_undecided_target_has_the_accuracy_of_chance() -> None:
    images = ImagesStage(Blobs(), "drawn")
    payload = images.compute(lambda _: {}, Work())
    payload["private"]["test"]["labels"].zero_()
    recipe = Recipe(epochs=0, select="last")
    stage = ClassifierStage(images, "private", Undecided(), NoDefense(), recipe, 0)
    found = stage.compute(lambda _: payload, Work())
    assert found["accuracy"] == pytest.approx(100 / payload["private"]["num_classes"])


def test_the_moment_that_counts_is_chosen_alike_for_every_class() -> None:
    class Later(Classifier):
        """Undecided about dark images; right about bright ones."""

        num_classes = 3

        def __init__(self) -> None:
            super().__init__()
            self.neck = self.last = torch.nn.Identity()
            self.none = torch.nn.Parameter(torch.zeros(1))

        def latents(self, x: Tensor) -> tuple[Tensor, ...]:
            return (x.flatten(1),)

    dark, bright = torch.zeros(2, 3, 1, 1, 3), torch.eye(3).expand(2, 3, 3)[:, :, None, None]
    images, *_ = best_moment(torch.stack([dark, bright]), Later())
    assert torch.equal(images, bright.flatten(0, 1))


# Reports ----------------------------------------------------------------------------------


def test_reports_count_hits_as_metrics_do(evidence: Evidence) -> None:
    blind = replace(evidence, logits=torch.zeros(len(evidence.labels), KNOWN),
                    test_logits=torch.zeros_like(evidence.test_logits))  # fmt: skip
    record = Mock(spec=RecordStage)
    record.evidence = (Mock(evidence=lambda _: blind),)
    store = Mock(spec=Store)
    for made, classes in ((leaks, KNOWN), (utility, CLASSES)):
        shown = made({"A / B": record}, store)
        assert shown is not None
        assert f"{100 / classes:.0f}" in str(shown), made


def test_a_picture_among_equals_is_no_hit(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = torch.tensor([[1.0, 1.0], [0.0, 1.0]])
    none = torch.zeros(2, dtype=torch.long)
    shown = Gallery(torch.zeros(2, 1, 8, 8), torch.tensor([0, 1]), none, logits, None)
    monkeypatch.setattr(pictures, "gallery", lambda *_, **__: shown)
    _, tiles = pictures.reconstructions(
        Mock(spec=EvidenceStage), Mock(spec=Store), 2, private=False
    )
    assert [tile.hit for tile in tiles] == [False, True]
