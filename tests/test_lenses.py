"""Metrics declared at their functions, and the lenses that they name."""

import ast
import copy
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

import mibench
from mibench.attacks import ATTACKS
from mibench.benchmarks.cell import Cell
from mibench.data import Blobs, Corpus, Splits, Task
from mibench.defenses import DEFENSES
from mibench.evaluation import METRICS, Compared, Evidence, Lens, Tools, metric
from mibench.evaluation.gathering import best_moment, likeness, real_images
from mibench.evaluation.lenses import EVALUATOR, STRETCHED
from mibench.evaluation.pixels import PIXELS, Pixels
from mibench.evaluation.similarity import structural_similarity
from mibench.networks import NETWORKS
from mibench.reporting import verify
from mibench.running.executors import Bench, Serial, execute
from mibench.running.progress import Watcher
from mibench.running.stages import EvidenceStage, LensEvidence, LensStage, graph, record_stage
from mibench.store import Payload, Store, Work
from mibench.types import Classifier, ImageSet
from tests.test_controls import small_cell

ROOT = Path(mibench.__file__).parent


@pytest.fixture(autouse=True)
def _registry_stays_as_it_is() -> Iterator[None]:
    before = dict(METRICS)
    yield
    METRICS.clear()
    METRICS.update(before)


# Declared -----------------------------------------------------------------------------------


def test_a_metric_is_what_its_function_and_its_declaration_say() -> None:
    @metric("Mine", "image", "higher", needs=(PIXELS,))
    def mine(e: Evidence) -> Tensor:
        """All the same."""
        return torch.ones(len(e.labels))

    assert METRICS["mine"].compute is mine
    assert METRICS["mine"].needs == (PIXELS,)
    assert list(METRICS)[-1] == "mine"


def test_a_metric_in_a_file_outside_the_package_has_the_digest_of_the_file_for_a_version() -> None:
    @metric("Mine", "attack", version=2)
    def mine(e: Evidence) -> float:
        return 0.0

    assert METRICS["mine"].version > 2
    assert METRICS["ssim"].version == 1


def test_two_files_cannot_have_metrics_of_one_name() -> None:
    def fid(e: Evidence) -> float:
        return 0.0

    with pytest.raises(ValueError, match="fid has a metric fid already: give yours another name"):
        metric("FID", "attack")(fid)


@pytest.mark.parametrize(
    ("fields", "error", "sentence"),
    [
        ({"per": "pixel"}, ValueError, "unknown Metric.per 'pixel'"),
        ({"better": "up"}, ValueError, "unknown Metric.better 'up'"),
        ({"needs": ("pixels",)}, TypeError, "what the metric ssim needs must be an object"),
        ({"needs": (Pixels,)}, TypeError, r"write Pixels\(\.\.\.\)"),
    ],
)
def test_a_wrong_declaration_is_refused_in_a_sentence(
    fields: dict[str, Any], error: type[Exception], sentence: str
) -> None:
    wrong = copy.copy(METRICS["ssim"])
    vars(wrong).update(fields)  # past the type checks that only tests have
    with pytest.raises(error, match=sentence):
        wrong.__post_init__()


# Nothing is known by a piece of its name ------------------------------------------------------

NAMES = [*METRICS, *NETWORKS, *DEFENSES, *ATTACKS]
COMPONENTS = {type_.__name__ for kind in (NETWORKS, DEFENSES) for type_ in kind.values()}


def last_word(node: ast.AST) -> str:
    if isinstance(node, ast.Call):
        return last_word(node.func)
    return node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")


def sniffs(source: str) -> list[str]:
    """Returns the expressions that tell a component by a piece of its name, or by its class."""
    suspects = []
    for node in ast.walk(ast.parse(source)):
        pieces: list[ast.expr] = []
        if isinstance(node, ast.Compare) and isinstance(node.ops[0], ast.In | ast.NotIn):
            if last_word(node.comparators[0]) in ("name", "title", "__name__"):
                pieces = [node.left]
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            if node.func.attr in ("startswith", "endswith", "find", "count", "partition"):
                pieces = node.args
        elif isinstance(node, ast.Call) and last_word(node.func) == "isinstance":
            classes = {last_word(n) for n in ast.walk(node.args[1])}
            suspects += [ast.unparse(node)] * bool(classes & COMPONENTS)
        for piece in pieces:
            text = piece.value if isinstance(piece, ast.Constant) else None
            if isinstance(text, str) and len(text) > 2 and any(text in name for name in NAMES):
                suspects.append(ast.unparse(node))
    return suspects


