"""Pictures with captions: drawn scenes, and the CSV file that says which caption belongs to which picture."""

from __future__ import annotations

import csv
import random
from pathlib import Path

from PIL import Image, ImageDraw

HEADER = ["image", "caption"]  # of the CSV file
SIZE = 96  # pixels a side; not what the network takes, so that the resizing has work to do
COLOURS = {
    "red": (214, 48, 49),
    "orange": (238, 138, 36),
    "yellow": (245, 214, 61),
    "green": (46, 160, 84),
    "blue": (42, 105, 214),
    "purple": (133, 70, 190),
    "white": (245, 245, 245),
    "black": (24, 24, 28),
}
SHAPES = ("circle", "square", "triangle", "cross")
SIZES = {"small": 10, "large": 20}  # pixels from the middle of a shape to its edge
PLACES = {"left": SIZE // 4, "right": 3 * SIZE // 4}  # pixels: the column of a shape's middle


class PictureError(Exception):
    """A picture, or a file of captions, that cannot be used; the message names the file."""


def draw_scene(rng: random.Random) -> tuple[Image.Image, str]:
    """A picture (RGB, SIZE x SIZE pixels) of two shapes side by side, and its caption."""
    background, *colours = rng.sample(sorted(COLOURS), 1 + len(PLACES))
    picture = Image.new("RGB", (SIZE, SIZE), COLOURS[background])
    canvas = ImageDraw.Draw(picture)
    said = []
    for (place, column), colour in zip(PLACES.items(), colours, strict=True):
        shape, size = rng.choice(SHAPES), rng.choice(sorted(SIZES))
        row = rng.randrange(SIZE // 4, 3 * SIZE // 4)
        _draw_shape(canvas, shape, column, row, SIZES[size], COLOURS[colour])
        said.append(f"a {size} {colour} {shape} on the {place}")
    return picture, f"{' and '.join(said)}, {background} background"


def _draw_shape(
    canvas: ImageDraw.ImageDraw, shape: str, x: int, y: int, reach: int, colour: tuple[int, int, int]
) -> None:
    """One shape around (x, y), `reach` pixels from its middle to its edge."""
    box = (x - reach, y - reach, x + reach, y + reach)
    if shape == "circle":
        canvas.ellipse(box, fill=colour)
    elif shape == "square":
        canvas.rectangle(box, fill=colour)
    elif shape == "triangle":
        canvas.polygon([(x, y - reach), (x - reach, y + reach), (x + reach, y + reach)], fill=colour)
    else:
        arm = reach // 3
        canvas.rectangle((x - reach, y - arm, x + reach, y + arm), fill=colour)
        canvas.rectangle((x - arm, y - reach, x + arm, y + reach), fill=colour)


def write_scenes(folder: Path, count: int, seed: int) -> Path:
    """Draws `count` scenes into `folder` as PNG files; returns the CSV file there with their names and captions."""
    rng = random.Random(seed)
    captions = folder / "captions.csv"
    with captions.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(HEADER)
        for index in range(count):
            picture, caption = draw_scene(rng)
            name = f"scene-{index:05d}.png"
            picture.save(folder / name)
            writer.writerow([name, caption])
    return captions


def read_captions(folder: Path, captions: Path) -> list[tuple[Path, str]]:
    """The picture files (names relative to `folder`) and captions that the CSV file `captions` lists.

    Raises PictureError where the file cannot be read, has another layout or no rows, or names a missing picture."""
    try:
        with captions.open(newline="", encoding="utf-8-sig") as file:  # -sig: spreadsheets put a mark first
            rows = csv.reader(file)
            header = next(rows, None)
            if header != HEADER:
                found = "an empty file" if header is None else f"the first line {','.join(header)!r}"
                raise PictureError(f"{captions}: the first line must be 'image,caption', found {found}")
            pairs = [_pair(row, folder, f"{captions}, line {rows.line_num}") for row in rows if row]
    except OSError as error:
        raise PictureError(f"{captions}: cannot read it: {error.strerror}") from error
    except (ValueError, csv.Error) as error:
        raise PictureError(f"{captions}: is not a CSV file in UTF-8: {error}") from error
    if not pairs:
        raise PictureError(f"{captions}: has no rows after its first line")
    return pairs


def _pair(row: list[str], folder: Path, where: str) -> tuple[Path, str]:
    if len(row) != len(HEADER):
        raise PictureError(f"{where}: {len(row)} columns instead of 2 (a caption with commas needs quotes around it)")
    name, caption = (field.strip() for field in row)
    if not name or not caption:
        raise PictureError(f"{where}: the {'caption' if name else 'image'} is empty")
    path = folder / name
    try:
        if not path.is_file():
            raise PictureError(f"{where}: there is no picture {path}")
    except OSError as error:  # a name that is too long, say
        raise PictureError(f"{where}: cannot look for the picture {path}: {error.strerror}") from error
    return path, caption
