"""Every block of Python and YAML in the pages runs, unless a comment before it says why it cannot.

A page's blocks run one after the other, with the names of `prelude` where the page speaks of "your" model or data.
"""

import re
from pathlib import Path

import lightning as L
import pytest
import torch
import yaml
from torch.utils.data import DataLoader, TensorDataset

from interpretable_training import attribution, metrics
from interpretable_training.data import ShapesDataModule
from interpretable_training.models import TinyCNN
from interpretable_training.modules import Classifier

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(
    r"(?:<!-- not run: (?P<why>[^\n]*) -->\n+)?^```(?P<kind>python|yaml)\n(?P<code>.*?)^```", re.M | re.S
)
SMALL = {"n_train": 24, "n_val": 12, "n_test": 12}


def blocks(page, kind):
    """Line and code of the blocks that can run."""
    text = page.read_text()
    found = [block for block in BLOCK.finditer(text) if block["kind"] == kind and not block["why"]]
    return [(text[: block.start()].count("\n") + 1, block["code"]) for block in found]


def prelude():
    """What a reader has already."""
    generator = torch.Generator().manual_seed(0)
    images, target = torch.randn(8, 3, 32, 32, generator=generator), torch.arange(8) % 3
    network = TinyCNN(3)
    names = {
        "model": network,
        "images": images,
        "target": target,
        "saliency": attribution.normalize(attribution.GradCAM()(network, images, target)),
        "prob": torch.rand(8, generator=generator),
        "prob_masked": torch.rand(8, generator=generator),
        "criterion": torch.nn.CrossEntropyLoss(),
        "module": Classifier(TinyCNN(3), 3),
        "data": DataLoader(TensorDataset(images, target), 4),
        "dataloader": DataLoader(TensorDataset(images, target), 4),
    }
    public = {name: getattr(room, name) for room in (attribution, metrics) for name in room.__all__}
    return {**public, **names}


@pytest.fixture
def small(monkeypatch, tmp_path):
    """Trainings of two batches on a dozen images, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    trainer, drawn = L.Trainer.__init__, ShapesDataModule.__init__

    def short(self, *args, **options):
        quiet = {"enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
        trainer(self, *args, **{**options, **quiet, "limit_train_batches": 2, "limit_val_batches": 2})

    monkeypatch.setattr(L.Trainer, "__init__", short)

    def few(self, *args, **options):
        drawn(self, *args, **{**options, **SMALL})

    monkeypatch.setattr(ShapesDataModule, "__init__", few)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")], ids=lambda page: page.stem)
def test_python_runs(page, small):
    names = prelude()
    for line, code in blocks(page, "python"):
        # Padded, so that a traceback names the line of the page.
        exec(compile("\n" * line + code, str(page), "exec"), names)


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "yaml")], ids=lambda page: page.stem)
def test_yaml_can_be_read(page):
    for _, code in blocks(page, "yaml"):
        assert isinstance(yaml.safe_load(code), dict)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_somewhere(page):
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.M | re.S)
    targets = [t.split("#")[0] for t in re.findall(r"\]\((?!https?:|mailto:)([^)\s]+)\)", text)]
    assert [t for t in targets if t and not (page.parent / t).exists()] == []
