"""The page of a table: what is on it, what is not, and what strange labels do to it."""

import base64
import math
import re
import shlex
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image

from mibench.benchmarks.tables import TABLES, Table
from mibench.cli import main
from mibench.commands.figure import slug
from mibench.data import CelebA
from mibench.evaluation.lenses import EVALUATOR
from mibench.override import override
from mibench.reporting.figures import draw_training
from mibench.reporting.gallery import gallery, layout
from mibench.reporting.matrix import ABSENT, matrix
from mibench.reporting.page import page
from mibench.reporting.page.pictures import sprite
from mibench.reporting.page.plots import padded, ticks
from mibench.running.grid import Grid, record_stages
from mibench.running.stages import ClassifierStage, graph
from mibench.store import Store
from tests.made import META, fill, payload, renamed, smoke

HOSTILE = {
    "a": "GMI / 50 % & more_#1 $x$ {y} ~z^ \\end{table}",
    "b": "GMI / <script>alert(1)</script>\"'><img src=x onerror=alert(1)>",
    "c": "VMI / two\nlines, \u05d0\u05d1\u05d2 \u202eright to left | [red]bar[/red]",
}


class Tags(HTMLParser):
    """Collects tags and checks that they are closed in order."""

    VOID = frozenset({"meta", "link", "br", "img"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def parsed(text: str) -> Tags:
    tags = Tags()
    tags.feed(text)
    assert not tags.open
    return tags


def shown(table: Table, store: Store, *, seeds: int = 1, **options: bool | int) -> str:
    records = fill(table, store, seeds=seeds)
    return page([(Grid(table, records, store), ["smoke"])], **options)  # type: ignore[arg-type]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def call(*arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments))


def test_the_page_has_every_number_and_every_section(store: Store) -> None:
    table = replace(
        smoke(), source="Nobody 1999", reported={"GMI / MID": {"attack_acc": (12.5, None)}}
    )
    text = shown(table, store, seeds=2)
    tags = parsed(text)
    assert "Attack Acc, reported" in text
    assert '<td data-value="12.5">12.50</td>' in text
    for title in ("Privacy against utility", "Reconstructions", "Class by class", "Training"):
        assert f"<h3>{title}</h3>" in text
    sorts = [a for t, a in tags.seen if t == "th" and "aria-sort" in a]
    assert len(sorts) == 1 + len(table.columns) + 1 + 1
    assert {a["aria-sort"] for a in sorts} == {"none"}
    assert len(re.findall(r'<g class="pt c\d" tabindex="0"', text)) == 3


def test_a_page_of_later_seeds_alone_has_their_numbers(store: Store) -> None:
    table = smoke()
    for record in [own[0] for own in fill(table, store, seeds=2).values()]:
        shutil.rmtree(store.path(record))
    grid = Grid(table, record_stages(table, 2, None), store)
    text = page([(grid, ["smoke"])])
    parsed(text)
    acc = store.load(grid.records["GMI / MID"][1])["scores"]["attack_acc"]["mean"]
    assert f'<td data-value="{acc}">' in text


def test_a_picture_of_another_machine_s_results_is_drawn_anew(tmp_path: Path) -> None:
    table, drawn = smoke(), []
    for number in (0, 1):
        store = Store(tmp_path / str(number))
        records = record_stages(table, 1, None)
        for stage in graph(r for own in records.values() for r in own):
            content = payload(stage, store)
            if number and isinstance(stage, ClassifierStage):
                content["history"] = content["history"][:3]
            store._commit(stage, content, dict(META))
        for _ in range(2):
            draw_training(Grid(table, records, store), tmp_path / "training.png")
            drawn.append((tmp_path / "training.png").stat())
    assert drawn[0].st_mtime_ns == drawn[1].st_mtime_ns < drawn[2].st_mtime_ns
    assert drawn[2].st_mtime_ns == drawn[3].st_mtime_ns


def test_the_page_needs_nothing_from_elsewhere(store: Store) -> None:
    text = shown(smoke(), store)
    for _, attributes in parsed(text).seen:
        for name in ("src", "href", "xlink:href"):
            assert (attributes.get(name) or "#").startswith(("#", "data:"))
    assert set(re.findall(r"url\((.{5})", text)) == {"data:"}
    assert not re.findall(r"https?://", text)


def test_only_the_pages_own_script_may_run(store: Store) -> None:
    import hashlib

    text = shown(smoke(), store)
    scripts = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    assert len(scripts) == 1
    digest = base64.b64encode(hashlib.sha256(scripts[0].encode()).digest()).decode()
    policy = next(a["content"] for t, a in parsed(text).seen if "http-equiv" in a)
    assert policy is not None
    assert f"script-src 'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy


def test_strange_labels_stay_text(store: Store) -> None:
    text = shown(replace(renamed(smoke(), **HOSTILE), worst=True), store)
    tags = parsed(text)
    assert "Worst cases" in text
    assert [t for t, _ in tags.seen].count("script") == 1
    assert "img" not in [t for t, _ in tags.seen]
    assert not [a for _, a in tags.seen if any(name.startswith("on") for name in a)]
    assert "&lt;script&gt;alert(1)" in text
    assert "\u05d0\u05d1\u05d2" in text
    assert "\u202e" not in text  # it would turn what follows it around


def test_each_row_has_the_command_that_makes_it(store: Store) -> None:
    text = shown(renamed(smoke(), a="GMI / [a-z]*", b="GMI / it's", c="VMI / two\nlines"), store)
    commands = re.findall(r'<pre class="command"[^>]*>(.*?)</pre>', text)
    words = [shlex.split(c.replace("&#39;", "'").replace("&#34;", '"')) for c in commands]
    assert words[0] == ["mibench", "run", "smoke", "--rows", "GMI / [[]a-z][*]"]
    assert words[1][-1] == "GMI / it's"
    assert words[2][-1] == "VMI / two?lines"
    named = renamed(smoke(), a="GMI / [a-z]*", b="GMI / q", c="VMI / x")
    assert list(named.only([words[0][-1]]).rows) == ["GMI / [a-z]*"]


def test_a_row_says_where_it_came_from(store: Store) -> None:
    table = smoke()
    records = fill(table, store)
    text = page([(Grid(table, records, store), ["smoke"])])
    record = records["GMI / MID"][0]
    assert f"record/{record.key}" in text
    assert record.evidence[0].inversion.target.key in text
    assert "cpu made" in text
    assert "torch 2" in text
    assert "target 0, prior 0, attack 0" in text


def test_gaps_are_shown_and_an_empty_store_is_refused(store: Store) -> None:
    table = smoke()
    fill(smoke("GMI / MID"), store)

    records = record_stages(table, 1, None)
    text = page([(Grid(table, records, store), ["smoke"])])
    assert text.count("not computed") == 2 * len(table.columns)
    assert text.count("Not computed yet.") == 2
    with pytest.raises(ValueError, match="nothing of smoke is in"):
        page([(Grid(table, records, Store(store.root / "none")), ["smoke"])])


FACES = replace(
    TABLES["table2"],
    rows={
        label: replace(
            cell,
            setting=replace(cell.setting, task=CelebA(num_classes=20)),
            trials=replace(cell.trials, classes=20, samples=3),
        )
        for label, cell in list(TABLES["table2"].rows.items())[:2]
    },
    columns=("accuracy", "attack_acc"),
)


def test_private_images_of_people_are_left_out_unless_asked_for(store: Store) -> None:
    without = shown(FACES, store)
    assert "private training images are left out" in without
    assert "Nearest private image" not in without
    assert "Private training image" not in without
    assert without.count('aria-label="Reconstruction') == 2 * 16
    with_ = shown(FACES, store, with_private=True)
    assert "as asked for with --with-private" in with_
    assert with_.count('aria-label="Nearest private image') == 2 * 16
    assert with_.count('aria-label="Private training image') == 16
    digits = shown(smoke(), Store(store.root / "other"))
    assert "left out" not in digits
    assert "Nearest private image" in digits


def test_no_byte_of_a_private_face_is_on_the_page(store: Store) -> None:
    records = fill(FACES, store)
    text = page([(Grid(FACES, records, store), ["x"])])
    sprites = re.findall(r"url\(data:image/webp;base64,([^)]*)\)", text)
    assert len(sprites) == 2
    for data in sprites:
        import io

        with Image.open(io.BytesIO(base64.b64decode(data))) as picture:
            assert picture.size == (16 * 64, 64)  # a second line would hold private images


def test_dependences_are_shown_where_they_have_been_measured(store: Store) -> None:
    from mibench.reporting.diagnostics import dependence_stages

    table = smoke()
    records = fill(table, store)
    assert "<h3>Dependence</h3>" not in page([(Grid(table, records, store), ["smoke"])])
    for defense, stages in dependence_stages(records).items():
        values = [
            {"layer": j, "measure": "hsic", "pair": "xz", "split": split, "value": 0.25 * j}
            for j in (1, 2, 3)
            for split in ("train", "test")
        ]
        payload = {"values": values, "images": {"train": 8, "test": 8}}
        assert defense in ("No Def.", "MID")
        store._commit(stages[0], payload, dict(META))
    text = page([(Grid(table, records, store), ["smoke"])])
    assert "<h4>d(X, Z_j) by hsic</h4>" in text
    assert "Z_3 train" in text
    assert text.count('<td style="--a:0.55">0.75</td>') == 2 * 2
    assert "d(Z_j, Y) by hsic" not in text
    parsed(text)


def test_worst_cases_stand_beside_the_attacks_that_found_them(store: Store) -> None:
    full = TABLES["digits-adaptive"]
    labels = ("KED-MI / No Def.", "KED-MI / MID", "KED-MI, views / MID", "KED-MI, 8 draws / MID")
    table = replace(full, rows={label: full.rows[label] for label in labels})
    text = shown(table, store, seeds=3)
    parsed(text)
    grid = Grid(table, record_stages(table, 3, None), store)
    m = matrix(grid)
    cells = re.findall(r'<td style="--a:[0-9.]+">(\S+?)</td>', text[text.index("Worst cases") :])
    wanted = ["–" if math.isnan(v) else f"{v:.0f}" for v in m.means.ravel()]
    assert cells[: len(wanted)] == wanted
    assert wanted.count("–") == 2
    (part,) = m.parts()
    assert "2 targets that met the 1 attack<" in text
    for name, (attack, mean, *_) in zip(part.defenses, part.worst(), strict=True):
        row = [name, attack, f"{mean:.1f}"]
        assert re.search(r"<bdi>" + r"</bdi></t[hd]><td><bdi>".join(map(re.escape, row)), text)
    assert f"Cells without a number: 2: {ABSENT}." in text
    assert "Worst cases" not in shown(replace(table, worst=False), store, seeds=3)
    smaller = override(table.rows["KED-MI / MID"], "trials.classes", "3")
    mixed = replace(table, rows={**table.rows, "KED-MI, views / MID": smaller})
    told = shown(mixed, store)
    assert "Left out: the rows of digits-adaptive attack different classes" in told


def test_at_most_so_many_reconstructions_are_shown(store: Store) -> None:
    assert layout(300, 5, 16) == (16, 1)
    assert layout(5, 100, 16) == (5, 3)
    assert layout(5, 2, 16) == (5, 2)
    text = shown(smoke(), store, identities=4)
    assert text.count('aria-label="Reconstruction') == 3 * 4


def test_the_nearest_private_image_is_the_nearest_of_its_class(store: Store) -> None:
    records = fill(smoke("GMI / MID"), store)
    stage = records["GMI / MID"][0].evidence[0]
    found = gallery(stage, store, 16, private=True)
    evidence = stage.evidence(store.load)
    real = stage.compared(stage.images.splits(store.load).private)
    assert found.nearest is not None
    for i in range(len(found.labels)):
        row = int(found.samples[i]) * stage.inversion.classes + int(found.labels[i])
        reconstructed, real_features = evidence.through(EVALUATOR)
        far = (real_features.double() - reconstructed[row].double()).norm(dim=1)
        own = (evidence.real_labels == found.labels[i]).nonzero()[:, 0]
        best = own[far[own].argmin()]
        assert torch.equal(found.nearest[i], real.images[best])
    assert torch.equal(found.images, stage.judged(store.load)[
        found.samples * stage.inversion.classes + found.labels
    ])  # fmt: skip


def test_a_sprite_holds_its_images_in_order() -> None:
    import io

    images = torch.rand(5, 3, 8, 6, generator=torch.Generator().manual_seed(0))
    made = sprite([images, 1 - images])
    data = base64.b64decode(made.uri.partition(",")[2])
    with Image.open(io.BytesIO(data)) as picture:
        assert picture.size == (5 * 6, 2 * 8)
        pixel = picture.getpixel((3 * 6 + 2, 8 + 5))
    assert pixel == tuple((255 * (1 - images[3, :, 5, 2])).round().int().tolist())
    assert (made.columns, made.lines, made.width, made.height) == (5, 2, 6, 8)


def test_ticks_are_round_and_inside() -> None:
    assert ticks(0, 100) == [0, 20, 40, 60, 80, 100]
    assert ticks(0.9, 1.1)[0] >= 0.9
    assert ticks(3, 3) == [3]
    low, high = padded([5.0, 5.0, float("nan")])
    assert low < 5 < high


@pytest.mark.slow
def test_fifty_rows_of_faces_stay_under_fifteen_megabytes(store: Store) -> None:
    from mibench.defenses import MID

    first = next(iter(FACES.rows.values()))
    rows = {
        f"GMI / MID ({i})": replace(first, defense=MID(lambda_=0.001 * (i + 1))) for i in range(50)
    }
    text = shown(replace(FACES, rows=rows), store, with_private=True)
    assert len(text.encode()) < 15 * 2**20
    assert text.count('aria-label="Nearest private image') == 50 * 16


def test_report_and_show_write_their_files_and_print_the_paths(tmp_path: Path) -> None:
    table = smoke()
    fill(table, Store(tmp_path / "store"), data=Path())
    options = [x for label in table.rows for x in ("--rows", label)]
    places = ["--store", str(tmp_path / "store"), *options]
    done = call("report", "smoke", *places, "-o", str(tmp_path / "page"))
    assert done.exit_code == 0, done.output
    assert done.stdout.strip() == str(tmp_path / "page" / "index.html")
    assert "KED-MI" not in (tmp_path / "page" / "index.html").read_text()
    seen = call(
        "figure", "row", "smoke", "VMI / No Def.", *places, "--out", str(tmp_path), "--blocks"
    )
    assert seen.exit_code == 0, seen.output
    *blocks, path = seen.stdout.splitlines()
    assert Path(path).stat().st_size > 0
    assert Path(path).name == "smoke-row-VMI-No-Def.png"
    assert blocks
    assert all("▀" in line for line in blocks)


@pytest.mark.slow
def test_the_papers_figures_have_their_fonts_inside_and_come_out_the_same(tmp_path: Path) -> None:
    table = smoke()
    fill(table, Store(tmp_path / "store"), data=Path())
    options = [x for label in table.rows for x in ("--rows", label)]
    places = ["--store", str(tmp_path / "store"), *options]
    for name in ("1", "3", "4"):
        drawn = call("figure", name, "smoke", *places, "-o", str(tmp_path / "figures"))
        assert drawn.exit_code == 0, drawn.output
        pdf, png = (Path(p) for p in drawn.stdout.split())
        assert b"/FontFile2" in pdf.read_bytes()  # TrueType, whole
        assert b"/Type3" not in pdf.read_bytes()
        before = pdf.read_bytes()
        call("figure", name, "smoke", *places, "-o", str(tmp_path / "figures"))
        assert pdf.read_bytes() == before
        with Image.open(png) as picture:
            assert picture.width > 300


def test_a_picture_is_called_by_its_row() -> None:
    assert slug("GMI / BiDO-HSIC (1.5)") == "GMI-BiDO-HSIC-1.5"
    assert slug("../a") == "a"
    assert slug("*") == "all"


def test_of_an_absent_stage_a_report_has_a_gap_and_figures_say_what_to_do(tmp_path: Path) -> None:
    records = fill(smoke(), store := Store(tmp_path / "store"), data=Path())
    lost = records["GMI / MID"][0].evidence[0].inversion
    shutil.rmtree(store.path(lost))
    advice = f"inversion {lost.key} is missing: `mibench run TABLE`, with the same options, "
    places = ["--store", str(store.root), "-o", str(tmp_path)]
    done = call("report", "smoke", "--rows", "* / MID", "--rows", "GMI / *", *places)
    assert done.exit_code == 0, done.stderr
    assert done.stderr == f"note: no picture of GMI / MID: {advice}computes it anew\n"
    text = (tmp_path / "index.html").read_text()
    parsed(text)
    assert f"No picture: {advice}computes it anew." in text
    assert text.count("data:image/webp") == 2
    for arguments in (["figure", "3", "smoke"], ["figure", "row", "smoke", "GMI / MID"]):
        done = call(*arguments, *places)
        assert done.exit_code == 2
        assert done.stderr == f"Error: {advice}computes it anew\n"


def test_what_is_not_there_is_refused_in_a_sentence(tmp_path: Path) -> None:
    store = ["--store", str(tmp_path / "none")]
    for arguments in (
        ["report", "smoke", *store, "-o", str(tmp_path / "page")],
        ["figure", "row", "smoke", "GMI / MID", *store],
        ["figure", "4", "smoke", *store, "-o", str(tmp_path / "f")],
        ["report", "nosuch"],
        ["records", "board", str(tmp_path / "nosuch")],
        ["compare", str(tmp_path), str(tmp_path)],
        ["records", "check"],
    ):
        done = call(*arguments)
        assert done.exit_code == 2, arguments
        assert len(done.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "page").exists()
