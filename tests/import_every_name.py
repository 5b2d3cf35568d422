"""Import every public name of the installed package; `make wheel-check` runs this outside the repository."""

import importlib
import pkgutil
import sys

import interpretable_training

EXTRAS = {"optuna"}  # what an extra brings, without which its modules cannot be imported
count = 0
for results in pkgutil.walk_packages(interpretable_training.__path__, "interpretable_training."):
    if results.name.endswith("__main__"):
        continue
    try:
        module = importlib.import_module(results.name)
    except ModuleNotFoundError as error:
        if error.name not in EXTRAS:
            raise
        continue
    for name in getattr(module, "__all__", []):
        getattr(module, name)
        count += 1
sys.stdout.write(f"{count} public names import from {interpretable_training.__path__[0]}\n")
sys.exit(0 if count else "no public name found: the wheel is empty")
