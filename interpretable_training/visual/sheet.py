"""Contact sheets: rows of pictures with a name for each row and a caption for each column."""

import functools
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

GAP = 3  # pixels between pictures
INK, PAPER = (40, 40, 46), (255, 255, 255)
LONGEST = 200  # characters of a text that are drawn
LINES = 3  # of a caption


def draw_sheet(
    rows: Mapping[str, Tensor], captions: Sequence[str] | None = None, side: int = 112, blocks: int = 1
) -> Image.Image:
    """Draw one row per name; captions take up to three lines, and texts that are too long are clipped.

    >>> draw_sheet({"gradcam": (saliency * 255).byte()[..., None].expand(-1, -1, -1, 3)}, side=64).size
    (319, 70)

    Args:
        rows: Name of the row -> pictures, uint8 (N, H, W, 3); equally many in each row.
        captions: Text above each column.
        side: Longer side of a picture, in pixels.
        blocks: Number of blocks of rows that stand side by side.
    """
    counts = {name: len(pictures) for name, pictures in rows.items()}
    if captions is not None:
        counts["captions"] = len(captions)
    if len(set(counts.values())) != 1 or not rows:
        raise ValueError(f"expected rows and captions of one length, got {counts}; give each row all pictures.")
    font = type_face(max(9, side // 9))
    names = [readable(name, font) for name in rows]
    margin = round(min(2 * side, max(map(font.getlength, names)) + 3 * GAP))
    line = sum(font.getmetrics()) + GAP
    texts = [wrapped(readable(caption, font), font, side) for caption in captions or ()]
    tops = line * max(map(len, texts), default=0)
    across, height = side + GAP, round(max(extent(pictures, side)[1] for pictures in rows.values())) + GAP
    lines = -(-len(rows) // blocks)
    width = margin + len(next(iter(rows.values()))) * across
    sheet = Image.new("RGB", (blocks * width, tops + lines * height + GAP), PAPER)
    draw = ImageDraw.Draw(sheet)
    for index, (name, pictures) in enumerate(zip(names, rows.values())):
        left, top = index // lines * width, index % lines * height + tops + GAP
        middle = left + margin - 2 * GAP, top + (height - GAP) / 2
        draw.text(middle, clip(name, font, margin - 3 * GAP), INK, font, anchor="rm")
        for column, picture in enumerate(fitted(pictures, side)):
            x, y = left + margin + column * across, top
            sheet.paste(picture, (x + (side - picture.width) // 2, y + (height - GAP - picture.height) // 2))
            for number, text in enumerate(texts[column] if texts and top == tops + GAP else ()):
                draw.text((x + side / 2, GAP + number * line), text, INK, font, anchor="ma")
    return sheet


def extent(pictures: Tensor, side: int) -> tuple[int, int]:
    """Return width and height of pictures (N, H, W, 3) when their longer side becomes `side`."""
    height, width = pictures.shape[1:3]
    share = side / max(height, width)
    return max(1, round(width * share)), max(1, round(height * share))


def fitted(pictures: Tensor, side: int) -> list[Image.Image]:
    """Resize pictures for the sheet; the pixels of much enlarged ones stay visible."""
    size = extent(pictures, side)
    how = Image.Resampling.NEAREST if size[0] >= 3 * pictures.shape[2] else Image.Resampling.LANCZOS
    images = [Image.fromarray(picture.numpy()) for picture in pictures.cpu().contiguous()]
    return [image if image.size == size else image.resize(size, how) for image in images]


@functools.cache
def type_face(size: int) -> ImageFont.FreeTypeFont:
    """Return matplotlib's font for Latin, Greek, Cyrillic and signs; the font of Pillow has only ASCII."""
    package = find_spec("matplotlib")  # not imported, which takes a moment
    assert package is not None
    assert package.origin is not None
    path = Path(package.origin).parent / "mpl-data" / "fonts" / "ttf" / "DejaVuSans.ttf"
    return ImageFont.truetype(path, size, layout_engine=ImageFont.Layout.BASIC)


@functools.lru_cache(4096)
def drawable(character: str, font: ImageFont.FreeTypeFont) -> bool:
    """Whether the font has a glyph for a character."""
    absent = font.getmask("\uffff")  # the glyph of characters that it lacks
    mask = font.getmask(character)
    return character.isprintable() and (mask.size, bytes(mask)) != (absent.size, bytes(absent))


def readable(text: str, font: ImageFont.FreeTypeFont) -> str:
    """Return the text on one line, with a question mark for each character that the font cannot show."""
    line = " ".join(text[:LONGEST].split())
    return "".join(character if drawable(character, font) else "?" for character in line)


def wrapped(text: str, font: ImageFont.FreeTypeFont, width: float) -> list[str]:
    """Return the words of a text in lines of a width, as many as `LINES` at most; each line is clipped."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width or not lines[-1] or len(lines) == LINES:
            lines[-1] = longer
        else:
            lines.append(word)
    return [clip(line, font, width) for line in lines]


def clip(text: str, font: ImageFont.FreeTypeFont, width: float) -> str:
    """Return the text, or as much of it as fits and an ellipsis."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text.rstrip() + "…"
