"""Drawn portraits: cartoon faces of people who do not exist, by signed distances in NumPy.

A person is a point in the unit cube, one coordinate a trait (shape of the head, skin, hair,
eyes, ...). A portrait shows a person in a scene (pose, expression, light, background, grain)
that is drawn anew for each image. Shapes are laid over each other from the background to the
glasses, each where its signed distance is negative, with an edge one pixel wide.

The bytes are the same on every machine: uniform numbers come from an integer hash of counters,
and pixels from + - * / and square roots of 32-bit numbers, taken element by element in a fixed
order: IEEE 754 fixes how each of them is rounded.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import EllipsisType
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Floats: TypeAlias = NDArray[Any]  # of float32; NumPy's stubs lose track of it
Bits: TypeAlias = NDArray[Any]  # of uint64
Bytes: TypeAlias = NDArray[np.uint8]
Ranges: TypeAlias = Mapping[str, tuple[float, float]]
Colour: TypeAlias = tuple[Floats | float, Floats | float, Floats | float]

TRAITS: Ranges = {
    "face_width": (0.42, 0.60),
    "face_height": (0.50, 0.68),
    "jaw": (0.0, 0.60),  # how much narrower the chin is than the temples
    "skin": (0.15, 0.70),  # light to dark
    "undertone": (-1.0, 1.0),  # yellow to pink
    "hair_tone": (0.0, 0.70),  # black, brown, blond
    "ginger": (0.0, 0.8),
    "hair_length": (-0.25, 1.1),  # where it ends, below the middle of the face
    "hair_volume": (0.0, 0.20),
    "hairline": (-0.62, -0.16),  # its height; the highest are nearly bald
    "parting": (-1.0, 1.0),  # how steep the fringe is
    "curl": (0.0, 1.0),
    "eye_spacing": (0.36, 0.54),  # half the distance over half the width of the face
    "eye_height": (-0.14, 0.04),
    "eye_size": (0.085, 0.150),
    "eye_colour": (0.0, 1.0),  # brown, green, blue
    "eye_slant": (-0.5, 0.5),
    "brow_weight": (0.02, 0.08),
    "brow_tilt": (-0.6, 0.6),
    "nose_length": (0.10, 0.34),
    "mouth_width": (0.13, 0.31),
    "mouth_height": (0.28, 0.42),
    "lips": (0.02, 0.11),
    "lip_red": (0.0, 1.0),
    "beard": (-0.6, 1.0),  # there from 0 on
    "glasses": (-0.8, 1.0),  # there from 0 on, then bolder
    "ears": (0.05, 0.18),
}
"""Name → what coordinates 0 and 1 stand for; lengths in units of half the image."""

SCENE: Ranges = {
    "x": (-0.16, 0.16),
    "y": (-0.12, 0.18),
    "rotation": (-0.16, 0.16),  # tangent of half the angle
    "zoom": (0.84, 1.18),
    "yaw": (-0.28, 0.28),  # tangent of half the angle
    "pitch": (-0.11, 0.11),
    "smile": (-0.6, 1.0),
    "open": (-1.0, 1.0),  # from 0 on the mouth is open
    "raise": (-0.03, 0.06),  # of the brows
    "lids": (0.4, 1.0),
    "gaze_x": (-1.0, 1.0),
    "gaze_y": (-1.0, 1.0),
    "light_x": (-1.0, 1.0),
    "light_y": (-1.0, 0.5),
    "light": (0.0, 0.7),
    "exposure": (0.58, 1.34),
    "warmth": (-0.22, 0.22),
    "grain": (0.0, 0.05),
    "ramp_x": (-0.5, 0.5),  # of the background
    "ramp_y": (-0.5, 0.5),
    **{f"{what}_{c}": (0.2, 0.9) for what in ("back", "other", "clothes") for c in "rgb"},
}
"""What varies between the portraits of a person."""

SKIN = ((1.0, 0.87, 0.76), (0.86, 0.63, 0.45), (0.36, 0.22, 0.15))
HAIR = ((0.09, 0.07, 0.08), (0.38, 0.23, 0.14), (0.85, 0.68, 0.38), (0.93, 0.91, 0.88))
EYES = ((0.28, 0.16, 0.08), (0.25, 0.50, 0.24), (0.20, 0.45, 0.85))
GINGER = (0.75, 0.28, 0.10)
CHUNK = 2**14
"""Pixels drawn at once: what stays in a core's cache."""
MUTED = 0.35
"""How much colour is left of those of backgrounds and clothes."""


