"""Run a recipe by its name: `python -m interpretable_training.recipes ca_stream --max_epochs 4`."""

import sys
from collections.abc import Callable
from functools import wraps
from typing import Any

from jsonargparse import auto_cli

from interpretable_training import recipes
from interpretable_training.recipes.box_study import box_study_report
from interpretable_training.recipes.ca_stream import ca_stream_report
from interpretable_training.recipes.cmapss import cmapss_report
from interpretable_training.recipes.method_table import method_table_report
from interpretable_training.recipes.opti_cam_study import opti_cam_study_report
from interpretable_training.recipes.repair import repair_report, repair_table_report
from interpretable_training.recipes.sanity_checks import sanity_checks_report

REPORTS: dict[Callable[..., Any], Callable[..., str] | None] = {
    recipes.baseline: None,
    recipes.box_study: box_study_report,
    recipes.ca_stream: ca_stream_report,
    recipes.cmapss: cmapss_report,
    recipes.guided_gradient: None,
    recipes.guided_gradient_cifar100: None,
    recipes.method_table: method_table_report,
    recipes.opti_cam_study: opti_cam_study_report,
    recipes.repair: repair_report,
    recipes.repair_table: repair_table_report,
    recipes.sanity_checks: sanity_checks_report,
    recipes.shortcut: None,
}


def run_recipe(args: list[str] | None = None) -> None:
    """Build the recipe that the arguments name, train it if it trains, and print its report."""
    commands = [_command(recipe, report) for recipe, report in REPORTS.items()]
    auto_cli(commands, args=args, prog="python -m interpretable_training.recipes")


def _command(recipe: Callable[..., Any], report: Callable[..., str] | None) -> Callable[..., None]:
    """Return a function with the arguments of a recipe that runs the recipe."""

    @wraps(recipe)
    def run(*args: Any, **options: Any) -> None:
        made = recipe(*args, **options)
        if isinstance(made, recipes.Recipe):
            made.trainer.fit(made.module, made.data)
        if report is not None:
            sys.stdout.write(f"\n{report(made)}\n")

    return run


if __name__ == "__main__":
    run_recipe()
