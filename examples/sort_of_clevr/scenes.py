"""Sort-of-CLEVR's scenes: six objects of six colours, each a circle or a square, drawn on 75x75 pixels."""

from __future__ import annotations

import random
from dataclasses import dataclass

from PIL import Image, ImageDraw

SIZE = 75  # pixels a side of an image
MIDDLE = SIZE // 2  # the pixel in the middle of a side
REACH = 5  # pixels from the middle of an object to its edge
APART = 15  # pixels between the middles of two objects, at least: squares do not touch, corner to corner either
BACKGROUND = (245, 245, 245)
COLOURS = {
    "red": (220, 40, 40),
    "green": (40, 160, 60),
    "blue": (40, 80, 220),
    "orange": (245, 150, 30),
    "grey": (128, 128, 128),
    "yellow": (240, 220, 40),
}
SHAPES = ("circle", "square")


@dataclass(frozen=True)
class Object:
    """One object; x (to the right) and y (downwards) are the pixels of its middle."""

    colour: str
    shape: str
    x: int
    y: int

    def distance(self, other: Object) -> int:
        """The square of the distance of the middles, in pixels: a whole number, so that equal is equal."""
        return (self.x - other.x) ** 2 + (self.y - other.y) ** 2


def sample_scene(rng: random.Random) -> list[Object]:
    """One object of each colour at places drawn anew until they are far enough from those before.

    Five discs of radius APART never cover the square that middles can be in, so there always is such a place."""
    scene: list[Object] = []
    for colour in COLOURS:
        shape = rng.choice(SHAPES)
        while True:
            placed = Object(colour, shape, *(rng.randrange(REACH, SIZE - REACH) for _ in "xy"))
            if all(placed.distance(other) >= APART**2 for other in scene):
                break
        scene.append(placed)
    return scene


def draw_scene(scene: list[Object]) -> Image.Image:
    """The scene as an RGB image of SIZE x SIZE pixels."""
    image = Image.new("RGB", (SIZE, SIZE), BACKGROUND)
    canvas = ImageDraw.Draw(image)
    for item in scene:
        box = (item.x - REACH, item.y - REACH, item.x + REACH, item.y + REACH)
        draw = canvas.ellipse if item.shape == "circle" else canvas.rectangle
        draw(box, fill=COLOURS[item.colour])
    return image
