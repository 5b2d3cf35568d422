"""The page on time series says what is true: its code runs, one block after the other."""

import re
from pathlib import Path

import matplotlib.image
import torch

PAGE = Path(__file__).parents[2] / "docs" / "time_series.md"


def test_the_code_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(blocks) == 4
    known = {}
    for code in blocks:
        quick = code.replace("max_epochs=8", "max_epochs=1, logger=False, enable_checkpointing=False")
        exec(compile(quick.replace("Module(annot", "Module(6, 3, 3, annot"), str(PAGE), "exec"), known)
    assert known["raises"].keys() == known["lowers"].keys() == known["methods"].keys()
    assert known["lowers"]["gradcam"].shape == known["batch"]["mask"].shape
    assert matplotlib.image.imread("series.png").shape[1] > 800
    assert len(known["table"]) == 64
    assert known["saliency"].shape == (4, 40)
