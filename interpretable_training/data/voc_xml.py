"""Objects in the XML files of ImageNet and PASCAL VOC.

torchvision's `VOCDetection.parse_voc_xml` returns nested dicts of text, and omits what a broken file lacks.
"""

from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree


class Thing(NamedTuple):
    """Object: name of its class, corners of its box as written, and whether it is hard to see."""

    name: str
    box: tuple[float, ...]
    difficult: bool


def read_objects(path: Path) -> list[Thing]:
    """Return the objects in a picture."""
    things = []
    for node in ElementTree.parse(path).getroot().iterfind("object"):
        box = tuple(float(node.findtext(f"bndbox/{side}") or "nan") for side in ("xmin", "ymin", "xmax", "ymax"))
        things.append(Thing(node.findtext("name") or "", box, node.findtext("difficult") == "1"))
    return things
