"""``mibench check``: each fault of a user's class is named in one sentence, and nothing else."""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result

from mibench.cli import main

HEAD = """
import copy
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
import torch.nn.functional as F

from mibench import Classifier, Defense, Prior, PriorSpec
from mibench.attacks import WGANGP, BlackBox, WhiteBox, descend, rounds
from mibench.attacks.losses import CrossEntropy
from mibench.defenses import Release
from mibench.roles import Helper, IdentityLoss, NetworkSpec, View
from mibench.seeding import seeded
"""

WHITE = '''
@dataclass(frozen=True)
class Mine(WhiteBox):
    """Gradient descent."""

    name: ClassVar[str] = "mine"
    small: ClassVar[dict[str, Any]] = {"steps": 6}

    prior: PriorSpec = field(default_factory=WGANGP)
    steps: int = 500
    identity: IdentityLoss = field(default_factory=CrossEntropy)
    views: tuple[View, ...] = ()
    max_queries: int = 0

    def invert(self, target, prior, goal, work):
        z = goal.draws(prior).requires_grad_()
        adam = torch.optim.Adam([z], 0.05)

        def loss(z, rows):
            x = prior.generate(z)
            return self.wrong(target, x, rows) - goal.realism(prior, x, rows)

        steps = self.paid_steps(target, self.steps, goal.samples * len(goal.labels))
        descend(z, adam, loss, steps, goal, work)
        return goal.reconstructions(prior, z)
'''

LABELS = '''
@dataclass(frozen=True)
class Boundary(BlackBox):
    """Random steps, kept where the target answers the class."""

    name: ClassVar[str] = "boundary"
    access: ClassVar[str] = "labels"
    small: ClassVar[dict[str, Any]] = {"steps": 5}

    prior: PriorSpec = field(default_factory=WGANGP)
    steps: int = 200
    max_queries: int = 0

    def invert(self, target, prior, goal, work):
        z = goal.draws(prior)
        labels = goal.labels.repeat(goal.samples)
        state = {"z": z, "radius": 1.0, "hits": torch.zeros(z.shape[:2])}

        def advance(_):
            move = state["radius"] * goal.noise(goal.samples, z.shape[-1])
            answers = target(prior.generate((z + move).flatten(0, 1)))
            hit = (answers == labels).view(z.shape[:2])
            z.copy_(torch.where(hit[..., None], z + move, z + 0.1 * move))
            state["hits"] += hit
            state["radius"] *= 0.9

        rounds(state, advance, min(self.steps, target.remaining // len(labels)), goal, work)
        return goal.reconstructions(prior, z)
'''

DEFENSE = '''
class Judge(Helper):
    def __init__(self, width, rng):
        super().__init__(rng)
        with seeded("judge"):
            self.net = torch.nn.Linear(width, 1)
        self.optimizers["adam"] = torch.optim.Adam(self.net.parameters(), 0.01)


@dataclass(frozen=True)
class Adversary(Defense):
    """Hides noise from a discriminator."""

    name: ClassVar[str] = "adversary"

    weight: float = 0.1

    def assist(self, network, recipe, corpus, rng):
        return Judge(network.last.in_features, rng)

    def loss_terms(self, network, batch):
        z = network.latents(batch.x)[-1]
        scores = batch.helper.net(z)[:, 0]
        return {
            "task": F.cross_entropy(network.head(z), batch.y),
            "judge": self.weight * F.softplus(-scores).mean(),
        }

    def step(self, network, batch, optimizer):
        judge = batch.helper
        z = network.latents(batch.x)[-1].detach()
        fake = z + torch.randn(z.shape, generator=batch.rng)
        judged = F.softplus(judge.net(fake) - judge.net(z)).mean()
        adam = judge.optimizers["adam"]
        adam.zero_grad()
        judged.backward()
        adam.step()
        return super().step(network, batch, optimizer) | {"judged": judged.detach()}
'''

