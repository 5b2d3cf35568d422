"""Discovery of the network inside a module: which part is explained, and how it is called and read."""

import difflib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import Metric, MetricCollection

from interpretable_training.attribution.core.prepared_model import Output, PreparedModel, prepare, prepare_model, unwrap
from interpretable_training.attribution.core.targets import entry_at
from interpretable_training.batches.read import Picked

from .base import Example, Task, TaskScores
from .choose import choose_task, task_named
from .classes import Classification, MultiLabel
from .inputs import Inputs, likely_inputs
from .outputs import in_words

USUAL = ("network", "model", "net", "backbone", "classifier", "module", "encoder")
Chosen = str | Callable[[Any], nn.Module] | None


@dataclass(frozen=True)
class Reading:
    """A network, how it is called with a batch, and how its output is read.

    >>> plain_reading(network).task.name
    'classification'

    Attributes:
        name: of the network in the module, "" for the module itself.
        network: the network.
        task: how its output becomes scores.
        inputs: what it is called with.
        output: which part of its output the task reads.
        sample: what it returned for the images with which it was found.
    """

    name: str
    network: nn.Module
    task: Task
    inputs: Inputs
    output: Output
    sample: Any

    @property
    def together(self) -> bool:
        """Whether a batch is explained as a whole; otherwise images are explained one by one."""
        return self.inputs.alone and not self.task.follows

    @property
    def of_batches(self) -> Output:
        """Return `output=` for a batch as a whole."""
        return self.output if type(self.task) in (Classification, MultiLabel) else TaskScores(self.task, self.picked)

    @property
    def scores_or_output(self) -> Any:
        """Return the scores in the sample, or the part of it that the task reads where scores follow a reference."""
        part = self.picked(self.sample)
        return part if self.task.follows else self.task.scores(part)

    def picked(self, output: Any) -> Any:
        """Return the part of the output that the task reads."""
        return output if self.output is None else entry_at(output, self.output)

    def bind(self, prepared: PreparedModel, row: Picked) -> tuple[PreparedModel, Any, Example]:
        """Return the prepared model for one image and what is followed in it."""
        call = self.inputs.call(row)
        bound = prepared.bound(call, None)
        with torch.no_grad():
            images = prepare(prepared, row.images)
            output = self.picked(bound.run(images))
            example = Example(images, row.target, row.rest, lambda images: self.picked(bound.run(images)))
            followed = self.task.reference(output, example)
        return prepared.bound(call, TaskScores(self.task, self.picked, followed)), followed, example


def find_network(
    module: nn.Module,
    batch: Tensor | Picked,
    name: Chosen = None,
    output: Output = None,
    task: str | Task = "auto",
    multilabel: bool | None = None,
) -> Reading:
    """Return the network of a module, how it is called, and its task; the name of the module itself is "".

    Without a name it is the part that returns the same as the module, whose `forward` may do no more than call it, else
    the module. One without a `forward` of its own is explained by its only part that a task can read.

    >>> find_network(network, images).task.name
    'classification'
    """
    picked = batch if isinstance(batch, Picked) else Picked(batch, None, None, None, {})
    read = _Reader(picked.rows(slice(2)), output, task_named(task), multilabel)
    if name is not None:
        return read.named(module, name)
    parts = candidate_parts(module)
    with prepare_model(module) as prepared, torch.no_grad():
        read.prepare(prepared)
        if has_own_forward(module):
            whole = read.attempt("", module)
            if whole is not None:
                same = (read.attempt(part, parts[part]) for part in parts)
                return next((r for r in same if r is not None and equal_outputs(r, whole)), whole)
            if read.refused:  # it ran, and no task reads what it returned: parts would return something else
                raise read.refused[0]
        readable = [r for part, m in parts.items() if (r := read.attempt(part, m)) is not None]
        if len(readable) == 1:
            return readable[0]
    if not readable and len(read.refused) == 1:
        raise read.refused[0]
    raise ValueError(
        f"expected one network that a task can read in {type(module).__name__}, got "
        f"{[r.name for r in readable] or 'none'} among {list(parts)}; pass network= with the name of one, or output= "
        f"with the key of the scores in what it returns.{read.errors()}"
    )


def read_model(model: nn.Module, picked: Picked, output: Output, task: str | Task, multilabel: bool | None) -> Reading:
    """Return how a model is called and read: as a whole where it has a forward that runs, else its only readable part.

    >>> read_model(network, Picked(images, target, 0, 1, {}), None, "auto", None).name
    ''
    """
    model = unwrap(model)
    if not has_own_forward(model):
        return find_network(model, picked, None, output, task, multilabel)
    return _Reader(picked, output, task_named(task), multilabel).named(model, "")


def plain_reading(network: nn.Module, output: Output = None, multilabel: bool = False) -> Reading:
    """Return the reading of a classifier that takes images alone.

    >>> plain_reading(network).together
    True
    """
    return Reading("", network, MultiLabel() if multilabel else Classification(), Inputs(), output, None)


def check_network(name: Chosen) -> None:
    """Raise a TypeError unless a network is given by its name or a function.

    >>> check_network("model")
    """
    if name is not None and (isinstance(name, nn.Module) or not (isinstance(name, str) or callable(name))):
        raise TypeError(
            f"expected network= as the name of a part or a function of the LightningModule, got "
            f"{type(name).__name__}; write network='model' or network=lambda module: module.model."
        )


