"""Rules for the shape of the code: sizes, depth, names, rooms, imports."""

import ast
import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    import tomli as tomllib  # comes with pytest there

ROOT = Path(__file__).parents[1]
ROOMS = ("interpretable_training", "callbacks", "recipes")
FILES = sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))
OUTSIDE_FRAMEWORKS = {"lightning", "torchmetrics", "wandb", "timm", "matplotlib"}
FOREIGN = ("torch", "lightning", "wandb", "jsonargparse", "torchmetrics", "timm", "torchvision", "optuna")
MODULE_ATTRIBUTES = {"_parameters", "_buffers", "_modules"}  # of nn.Module, known to everyone who subclasses it
EVERY_ROOM = {"files", "mistakes", "__version__"}
ALL_ROOMS = {path.name for path in (ROOT / "interpretable_training").iterdir()} | {"callbacks", "configs", "recipes"}
MAY_IMPORT = {
    "attribution": set(),
    "batches": {"attribution"},
    "metrics": {"attribution", "batches"},
    "evaluation": {"attribution", "metrics", "batches", "tasks", "visual"},
    "tasks": {"attribution", "batches"},
    "models": {"attribution"},
    "regularization": {"attribution"},
    "modules": {"attribution", "models", "regularization", "batches", "metrics", "callbacks"},
    "data": {"attribution", "models", "regularization", "batches"},
    "visual": set(),
    "report": {"visual"},
    "testing": {"attribution"},
    "callbacks": {"attribution", "metrics", "evaluation", "regularization", "visual", "report", "batches", "tasks"},
    "cli": ALL_ROOMS,
    "sweeps": ALL_ROOMS,
    "recipes": ALL_ROOMS,
    "__main__": {"cli"},
}
ONLY_CORE = {"batches", "data", "metrics", "models", "modules", "regularization", "tasks", "testing"}  # of attribution
ON_REQUEST = {
    ("interpretable_training/metrics/__init__.py", "evaluation"),  # `metrics.evaluate` is a public name
    ("interpretable_training/report/paired_rows.py", "evaluation.bootstrap"),  # of the differences between two runs
    ("interpretable_training/regularization/guidance.py", "attribution.grad_cam"),  # the default method
}


def relative(path):
    """Return the path of a file as the lists of offenders have it."""
    return path.relative_to(ROOT).as_posix()


def test_rooms_are_found():
    assert len(FILES) > 10


def test_files_and_functions_are_small():
    long = []
    for path in [*FILES, *TESTS]:
        text = path.read_text()
        if len(text.splitlines()) > (500 if ROOT / "tests" in path.parents else 300):
            long.append(relative(path))
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                documented = ast.get_docstring(node, clean=False) or ""  # a list of arguments may be as long as it must
                if node.end_lineno - node.lineno - documented.count("\n") >= 50:  # longer than a screen
                    long.append(f"{relative(path)}: {node.name}")
    assert long == []


def test_own_inheritance_is_at_most_two_deep():
    bases = {}
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef):
                bases[node.name] = [base.id for base in node.bases if isinstance(base, ast.Name)]

    def depth(name):
        return max((1 + depth(base) for base in bases[name] if base in bases), default=0)

    assert {name for name in bases if depth(name) > 2} == set()


def test_every_folder_with_code_or_data_is_a_listed_package():
    listed = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    files = [
        *FILES,
        *(ROOT / "configs").rglob("*.*"),
        *(ROOT / "interpretable_training" / "report" / "static").iterdir(),
    ]
    folders = {path.parent.relative_to(ROOT) for path in files if "__pycache__" not in path.parts}
    names = {".".join(folder.parts) for folder in folders}
    assert listed == {name if name.startswith("interpretable") else f"interpretable_training.{name}" for name in names}


def test_recipes_configs_and_tests_share_their_stems():
    recipes = {path.stem for path in (ROOT / "recipes").glob("*.py")} - {"__init__", "__main__", "recipe", "remedies"}
    assert recipes
    for stem in recipes:
        assert (ROOT / "configs" / f"{stem}.yaml").exists()
        assert (ROOT / "tests" / "recipes" / f"test_{stem}.py").exists()


def test_rooms_import_no_more_than_they_need():
    rooms = {"cli": OUTSIDE_FRAMEWORKS | {"torch"}}
    rooms |= dict.fromkeys(["attribution", "models", "regularization"], OUTSIDE_FRAMEWORKS)
    rooms["callbacks"] = {"wandb", "tensorboard", "mlflow", "timm"}
    code = "import sys\n"
    for room in rooms:  # one process: what an earlier room must not import, the earlier lines show
        code += f"import interpretable_training.{room}\nprint(*{{name.split('.')[0] for name in sys.modules}})\n"
    lines = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    loaded = [{*line.split()} for line in lines.splitlines()]
    assert [modules & absent for modules, absent in zip(loaded, rooms.values(), strict=True)] == [set()] * len(rooms)


def public_definitions(kind):
    """Return name -> files of top-level classes or functions without a leading underscore."""
    files = defaultdict(list)
    for path in FILES:
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, kind) and not node.name.startswith("_"):
                files[node.name].append(relative(path))
    return files


@pytest.mark.parametrize("kind", [ast.ClassDef, ast.FunctionDef], ids=["class", "def"])
def test_public_names_are_unique_in_the_package(kind):
    twice = {name: files for name, files in public_definitions(kind).items() if len(files) > 1}
    assert twice == {}


