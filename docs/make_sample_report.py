"""Make docs/sample_report.html, the report of the demo's first run with fewer explanation steps.

python docs/make_sample_report.py runs/shortcut/version_0
"""

import sys
from pathlib import Path

from interpretable_training.report.page import write_report

MEGABYTES = 1.3
PAGE = Path(__file__).parent / "sample_report.html"

if __name__ == "__main__":
    page = write_report(Path(sys.argv[1]) / "explanations", PAGE, max_megabytes=MEGABYTES)
    print(f"{page}: {page.stat().st_size / 1e6:.2f} MB")
