"""Sanity checks of methods: the result of each, and the table of all.

    similarity = mean over images of sim(S, S')    (1)

S: map of the network. S': map of the same image after the change that a check makes. sim: `similarities` of
Adebayo et al., NeurIPS 2018, https://arxiv.org/abs/1810.03292. Images one of whose maps is constant have no similarity.
"""

import math
import textwrap
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from torch import Tensor

from interpretable_training.attribution.core.map_operations import one_of
from interpretable_training.text_tables import WIDTH, aligned

from ..core.inputs import shape_of
from ..core.similarity import WINDOW, cell_and_block, hog_similarity, spearman, ssim

Similarity = Literal["spearman", "spearman_abs", "ssim", "hog"]
SIMILARITIES: tuple[Similarity, ...] = get_args(Similarity)


@dataclass(frozen=True)
class Check:
    """Result of a check for one method.

    Attributes:
        test: name of the check.
        method: name of the method.
        similarity: kind -> what the rule looks at, NaN where no map can be compared.
        passed: whether the method passes; None where the rule finds no number.
        rule: when it does.
        decided_by: the kind of similarity that decided.
        curves: kind -> similarity after each step of the check, where there are several.
        steps: what each step changed.
        n_undefined: how many comparisons of two maps were left out, since one was constant or not a number.
    """

    test: str
    method: str
    similarity: dict[str, float]
    passed: bool | None
    rule: str
    decided_by: str
    curves: dict[str, list[float]] = field(default_factory=dict)
    steps: list[str] = field(default_factory=list)
    n_undefined: int = 0


@dataclass(frozen=True)
class Rule:
    """Pass methods with a similarity of the maps before and after below `threshold`.

    Args:
        kind: the similarity that decides.
        threshold: below which a method passes.
    """

    kind: Similarity = "ssim"
    threshold: float = 0.5

    def __post_init__(self) -> None:
        one_of("decided_by", self.kind, *SIMILARITIES)

    def passed(self, similarity: Mapping[str, float]) -> bool | None:
        """Whether a method with these similarities passes; None without a number."""
        value = similarity.get(self.kind, math.nan)
        return None if math.isnan(value) else value < self.threshold

    def text(self, over: str) -> str:
        return f"passes if the {self.kind} similarity, {over}, is below {self.threshold:g}"


def similarities(a: Tensor, b: Tensor, kinds: Sequence[Similarity] = SIMILARITIES) -> dict[str, Tensor]:
    """Compare raw maps (B, H, W): name -> (B,); SSIM and HOG, of magnitudes, where maps are large enough for them."""
    if not isinstance(a, Tensor) or not isinstance(b, Tensor) or a.shape != b.shape or a.ndim < 2:
        raise ValueError(f"expected maps (B, H, W) of the same shape, got {shape_of(a)} and {shape_of(b)}.")
    small = min(a.shape[1:])
    compute: dict[Similarity, Callable[[], Tensor]] = {
        "spearman": lambda: spearman(a, b),
        "spearman_abs": lambda: spearman(a, b, magnitude=True),
        "ssim": lambda: ssim(a.abs(), b.abs()),
        "hog": lambda: hog_similarity(a.abs(), b.abs()),
    }
    least = {"ssim": WINDOW, "hog": math.prod(cell_and_block(small)) if a.ndim == 3 else math.inf}
    return {kind: compute[kind]() for kind in kinds if small >= least.get(kind, 0)}


def mean(values: Tensor) -> float:
    """Return the mean of what is a number; NaN where nothing is left."""
    return float(values.nanmean())


@dataclass(frozen=True)
class SanityTable:
    """Methods x checks, each with pass or fail and the number that decided; a star where the literature differs.

    >>> check = Check("parameter randomization", "gradcam", {"ssim": 0.1}, True, "passes if ...", "ssim")
    >>> SanityTable([check]).rows["gradcam"]["parameter randomization"].passed
    True

    Args:
        checks: what the checks returned, one after the other.
        expected: check -> method -> what the literature says, "pass" or "fail".
    """

    checks: Sequence[Check]
    expected: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.checks, Sequence) or isinstance(self.checks, str):
            raise TypeError(f"expected checks as a list, got {type(self.checks).__name__}.")
        other = next((check for check in self.checks if not isinstance(check, Check)), None)
        if other is not None:
            raise TypeError(f"expected what the checks return, got {type(other).__name__}; join their lists with +.")
        twice = [key for key, n in Counter((check.test, check.method) for check in self.checks).items() if n > 1]
        if twice:
            raise ValueError(f"expected each check once per method, got {twice[0]} twice; make a table of each.")

    @property
    def rows(self) -> dict[str, dict[str, Check]]:
        """Return method -> name of the check -> check."""
        rows: dict[str, dict[str, Check]] = {}
        for check in self.checks:
            rows.setdefault(check.method, {})[check.test] = check
        return rows

    @property
    def tests(self) -> list[str]:
        return list(dict.fromkeys(check.test for check in self.checks))

    def disagreements(self) -> list[Check]:
        """Return the checks that end otherwise than the literature says."""
        differing = []
        for check in self.checks:
            published = self.expected.get(check.test, {}).get(check.method)
            if published is not None and published != verdict(check):
                differing.append(check)
        return differing

    def records(self) -> list[dict[str, Any]]:
        """Return one record of plain values for each row."""
        return [dict(vars(check)) for check in self.checks]

    def to_text(self) -> str:
        """Return the table for a terminal."""
        lines = [line for note in self._notes() for line in textwrap.wrap(note, WIDTH)]
        return "\n".join([aligned([["", *self.tests], *self._body()]), "", *lines]) + "\n"

    def to_markdown(self) -> str:
        rows = [["", *self.tests], ["---"] * (1 + len(self.tests)), *self._body()]
        lines = [" | ".join(cell.replace("|", r"\|") for cell in row) for row in rows]
        return "\n".join(f"| {line} |" for line in lines) + "\n\n" + "  \n".join(self._notes()) + "\n"

    def __repr__(self) -> str:
        return self.to_text()

    def _body(self) -> list[list[str]]:
        return [
            [method, *(self._cell(row[test]) if test in row else "-" for test in self.tests)]
            for method, row in self.rows.items()
        ]

    def _cell(self, check: Check) -> str:
        published = self.expected.get(check.test, {}).get(check.method)
        star = "" if published in (None, verdict(check)) else "*"
        return f"{verdict(check)}{star} ({check.similarity.get(check.decided_by, math.nan):.2g})"

    def _notes(self) -> list[str]:
        of: dict[str, dict[str, list[str]]] = {}
        for check in self.checks:
            rule = f"{check.rule}; beside the verdict: {check.decided_by}."
            of.setdefault(check.test, {}).setdefault(rule, []).append(check.method)
        rules = [
            f"{test}: {rule}" if len(methods_of) == 1 else f"{test}, {', '.join(methods)}: {rule}"
            for test, methods_of in of.items()
            for rule, methods in methods_of.items()
        ]
        left = [
            f"{check.test}, {check.method}: {check.n_undefined} comparisons left out, "
            "since a map is constant or not a number."
            for check in self.checks
            if check.n_undefined
        ]
        star = ["* not as in the literature."] if self.disagreements() else []
        return [*rules, *star, *left]


def verdict(check: Check) -> str:
    """Return the verdict in a word."""
    return {True: "pass", False: "fail", None: "undecided"}[check.passed]