def test_package_root_has_at_most_four_modules():
    modules = {path.name for path in (ROOT / "interpretable_training").glob("*.py")}
    assert len(modules) <= 4, modules


def imports_at_run_time(tree):
    """Yield the nodes of a module without its blocks `if TYPE_CHECKING`."""
    for node in ast.iter_child_nodes(tree):
        if not (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"):
            yield node
            yield from imports_at_run_time(node)


def imported(path, node):
    """Return the absolute names of the modules that a node imports."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if not isinstance(node, ast.ImportFrom):
        return []
    here = path.relative_to(ROOT).with_suffix("").parts
    here = here if here[0] == "interpretable_training" else ("interpretable_training", *here)
    above = here[: -node.level] if node.level else ()
    module = ".".join([*above, *([node.module] if node.module else [])])
    return [f"{module}.{alias.name}" for alias in node.names] if module == "interpretable_training" else [module]


def own_imports(path):
    """Yield room and full name of each import of the package at run time."""
    for node in imports_at_run_time(ast.parse(path.read_text())):
        for name in imported(path, node):
            top, _, rest = name.partition(".")
            if top == "interpretable_training" and rest:
                yield rest.partition(".")[0], rest


def test_rooms_import_only_what_the_design_allows():
    wrong = set()
    for path in FILES:
        parts = path.relative_to(ROOT).with_suffix("").parts
        room = parts[1] if parts[0] == "interpretable_training" else parts[0]
        allowed = MAY_IMPORT.get(room, set()) | EVERY_ROOM | {room}
        for other, full in own_imports(path):
            method = other == "attribution" and room in ONLY_CORE and not full.startswith("attribution.core")
            wrong |= {(relative(path), full)} if other not in allowed or method else set()
    assert {(path, full) for path, full in wrong if (path, full) not in ON_REQUEST} == set()


def names_of_import(node):
    """Return the full names of the modules that a node imports or may import, without dots of relative imports."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if not isinstance(node, ast.ImportFrom):
        return []
    return [node.module] if node.module else [alias.name for alias in node.names]


def test_test_modules_do_not_import_each_other():
    wrong = {
        (relative(path), name)
        for path in TESTS
        for node in ast.walk(ast.parse(path.read_text()))
        for name in names_of_import(node)
        if any(part.startswith("test_") for part in name.split("."))
    }
    assert wrong == set()


def test_test_names_have_at_most_65_characters():
    names = {
        (relative(path), node.name)
        for path in TESTS
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    }
    assert {(path, name) for path, name in names if len(name) > 65} == set()


def private_uses(path):
    """Yield the private names of other libraries that a file imports or reads as attributes of their modules."""
    private, tree, roots = re.compile(r"_[A-Za-z]"), ast.parse(path.read_text()), set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            of = f"{node.module}." if isinstance(node, ast.ImportFrom) else ""
            for alias in node.names:
                full = f"{of}{alias.name}"
                if full.partition(".")[0] in FOREIGN and not getattr(node, "level", 0):
                    roots.add((alias.asname or alias.name).partition(".")[0])
                    if any(private.match(part) for part in full.split(".")):
                        yield full
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and private.match(node.attr) and node.attr not in MODULE_ATTRIBUTES:
            base = node.value
            while isinstance(base, ast.Attribute):
                base = base.value
            if isinstance(base, ast.Name) and base.id in roots:
                yield ast.unparse(node)


def test_private_names_of_other_libraries_are_used_in_compat_only():
    uses = {(relative(path), name) for path in FILES if path.name != "_compat.py" for name in private_uses(path)}
    assert uses == set()


def test_callbacks_import_no_modules_and_no_recipes():
    """Importing a LightningModule would register it in other people's LightningCLI."""
    barred = ("interpretable_training.modules", "interpretable_training.recipes", "recipes")
    for path in (ROOT / "callbacks").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert [name for name in names if name.startswith(barred)] == [], path


READ = {"item", "cpu", "numpy", "tolist"}  # methods of tensors that wait for the device
LAYER = "capture(prepared, images, [name], gradient=False).A[name].cpu()"
READ_IN_LOOPS = {
    ("interpretable_training/attribution/core/ranges.py", "value.tolist()"),  # options, before anything runs
    ("interpretable_training/metrics/core/regions.py", "row.tolist()"),  # annotations in lists
    ("interpretable_training/metrics/network_dissection.py", LAYER),  # activations of a layer, once per batch
    ("interpretable_training/models/ca_stream.py", "s.tolist()"),  # of an export
}


def loops(tree):
    """Yield what runs in each turn of the loops and comprehensions of a file."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.For, ast.While)):
            yield from node.body
        elif isinstance(node, (ast.ListComp, ast.GeneratorExp, ast.SetComp)):
            yield node.elt
        elif isinstance(node, ast.DictComp):
            yield node.value


def test_loops_do_not_wait_for_the_device():
    rooms = ("attribution", "metrics", "models", "regularization", "tasks")
    found = {
        (relative(path), ast.unparse(call))
        for path in FILES
        if path.relative_to(ROOT).parts[1] in rooms
        for body in loops(ast.parse(path.read_text()))
        for call in ast.walk(body)
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and call.func.attr in READ
    }
    assert found == READ_IN_LOOPS