SMALL_PARTS = '''
@dataclass(frozen=True)
class Dim(View):
    """Half as bright."""

    name: ClassVar[str] = "dim"

    draws: int = 1

    def __call__(self, x, rng):
        return 0.5 * x


@dataclass(frozen=True)
class Own(IdentityLoss):
    """Minus the logit."""

    name: ClassVar[str] = "own"

    def __call__(self, logits, labels, away=None):
        return -logits.gather(1, labels[:, None])[:, 0]
'''

NETWORK = '''
class Net(Classifier):
    def __init__(self, shape, num_classes):
        super().__init__()
        self.num_classes = num_classes
        self.first = torch.nn.Linear(shape[0] * shape[1] * shape[2], 5)
        self.last = torch.nn.Linear(5, num_classes)

    def latents(self, x):
        return (self.first(x.flatten(1)),)


@dataclass(frozen=True)
class Mine(NetworkSpec):
    """Two layers."""

    name: ClassVar[str] = "mine"

    def build(self, shape, num_classes):
        return Net(shape, num_classes)
'''

RELEASE = '''
@dataclass(frozen=True)
class Mine(Release):
    """The scores as they are."""

    name: ClassVar[str] = "mine"

    def __call__(self, probs, x, state, rng):
        return probs
'''

PRIOR = '''
class Linear(Prior):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(2, 64)

    def sample(self, n, rng):
        return torch.randn(n, 2, generator=rng)

    def generate(self, z, y=None):
        return self.layer(z).sigmoid().view(-1, 1, 8, 8)

    def realism(self, x, y=None):
        return x.sum((1, 2, 3))


@dataclass(frozen=True)
class Mine(PriorSpec):
    """Drawn weights."""

    name: ClassVar[str] = "mine"

    def build(self, shape, num_classes):
        return Linear()

    def train(self, prior, public, target, rng, work):
        prior.layer.weight.data += torch.randn(64, 2, generator=rng)
'''


@pytest.fixture
def check(tmp_path: Path) -> Iterator[object]:
    """Returns what the command does with a file of the given source."""
    modules, path = set(sys.modules), list(sys.path)

    def run(source: str) -> Result:
        file = tmp_path / f"mine_{tmp_path.name[:40]}.py"
        file.write_text(HEAD + source)
        return CliRunner().invoke(main, ["check", str(file)])

    yield run
    for name in set(sys.modules) - modules:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]
    sys.path[:] = path


def changed(source: str, *changes: tuple[str, str]) -> str:
    """Returns the source with each text replaced, once."""
    for old, new in changes:
        assert source.count(old) == 1, old
        source = source.replace(old, new)
    return source


@pytest.mark.parametrize(
    ("source", "head", "checks"),
    [
        (WHITE, "Mine (attack)", 8),
        (LABELS, "Boundary (attack)", 7),
        (DEFENSE, "Adversary (defense)", 5),
        (NETWORK, "Mine (network)", 4),
        (RELEASE, "Mine (release)", 1),
    ],
    ids=["white", "labels", "defense", "network", "release"],
)
def test_a_correct_component_passes_every_check(
    source: str, head: str, checks: int, check: object
) -> None:
    result = check(source)  # type: ignore[operator]
    assert result.exit_code == 0, result.output
    first, *lines = result.stdout.splitlines()
    assert first == head
    assert len(lines) == checks
    assert all(line.startswith("  ok    ") for line in lines), result.stdout