# Numbers ----------------------------------------------------------------------------------


def hashed(key: int, counters: Bits) -> Bits:
    """Returns 64 well mixed bits for each counter (the finaliser of SplitMix64, Steele 2014)."""
    z = counters * np.uint64(0x9E3779B97F4A7C15) + np.uint64(key & 0xFFFFFFFFFFFFFFFF)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def uniform(key: int, rows: Bits, columns: int) -> Floats:
    """Returns numbers in [0, 1), (len(rows), columns), that depend on key, row and column."""
    counters = rows[:, None] * np.uint64(2**20) + np.arange(columns, dtype=np.uint64)
    return ((hashed(key, counters) >> np.uint64(40)) * 2.0**-24).astype(np.float32)


def people(key: int, count: int, ranges: Ranges | None = None) -> Floats:
    """Draws the traits of ``count`` persons.

    Args:
        key: Of the cast: another one gives other people.
        count: How many.
        ranges: Trait → the part of [0, 1] that it is drawn from, if not all of it.

    Returns:
        Coordinates in [0, 1], (count, len(TRAITS)); the first persons of a larger cast are
        those of a smaller one.
    """
    traits = uniform(key, np.arange(count, dtype=np.uint64), len(TRAITS))
    for name, (low, high) in (ranges or {}).items():
        i = list(TRAITS).index(name)
        traits[:, i] = low + (high - low) * traits[:, i]
    return traits


