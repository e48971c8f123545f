"""What scenes consist of: shapes, words and a background, in fractions of the image's side; and their geometry."""

import math
from dataclasses import dataclass

Box = tuple[float, float, float, float]
Point = tuple[float, float]
Color = tuple[int, int, int]

KINDS = ("circle", "square", "triangle", "star", "cross")
COLORS: dict[str, Color] = {
    "red": (220, 40, 40),
    "green": (40, 170, 60),
    "blue": (50, 80, 220),
    "yellow": (235, 215, 40),
    "purple": (150, 50, 180),
    "black": (25, 25, 25),
}
WORDS = tuple(
    "OPEN EXIT SALE STOP CAFE TAXI HOTEL BANK FOOD PARK PUSH PULL LEFT RIGHT NORTH SOUTH COFFEE BREAD "
    "MILK MUSIC RADIO TRAIN BIKE STREET MARKET PIZZA JUICE CHAIR CLOCK RIVER OCEAN STORM WINTER BRIDGE "
    "GARDEN CASTLE MUSEUM HELLO WORLD TRITON".split()
)

# A model cannot learn an answer that depends on a threshold, so scenes near one are drawn again.
LARGE_FROM, SMALL_BELOW = 0.37, 0.32
THIRDS = (0.36, 0.64)
THIRD_MARGIN = 0.025


@dataclass(frozen=True)
class Shape:
    """One colored shape; `box` and `outline` are fractions of the image's side."""

    kind: str
    color: str
    box: Box
    fill: Color
    shade: float

    @property
    def outline(self) -> tuple[Point, ...]:
        left, top, right, bottom = self.box
        unit = UNIT_OUTLINES[self.kind]
        return tuple((left + x * (right - left), top + y * (bottom - top)) for x, y in unit)

    @property
    def size_word(self) -> str:
        return "large" if side(self.box) >= (LARGE_FROM + SMALL_BELOW) / 2 else "small"

    @property
    def short(self) -> str:
        return f"{self.color} {self.kind}"

    @property
    def long(self) -> str:
        return f"{self.size_word} {self.color} {self.kind}"


@dataclass(frozen=True)
class Word:
    """One printed word; `font_size` is a fraction of the image's side, like `box`."""

    text: str
    box: Box
    font_size: float
    ink: Color


@dataclass(frozen=True)
class Background:
    pattern: str
    first: Color
    second: Color
    seed: int


def unit_outlines() -> dict[str, tuple[Point, ...]]:
    """Return each kind's outline in a unit square, clockwise from the top. A circle is an octagon of the same area."""
    arm = 0.325
    octagon = 0.5 * math.sqrt(math.pi / (8 * math.sin(math.pi / 8) * math.cos(math.pi / 8)))
    return {
        "circle": ring([octagon] * 8, math.pi / 8),
        "square": ((0.0, 0.0), (1.0, 0.0), (1.0, 1.0), (0.0, 1.0)),
        "triangle": ((0.5, 0.0), (1.0, 1.0), (0.0, 1.0)),
        "star": stretch(ring([0.5, 0.21] * 5, 0.0)),
        "cross": (
            (arm, 0.0), (1 - arm, 0.0), (1 - arm, arm), (1.0, arm), (1.0, 1 - arm), (1 - arm, 1 - arm),
            (1 - arm, 1.0), (arm, 1.0), (arm, 1 - arm), (0.0, 1 - arm), (0.0, arm), (arm, arm),
        ),
    }  # fmt: skip


def ring(radii: list[float], first_angle: float) -> tuple[Point, ...]:
    angles = [first_angle + 2 * math.pi * index / len(radii) for index in range(len(radii))]
    return tuple(
        (0.5 + radius * math.sin(angle), 0.5 - radius * math.cos(angle))
        for radius, angle in zip(radii, angles, strict=True)
    )


def stretch(points: tuple[Point, ...]) -> tuple[Point, ...]:
    """Scale an outline so that it touches all four sides of the unit square."""
    xs, ys = [x for x, _ in points], [y for _, y in points]
    width, height = max(xs) - min(xs), max(ys) - min(ys)
    return tuple(((x - min(xs)) / width, (y - min(ys)) / height) for x, y in points)


UNIT_OUTLINES = unit_outlines()


def side(box: Box) -> float:
    """Return the side of the square that has the box's area."""
    return math.sqrt((box[2] - box[0]) * (box[3] - box[1]))


def center(box: Box) -> Point:
    return (box[0] + box[2]) / 2, (box[1] + box[3]) / 2


def overlaps(one: Box, other: Box, margin: float = 0.015) -> bool:
    apart_x = one[2] + margin < other[0] or other[2] + margin < one[0]
    apart_y = one[3] + margin < other[1] or other[3] + margin < one[1]
    return not (apart_x or apart_y)


def third(position: float, names: tuple[str, str, str]) -> str:
    return names[0] if position < THIRDS[0] else names[2] if position > THIRDS[1] else names[1]


def place(box: Box) -> str:
    """Return the box's place in the image: "top left", ..., "center", ..., "bottom right"."""
    x, y = center(box)
    name = f"{third(y, ('top', 'middle', 'bottom'))} {third(x, ('left', 'center', 'right'))}"
    return name.replace("middle center", "center")


def near_threshold(box: Box) -> bool:
    if SMALL_BELOW < side(box) < LARGE_FROM:
        return True
    return any(abs(position - edge) < THIRD_MARGIN for position in center(box) for edge in THIRDS)
