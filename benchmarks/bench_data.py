"""How long generated images and the command's start take, in seconds.

python benchmarks/bench_data.py
"""

import subprocess
import sys

from timing import interleave, row

from interpretable_training.data import ShapesDataModule

if __name__ == "__main__":
    sides = {
        "10 000 images of 64 x 64": lambda: ShapesDataModule(64, n_train=10_000).generate("train"),
        "500 images of 224 x 224": lambda: ShapesDataModule(224, n_train=500).generate("train"),
        "with a cue in each": lambda: ShapesDataModule(64, n_train=10_000, shortcut=1.0).generate("train"),
        "--help": lambda: subprocess.run(
            [sys.executable, "-m", "interpretable_training", "--help"], check=True, capture_output=True
        ),
    }
    print("| what | seconds | limit |\n|---|---|---|")
    row("generated shapes and the command's help", interleave(sides, rounds=3), 1, "20 for the first, 3 for --help")