HIDDEN = changed(
    WHITE,
    ("@dataclass", "KEPT = {}\n\n\n@dataclass"),
    ("adam = torch.optim.Adam([z], 0.05)", 'KEPT["adam"] = torch.optim.Adam([z], 0.05)'),
    (
        "descend(z, adam, loss, steps, goal, work)",
        "rows = goal.rows(goal.samples)\n\n"
        "        def advance(_):\n"
        "            KEPT['adam'].zero_grad()\n"
        "            loss(z.flatten(0, 1), rows).sum().backward()\n"
        "            KEPT['adam'].step()\n\n"
        "        rounds({'z': z}, advance, steps, goal, work)",
    ),
)
LAZY = changed(
    HIDDEN,
    ('KEPT["adam"] = torch', 'KEPT.setdefault("adam", torch'),
    ("([z], 0.05)", "([z], 0.05))"),
)
COUNTER = changed(
    LABELS,
    ('"radius": 1.0, ', ""),
    ("def advance(_):", "count = 0\n\n        def advance(_):\n            nonlocal count"),
    ('state["radius"] * goal', "0.9**count * goal"),
    ('state["radius"] *= 0.9', "count += 1"),
)
FAULTS: dict[str, tuple[str, str | tuple[str, ...], str]] = {
    "an optimiser in a dictionary of the module": (
        HIDDEN,
        "interrupted and resumed",
        r"something that changes while it runs is not saved \(KEPT changed\); put all that a "
        r"round changes \(tensors, optimisers, generators, counters\) into the dict",
    ),
    "an optimiser that the next run finds": (
        LAZY,
        "the same seed",
        r"a second run in the same process gives other images: .*\(KEPT changed\); put",
    ),
    "a step counter outside the state": (
        COUNTER,
        "interrupted and resumed",
        r"ends with other images, latents.*not saved; put all .*state\[\"count\"\] \+= 1",
    ),
    "a counter that only the next process misses": (
        changed(
            LABELS,
            ("@dataclass", "KEPT = {'count': 0}\n\n\n@dataclass"),
            ('"radius": 1.0, ', ""),
            ('state["radius"] * goal', "0.9 ** KEPT['count'] * goal"),
            ('state["radius"] *= 0.9', "KEPT['count'] += 1"),
            ("        return goal.rec", "        KEPT['count'] = 0\n        return goal.rec"),
        ),
        "interrupted and resumed",
        r"resumed in a new process, it ends with other images, latents.*not saved; put all",
    ),
    "a budget that is not kept": (
        changed(LABELS, ("min(self.steps, target.remaining // len(labels))", "self.steps")),
        "it keeps to its budget",
        r"it asks for more than the \d+ answers of its budget, and the target refuses: take "
        r"the number of steps that paid_steps",
    ),
    "answers that are not counted": (
        changed(
            WHITE, ("adam = torch", "target.target(prior.generate(z[0]))\n        adam = torch")
        ),
        ("each answer and gradient", "it keeps to its budget"),
        r"it has 76 answers of the target, and 72 are counted: ask the target that invert is",
    ),
    "a generator of the module": (
        changed(
            LABELS,
            ("@dataclass", "RNG = torch.Generator().manual_seed(0)\n\n\n@dataclass"),
            (
                "goal.noise(goal.samples, z.shape[-1])",
                "torch.randn(z.shape, generator=RNG)",
            ),
        ),
        "the same seed",
        r"a second run in the same process gives other images.*\(RNG changed\).*draw from goal",
    ),
    "a source that no seed sets": (
        changed(
            LABELS,
            ("goal.noise(goal.samples, z.shape[-1])",
             "torch.randn(z.shape, generator=torch.Generator().manual_seed(id(object()) + 7 * "
             "__import__('time').time_ns()))"),
        ),
        "the same seed",
        r"two runs of the same seed give different images: .* draw from goal\.draws, goal\.noise",
    ),
    "a seed that decides nothing": (
        changed(
            LABELS,
            ("goal.draws(prior)", "torch.ones(goal.samples, 4, prior.z_dim)"),
            ("goal.noise(goal.samples, z.shape[-1])", "torch.ones(z.shape)"),
        ),
        "the same seed",
        r"another seed gives the same images: draw from goal\.draws",
    ),
    "weights of the target changed": (
        changed(
            WHITE,
            ("adam = torch",
             "target.target.target.last.weight.data.mul_(1.01)\n        adam = torch"),
        ),
        "it leaves the target",
        r"it changes the target's last\.weight: work on a copy, copy\.deepcopy\(target\)",
    ),
    "a gradient on the target": (
        changed(
            WHITE,
            (
                "adam = torch",
                "target.requires_grad_()\n"
                "        target(prior.generate(z[0])).sum().backward()\n"
                "        target.requires_grad_(False)\n"
                "        adam = torch",
            ),
        ),
        "it leaves the target",
        r"it leaves a gradient on the target's .*: take gradients of what it moves alone, "
        r"torch\.autograd\.grad\(loss, z\)",
    ),
    "the target in training mode": (
        changed(WHITE, ("adam = torch", "target.train()\n        adam = torch")),
        "it leaves the target",
        r"it leaves the target in training mode: leave the mode as it is",
    ),
    "fields that nothing reads": (
        changed(
            WHITE, ("self.wrong(target, x, rows)",
                    "F.cross_entropy(target(x), rows.labels, reduction='none')"),
        ),
        "its fields identity and views",
        r"another value of its field identity gives the same images: take the loss by self\.wrong",
    ),
    "steps that save nothing": (
        changed(
            LABELS,
            ("rounds(state, advance, min(self.steps, target.remaining // len(labels)), goal, "
             "work)",
             "for i in range(min(self.steps, target.remaining // len(labels))):\n"
             "            advance(i)\n            work.steps += 1"),
        ),
        "interrupted and resumed",
        r"it takes 5 steps and saves none: run them by rounds or by descend",
    ),
    "images outside the range": (
        changed(WHITE, ("return goal.reconstructions(prior, z)",
                        "found = goal.reconstructions(prior, z)\n"
                        "        return type(found)(found.images + 1, found.latents)")),
        "it runs and returns images",
        r"mine returned images with pixels outside \[0, 1\]; clamp them",
    ),
    "an error": (
        changed(WHITE, ("z = goal.draws(prior)", "z = goal.draw(prior)")),
        "it runs and returns images",
        r"AttributeError: 'Goal' object has no attribute 'draw' \(mine_.*\.py, line \d+\)",
    ),
    "a helper's optimiser outside it": (
        changed(
            DEFENSE,
            ("class Judge", "KEPT = {}\n\n\nclass Judge"),
            ('self.optimizers["adam"] = ', 'KEPT["adam"] = '),
            ('judge.optimizers["adam"]', 'KEPT["adam"]'),
        ),
        "interrupted and resumed",
        r"not saved \(KEPT changed\); keep networks in the Helper that assist returns, optimisers "
        r"in its optimizers",
    ),
    "a helper's number that is no buffer": (
        changed(
            DEFENSE,
            ("super().__init__(rng)\n", "super().__init__(rng)\n        self.count = 0\n"),
            ("fake = z + ", "judge.count += 1\n        fake = z + judge.count * "),
        ),
        "interrupted and resumed",
        r"ends with other .*not saved; keep networks in the Helper .* and numbers as its buffers",
    ),
    "weights that nothing reaches": (
        changed(DEFENSE, ("network.head(z), batch.y", "network.head(z.detach()), batch.y"),
                ("batch.helper.net(z)", "batch.helper.net(z.detach())")),
        "a gradient reaches every trainable weight",
        r"no gradient reaches layers\..*: let loss_terms depend on it, or freeze it in harden",
    ),
    "a step that changes the mode": (
        changed(
            DEFENSE, ("judge = batch.helper\n", "judge = batch.helper\n        network.eval()\n")
        ),
        "its terms are finite",
        r"its step leaves the network, or a part of it, in eval mode",
    ),
    "a view that stops the gradient": (
        changed(SMALL_PARTS, ("return 0.5 * x", "return x.detach()")),
        "it keeps the shape of images",
        r"no gradient passes through it",
    ),
    "a view with a source of its own": (
        changed(SMALL_PARTS, ("return 0.5 * x", "return x + torch.rand(x.shape)")),
        "it draws from the stream",
        r"two looks from one stream differ: draw from rng",
    ),
    "a loss that mixes images": (
        changed(SMALL_PARTS, ("return -logits.gather(1, labels[:, None])[:, 0]",
                              "return -logits.gather(1, labels[:, None])[:, 0] + logits.mean()")),
        "it gives each image",
        r"an image's loss must depend on its own logits",
    ),
    "an end of the process": (
        changed(
            WHITE, ("z = goal.draws(prior)", "raise SystemExit(0)\n        z = goal.draws(prior)")
        ),
        "it runs and returns images",
        r"SystemExit: 0; a component must not end the process \(mine_.*\.py, line \d+\)",
    ),
    "an error without text": (
        changed(
            WHITE, ("z = goal.draws(prior)", "raise RuntimeError\n        z = goal.draws(prior)")
        ),
        "it runs and returns images",
        r": RuntimeError \(mine_.*\.py, line \d+\)",
    ),
    "latents that are NaN": (
        changed(WHITE, ("return goal.reconstructions(prior, z)",
                        "found = goal.reconstructions(prior, z)\n"
                        "        return type(found)(found.images, found.latents * float('nan'))")),
        "it runs and returns images",
        r"the latents that it returns hold NaN or infinity: look for a division by 0",
    ),
    "sparse latents": (
        changed(WHITE, ("return goal.reconstructions(prior, z)",
                        "found = goal.reconstructions(prior, z)\n"
                        "        return type(found)(found.images, found.latents.to_sparse())")),
        "it runs and returns images",
        r"the latents that it returns are sparse: return them dense, by to_dense\(\)",
    ),
    "a default dtype for all": (
        changed(
            WHITE, ("return goal", "torch.set_default_dtype(torch.float64)\n        return goal")
        ),
        "it runs and returns images",
        r"it calls torch\.set_default_dtype\(torch\.float64\) and does not set that back",
    ),
    "no gradients for all": (
        changed(WHITE, ("return goal", "torch.set_grad_enabled(False)\n        return goal")),
        "it runs and returns images",
        r"it calls torch\.set_grad_enabled\(False\) and does not set that back",
    ),
    "threads for all": (
        changed(WHITE, ("return goal", "torch.set_num_threads(7)\n        return goal")),
        "it runs and returns images",
        r"it calls torch\.set_num_threads\(7\) and does not set that back",
    ),
    "a network that raises": (
        changed(NETWORK, ("return Net(shape, num_classes)", "return {}['x']")),
        "its logits and latents",
        r"KeyError: 'x' \(mine_.*\.py, line \d+\)",
    ),
    "a network that is none": (
        changed(NETWORK, ("return Net(shape, num_classes)", "return None")),
        "its logits and latents",
        r"build returns a NoneType: return a network whose class derives from mibench\.Class",
    ),
    "a network without latents": (
        changed(NETWORK, ("return (self.first(x.flatten(1)),)", "return ()")),
        "its logits and latents",
        r"latents must return a tuple of tensors, the last of shape \(n, d\)",
    ),
    "a network of NaN": (
        changed(NETWORK, ("return (self.first(x.flatten(1)),)",
                          "return (self.first(x.flatten(1)) * float('nan'),)")),
        "its logits and latents",
        r"the latents that it returns hold NaN or infinity",
    ),
    "a head that is not the network's": (
        changed(NETWORK, ("        return (self.first(x.flatten(1)),)",
                          "        return (self.first(x.flatten(1)),)\n\n"
                          "    def forward(self, x):\n"
                          "        return self.last(self.latents(x)[0].relu())")),
        "its logits and latents",
        r"head of the last latent is not what the network answers",
    ),
    "a release that raises": (
        changed(RELEASE, ("return probs", "return probs[:, 99]")),
        "it lets out scores",
        r"IndexError: index 99 is out of bounds .*\(mine_.*\.py, line \d+\)",
    ),
    "a release of nothing": (
        changed(RELEASE, ("return probs", "return None")),
        "it lets out scores",
        r"the scores that it lets out are of type NoneType: return a tensor",
    ),
    "a release of whole numbers": (
        changed(RELEASE, ("return probs", "return (probs > 0.5).long()")),
        "it lets out scores",
        r"it lets out scores of torch\.int64: let out floats",
    ),
    "a prior that is none": (
        changed(PRIOR, ("return Linear()", "return None")),
        "it trains, draws images",
        r"build returns a NoneType: return a mibench\.Prior",
    ),
    "a prior that raises": (
        changed(PRIOR, ("return self.layer(z)", "raise IndexError('no image')\n        return z")),
        "it trains, draws images",
        r"IndexError: no image \(mine_.*\.py, line \d+\)",
    ),
    "a prior that draws others than asked for": (
        changed(PRIOR, ("torch.randn(n, 2, gen", "torch.randn(1, 2, gen")),
        "it trains, draws images",
        r"sample returns shape \(1, 2\) for 6 latents: return \(n, \.\.\.\)",
    ),
    "a view of NaN": (
        changed(SMALL_PARTS, ("return 0.5 * x", "return x * float('nan')")),
        "it keeps the shape of images",
        r"the images that it returns hold NaN or infinity",
    ),
    "a view that does not see the images": (
        changed(SMALL_PARTS, ("return 0.5 * x", "return torch.zeros_like(x).requires_grad_()")),
        "it keeps the shape of images",
        r"no gradient passes through it: compute it from x",
    ),
    "a loss that does not see the logits": (
        changed(SMALL_PARTS, ("return -logits.gather(1, labels[:, None])[:, 0]",
                              "return torch.zeros(5).requires_grad_()")),
        "it gives each image",
        r"no gradient passes through it: compute it from logits",
    ),
    "a loss that is a number": (
        changed(SMALL_PARTS, ("return -logits.gather(1, labels[:, None])[:, 0]", "return 3.0")),
        "it gives each image",
        r"the losses that it returns are of type float: return a tensor",
    ),
    "a class of another name": (
        SMALL_PARTS + "\n\nDim.__name__ = 'Other'\n",
        "it keeps the shape of images",
        r"mine_.*\.py has no Other: leave each class its own name",
    ),
    "a method that lacks": (
        changed(DEFENSE, ("def loss_terms", "def terms")),
        "it trains a network",
        r"the class Adversary must define loss_terms",
    ),
}  # fmt: skip


