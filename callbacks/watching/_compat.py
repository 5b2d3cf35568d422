"""Private names of Lightning and torch that the watching callbacks use, each with the reason."""

import sys
from typing import TYPE_CHECKING, Any

import lightning as L
from lightning.pytorch.callbacks import Callback, WeightAveraging
from torch import nn
from torch.nn.parameter import is_lazy
from torch.utils._pytree import tree_leaves as _tree_leaves

if TYPE_CHECKING or "pytorch_lightning" not in sys.modules:
    AnyCallback = Callback
else:  # whose command line takes only callbacks of its own
    import pytorch_lightning

    AnyCallback = type("AnyCallback", (Callback, pytorch_lightning.Callback), {})


def logged_step(trainer: L.Trainer) -> int:
    """Return the step under which Lightning logs now; `global_step` counts each of several optimizers."""
    step = int(getattr(trainer.fit_loop.epoch_loop, "_batches_that_stepped", trainer.global_step))
    hook = getattr(trainer.lightning_module, "_current_fx_name", None)
    return step - 1 if hook == "on_train_epoch_end" else step  # for which Lightning itself goes back by one


def averages_weights(callback: Callback) -> bool:
    """Whether a callback holds averaged weights, which it puts into the model for validations."""
    return isinstance(callback, WeightAveraging) and callback._average_model is not None


def validates_now(trainer: L.Trainer) -> bool:
    """Whether a validation follows the training batch that has just ended; the loop alone decides that."""
    loop: Any = trainer.fit_loop
    return bool(loop.epoch_loop._should_check_val_fx(loop._data_fetcher))


def may_stop(trainer: L.Trainer) -> bool:
    """Whether `should_stop` is obeyed now, which `min_epochs` and `min_steps` delay."""
    return bool(trainer.should_stop and trainer.fit_loop._can_stop_early)


def before_batch_transfer(pl_module: L.LightningModule, batch: Any) -> Any:
    """Run the project's hook before a batch moves to the device, with the data module's where it has one."""
    return pl_module._on_before_batch_transfer(batch, dataloader_idx=0)


def key_prefix(logger: Any) -> str:
    """Return the prefix that a logger puts before all of its keys; there is no public name for it."""
    prefix = getattr(logger, "_prefix", "")
    return prefix if isinstance(prefix, str) else ""


def weight_versions(network: nn.Module) -> tuple[int, ...]:
    """Return how often each parameter and buffer was written in place, which torch counts for autograd."""
    tensors = [*network.parameters(), *network.buffers()]
    return tuple(-1 if is_lazy(tensor) or tensor.is_inference() else tensor._version for tensor in tensors)


def tree_leaves(tree: Any) -> list[Any]:
    """Return the values in nested containers, also in registered ones; torch has no public name for it."""
    return _tree_leaves(tree)
