"""What the code promises about its own shape: sizes, depth, rooms, light imports."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    import tomli as tomllib  # comes with pytest there

ROOT = Path(__file__).parents[1]
ROOMS = ("interpretable_training", "callbacks", "recipes")
FILES = sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))
OUTSIDE_FRAMEWORKS = {"lightning", "torchmetrics", "wandb", "timm", "matplotlib"}


def test_rooms_are_found():
    assert len(FILES) > 10


@pytest.mark.parametrize("path", sorted([*FILES, *(ROOT / "tests").rglob("*.py")]), ids=str)
def test_files_and_functions_are_small(path):
    text = path.read_text()
    assert len(text.splitlines()) <= (500 if ROOT / "tests" in path.parents else 300)
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            documented = ast.get_docstring(node, clean=False) or ""  # a list of arguments may be as long as it must
            lines = node.end_lineno - node.lineno - documented.count("\n")
            assert lines < 50, f"{node.name} is longer than a screen"


def test_own_inheritance_is_at_most_two_deep():
    bases = {}
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef):
                bases[node.name] = [base.id for base in node.bases if isinstance(base, ast.Name)]

    def depth(name):
        return max((1 + depth(base) for base in bases[name] if base in bases), default=0)

    assert {name for name in bases if depth(name) > 2} == set()


def test_every_folder_with_code_is_a_listed_package():
    listed = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    folders = {path.parent.relative_to(ROOT) for path in FILES}
    names = {".".join(folder.parts) for folder in folders}
    assert listed == {name if name.startswith("interpretable") else f"interpretable_training.{name}" for name in names}


def test_recipes_configs_and_tests_share_their_stems():
    recipes = {path.stem for path in (ROOT / "recipes").glob("*.py")} - {"__init__", "__main__", "recipe"}
    assert recipes
    for stem in recipes:
        assert (ROOT / "configs" / f"{stem}.yaml").exists()
        assert (ROOT / "tests" / "recipes" / f"test_{stem}.py").exists()


@pytest.mark.parametrize(
    ("room", "absent"),
    [
        ("interpretable_training", OUTSIDE_FRAMEWORKS | {"torch"}),
        ("interpretable_training.cli", OUTSIDE_FRAMEWORKS | {"torch"}),
        ("interpretable_training.attribution", OUTSIDE_FRAMEWORKS),
        ("interpretable_training.models", OUTSIDE_FRAMEWORKS),
        ("interpretable_training.regularization", OUTSIDE_FRAMEWORKS),
        ("interpretable_training.callbacks", {"wandb", "tensorboard", "mlflow", "timm"}),
    ],
)
def test_rooms_import_no_more_than_they_need(room, absent):
    code = f"import sys, {room}; print(*{{name.split('.')[0] for name in sys.modules}})"
    loaded = set(
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    )
    assert loaded & absent == set()


def test_callbacks_import_no_modules_and_no_recipes():
    """Importing a LightningModule would register it in other people's LightningCLI."""
    barred = ("interpretable_training.modules", "interpretable_training.recipes", "recipes")
    for path in (ROOT / "callbacks").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert [name for name in names if name.startswith(barred)] == [], path