SLOW = {
    "an optimiser that the next run finds", "answers that are not counted",
    "the target in training mode", "fields that nothing reads", "a seed that decides nothing",
}  # fmt: skip


@pytest.mark.parametrize(
    "fault", [pytest.param(f, marks=[pytest.mark.slow] if f in SLOW else []) for f in FAULTS]
)
def test_a_fault_is_named_by_the_check_that_it_breaks(fault: str, check: object) -> None:
    source, titles, sentence = FAULTS[fault]
    result = check(source)  # type: ignore[operator]
    assert result.exit_code == 1, result.output
    failed = [line for line in result.stdout.splitlines() if line.startswith("  FAIL")]
    titles = (titles,) if isinstance(titles, str) else titles
    assert len(failed) == len(titles), result.stdout
    for line, title in zip(failed, titles, strict=True):
        assert line.startswith(f"  FAIL  {title}"), failed
    assert re.search(sentence, failed[0]), failed
    assert f"{len(titles)} check" in result.stderr
    assert "Traceback" not in result.output
    assert " 0 more" not in result.output


def test_a_class_that_raises_keeps_none_from_being_checked(check: object) -> None:
    source = changed(SMALL_PARTS, ("return 0.5 * x", "raise LookupError('broken view')"))
    result = check(source)  # type: ignore[operator]
    assert result.exit_code == 1
    assert "lets gradients through: LookupError: broken view (mine_" in result.stdout
    assert "Own (identity loss)\n  ok    it gives each image" in result.stdout


