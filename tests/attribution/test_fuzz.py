"""Bad values given to constructors, calls and updates end in a clear error or a valid result, and change nothing."""

import warnings

import pytest
from support.families import few
from support.fuzz import cases, judge

GROUPS = ("call", "constructor", "update")
pytestmark = pytest.mark.filterwarnings("ignore")


def problems(chosen):
    """The cases that end otherwise, with what became of them."""
    results = []
    for case in chosen:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            verdict, why = judge(case)
        if verdict not in ("clear", "valid"):
            results.append(f"{verdict}: {case.owner}, {case.what}: {why}")
    return results


@pytest.mark.parametrize("group", few(GROUPS, "call", "constructor"))
def test_a_draw_of_bad_values_is_refused(group):
    assert problems(cases(group, 20, seed=0)) == []


@pytest.mark.slow
@pytest.mark.parametrize("group", GROUPS)
def test_every_bad_value_is_refused(group):
    chosen = cases(group)
    assert len(chosen) > 2000
    assert problems(chosen) == []


@pytest.mark.slow
def test_cases_are_deterministic():
    first, second = (
        [(case.group, case.owner, case.rule) for case in cases("constructor", 50, seed=3)] for _ in range(2)
    )
    assert first == second
