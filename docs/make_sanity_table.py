"""Write the sanity checks' table into docs/metrics.md, and what the recipe says into docs/recipes.md.

python docs/make_sanity_table.py           # runs the recipe first, in ten minutes
python docs/make_sanity_table.py FOLDER    # of a run of the recipe, with its sanity.md and sanity.txt
"""

import sys
from pathlib import Path

from interpretable_training.recipes import sanity_checks as recipe
from interpretable_training.recipes.sanity_checks import sanity_checks_report

HERE = Path(__file__).parent
MARK = "<!-- sanity -->"


def fill(page: Path, text: str) -> None:
    """Put `text` between the marks of a page."""
    before, _, after = page.read_text(encoding="utf-8").split(MARK)
    page.write_text(f"{before}{MARK}\n{text.strip()}\n{MARK}{after}", encoding="utf-8")


def main() -> None:
    if len(sys.argv) > 1:
        folder = Path(sys.argv[1])
    else:
        run = recipe()
        run.trainer.fit(run.module, run.data)
        sys.stdout.write(sanity_checks_report(run))
        folder = Path(run.trainer.log_dir)
    fill(HERE / "metrics.md", (folder / "sanity.md").read_text(encoding="utf-8"))
    fill(HERE / "recipes.md", f"```text\n{(folder / 'sanity.txt').read_text(encoding='utf-8').rstrip()}\n```")


if __name__ == "__main__":
    main()
