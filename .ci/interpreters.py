"""Run the tests on every interpreter of this machine, with the newest versions or with the lowest that are allowed.

    python .ci/interpreters.py                               each interpreter from 3.10 on, newest versions
    python .ci/interpreters.py --lowest --python 3.10        the versions behind >= in pyproject.toml
    python .ci/interpreters.py --python 3.13 -- tests/report  words after -- go to pytest

Each interpreter gets a venv in .venvs, which is made once. The last lines list what passed.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
VENVS = ROOT / ".venvs"
MINORS = range(10, 15)
BOUND = re.compile(r'^\s*"([\w-]+)(?:\[[\w,]+\])?>=([\d.]+)"', re.MULTILINE)


def find_interpreters() -> dict[str, str]:
    """Return version -> interpreter of those on the PATH and those of pyenv."""
    interpreters = {}
    for minor in MINORS:
        version = f"3.{minor}"
        pyenv = sorted(Path.home().glob(f".pyenv/versions/{version}.*/bin/python"))
        if path := str(pyenv[-1]) if pyenv else shutil.which(f"python{version}"):
            interpreters[version] = path
    return interpreters


def lowest_versions() -> str:
    """Return the lower bounds of the dependencies as constraints of pip."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    required = text[text.index("dependencies = [") : text.index("[project.optional-dependencies]")]
    return "\n".join(f"{name}=={version}" for name, version in BOUND.findall(required)) + "\n"


def prepare(version: str, interpreter: str, lowest: bool) -> Path:
    """Return the Python of a venv with the package and what its tests need."""
    folder = VENVS / (f"{version}-lowest" if lowest else version)
    python = folder / "bin" / "python"
    if not (folder / "ready").exists():
        subprocess.run([interpreter, "-m", "venv", "--clear", folder], check=True)
        constraints = folder / "lowest.txt"
        constraints.write_text(lowest_versions() if lowest else "", encoding="utf-8")
        words = [python, "-m", "pip", "install", "--quiet", "--editable", ".[test]"]
        subprocess.run([*words, "--constraint", constraints], cwd=ROOT, check=True)
        (folder / "ready").touch()
    return python


def main() -> int:
    """Run the tests and print a line per interpreter; return 1 if one failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", nargs="+", metavar="VERSION", help="such as 3.10 3.13 (default: all)")
    parser.add_argument("--lowest", action="store_true", help="install the lowest versions that pyproject.toml allows")
    parser.add_argument("words", nargs="*", help="words for pytest, behind --")
    options = parser.parse_args()
    known = find_interpreters()
    if missing := set(options.python or []) - set(known):
        parser.error(f"expected versions among {list(known)}, got {sorted(missing)}; install them, or leave them out")
    results = {}
    for version in options.python or known:
        python = prepare(version, known[version], options.lowest)
        words = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options.words]
        code = subprocess.run(words, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}).returncode
        results[version] = "passed" if code == 0 else f"failed (exit code {code})"
    kind = "lowest" if options.lowest else "newest"
    sys.stdout.write("".join(f"Python {version}, {kind} versions: {text}\n" for version, text in results.items()))
    return int(any(text != "passed" for text in results.values()))


if __name__ == "__main__":
    sys.exit(main())
