"""Differences that `verify_observer` detects, and their report as text."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

SHOWN = 40  # differences in the text of a report
OPTIONAL = ("logged", "callback")  # kinds that may exist in one run only, and may contain clock times


@dataclass(frozen=True)
class Difference:
    """Part of the training's state that the callbacks changed.

    >>> print(Difference("weight", "head.bias", "on_fit_end", "0 #a", "1 #b", 0, "differs at the end"))
    on_fit_end: weight of head.bias is 1, was 0; differs at the end

    Attributes:
        kind: Kind of the part: "weight", "gradient", "training", ...
        name: Name of the parameter, submodule, generator, ...
        moment: First hook with the difference; "in" a hook means that the callbacks changed the part there.
        without: Value at that hook without the callbacks, as text.
        given: Value at that hook with the callbacks, as text.
        position: Number of that hook, from 0.
        at_end: Difference that remains after the training, in words.
        rank: Rank of the process.
    """

    kind: str
    name: str
    moment: str
    without: str
    given: str
    position: int
    at_end: str
    rank: int = 0

    @property
    def change(self) -> str:
        """Description of the change, without the hook."""
        was, now = (text.partition(" #")[0] for text in (self.without, self.given))  # without checksums
        change = "has other values" if was == now else f"is {now}, was {was}"
        return f"{self.kind} of {self.name} {change}{'; ' * bool(self.at_end)}{self.at_end}"

    @property
    def where(self) -> str:
        """Hook, and the rank unless it is 0."""
        return f"rank {self.rank}, {self.moment}" if self.rank else self.moment

    def __str__(self) -> str:
        return f"{self.where}: {self.change}"


@dataclass(frozen=True, repr=False)
class ObserverReport:
    """Result of `verify_observer`; true if the callbacks changed nothing.

    >>> bool(ObserverReport(differences=(), noise=(), moments=12))
    True

    Attributes:
        differences: Parts of the state that the callbacks changed, the first one first.
        noise: Parts that differ between two trainings without the callbacks, so that they cannot be judged.
        moments: Number of comparisons of the state.
    """

    differences: tuple[Difference, ...]
    noise: tuple[Difference, ...]
    moments: int

    @property
    def reproducible(self) -> bool:
        """Whether two runs of the training are equal, except for logged clock times."""
        return all(difference.kind in OPTIONAL for difference in self.noise)

    @property
    def ok(self) -> bool:
        """Whether the training is reproducible and the callbacks changed nothing."""
        return self.reproducible and not self.differences

    def __bool__(self) -> bool:
        return self.ok

    def __str__(self) -> str:
        lines = []
        if not self.reproducible:
            lines += [
                "This training is not reproducible: two runs without the callbacks differ in the following parts.",
                "Seed all random sources (data, samplers, workers) or pass Trainer(deterministic=True) and try again.",
                *_describe([difference for difference in self.noise if difference.kind not in OPTIONAL]),
            ]
        if self.differences:
            lines += [
                "The callbacks changed the training. Each difference is listed at the hook where it first occurred:",
                *_describe(self.differences),
            ]
        if self.ok:
            lines.append(f"The callbacks changed nothing: the state was compared {self.moments} times.")
        ignored = [f"{d.kind} {d.name}" for d in self.noise if d.kind in OPTIONAL]
        if ignored:
            lines.append(f"Ignored, because they differ between runs without the callbacks: {', '.join(ignored)}.")
        return "\n".join(lines)

    __repr__ = __str__

    def raise_if_different(self) -> None:
        """Raise an AssertionError with the report, unless the callbacks changed nothing."""
        if not self.ok:
            raise AssertionError(str(self))


def _describe(differences: Sequence[Difference]) -> Iterator[str]:
    """Yield each hook, and the differences that first occurred there."""
    moment = ""
    for difference in differences[:SHOWN]:
        if difference.where != moment:
            moment = difference.where
            yield f"{moment}:"
        yield f"    {difference.change}"
    if len(differences) > SHOWN:
        yield f"    ... and {len(differences) - SHOWN} more"
