"""The base of tasks: how the output of a network becomes one score per image, and how that score is described.

A task reads the output for n images as scores (n, N): one column for each thing that can be explained, such as a class,
a detection or a number. A task with `follows` fixes a reference in the output for the unchanged image (a mask, the
boxes, an embedding), so that the score of a changed image is that of the same thing.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any, ClassVar

from torch import Tensor

from interpretable_training.attribution.core.targets import OutputScores, by_rank, pick_logits


@dataclass(frozen=True)
class Example:
    """One image with the labels and annotations of its batch, as a task gets it.

    >>> Example(images[:1], rest={"mask": torch.ones(1, 2)}).entry("masks", "mask")
    tensor([1., 1.])
    """

    image: Tensor  # (1, C, H, W)
    target: Any = None  # of one row: a tensor (1, ...), or a list with one entry
    rest: dict[str, Any] = field(default_factory=dict)
    run: Callable[[Tensor], Any] | None = None  # the output for other images

    def entry(self, *names: str) -> Any:
        """Return the first of these entries that the batch has, without the dimension of the batch."""
        value = next((self.rest[name] for name in names if self.rest.get(name) is not None), None)
        return value[0] if isinstance(value, (Tensor, list, tuple)) and len(value) == 1 else value


class Task:
    """A reader of outputs as scores, and a writer of captions for them.

    >>> class Counting(Task):
    ...     name, bounded = "counting", False
    ...     def scores(self, output, reference=None):
    ...         return output.flatten(1).sum(1, keepdim=True)
    >>> Counting().scores(torch.ones(2, 1, 4, 4)).tolist()
    [[16.0], [16.0]]

    Attributes:
        name: of the task.
        follows: whether the scores of an image are those of a reference, so that images are explained one by one.
        bounded: whether `prob` is in [0, 1], as metrics of confidence need; otherwise metrics follow the score itself.
        has_classes: whether columns exclude each other, so that one of them can be correct.
    """

    name: ClassVar[str] = "own"
    follows: ClassVar[bool] = False
    bounded: ClassVar[bool] = True
    has_classes: ClassVar[bool] = False

    def scores(self, output: Any, reference: Any = None) -> Tensor:
        """Return the scores (n, N) in the output for n images."""
        return pick_logits(output)

    def prob(self, output: Any, reference: Any = None) -> Tensor:
        """Return the same as numbers in [0, 1], (n, N)."""
        return self.scores(output, reference).sigmoid()

    def reference(self, output: Any, example: Example) -> Any:
        """Return what is followed, from the output for one unchanged image."""
        return None

    def ranking(self, scores: Tensor, reference: Any = None) -> Tensor:
        """Return numbers (n, N): the column with the largest is explained where no class is given."""
        return scores

    def label(self, reference: Any, example: Example) -> int | None:
        """Return the column of the label, None where there is none."""
        return None

    def class_of(self, column: int, reference: Any = None) -> int:
        """Return the class of a column."""
        return column

    def caption(self, column: int, reference: Any = None, class_names: Sequence[str] | None = None) -> str:
        """Return a column in words."""
        number = self.class_of(column, reference)
        return class_names[number] if class_names and 0 <= number < len(class_names) else f"class {number}"

    def outline(self, column: int, reference: Any = None) -> Tensor | None:
        """Return the pixels (H, W) whose outline is drawn, None for no outline."""
        return None

    def dense(self, output: Any) -> int | None:
        """Return the channels of an output that is itself a grid: the end of the encoder is explained then."""
        return None

    def describe(self, output: Any) -> str:
        """Return the output in words, for the start-up report."""
        scores = self.scores(output) if not self.follows else None
        return "" if scores is None else f"{scores.shape[1]} scores per image"


def on_cpu(followed: Any) -> Any:
    """Return what is followed, a tensor or a dataclass of tensors, on the CPU.

    >>> on_cpu(torch.zeros(2)).device.type
    'cpu'
    """
    if isinstance(followed, Tensor):
        return followed.detach().cpu()
    if is_dataclass(followed) and not isinstance(followed, type):
        return replace(followed, **{f.name: on_cpu(getattr(followed, f.name)) for f in fields(followed)})
    return followed


@dataclass(frozen=True)
class TaskScores(OutputScores):
    """The scores of a task with a reference, in the place of `output=`.

    >>> TaskScores(Task(), lambda output: output["y"])({"y": torch.ones(1, 2)})
    tensor([[1., 1.]])
    """

    task: Task
    picked: Callable[[Any], Any]  # the part of the output that the task reads
    followed: Any = None

    def __call__(self, output: Any) -> Tensor:
        return self.task.scores(self.picked(output), self.followed)

    def prob(self, output: Any) -> Tensor:
        if not self.task.bounded:  # methods that weigh by probabilities weigh by the score itself
            return self(output)
        return self.task.prob(self.picked(output), self.followed)

    def classes(self, policy: str, scores: Tensor) -> Tensor:
        ranking = self.task.ranking(scores, self.followed)
        return scores.new_zeros(len(scores)).long() if scores.shape[1] == 1 else by_rank(policy, ranking)

    @property
    def memo_key(self) -> str:
        return self.task.name

    def dense(self, output: Any) -> int | None:
        return self.task.dense(self.picked(output))