def test_what_a_component_changes_for_all_is_put_back(check: object) -> None:
    threads = torch.get_num_threads()
    change = "torch.set_num_threads(7), torch.set_default_dtype(torch.float64)"
    check(changed(SMALL_PARTS, ("return 0.5 * x", f"return {change}")))  # type: ignore[operator]
    assert torch.get_num_threads() == threads
    assert torch.get_default_dtype() == torch.float32


def test_a_base_of_other_classes_is_not_checked(check: object) -> None:
    base = "\n\nclass Base(View):\n    pass\n\n\nclass Open(View):\n    @abstractmethod\n"
    source = "from abc import abstractmethod\n" + base + "    def shade(self): ...\n" + SMALL_PARTS
    result = check(changed(source, ("class Dim(View)", "class Dim(Base)")))  # type: ignore[operator]
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("Dim (view)\n")


def test_what_cannot_be_checked_is_refused_with_one_sentence(
    check: object, tmp_path: Path
) -> None:
    result = CliRunner().invoke(main, ["check", str(tmp_path / "none.py")])
    assert result.exit_code == 2
    assert result.stderr == f"Error: no file {tmp_path / 'none.py'}\n"
    result = check("")  # type: ignore[operator]
    assert result.exit_code == 2
    assert "defines no class that derives from Attack, Defense" in result.stderr
    (other := tmp_path / "broken_mine.py").write_text("1 / 0\n")
    result = CliRunner().invoke(main, ["check", str(other)])
    assert result.exit_code == 2
    assert "line 1: ZeroDivisionError" in result.stderr
    other.write_text("raise RuntimeError\n")
    result = CliRunner().invoke(main, ["check", str(other)])
    assert result.stderr.endswith("line 1: RuntimeError\n")
    other.write_text("import sys\nsys.exit(0)\n")
    result = CliRunner().invoke(main, ["check", str(other)])
    assert result.exit_code == 2
    assert f"{other}, line 2: SystemExit: 0; a file that mibench loads must not" in result.stderr
    (nameless := tmp_path / "no_suffix").write_text("")
    result = CliRunner().invoke(main, ["check", str(nameless)])
    assert result.exit_code == 2
    assert "its name must end in .py" in result.stderr


