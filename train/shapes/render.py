"""Rendering of scenes by signed distances on a pixel grid, in NumPy.

Everything a scene leaves open (places, sizes, rotations, shades, backgrounds, blur, noise) is
sampled from a wide range, so that the model does not come to depend on it.

Coordinates: x to the right, y down, both in [0, 1]; a radius is a fraction of the image's side.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dsd_trt.train.shapes.scene import Scene, Thing

Floats = NDArray[np.float32]

# Anchors of each colour name, RGB in [0, 1]; a thing's colour is a jittered mix of two of them.
PALETTE: dict[str, tuple[tuple[float, float, float], ...]] = {
    "red": ((1, 0, 0), (0.86, 0.08, 0.12), (0.78, 0.12, 0.1), (0.92, 0.22, 0.2)),
    "green": ((0, 0.5, 0), (0, 0.8, 0), (0.15, 0.65, 0.25), (0.2, 0.75, 0.2), (0, 1, 0)),
    "blue": ((0, 0, 1), (0.1, 0.3, 0.85), (0.12, 0.45, 0.9), (0.05, 0.1, 0.65)),
    "yellow": ((1, 1, 0), (0.95, 0.85, 0.1), (1, 0.9, 0.2), (0.98, 0.93, 0.35)),
    "orange": ((1, 0.65, 0), (1, 0.5, 0), (0.95, 0.55, 0.1), (1, 0.45, 0.05)),
    "purple": ((0.5, 0, 0.5), (0.55, 0.2, 0.75), (0.45, 0.1, 0.6), (0.6, 0.15, 0.7)),
    "white": ((1, 1, 1), (0.95, 0.95, 0.95), (0.98, 0.97, 0.93)),
    "black": ((0, 0, 0), (0.06, 0.06, 0.06), (0.1, 0.1, 0.12)),
}


@dataclass(frozen=True)
class Place:
    """Position and size of a drawn thing.

    Attributes:
        x: horizontal position of the centre, in [0, 1].
        y: vertical position of the centre, in [0, 1].
        radius: radius of the circumscribed circle, as a fraction of the image's side.
    """

    x: float
    y: float
    radius: float


@dataclass(frozen=True)
class Drawing:
    """A drawn scene.

    Attributes:
        pixels: RGB image, uint8 (size, size, 3).
        masks: whether a pixel shows a thing, bool (things, size, size).
    """

    pixels: NDArray[np.uint8]
    masks: NDArray[np.bool_]


def draw(scene: Scene, rng: np.random.Generator, size: int = 64) -> Drawing:
    """Draw a scene.

    Args:
        scene: scene whose things are drawn.
        rng: random generator of everything the scene leaves open.
        size: side of the image, in pixels.
    """
    places = lay_out(scene, rng)
    y, x = np.mgrid[0:size, 0:size].astype(np.float32)
    x, y = (x + 0.5) / size, (y + 0.5) / size
    image = background(rng, x, y)
    softness = np.float32(rng.uniform(0.4, 1.3) / size)
    outlined = rng.random() < 0.15
    masks = np.zeros((len(places), size, size), dtype=np.bool_)
    # The first thing is drawn last: it is the one inside or in front of the second.
    for i in reversed(range(len(places))):
        thing, place = scene.things[i], places[i]
        distance = signed_distance(thing.shape, x, y, place, rng)
        colour = _colour(thing, rng)
        # A thing whose colour is close to that behind it gets a contour.
        inside = distance < 0
        behind = image[inside].mean(axis=0) if inside.any() else colour
        close = float(np.abs(behind - colour).max()) < 0.25
        if outlined or close:
            light = colour.mean() > 0.5 if close else rng.random() < 0.3
            rim = np.float32(0.1 if light else 0.9) + np.zeros(3, np.float32)
            if close and rng.random() < 0.5:
                image = paint(image, distance - rng.uniform(0.01, 0.03), rim, softness)
            else:
                image = paint(image, distance - rng.uniform(0.012, 0.022), rim, softness)
        image = paint(image, distance, shade(colour, x, y, place, rng), softness)
        masks[i] = inside
        masks[i + 1 :] &= ~inside
    if rng.random() < 0.3:
        image = image + rng.normal(0, rng.uniform(0.005, 0.04), image.shape).astype(np.float32)
    if rng.random() < 0.3:
        image = (image - 0.5) * rng.uniform(0.8, 1.1) + 0.5 + rng.uniform(-0.05, 0.05)
    pixels = (np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8)
    return Drawing(pixels, masks)


def lay_out(scene: Scene, rng: np.random.Generator) -> list[Place]:
    """Sample places for which the scene's relation, side and sizes hold, by rejection."""
    while True:
        radii = [_radius(thing, len(scene.things), rng) for thing in scene.things]
        places = _related(scene, radii, rng)
        for radius in radii[len(places) :]:
            places.append(Place(*_anywhere(radius, rng), radius))
        if _sound(scene, places):
            return places


