"""Small data sets in their original layout."""

from pathlib import Path

import numpy as np
from PIL import Image

BOX = (8, 4, 20, 16)  # x1, y1, and x2, y2 just outside, of what is white in `picture`
SIZE = (40, 24)  # width and height of it
WNIDS = ["n01440764", "n02123045", "n15075141"]


def picture(path, box=BOX, size=SIZE, shade=0):
    """A file with a white box on a background that is nearly black."""
    pixels = np.full((size[1], size[0], 3), shade, dtype=np.uint8)
    x1, y1, x2, y2 = box
    pixels[y1:y2, x1:x2] = 255
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    # JPEG files would blur the edges; readers look at the content and not at the ending.
    Image.fromarray(pixels).save(path, format="PNG")


def broken(path):
    """A file that begins like a picture and ends too soon."""
    picture(path)
    Path(path).write_bytes(Path(path).read_bytes()[:60])


def noise(path, number, size=SIZE):
    """A file in which no two pixels are alike, nor two numbers."""
    pixels = np.random.default_rng(number).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def xml(path, things, size=SIZE):
    """An XML file as VOC and ImageNet have them; things are (name, corners as written, difficult)."""
    objects = "".join(
        f"<object><name>{name}</name><difficult>{int(difficult)}</difficult>"
        # VOC lists the parts of persons, with boxes of their own
        "<part><name>head</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>2</xmax><ymax>2</ymax></bndbox></part>"
        f"<bndbox><xmin>{x1}</xmin><ymin>{y1}</ymin><xmax>{x2}</xmax><ymax>{y2}</ymax></bndbox></object>"
        for name, (x1, y1, x2, y2), difficult in things
    )
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    width, height = size
    Path(path).write_text(
        f"<annotation><filename>{Path(path).stem}</filename><size><width>{width}</width><height>{height}</height>"
        f"<depth>3</depth></size>{objects}</annotation>"
    )


def folders(root, counts, classes=("bird", "cat", "dog")):
    """Class folders with so many pictures of noise each."""
    for c, (name, count) in enumerate(zip(classes, counts)):
        for i in range(count):
            noise(Path(root) / name / f"{i:03d}.png", 100 * c + i)
    return str(root)


def imagenet(root, train=2, val=2):
    """`train` and `val` with class folders."""
    for split, count in (("train", train), ("val", val)):
        for wnid in WNIDS:
            for i in range(count):
                picture(Path(root) / split / wnid / f"{wnid}_{i}.JPEG")
    return str(root)


def cub(root):
    """Two kinds with three photographs each, the first two of them for training."""
    folder = Path(root) / "CUB_200_2011"
    kinds = ["001.Black_footed_Albatross", "002.Laysan_Albatross"]
    files = [f"{kind}/{kind[4:]}_{i:04d}.jpg" for kind in kinds for i in range(3)]
    for i, file in enumerate(files):
        picture(folder / "images" / file, shade=10 * i)
    lines = {
        "classes.txt": [f"{i} {kind}" for i, kind in enumerate(kinds, 1)],
        "images.txt": [f"{i} {file}" for i, file in enumerate(files, 1)],
        "image_class_labels.txt": [f"{i} {1 + (i > 3)}" for i in range(1, 7)],
        "train_test_split.txt": [f"{i} {int(i % 3 != 0)}" for i in range(1, 7)],
        "bounding_boxes.txt": [f"{i} 8.0 4.0 12.0 12.0" for i in range(1, 7)],
    }
    for name, text in lines.items():
        (folder / name).write_text("\n".join(text) + "\n")
    return str(root)


def waterbirds(root, masks=True):
    """Two birds of each group for training, one for validation and one for testing; the last ones have no mask."""
    folder = Path(root) / "waterbird_complete95_forest2water2"
    kinds = ["001.Black_footed_Albatross", "004.Groove_billed_Ani"]
    lines = ["img_id,img_filename,y,split,place,place_filename"]
    for number in range(16):
        y, place, copy = number % 2, number // 2 % 2, number // 4
        file = f"{kinds[1 - y]}/{kinds[1 - y][4:]}_{number:04d}.jpg"
        picture(folder / file, shade=10 * number)
        lines.append(f"{number},{file},{y},{max(0, copy - 1)},{place},/b/bamboo_forest/{number:08d}.jpg")
        if masks and copy < 3:
            agreed = np.zeros((SIZE[1], SIZE[0]), dtype=np.uint8)
            agreed[BOX[1] : BOX[3], BOX[0] : BOX[2]] = 204  # four of five annotators
            agreed[: BOX[1]] = 102  # two of them
            path = (Path(root) / "segmentations" / file).with_suffix(".png")
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(agreed).save(path)
    (folder / "metadata.csv").write_text("\n".join(lines) + "\n")
    return str(root)


def voc(root):
    """Three photographs for training and two for validation, one of each with a mask."""
    folder = Path(root) / "VOCdevkit" / "VOC2012"
    things = {
        "2007_000027": [("person", (9, 5, 20, 16), False), ("cat", (1, 1, 40, 24), False)],
        "2007_000032": [("dog", (9, 5, 20, 16), False), ("dog", (1, 1, 4, 4), True), ("car", (30, 2, 39, 20), True)],
        "2008_000001": [("aeroplane", (9, 5, 20, 16), False)],
        "2007_000033": [("tvmonitor", (9, 5, 20, 16), False), ("person", (30, 2, 39, 20), False)],
        "2008_000002": [],
    }
    sets = {
        "Main/train": ["2007_000027", "2007_000032", "2008_000001"],
        "Main/val": ["2007_000033", "2008_000002"],
        "Segmentation/train": ["2007_000027"],
        "Segmentation/val": ["2007_000033"],
    }
    for name, names in sets.items():
        file = folder / "ImageSets" / f"{name}.txt"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("\n".join(names) + "\n")
    for name, results in things.items():
        picture(folder / "JPEGImages" / f"{name}.jpg")
        xml(folder / "Annotations" / f"{name}.xml", results)
    for name, number in (("2007_000027", 15), ("2007_000033", 20)):
        segments(folder / "SegmentationClass" / f"{name}.png", number)
    return str(root)


def segments(path, number):
    """A mask as VOC draws them: numbers of a palette, and a border one pixel wide of 255."""
    x1, y1, x2, y2 = BOX
    pixels = np.zeros((SIZE[1], SIZE[0]), dtype=np.uint8)
    pixels[y1 - 1 : y2 + 1, x1 - 1 : x2 + 1] = 255
    pixels[y1:y2, x1:x2] = number
    image = Image.fromarray(pixels).convert("P")
    image.putpalette([channel for i in range(256) for channel in (i, 255 - i, i // 2)])
    image.putdata(pixels.flatten().tolist())
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


def bright(image, data):
    """The box of what is white in a normalized image."""
    white = image[0] * data.std[0] + data.mean[0] > 0.6
    y, x = white.any(1).nonzero()[:, 0], white.any(0).nonzero()[:, 0]
    return [x.min().item(), y.min().item(), x.max().item() + 1, y.max().item() + 1]