def test_the_others_are_checked_where_one_class_cannot_be_made(check: object) -> None:
    source = changed(
        SMALL_PARTS, ("    draws: int = 1\n", "    draws: int = 1\n    shade: str = field()\n")
    ).replace("    draws: int = 1\n    shade: str = field()", "    shade: str\n    draws: int = 1")
    result = check(source)  # type: ignore[operator]
    assert result.exit_code == 1
    assert "FAIL  it keeps the shape of images" in result.stdout
    assert "Dim.shade has no default: write a value to check it with" in result.stdout
    assert "1 more: not checked, since it does not run" in result.stdout
    assert "Own (identity loss)\n  ok    it gives each image" in result.stdout


def test_a_file_beside_it_is_executed_anew_too(check: object, tmp_path: Path) -> None:
    (tmp_path / "beside_mine.py").write_text("KEPT = {}\n")
    result = check(changed(HIDDEN, ("KEPT = {}", "from beside_mine import KEPT")))  # type: ignore[operator]
    assert result.exit_code == 1
    assert result.stdout.count("FAIL") == 1
    assert "is not saved (KEPT changed); put all" in result.stdout


def test_it_works_as_a_process_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(HEAD + SMALL_PARTS + COUNTER)
    done = subprocess.run(
        [sys.executable, "-m", "mibench.cli", "check", "mine.py"],
        capture_output=True, text=True, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr == "1 check failed\n"
    assert "  ok    it draws from the stream that it is handed alone\n" in done.stdout
    assert "FAIL  interrupted and resumed, it ends in the same bits: interrupted" in done.stdout