@pytest.mark.parametrize(
    "line",
    [
        'x = "inception" in name',
        'x = "stretched" in metric.name',
        'x = "successful" not in protocol.metric("fid").name',
        'x = metric.name.startswith("fid_")',
        "x = isinstance(cell.defense, NoDefense)",
        "x = isinstance(t.defense, (BiDO, MID))",
    ],
)
def test_sniffing_is_recognised(line: str) -> None:
    assert sniffs(line)


def test_no_metric_network_or_defense_is_known_by_a_piece_of_its_name_or_by_its_class() -> None:
    found = {str(p.relative_to(ROOT)): sniffs(p.read_text()) for p in ROOT.rglob("*.py")}
    assert {path: lines for path, lines in found.items() if lines} == {}


# Evidence -----------------------------------------------------------------------------------


def evidence() -> Evidence:
    """Two passes of two classes, four real images, by two lenses."""
    labels = torch.tensor([0, 1, 0, 1])
    features = torch.arange(4.0)[:, None]
    return Evidence(
        labels=labels, block=torch.zeros(4, dtype=torch.long), passes=labels.sort().values,
        logits=torch.eye(4), real_labels=labels, test_logits=torch.eye(2),
        test_labels=torch.arange(2), others=torch.arange(4.0)[None, :, None].expand(1, 4, 4),
        features={EVALUATOR: Compared(features, -features), PIXELS: Compared(features, features)},
    )  # fmt: skip


def test_evidence_comes_back_from_what_is_stored() -> None:
    e = evidence()
    stored = e.stored()
    assert {"features", "real", "stretched", "real_stretched", "inception"} <= stored.keys()
    assert stored["stretched"] is None
    again = Evidence.restored(stored, (PIXELS,))
    assert set(again.features) == {EVALUATOR, PIXELS}
    assert torch.equal(again.through(PIXELS).real, e.through(PIXELS).real)
    assert torch.equal(again.through(EVALUATOR).real, e.through(EVALUATOR).real)


def test_lenses_of_other_fields_have_other_names_in_the_store() -> None:
    features: dict[Lens, Compared] = {
        lens: evidence().features[PIXELS] for lens in (PIXELS, Pixels(8))
    }
    stored = replace(evidence(), features=features).stored()
    assert len([name for name in stored if "pixels" in name]) == 4


def test_some_reconstructions_keep_all_that_belongs_to_them() -> None:
    some = evidence().take(torch.tensor([3, 0]))
    assert some.labels.tolist() == [1, 0]
    assert some.passes.tolist() == [1, 0]
    assert some.others is not None
    assert some.others[0, :, 0].tolist() == [3, 0]
    for lens in (EVALUATOR, PIXELS):
        assert some.through(lens).reconstructed.tolist() == [[3], [0]]
        assert len(some.through(lens).real) == 4


def test_a_lens_that_leaves_out_images_is_refused() -> None:
    e = evidence()
    few: dict[Lens, Compared] = {PIXELS: Compared(torch.zeros(3, 1), torch.zeros(4, 1))}
    with pytest.raises(ValueError, match="the lens pixels gave 3 and 4 rows of features for 4"):
        replace(e, features=few)


def test_a_lens_that_was_not_used_says_so() -> None:
    with pytest.raises(ValueError, match="features of stretched images were not gathered"):
        evidence().through(STRETCHED)
    with pytest.raises(ValueError, match="the lens pixels were not gathered: name it in"):
        evidence().through(Pixels(3))


# What evidence is gathered of -----------------------------------------------------------------