class _Reader:
    """Try how modules are called with the first images of a batch, and which task reads what they return."""

    def __init__(self, picked: Picked, output: Output, task: Task | None, multilabel: bool | None) -> None:
        self.picked, self.output, self.task, self.multilabel = picked, output, task, multilabel
        self.refused: list[ValueError] = []
        self.failures: dict[str, Exception] = {}

    def prepare(self, prepared: PreparedModel) -> None:
        """Bring the images into the dtype of the model."""
        self.picked = replace(self.picked, images=prepare(prepared, self.picked.images))

    def named(self, module: nn.Module, name: Chosen) -> Reading:
        """Return the reading of a given part, or the reason why there is none."""
        part = name(module) if callable(name) else named_network(module, name or "")
        if not isinstance(part, nn.Module):
            raise TypeError(f"expected network= to return a torch.nn.Module, got {type(part).__name__}.")
        known = [key for key, child in module.named_modules() if child is part]
        with prepare_model(part) as prepared, torch.no_grad():
            self.prepare(prepared)
            reading = self.attempt(known[0] if known else "", part, prepared)
        if reading is not None:
            return reading
        if self.refused:
            raise self.refused[0]
        raise next(iter(self.failures.values()))

    def attempt(self, name: str, module: nn.Module, prepared: PreparedModel | None = None) -> Reading | None:
        """Return how a module is called and read; None where no call works or no task reads its output."""
        for inputs in likely_inputs(module, self.picked):
            try:
                if prepared is not None and inputs.alone:
                    sample = prepared.run_fast(self.picked.images)
                else:
                    sample = inputs.call(self.picked)(module, self.picked.images.clone())
            except Exception as error:  # a module that does not take images may raise anything
                self.failures.setdefault(name or type(module).__name__, error)
                continue
            try:
                return self.read(name, module, inputs, sample)
            except (ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
                reason = error if isinstance(error, ValueError) else ValueError(str(error))
                if sample is not None:
                    self.refused.append(reason)
                return None
        return None

    def read(self, name: str, module: nn.Module, inputs: Inputs, sample: Any) -> Reading:
        """Return the reading of an output; raise an error where no task reads it."""
        output = output_of(sample, self.output)
        part = sample if output is None else entry_at(sample, output)
        task = self.task or choose_task(part, self.picked, self.multilabel)
        if not task.follows and len(task.scores(part)) != len(self.picked.images):
            raise ValueError(
                f"expected one row of scores per image, got {in_words(part)} for {len(self.picked.images)} images; "
                "pass output= with what picks them."
            )
        return Reading(name, module, task, inputs, output, sample)

    def errors(self) -> str:
        """Return why calls failed, in words."""
        failures = [(name, f"{type(e).__name__}: {e}") for name, e in self.failures.items()]
        return "".join(f" {name}: {reason[:200]}." for name, reason in failures[:2])


def named_network(module: nn.Module, name: str) -> nn.Module:
    """Return a part of a module by its name; "" is the module itself.

    >>> named_network(network, "0")
    Conv2d(3, 8, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1))
    """
    if not isinstance(name, str):
        raise TypeError(f"expected network= as the name of a part or a function of the module, got {name!r:.100}.")
    try:
        return module.get_submodule(name)
    except AttributeError as error:
        names = [key for key, _ in module.named_modules() if key]
        raise ValueError(
            f"expected network to be the name of a part of {type(module).__name__}, got {name!r}; closest: "
            f"{difflib.get_close_matches(name, names, 3)}, first: {[n for n in names if '.' not in n]}."
        ) from error


def candidate_parts(module: nn.Module) -> dict[str, nn.Module]:
    """Return the parts that could be the network: those with parameters, usual names first.

    >>> list(candidate_parts(nn.ModuleDict({"head": nn.Linear(1, 1), "net": nn.Linear(1, 1)})))
    ['net', 'head']
    """
    parts = {
        name: part
        for name, part in module.named_children()
        if not isinstance(part, (Metric, MetricCollection)) and any(True for _ in part.parameters())
    }
    return {name: parts[name] for name in sorted(parts, key=lambda n: USUAL.index(n) if n in USUAL else len(USUAL))}


def has_own_forward(module: nn.Module) -> bool:
    """Whether the class of a module has a forward that its author wrote.

    >>> has_own_forward(nn.Module())
    False
    """
    return type(module).forward.__qualname__ not in ("LightningModule.forward", "_forward_unimplemented")


def equal_outputs(one: Reading, other: Reading) -> bool:
    """Whether two networks returned the same numbers for the same images.

    >>> reading = find_network(network, images)
    >>> equal_outputs(reading, reading)
    True
    """
    if one.task.name != other.task.name:
        return False
    a, b = (list(_leaves(reading.scores_or_output)) for reading in (one, other))
    return len(a) == len(b) > 0 and all(x.shape == y.shape and torch.equal(x, y) for x, y in zip(a, b))


def _leaves(value: Any) -> Any:
    """Yield the tensors of an output."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for each in value:
            yield from _leaves(each)
    elif hasattr(value, "values") and callable(value.values):
        for each in value.values():
            yield from _leaves(each)


def output_of(returned: Any, output: Output) -> Output:
    """Return `output`, or None for a key of what the module returns around the network's tensor.

    >>> output_of(torch.zeros(1, 2), "logits") is None
    True
    """
    return None if isinstance(returned, Tensor) and not callable(output) else output
