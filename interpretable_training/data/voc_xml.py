"""Objects in the XML files of ImageNet and PASCAL VOC."""

from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree


class Thing(NamedTuple):
    """An object: the name of its class, the corners of its box as they are written, and whether it is hard to see."""

    name: str
    box: tuple[float, ...]
    difficult: bool


def read_objects(path: Path) -> list[Thing]:
    """The objects in a picture."""
    things = []
    for found in ElementTree.parse(path).getroot().iterfind("object"):
        box = tuple(float(found.findtext(f"bndbox/{side}") or "nan") for side in ("xmin", "ymin", "xmax", "ymax"))
        things.append(Thing(found.findtext("name") or "", box, found.findtext("difficult") == "1"))
    return things