def portraits(
    traits: Floats, key: int, size: int = 32, vary: float = 1.0, muted: float = MUTED
) -> Bytes:
    """Draws one portrait of each row of traits.

    Args:
        traits: Coordinates in [0, 1], (n, len(TRAITS)).
        key: Of the scenes: another one gives other poses, lights and backgrounds.
        size: Height and width in pixels.
        vary: How much scenes vary, as a share of the ranges of SCENE; colours and the
            direction of the background always vary in full.
        muted: How much colour is left of those of backgrounds and clothes, from 0 to 1.

    Returns:
        Bytes, (n, 3, size, size), the same however many are drawn at once.
    """
    step = max(1, CHUNK // size**2)
    numbers = np.arange(len(traits), dtype=np.uint64)
    pixels = np.empty((len(traits), 3, size, size), dtype=np.uint8)
    for i in range(0, len(traits), step):
        rows = numbers[i : i + step]
        scene = uniform(key, rows, len(SCENE))
        fixed = list(SCENE).index("ramp_x")
        scene[:, :fixed] = (scene[:, :fixed] - 0.5) * vary + 0.5
        pixels[i : i + step] = _draw(traits[i : i + step], scene, key, rows, size, muted)
    return pixels


# Shapes -----------------------------------------------------------------------------------


def _named(units: Floats, ranges: Ranges) -> dict[str, Floats]:
    """Returns name → values, (n, 1, 1), of columns given in [0, 1]."""
    return {
        name: (low + (high - low) * units[:, i])[:, None, None]
        for i, (name, (low, high)) in enumerate(ranges.items())
    }


def _mixed(a: Colour, b: Colour, share: Floats | float) -> Colour:
    """Returns the colour that lies a share of the way from ``a`` to ``b``."""
    red, green, blue = (p + (q - p) * share for p, q in zip(a, b, strict=True))
    return red, green, blue


def _times(colour: Colour, by: Floats | float | Colour) -> Colour:
    """Returns a colour made darker or lighter, by one factor or one a channel."""
    factors = by if isinstance(by, tuple) else (by, by, by)
    red, green, blue = (c * f for c, f in zip(colour, factors, strict=True))
    return red, green, blue


def _blend(stops: tuple[tuple[float, float, float], ...], at: Floats) -> Colour:
    """Returns the colours at positions in [0, 1] between equidistant stops."""
    place = np.clip(at, 0, 1) * (len(stops) - 1)
    colour: Colour = stops[0]
    for i, stop in enumerate(stops[1:]):
        colour = _mixed(colour, stop, np.clip(place - i, 0, 1))
    return colour


def _turn(half: Floats) -> tuple[Floats, Floats]:
    """Returns cosine and sine of the angle whose half has this tangent."""
    square = half * half
    return (1 - square) / (1 + square), 2 * half / (1 + square)


def _wave(x: Floats) -> Floats:
    """Returns a wave in [-1, 1] of period 1, of parabolas."""
    x = x - np.floor(x) - 0.5
    wave: Floats = 8 * x * (1 - 2 * np.abs(x))
    return wave


def _ellipse(x: Floats, y: Floats, a: Floats | float, b: Floats | float) -> Floats:
    """Returns about the distance from an ellipse: f / |∇f| of f = |(x/a, y/b)| − 1."""
    a, b = 1 / a, 1 / b  # numbers per image: to multiply by them is quicker than to divide
    x, y = x * a, y * b
    square = x * x + y * y
    x *= a
    y *= b
    gradient = x * x + y * y + 1e-9
    distance: Floats = (square - np.sqrt(square)) / np.sqrt(gradient)
    return distance


@dataclass(frozen=True)
class Canvas:
    """A rectangle of n images, and where its pixels lie on the head.

    Attributes:
        image: Colours so far, (3, n, height, width).
        u: Right of the middle of the head, in units of half the image, (n, height, width).
        v: Below it.
        edge: Width of a pixel, (n, 1, 1): over it a shape fades out.
        inside: Where it may be painted on; None for everywhere.
        area: What part of the whole images it is.
    """

    image: Floats
    u: Floats
    v: Floats
    edge: Floats
    inside: NDArray[np.bool_] | None = None
    area: tuple[EllipsisType | slice, ...] = (...,)

    def paint(self, distance: Floats, colour: Colour, strength: Floats | None = None) -> None:
        """Lays a colour over where the distance is negative."""
        cover = 0.5 - distance * (1 / self.edge)
        np.minimum(np.maximum(cover, 0, out=cover), 1, out=cover)
        if strength is not None:
            cover *= strength
        if self.inside is not None:
            cover *= self.inside
        for plane, channel in zip(self.image, colour, strict=True):
            plane += (channel - plane) * cover

    def around(
        self, x: Floats | float, y: Floats | float, width: Floats | float, height: Floats | float
    ) -> "Canvas":
        """Returns a rectangle of every image's head, to be painted on alone.

        Args:
            x: Its middle, right of the middle of the head.
            y: Its middle, below the middle of the head.
            width: Half its width.
            height: Half its height.
        """
        inside = (np.abs(self.u - x) < width) & (np.abs(self.v - y) < height)
        rows, columns = (np.flatnonzero(inside.any(axis)) for axis in ((0, 2), (0, 1)))
        if not len(rows):
            rows = columns = np.zeros(1, dtype=np.int64)
        area = (..., slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
        return Canvas(self.image[area], self.u[area], self.v[area], self.edge, inside[area], area)


def _draw(traits: Floats, scene: Floats, key: int, rows: Bits, size: int, muted: float) -> Bytes:
    """Returns bytes (n, 3, size, size): from the background to the glasses."""
    t, s = _named(traits, TRAITS), _named(scene, SCENE)
    step = 2 / size
    line = np.arange(size, dtype=np.float32) * np.float32(step) + (step / 2 - 1)
    px, py = line[None, None, :], line[None, :, None]

    def dyed(what: str) -> Colour:
        red, green, blue = (s[f"{what}_{c}"] for c in "rgb")
        grey = (red + green + blue) / 3
        return _mixed((grey, grey, grey), (red, green, blue), muted)

    ramp = np.clip((px * s["ramp_x"] + py * s["ramp_y"]) + 0.5, 0, 1) * 0.5
    image = np.stack(_mixed(dyed("back"), dyed("other"), ramp))
    cos, sin = _turn(s["rotation"])
    x, y = (px - s["x"]) / s["zoom"], (py - s["y"]) / s["zoom"]
    canvas = Canvas(image, cos * x + sin * y, cos * y - sin * x, step / s["zoom"])
    u, v = canvas.u, canvas.v

    # Who it is.
    wide, high = t["face_width"], t["face_height"]
    pink = (1 + 0.02 * t["undertone"], 1 - 0.05 * t["undertone"], 1 + 0.06 * t["undertone"])
    skin = _times(_blend(SKIN, t["skin"]), pink)
    shade = _times(skin, (0.72, 0.62, 0.60))
    red = _times(GINGER, 0.4 + 0.8 * t["hair_tone"])
    hair = _mixed(_blend(HAIR, t["hair_tone"]), red, t["ginger"])
    yaw_cos, yaw_sin = _turn(s["yaw"])

    def turned(at: Floats | float) -> tuple[Floats, Floats]:
        """Returns where a point of the face lies under the yaw, and how much narrower it is."""
        place = np.clip(at / wide, -0.95, 0.95)
        depth = np.sqrt(1 - place * place)
        narrow = np.clip((depth * yaw_cos - place * yaw_sin) / depth, 0.25, 1.3)
        return wide * (place * yaw_cos + depth * yaw_sin), narrow

    # Hair behind, neck, shoulders, ears, head.
    aside = 0.12 * yaw_sin
    volume, ends = t["hair_volume"], t["hair_length"]
    wave = _wave(2.4 * u + 0.7 * v) * _wave(2.1 * v) * (t["curl"] * 0.07)
    hang = np.minimum(v, 0) + 1.4 * np.maximum(v - 0.6 * ends, 0)
    mane = _ellipse(u + aside, hang, wide + volume + 0.02, high + volume) + wave
    canvas.paint(np.maximum(mane, v - ends + 0.5 * u * u + wave), _times(hair, 0.75))
    part = canvas.around(0, 1, 0.5, 1)
    part.paint(np.maximum(np.abs(part.u) - 0.45 * wide, -part.v), shade)
    part = canvas.around(0, 1.6, 2, 1)
    part.paint(_ellipse(part.u, part.v - 1.18, 0.95, 0.48), dyed("clothes"))
    ears = t["ears"]
    part = canvas.around(0, 0, 2, 0.4)
    lobe = np.abs(part.u + aside) - wide - 0.3 * ears
    part.paint(_ellipse(lobe, part.v - 0.03, ears, 1.35 * ears), _times(skin, 0.88))
    down = np.minimum(np.maximum(v * (1 / high), 0), 1)
    narrowed = u / (1 - t["jaw"] * down * (1.4 - 0.4 * down))
    head = _ellipse(narrowed, v, wide, high)
    q, down = narrowed * (1 / wide), v * (1 / high)
    rim = 1.04 - 0.22 * np.minimum(q * q + down * down, 1)
    canvas.paint(head, _times(skin, rim))

    # Beard, nose, mouth.
    middle, narrow = turned(0.0)
    mouth = s["pitch"] + t["mouth_height"]
    part = canvas.around(0, 0.4, 0.8, 0.5)
    mx, my = (part.u - middle) / narrow, part.v - mouth
    shave = np.maximum(head[part.area] + 0.01, 0.22 * np.abs(mx) * (1 / wide) - my - 0.13)
    above = _ellipse(mx, my + 0.06, 0.9 * t["mouth_width"], 0.05)
    grown = np.clip(2 * t["beard"], 0, 1) * 0.95
    part.paint(np.minimum(shave, above), _times(hair, 0.9), grown)
    nose, long = 0.09, t["nose_length"]
    tip, bridge = 1.25 * middle, s["pitch"] + t["eye_height"] + 0.04
    part = canvas.around(tip, bridge + 0.6 * long, 1.3 * nose + 0.06, 0.6 * long + 0.25)
    nx, ny = (part.u - tip) / narrow, part.v - bridge - long
    part.paint(_ellipse(nx, ny, nose, 0.6 * nose + 0.015), _times(shade, 0.9))
    part.paint(
        _ellipse(nx, ny + 0.045 + 0.35 * long, 0.75 * nose, 0.55 * long), _times(skin, 1.08)
    )
    lip = _mixed(_times(shade, 0.9), (0.80, 0.22, 0.26), 0.8 * t["lip_red"])
    opened = np.maximum(s["open"], 0)
    reach = t["mouth_width"] * (1 + 0.15 * s["smile"] - 0.2 * opened)
    part = canvas.around(middle, mouth, 1.3 * reach + 0.06, t["lips"] + 0.35)
    mx, my = (part.u - middle) / narrow, part.v - mouth
    bent = my + s["smile"] * (2.2 * mx * mx - 0.02)
    part.paint(_ellipse(mx, bent, reach, t["lips"] + 0.075 * opened), lip)
    gap = 0.008 + 0.07 * opened
    part.paint(_ellipse(mx, bent, 0.8 * reach, gap), (0.25, 0.05, 0.07))
    teeth = np.maximum(_ellipse(mx, bent, 0.7 * reach, gap), bent + 0.005)
    part.paint(teeth, (0.97, 0.95, 0.92), np.minimum(3 * opened, 1))

    # Fringe, then eyes, brows and glasses.
    away = u - 0.5 * middle
    fringe = v - t["hairline"] - 0.6 * t["parting"] * away - 0.75 * away * away
    canvas.paint(np.maximum(head - volume + wave, fringe + wave), hair)
    iris = _blend(EYES, t["eye_colour"])
    size_, level = t["eye_size"], s["pitch"] + t["eye_height"]
    bold = np.clip(3 * t["glasses"], 0, 1)
    frame = 0.014 + 0.02 * np.maximum(t["glasses"], 0)
    for side in (-1.0, 1.0):
        x, narrow = turned(side * t["eye_spacing"] * wide)
        part = canvas.around(x, level - 0.1, 2.6 * size_ + 0.06, 2 * size_ + 0.3)
        ex, ey = (part.u - x) / narrow, part.v - level
        slanted = ey + side * t["eye_slant"] * ex
        white = _ellipse(ex, slanted, 1.25 * size_, size_ * s["lids"])
        part.paint(white - 0.018, _times(shade, 0.75))
        part.paint(white, (0.98, 0.98, 0.97))
        gx, gy = ex - 0.5 * size_ * s["gaze_x"], slanted - 0.25 * size_ * s["gaze_y"]
        ring = np.sqrt(gx * gx + gy * gy)
        part.paint(np.maximum(ring - 0.70 * size_, white), iris)
        part.paint(np.maximum(ring - 0.32 * size_, white), (0.04, 0.03, 0.05))
        brow = ey + size_ + 0.085 + s["raise"] + side * t["brow_tilt"] * ex + 1.2 * ex * ex
        part.paint(_ellipse(ex, brow, 1.5 * size_, t["brow_weight"]), _times(hair, 0.7))
        glass = np.abs(_ellipse(ex, ey, 1.95 * size_, 1.75 * size_)) - frame
        part.paint(glass, (0.10, 0.09, 0.12), bold)
    part = canvas.around(middle, level, 0.16, 0.1)
    bar = np.maximum(np.abs(part.u - middle) - 0.08, np.abs(part.v - level) - frame)
    part.paint(bar, (0.10, 0.09, 0.12), bold)

    # Light, exposure, grain.
    light = 1 + 1.3 * s["light"] * np.clip(u * s["light_x"] + v * s["light_y"], -1, 1)
    tint = (1 + s["warmth"], 1.0, 1 - s["warmth"])
    counters = (rows[:, None] + np.uint64(2**40)) * np.uint64(2**20)
    bits = hashed(key, counters + np.arange(size * size, dtype=np.uint64)).reshape(u.shape)
    for i, plane in enumerate(image):
        plane *= light * (tint[i] * s["exposure"])
        ten = (bits >> np.uint64(20 * i)) & np.uint64(1023)
        other = (bits >> np.uint64(20 * i + 10)) & np.uint64(1023)
        plane += ((ten + other).astype(np.float32) / 1023 - 1) * s["grain"]
    drawn: Bytes = np.floor(np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8)
    return drawn.transpose(1, 0, 2, 3)