class Brightest(Classifier):
    """Says 1 of images brighter than a half, else 0; its features are the pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.num_classes = 2
        self.middle = nn.Parameter(torch.tensor(0.5), requires_grad=False)

    def latents(self, x: Tensor) -> tuple[Tensor, ...]:
        return (x.flatten(1),)

    def head(self, z: Tensor, noise: Tensor | None = None) -> Tensor:
        bright = z.mean(1) - self.middle
        return torch.stack([-bright, bright], dim=1)


def test_each_class_is_taken_at_the_moment_when_most_of_it_hits() -> None:
    """Three moments, two passes, two classes: class 0 wants to be dark, class 1 bright."""
    grey = torch.tensor(
        [[[0.9, 0.1], [0.1, 0.2]], [[0.2, 0.6], [0.3, 0.7]], [[0.4, 0.8], [0.1, 0.9]]]
    )
    moments = grey[..., None, None, None].expand(3, 2, 2, 1, 2, 2)
    x, logits, features = best_moment(moments, Brightest())
    # Class 0 hits once, then twice, then twice: the second; class 1 never, twice, twice.
    assert x[:, 0, 0, 0].tolist() == pytest.approx([0.2, 0.6, 0.3, 0.7])
    assert torch.equal(features, x.flatten(1))
    assert logits.argmax(1).tolist() == [0, 1, 0, 1]
    only = best_moment(moments[:1], Brightest())[0]
    assert only[:, 0, 0, 0].tolist() == pytest.approx([0.9, 0.1, 0.1, 0.2])


def numbered(start: int, labels: list[int]) -> ImageSet:
    pixels = torch.arange(start, start + len(labels), dtype=torch.uint8)
    return ImageSet(pixels.view(-1, 1, 1, 1), torch.tensor(labels))


@pytest.mark.parametrize(
    ("part", "most", "pixels"),
    [
        ("train", 2, [1, 3, 0, 2]),
        ("train", 1, [1, 0]),
        ("all", 3, [1, 3, 10, 0, 2, 4]),
        ("all", 9, [1, 3, 10, 0, 2, 4, 11]),
    ],
)
def test_real_images_are_the_first_of_each_class_train_before_test(
    part: str, most: int, pixels: list[int]
) -> None:
    train, test = numbered(0, [1, 0, 1, 0, 1, 2]), numbered(10, [0, 1, 2])
    corpus = Corpus(train, torch.zeros(6, dtype=torch.bool), test, 3)
    real = real_images(corpus, part, 2, most)  # type: ignore[arg-type]
    assert real.pixels.flatten().tolist() == pixels
    assert real.labels.tolist() == sorted(real.labels.tolist())


def test_likeness_is_to_the_nearest_real_image_of_the_class(rng: torch.Generator) -> None:
    pixels = torch.randint(0, 256, (3, 1, 8, 8), generator=rng, dtype=torch.uint8)
    real = ImageSet(pixels, torch.tensor([0, 0, 1]))
    x = torch.rand(2, 1, 8, 8, generator=rng)
    near = Compared(torch.tensor([[0.0], [0.0]]), torch.tensor([[5.0], [-2.0], [9.0]]))
    alike = likeness(x, torch.tensor([0, 1]), near, real)
    assert alike is not None
    assert torch.equal(alike, structural_similarity(x, real.images[torch.tensor([1, 2])]))
    assert likeness(x, torch.tensor([0, 2]), near, real) is None


# Pixels ---------------------------------------------------------------------------------------


def tools(stream: str = "-") -> Tools:
    return Tools(Brightest(), stream, Work())


def test_pixels_are_averaged_where_images_are_larger_and_kept_where_not() -> None:
    x = torch.arange(16.0).view(1, 1, 4, 4) / 15
    assert Pixels(2).features(x, tools()).tolist() == [
        pytest.approx([2.5 / 15, 4.5 / 15, 10.5 / 15, 12.5 / 15])
    ]
    assert torch.equal(Pixels(9).features(x, tools()), x.flatten(1))


def test_bad_sides_are_refused() -> None:
    with pytest.raises(ValueError, match=r"Pixels\.side must be at least 1, got 0"):
        Pixels(0)


def test_an_untrained_lens_has_nothing_to_train() -> None:
    with pytest.raises(NotImplementedError, match="Pixels says trained = True: give it a train"):
        PIXELS.train(Blobs(), Blobs().load(Path()), Work())


# From end to end --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Centred(Lens):
    """Pixels less the mean of the public images."""

    name: ClassVar[str] = "centred"
    trained: ClassVar[bool] = True

    def train(self, task: Task, splits: Splits, work: Work) -> Payload:
        return {"mean": splits.public.images.mean(0)}

    def features(self, x: Tensor, tools: Tools) -> Tensor:
        mean: Tensor = tools.state["mean"]
        return (x - mean).flatten(1)


CENTRED = Centred()


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("store"), Path("data"))


def cell() -> Cell:
    return replace(small_cell(), control=None)


def done(bench: Bench, *columns: str) -> tuple[Payload, EvidenceStage]:
    last = record_stage(cell(), columns, "drawn")
    outcome = execute(graph([last]), bench, Watcher(), Serial())
    assert not outcome.failures, outcome.failures
    return Store(bench.store).load(last), last.evidence[0]


def test_a_column_that_asks_for_a_lens_gets_its_features_and_no_other_key_changes(
    bench: Bench,
) -> None:
    plain, before = done(bench, "attack_acc", "fid")
    scored, stage = done(bench, "attack_acc", "fid", "pixel_distance")
    assert type(before) is EvidenceStage
    assert isinstance(stage, LensEvidence)
    assert stage.lenses == (PIXELS,)
    assert stage.inversion == before.inversion
    assert {k: scored["scores"][k] for k in plain["scores"]} == plain["scores"]

    store = Store(bench.store)
    payload, without = store.load(stage), store.load(before)
    assert {k for k in payload if k not in without} == {
        name for name in payload if "pixels" in name
    }
    assert torch.equal(payload["stretched"], without["stretched"])
    e = stage.evidence(store.load)
    x = stage.judged(store.load)
    real = stage.compared(stage.images.splits(store.load).private)
    want = [
        min((image - other).square().mean().sqrt() for other in real.images[real.labels == c])
        for image, c in zip(x, e.labels, strict=True)
    ]  # the blobs have fewer pixels than would be averaged
    assert x.shape[-1] <= PIXELS.side
    (values,) = scored["values"]["pixel_distance"]
    assert values == pytest.approx(list(map(float, want)), rel=1e-5)
    assert verify._check_scores(scored) == 3


def test_a_lens_that_is_trained_has_a_stage_of_its_own(bench: Bench) -> None:
    @metric("Centred", "attack", needs=(CENTRED,))
    def centred(e: Evidence) -> float:
        return float(e.through(CENTRED).real.mean())

    scored, stage = done(bench, "attack_acc", "centred")
    assert isinstance(stage, LensEvidence)
    (lens,) = stage.lenses
    assert isinstance(lens, LensStage)
    assert lens in stage.needs
    store = Store(bench.store)
    splits = stage.images.splits(store.load)
    real = stage.compared(splits.private).images
    want = (real - splits.public.images.mean(0)).mean().item()
    assert scored["scores"]["centred"]["mean"] == pytest.approx(want, abs=1e-6)
    planned = [record_stage(cell().at(seed), ("centred",), "drawn") for seed in range(3)]
    assert len([s for s in graph(planned) if isinstance(s, LensStage)]) == 1


NEW = '''
"""How bright images are: a feature space of one number."""

from dataclasses import dataclass
from typing import ClassVar

from mibench.evaluation.evidence import Evidence
from mibench.evaluation.lenses import Lens
from mibench.evaluation.metric import metric


@dataclass(frozen=True)
class Brightness(Lens):
    """The mean of an image."""

    name: ClassVar[str] = "brightness"

    def features(self, x, tools):
        return x.flatten(1).mean(1, keepdim=True)


BRIGHTNESS = Brightness()


@metric("Brightness", "attack", needs=(BRIGHTNESS,))
def brightness_gap(e: Evidence) -> float:
    """Mean brightness of the reconstructions less that of the real images."""
    reconstructed, real = e.through(BRIGHTNESS)
    return float(reconstructed.mean() - real.mean())
'''
TABLE = """
from mibench.benchmarks.tables import TABLES, Table

