"""Draws the README's picture: ``python -m perf.picture --store DIR``, after a run of avatars."""

import argparse
from pathlib import Path

import matplotlib as mpl
import torch
from PIL import Image, ImageDraw, ImageFont

import mibench
from mibench.benchmarks.tables import TABLES

ROWS = (
    "GMI / No Def.", "KED-MI / No Def.", "KED-MI / BiDO-COCO", "KED-MI / BiDO-HSIC",
    "VMI / No Def.",
)  # fmt: skip
PERSONS, SIDE, GAP, MARGIN = 12, 64, 4, 170
OUT = Path(__file__).parent.parent / "docs" / "pictures" / "avatars.png"


def main() -> None:
    """Writes docs/pictures/avatars.png: private persons above their first reconstructions."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--store", type=Path, required=True)
    results = mibench.load("avatars", store=parser.parse_args().store, seeds=1)
    task = TABLES["avatars"].rows[ROWS[0]].setting.task
    test = task.load(Path("data")).private.test
    first = [int((test.labels == person).nonzero()[0]) for person in range(PERSONS)]
    lines = {"private persons": test.take(torch.tensor(first)).images}
    lines |= {row: results.images(row)[0, :PERSONS].float() for row in ROWS}
    step = SIDE + GAP
    picture = Image.new("RGB", (MARGIN + PERSONS * step, len(lines) * step + 2 * GAP), "white")
    draw = ImageDraw.Draw(picture)
    font = ImageFont.truetype(str(Path(mpl.get_data_path()) / "fonts/ttf/DejaVuSans.ttf"), 13)
    for i, (label, images) in enumerate(lines.items()):
        top = GAP + i * step + (GAP if i else 0)
        draw.text((6, top + 24), label, fill="black", font=font)
        for k, image in enumerate(images):
            pixels = (image.permute(1, 2, 0) * 255).round().byte().numpy()
            one = Image.fromarray(pixels).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
            picture.paste(one, (MARGIN + k * step, top))
    OUT.parent.mkdir(exist_ok=True)
    picture.save(OUT, optimize=True)


if __name__ == "__main__":
    main()