def _radius(thing: Thing, count: int, rng: np.random.Generator) -> float:
    if thing.size == "small":
        return float(rng.uniform(0.075, 0.125))
    largest = {1: 0.42, 2: 0.29, 3: 0.24}[count]
    return float(rng.uniform(0.19 if thing.size == "large" else 0.09, largest))


def _related(scene: Scene, radii: list[float], rng: np.random.Generator) -> list[Place]:
    """Places of the first things, if the scene's side or relation determines them."""
    if scene.side is not None:
        across, along = rng.uniform(0.12, 0.34), rng.uniform(0.2, 0.8)
        x, y = {
            "left": (across, along),
            "right": (1 - across, along),
            "top": (along, across),
            "bottom": (along, 1 - across),
        }[scene.side]
        return [Place(x, y, radii[0])]
    if scene.relation == "inside":
        outer = max(radii[1], float(rng.uniform(0.2, 0.36)))
        inner = min(radii[0], outer * float(rng.uniform(0.3, 0.48)))
        x, y = _anywhere(outer, rng)
        slip = outer * 0.12
        dx, dy = rng.uniform(-slip, slip, 2)
        return [Place(x + dx, y + dy, inner), Place(x, y, outer)]
    if scene.relation == "in front of":
        x, y = _anywhere(radii[1], rng)
        turn, reach = rng.uniform(0, 2 * math.pi), rng.uniform(0.4, 0.8) * (radii[0] + radii[1])
        first = Place(x + reach * math.cos(turn), y + reach * math.sin(turn), radii[0])
        return [first, Place(x, y, radii[1])]
    return []


def _anywhere(radius: float, rng: np.random.Generator) -> tuple[float, float]:
    x, y = rng.uniform(radius * 0.95, 1 - radius * 0.95, 2)
    return float(x), float(y)


def _sound(scene: Scene, places: list[Place]) -> bool:
    """Whether all things are inside the image, disjoint unless related, and related as required."""
    if any(not 0.9 * p.radius <= c <= 1 - 0.9 * p.radius for p in places for c in (p.x, p.y)):
        return False
    bound = 2 if scene.relation in ("inside", "in front of") else 0
    for i, a in enumerate(places):
        for b in places[max(bound, i + 1) :]:
            if math.hypot(a.x - b.x, a.y - b.y) < 0.95 * (a.radius + b.radius):
                return False
    if scene.relation is None or bound:
        return True
    dx, dy = places[0].x - places[1].x, places[0].y - places[1].y
    if scene.relation in ("above", "below"):
        dx, dy = dy, dx
    sign = -1 if scene.relation in ("left of", "above") else 1
    return sign * dx > 0.15 and abs(dx) > 1.2 * abs(dy)


def signed_distance(
    shape: str, x: Floats, y: Floats, place: Place, rng: np.random.Generator
) -> Floats:
    """Signed distance to a shape's outline, negative inside, in fractions of the image's side.

    Args:
        shape: name of the shape, one of `SHAPES`.
        x: horizontal coordinate of each pixel, (size, size).
        y: vertical coordinate of each pixel, (size, size).
        place: centre and radius of the shape.
        rng: random generator of rotation and proportions.
    """
    r = place.radius
    u, v = x - place.x, y - place.y
    if shape == "circle":
        return np.hypot(u, v) - r
    if shape == "ring":
        thickness = r * rng.uniform(0.14, 0.24)
        return np.abs(np.hypot(u, v) - (r - thickness)) - thickness
    tilt = rng.uniform(-0.35, 0.35) if rng.random() < 0.6 else 0.0
    if shape in ("star", "triangle") and rng.random() < 0.1:
        tilt += math.pi
    u, v = u * math.cos(tilt) + v * math.sin(tilt), -u * math.sin(tilt) + v * math.cos(tilt)
    if shape == "square":
        half = r * rng.uniform(0.78, 0.95)
        return np.maximum(np.abs(u), np.abs(v)) - half
    if shape == "cross":
        arm = r * rng.uniform(0.22, 0.36)
        upright = np.maximum(np.abs(u) - arm, np.abs(v) - r)
        level = np.maximum(np.abs(u) - r, np.abs(v) - arm)
        return np.minimum(upright, level)
    if shape == "triangle":
        # Three half-planes, apex up; two of them are mirror images, hence the abs.
        wide = rng.uniform(0.85, 1.0)
        side = (1.5 * np.abs(u) - 0.866 * wide * (v + r)) / math.hypot(1.5, 0.866 * wide)
        return np.maximum(side, v - 0.5 * r)
    # A star: distance to the edge of one tenth of it, by symmetry.
    inner = r * rng.uniform(0.38, 0.5)
    angle = np.arctan2(u, -v)
    wedge = np.abs((angle + math.pi / 5) % (2 * math.pi / 5) - math.pi / 5)
    radius = np.hypot(u, v)
    px, py = radius * np.cos(wedge), radius * np.sin(wedge)
    qx, qy = inner * math.cos(math.pi / 5), inner * math.sin(math.pi / 5)
    ex, ey = qx - r, qy
    return (ey * (px - r) - ex * py) / math.hypot(ex, ey)


