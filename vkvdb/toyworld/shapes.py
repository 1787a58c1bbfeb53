"""Geometry of the toy world's categories.

Every category is a function from four proportions (integers 0..1000, drawn once per object) to a `Shape`: coloured
polygons, each belonging to a named part, and named keypoints. The canvas of a shape is the square [-1000, 1000]^2
with y pointing down, and shapes with a front look to the right.

All arithmetic is in integers, with cosines from a table of rounded values: the drawings must be the same bytes on
every machine, and no two maths libraries promise the same last bit of a cosine.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

Point = tuple[int, int]
Polygon = tuple[Point, ...]

UNIT = 1000
FIXED_ONE = 1 << 14
_COSINES = tuple(round(math.cos(math.radians(degrees)) * FIXED_ONE) for degrees in range(360))


class Piece(NamedTuple):
    """One polygon of a shape: the part that it belongs to and how it is shaded (see `world.SHADES`)."""

    part: str
    polygon: Polygon
    shade: str


class Shape(NamedTuple):
    """The pieces of one object in drawing order, and its named keypoints."""

    pieces: tuple[Piece, ...]
    keypoints: dict[str, Point]


def cosine(degrees: int) -> int:
    """Cosine of a whole number of degrees, times `FIXED_ONE`."""
    return _COSINES[degrees % 360]


def sine(degrees: int) -> int:
    """Sine of a whole number of degrees, times `FIXED_ONE`."""
    return _COSINES[(degrees - 90) % 360]


def rotate(point: Point, degrees: int) -> Point:
    """`point` turned about the origin, clockwise on the screen (y points down)."""
    x, y = point
    along, across = cosine(degrees), sine(degrees)
    return (x * along - y * across) // FIXED_ONE, (x * across + y * along) // FIXED_ONE


def ellipse(x: int, y: int, width: int, height: int, corners: int = 20) -> Polygon:
    """An ellipse of half axes `width` and `height` about (x, y), as a polygon."""
    step = 360 // corners
    return tuple(
        (x + width * cosine(degrees) // FIXED_ONE, y + height * sine(degrees) // FIXED_ONE)
        for degrees in range(0, step * corners, step)
    )


def ring(x: int, y: int, width: int, height: int) -> Polygon:
    """An elliptical ring, as one polygon that runs round its outside and back round its inside."""
    outside, inside = ellipse(x, y, width, height, 18), ellipse(x, y, width * 6 // 10, height * 6 // 10, 18)
    return (*outside, outside[0], inside[0], *reversed(inside))


def limb(x: int, y: int, length: int, width: int, degrees: int) -> Polygon:
    """A bar that leaves (x, y) downwards, turned by `degrees` about that joint."""
    half = width // 2
    corners = ((-half, -half // 2), (half, -half // 2), (half, length), (-half, length))
    return tuple((x + turned[0], y + turned[1]) for turned in (rotate(corner, degrees) for corner in corners))


def limb_end(x: int, y: int, length: int, degrees: int) -> Point:
    """Where a limb's middle line ends, a little inside so that the point lies on the limb."""
    across, along = rotate((0, length * 9 // 10), degrees)
    return x + across, y + along


def fish(size: tuple[int, ...]) -> Shape:
    """Fish: a tail that opens and bends, a fin on the back, a darker head."""
    height, open_, bend = 330 + size[0] // 5, 300 + size[1] // 4, size[2] * 3 // 10 - 150
    fin = 260 + size[3] // 5
    pieces = (
        Piece("tail", ((-430, 0), (-980, bend - open_), (-800, bend), (-980, bend + open_)), "dark"),
        Piece("fin", ((-300, -height // 2), (0, -height - fin), (300, -height // 2)), "light"),
        Piece("body", ellipse(100, 0, 700, height), "main"),
        Piece("head", ((430, -height * 8 // 10), (800, 0), (430, height * 8 // 10), (330, 0)), "dark"),
        Piece("head", ellipse(530, -height // 4, 90, 90, 10), "ink"),
    )
    keypoints = {
        "mouth": (740, 0),
        "eye": (530, -height // 4),
        "fin": (0, -height - fin // 3),
        "belly": (0, height * 8 // 10),
        "tail": (-800, bend),
    }
    return Shape(pieces, keypoints)


def bird(size: tuple[int, ...]) -> Shape:
    """Bird: a wing that is raised more or less, legs, a beak."""
    height, raised, droop = 300 + size[0] // 8, 15 + size[1] * 65 // 1000, size[2] * 4 // 10 - 150
    neck = size[3] // 6
    wing = [(-220, 60), (300, 60), (-60, -760), (-420, -640)]
    turned = [rotate((x - 40, y - 60), raised - 45) for x, y in wing]
    wing = [(x + 40, y + 60) for x, y in turned]
    tip = ((wing[2][0] + wing[3][0]) // 2 * 8 // 10, (wing[2][1] + wing[3][1]) // 2 * 8 // 10)
    pieces = (
        Piece("tail", ((-380, 60), (-1000, droop - 160), (-980, droop + 160), (-380, 260)), "dark"),
        Piece("leg", limb(-60, 360, 540, 90, 8), "ink"),
        Piece("leg", limb(140, 360, 540, 90, -8), "ink"),
        Piece("body", ellipse(0, 140, 560, height), "main"),
        Piece("head", ellipse(500, -260 - neck, 280, 270), "main"),
        Piece("beak", ((700, -390 - neck), (1000, -220 - neck), (680, -140 - neck)), "ink"),
        Piece("head", ellipse(560, -320 - neck, 70, 70, 10), "ink"),
        Piece("wing", tuple(wing), "light"),
    )
    keypoints = {
        "beak": (820, -250 - neck),
        "eye": (560, -320 - neck),
        "wing": tip,
        "tail": (-860, droop),
        "foot": limb_end(140, 360, 540, -8),
        "belly": (120, 140 + height * 7 // 10),
    }
    return Shape(pieces, keypoints)


def _quadruped(size: tuple[int, ...], leg: int, neck: int, tail_degrees: int) -> Shape:
    """A four-legged animal; `leg` and `neck` are lengths, `tail_degrees` turns the tail from hanging down."""
    stride, nod, back = size[0] * 40 // 1000 - 10, size[1] // 5 - 100, 240 + size[2] // 12
    tail = tail_degrees + size[3] * 40 // 1000
    head_x, head_y = 560, -200 - neck + nod
    pieces = (
        Piece("tail", limb(-560, -60, 520, 130, tail), "dark"),
        Piece("leg", limb(-480, 160, leg, 150, stride), "dark"),
        Piece("leg", limb(420, 160, leg, 150, -stride), "dark"),
        Piece("leg", limb(-360, 160, leg, 150, -stride), "main"),
        Piece("leg", limb(320, 160, leg, 150, stride), "main"),
        Piece("neck", ((200, -60), (420, head_y), (740, head_y), (600, 140)), "light"),
        Piece("body", ellipse(-30, 60, 620, back), "main"),
        Piece("head", ellipse(head_x, head_y, 270, 210), "main"),
        Piece("head", ((640, head_y - 90), (960, head_y + 40), (940, head_y + 190), (600, head_y + 180)), "main"),
        Piece("head", ellipse(640, head_y - 50, 60, 60, 10), "ink"),
        Piece("ear", ((330, head_y - 100), (390, head_y - 430), (560, head_y - 140)), "dark"),
    )
    keypoints = {
        "nose": (900, head_y + 110),
        "ear": (420, head_y - 240),
        "tail": limb_end(-560, -60, 520, tail),
        "frontfoot": limb_end(320, 160, leg, stride),
        "backfoot": limb_end(-360, 160, leg, -stride),
        "back": (-120, 60 - back * 8 // 10),
    }
    return Shape(pieces, keypoints)


def dog(size: tuple[int, ...]) -> Shape:
    """Dog: short neck and legs, tail up."""
    return _quadruped(size, leg=560, neck=130, tail_degrees=110)


def horse(size: tuple[int, ...]) -> Shape:
    """Horse: long neck and legs, tail down."""
    return _quadruped(size, leg=800, neck=420, tail_degrees=15)


def car(size: tuple[int, ...]) -> Shape:
    """Car: a low body, a cabin with a window, two wheels."""
    roof, wheel, shift = 380 + size[0] // 5, 210 + size[1] // 10, size[2] // 5 - 100
    bonnet = size[3] // 8
    pieces = (
        Piece("roof", ((-680, 0), (-480, -roof), (240 + shift, -roof), (560, 0)), "dark"),
        Piece("window", ((0, -60), (0, 80 - roof), (200 + shift, 80 - roof), (400, -60)), "glass"),
        Piece("body", ((-980, -40), (700, -40), (980, 60 + bonnet), (980, 420), (-980, 420)), "main"),
        Piece("wheel", ellipse(-560, 430, wheel, wheel, 18), "ink"),
        Piece("wheel", ellipse(560, 430, wheel, wheel, 18), "ink"),
        Piece("wheel", ellipse(-560, 430, wheel // 2, wheel // 2, 10), "light"),
        Piece("wheel", ellipse(560, 430, wheel // 2, wheel // 2, 10), "light"),
    )
    keypoints = {
        "frontwheel": (560, 430),
        "backwheel": (-560, 430),
        "roof": (-160, 60 - roof),
        "bumper": (900, 240),
        "trunk": (-900, 160),
    }
    return Shape(pieces, keypoints)


def truck(size: tuple[int, ...]) -> Shape:
    """Truck: a tall box behind a cab, two wheels."""
    box, wheel, cab = 560 + size[0] // 5, 190 + size[1] // 10, 380 + size[2] // 6
    split = 200 + size[3] // 6
    pieces = (
        Piece("box", ((-980, -box), (split, -box), (split, 400), (-980, 400)), "main"),
        Piece("body", ((split, -cab), (780, -cab), (980, 0), (980, 400), (split, 400)), "dark"),
        Piece("window", ((split + 160, 80 - cab), (740, 80 - cab), (880, -20), (split + 160, -20)), "glass"),
        Piece("wheel", ellipse(-580, 430, wheel, wheel, 18), "ink"),
        Piece("wheel", ellipse(600, 430, wheel, wheel, 18), "ink"),
        Piece("wheel", ellipse(-580, 430, wheel // 2, wheel // 2, 10), "light"),
        Piece("wheel", ellipse(600, 430, wheel // 2, wheel // 2, 10), "light"),
    )
    keypoints = {
        "frontwheel": (600, 430),
        "backwheel": (-580, 430),
        "roof": ((split + 780) // 2, 50 - cab),
        "bumper": (900, 240),
        "trunk": (-880, 60 - box),
    }
    return Shape(pieces, keypoints)


def rocket(size: tuple[int, ...]) -> Shape:
    """Rocket: a pointed nose, a round window, fins and a flame."""
    width, spread, flame = 260 + size[0] // 8, 250 + size[1] // 5, 160 + size[2] // 6
    window = size[3] // 5 - 200
    pieces = (
        Piece("flame", ((-width * 7 // 10, 600), (0, 720 + flame), (width * 7 // 10, 600)), "light"),
        Piece("fin", ((-width, 200), (-width - spread, 760), (-width // 2, 640)), "dark"),
        Piece("fin", ((width, 200), (width + spread, 760), (width // 2, 640)), "dark"),
        Piece("body", ((-width, -360), (width, -360), (width, 640), (-width, 640)), "main"),
        Piece("nose", ((-width, -360), (-width // 2, -760), (0, -1000), (width // 2, -760), (width, -360)), "dark"),
        Piece("window", ellipse(0, window, 190, 190, 14), "glass"),
    )
    keypoints = {
        "nose": (0, -850),
        "window": (0, window),
        "flame": (0, 700),
        "leftfin": (-width - spread // 2, 600),
        "rightfin": (width + spread // 2, 600),
    }
    return Shape(pieces, keypoints)


def house(size: tuple[int, ...]) -> Shape:
    """House: a gable, a chimney, a door that moves along the wall, a window."""
    gable, door, chimney = 480 + size[0] // 4, size[1] * 3 // 10 - 600, 420 + size[2] // 5
    width = 720 + size[3] // 8
    pieces = (
        Piece("chimney", ((360, -chimney - 440), (620, -chimney - 440), (620, -100), (360, -100)), "dark"),
        Piece("wall", ((-width, -180), (width, -180), (width, 860), (-width, 860)), "main"),
        Piece("roof", ((-width - 200, -160), (0, -200 - gable), (width + 200, -160)), "dark"),
        Piece("door", ((door, 280), (door + 360, 280), (door + 360, 860), (door, 860)), "ink"),
        Piece("window", ((260, 40), (600, 40), (600, 380), (260, 380)), "glass"),
    )
    keypoints = {
        "roof": (0, -160 - gable * 6 // 10),
        "door": (door + 180, 560),
        "window": (430, 210),
        "chimney": (490, -chimney - 300),
        "corner": (80 - width, 780),
    }
    return Shape(pieces, keypoints)


def flower(size: tuple[int, ...]) -> Shape:
    """Flower: five petals, a bent stem, one leaf."""
    petal, leaf, bend = 260 + size[0] // 10, 420 + size[1] // 4, size[2] * 24 // 1000 - 12
    leaf_y = 420 + size[3] // 5
    around = [rotate((0, -380), turn) for turn in range(0, 360, 72)]
    petals = tuple(Piece("petal", ellipse(x, y - 400, petal, petal, 14), "main") for x, y in around)
    blade = ((0, leaf_y + 250), (leaf * 6 // 10, leaf_y - 180), (leaf + 200, leaf_y), (leaf, leaf_y + 200))
    pieces = (
        Piece("stem", limb(0, -300, 1280, 120, bend), "leaf"),
        Piece("leaf", blade, "leaf"),
        *petals,
        Piece("center", ellipse(0, -400, 230, 230, 16), "light"),
    )
    keypoints = {
        "center": (0, -400),
        "petal": (0, -820),
        "stem": limb_end(0, -300, 1240, bend),
        "leaf": (leaf * 8 // 10 + 40, leaf_y + 20),
    }
    return Shape(pieces, keypoints)


def teapot(size: tuple[int, ...]) -> Shape:
    """Teapot: a spout to the right, a handle to the left, a lid with a knob."""
    height, spout, lid = 480 + size[0] // 6, size[1] // 3 - 160, 180 + size[2] // 6
    handle = 330 + size[3] // 6
    brim = 260 - height
    cover = ((-380, brim), (0, brim - 200 - lid), (380, brim), (300, brim + 60), (-300, brim + 60))
    pieces = (
        Piece("handle", ring(-580, 100, 400, handle), "dark"),
        Piece("spout", ((420, 320), (1000, spout - 420), (860, spout - 520), (420, -120)), "dark"),
        Piece("body", ellipse(0, 200, 620, height), "main"),
        Piece("lid", cover, "light"),
        Piece("lid", ellipse(0, brim - 220 - lid, 110, 110, 12), "ink"),
    )
    keypoints = {
        "spout": (870, spout - 400),
        "handle": (-880, 100),
        "lid": (0, brim - 60 - lid // 2),
        "base": (0, 160 + height * 8 // 10),
    }
    return Shape(pieces, keypoints)


BUILDERS: dict[str, Callable[[tuple[int, ...]], Shape]] = {
    "fish": fish,
    "bird": bird,
    "dog": dog,
    "horse": horse,
    "car": car,
    "truck": truck,
    "rocket": rocket,
    "house": house,
    "flower": flower,
    "teapot": teapot,
}
CATEGORIES = tuple(BUILDERS)
FACING_CATEGORIES = ("fish", "bird", "dog", "horse", "car", "truck", "teapot")
"""Categories with a front: they are mirrored half of the time, and one may ask which way they face."""

MAX_DEGREES = {
    "fish": 35,
    "bird": 25,
    "dog": 20,
    "horse": 20,
    "car": 20,
    "truck": 20,
    "rocket": 50,
    "house": 15,
    "flower": 30,
    "teapot": 25,
}
"""By how many degrees an object may be turned either way."""

HELD_OUT_CATEGORIES = ("horse", "truck", "flower")
"""Never asked about by place (locate, at, part, row) in training; correspondence is reported on them apart."""
HELD_OUT_PARTS = ("wing", "chimney")
"""Parts, and the keypoints of the same name, that no training question names."""

_MIDDLE = {name: build((500, 500, 500, 500)) for name, build in BUILDERS.items()}
PARTS: dict[str, tuple[str, ...]] = {
    name: tuple(dict.fromkeys(piece.part for piece in shape.pieces)) for name, shape in _MIDDLE.items()
}
KEYPOINTS: dict[str, tuple[str, ...]] = {name: tuple(shape.keypoints) for name, shape in _MIDDLE.items()}
ALL_PARTS = tuple(sorted({part for parts in PARTS.values() for part in parts}))
ALL_KEYPOINTS = tuple(sorted({point for points in KEYPOINTS.values() for point in points}))
