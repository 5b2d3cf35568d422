"""The wheel and the source distribution hold what they should, and nothing else."""

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MAPPED = ("callbacks", "configs", "recipes")  # folders of the root that are installed below the package
BUILD = "import sys; from setuptools import build_meta; build_meta.build_{kind}(sys.argv[1])"


def source_files():
    """The files of the package as git lists them, with their place in the wheel."""
    words = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "interpretable_training", *MAPPED]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        pytest.skip("needs a checkout of git")
    names = [name for name in done.stdout.split() if (ROOT / name).is_file()]
    return {name if name.startswith("interpretable_training/") else f"interpretable_training/{name}" for name in names}


def build(kind, folder):
    """Build a distribution from a copy of the sources, so that no build folder is left or used."""
    copy = folder / "copy"
    words = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    for name in subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines():
        if (ROOT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            (copy / name).write_bytes((ROOT / name).read_bytes())
    words = [sys.executable, "-c", BUILD.format(kind=kind), str(folder)]
    done = subprocess.run(words, cwd=copy, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    (result,) = folder.glob("*.whl" if kind == "wheel" else "*.tar.gz")
    return result


@pytest.mark.slow
def test_wheel_holds_the_package_and_configurations_only(tmp_path):
    expected = source_files()
    with zipfile.ZipFile(build("wheel", tmp_path)) as wheel:
        names = {name for name in wheel.namelist() if ".dist-info/" not in name}
        (metadata,) = (name for name in wheel.namelist() if name.endswith("METADATA"))
        text = wheel.read(metadata).decode()
    assert names == expected
    assert "interpretable_training/configs/sweeps/ca_stream.yaml" in names
    assert "\nVersion: 0.1.0\n" in text
    assert "\nLicense-Expression: Apache-2.0\n" in text


@pytest.mark.slow
def test_source_distribution_holds_what_a_build_and_tests_need(tmp_path):
    with tarfile.open(build("sdist", tmp_path)) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    needed = {"pyproject.toml", "LICENSE", "README.md", "CHANGELOG.md", "Makefile", "configs/sweeps/ca_stream.yaml"}
    needed |= {"callbacks/__init__.py", "recipes/baseline.py", "interpretable_training/report/static/page.html"}
    needed |= {"tests/test_packaging.py", "docs/architecture.md"}
    assert needed <= names
    assert [name for name in names if name.endswith((".pyc", ".png~")) or "__pycache__" in name] == []


@pytest.mark.slow
def test_callbacks_import_no_package_that_lightning_does_not():
    """Only modules of this package are added, so that a training starts as fast as with Lightning alone."""
    code = "import sys, lightning; before = set(sys.modules); import interpretable_training.callbacks; "
    code += "print(*{name.partition('.')[0] for name in set(sys.modules) - before})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["interpretable_training"]