small = TABLES["smoke"].modified(
    ["attack.prior.epochs=1", "attack.steps=2", "recipe.epochs=1", "trials.samples=2",
     "setting.evaluators.0.recipe.epochs=1"]
).rows["GMI / No Def."]
BRIGHT = Table("bright", "Made.", {"GMI / No Def.": small}, ("accuracy", "brightness_gap"))
"""


def test_a_metric_in_another_feature_space_is_a_file_and_a_name(tmp_path: Path) -> None:
    """A copy of the package, with one file more and one name more in a list, runs the metric."""
    package = tmp_path / "mibench"
    shutil.copytree(ROOT, package, ignore=shutil.ignore_patterns("__pycache__"))
    (package / "evaluation" / "brightness.py").write_text(NEW)
    home = package / "evaluation" / "__init__.py"
    text = home.read_text()
    assert text.count(" pixels,") == 1
    home.write_text(text.replace(" pixels,", " pixels, brightness,"))
    (tmp_path / "bright.py").write_text(TABLE)
    words = ["run", "bright.py", "--store", "s", "--out", "out", "--executor", "serial", "--quiet"]
    run = subprocess.run(
        [sys.executable, "-m", "mibench.cli", *words], cwd=tmp_path, capture_output=True,
        env=os.environ | {"PYTHONPATH": str(tmp_path)}, text=True,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    row = next(line for line in run.stdout.splitlines() if "GMI / No Def." in line)
    assert -1 < float(row.split()[-1]) < 1