def _colour(thing: Thing, rng: np.random.Generator) -> Floats:
    anchors = np.array(PALETTE[thing.colour], dtype=np.float32)
    i, j = rng.integers(len(anchors), size=2)
    mix = np.float32(rng.random())
    jitter = rng.normal(0, 0.02, 3).astype(np.float32)
    return np.clip(anchors[i] * mix + anchors[j] * (1 - mix) + jitter, 0, 1)


def shade(colour: Floats, x: Floats, y: Floats, place: Place, rng: np.random.Generator) -> Floats:
    """Colour of a thing: flat, (3,), or a gradient across it, (size, size, 3)."""
    if rng.random() < 0.5:
        return colour
    turn, strength = rng.uniform(0, 2 * math.pi), rng.uniform(0, 0.18)
    along = ((x - place.x) * math.cos(turn) + (y - place.y) * math.sin(turn)) / place.radius
    return colour * (1 + strength * np.clip(along, -1, 1).astype(np.float32))[..., None]


def paint(image: Floats, distance: Floats, colour: Floats, softness: np.float32) -> Floats:
    """Paint a shape over an image.

    Args:
        image: RGB image, FP32 (size, size, 3).
        distance: signed distance to the shape's outline, (size, size).
        colour: RGB of the shape, (3,) or (size, size, 3).
        softness: half the width of the antialiased edge, as a fraction of the image's side.
    """
    cover = np.clip(0.5 - distance / (2 * softness), 0, 1)[..., None].astype(np.float32)
    return image * (1 - cover) + colour * cover


def background(rng: np.random.Generator, x: Floats, y: Floats) -> Floats:
    """A background: flat, gradient, stripes, checks, blobs or noise, FP32 (size, size, 3)."""
    first, second = _muted(rng), _muted(rng)
    kind = rng.choice(6, p=[0.4, 0.2, 0.1, 0.1, 0.1, 0.1])
    turn = rng.uniform(0, 2 * math.pi)
    along = x * math.cos(turn) + y * math.sin(turn)
    amount: NDArray[Any] = np.zeros_like(x)
    if kind == 1:
        amount = (along - along.min()) / (along.max() - along.min())
    elif kind == 2:
        amount = 0.5 + 0.5 * np.sin(along * rng.uniform(10, 50))
    elif kind == 3:
        cells = rng.integers(3, 9)
        amount = ((np.floor(x * cells) + np.floor(y * cells)) % 2).astype(np.float32)
    elif kind == 4:
        for _ in range(4):
            cx, cy, width = rng.random(), rng.random(), rng.uniform(0.1, 0.3)
            amount += np.exp(-((x - cx) ** 2 + (y - cy) ** 2) / (2 * width**2))
        amount = np.clip(amount, 0, 1)
    elif kind == 5:
        coarse = rng.random((8, 8)).astype(np.float32)
        amount = np.kron(coarse, np.ones((len(x) // 8, len(x) // 8), np.float32))
    if kind > 1:
        second = (first + (second - first) * np.float32(rng.uniform(0.2, 0.7))).astype(np.float32)
    return (first + (second - first) * amount[..., None]).astype(np.float32)


def _muted(rng: np.random.Generator) -> Floats:
    """Sample a background colour: a grey, or a pale or dark tint."""
    grey = rng.uniform(0, 1) if rng.random() < 0.7 else float(rng.choice([0.0, 1.0, 0.5]))
    tint = rng.normal(0, 1, 3)
    strength = rng.uniform(0, 0.2) if rng.random() < 0.7 else 0.0
    return np.clip(grey + strength * tint / np.abs(tint).max(), 0, 1).astype(np.float32)
