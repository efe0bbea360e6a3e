"""A run of which nothing stays: neither gradients nor random states, compiled graphs or a step that had no memory."""

import random
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from tunebook.common import resources
from tunebook.common.errors import CheckFailed
from tunebook.common.models import parameter_table

NO_MEMORY = re.compile(
    r"can't allocate memory|not enough memory|bad_alloc|out of memory|could not create a memory", re.I
)


NO_GRAPH = "does not require grad"  # what torch says of a loss that depends on nothing that trains


class OutOfMemory(Exception):
    """A step took more than there is."""


def catch_oom(model: Any, run: Callable, *args: Any) -> Any:
    """run(*args), of which nothing stays but its result; running out of memory is OutOfMemory, whoever says it.

    Raises:
        CheckFailed: the loss depends on nothing that trains.
        OutOfMemory: with what the allocator said; the frames that held the failed step's tensors are gone by then.
    """
    try:
        with restore_state(model), _allocation_fails():
            return run(*args)
    except (RuntimeError, MemoryError) as error:  # torch.OutOfMemoryError is a RuntimeError
        if NO_GRAPH in str(error):
            raise CheckFailed(parameter_table.nothing_reached(model)) from error
        if not isinstance(error, MemoryError) and not NO_MEMORY.search(str(error)):
            raise
        failure = str(error).splitlines()[0] if str(error) else type(error).__name__
    resources.release()
    raise OutOfMemory(failure)


@contextmanager
def restore_state(model: Any) -> Iterator[None]:
    """Gradients, training mode and all random states are afterwards as they were, and no compiled graph is left."""
    import numpy
    import torch

    mode = model.training
    states = random.getstate(), numpy.random.get_state(), torch.get_rng_state()
    devices = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    try:
        yield
    finally:
        model.zero_grad(set_to_none=True)
        model.train(mode)
        _forget_compiled(model)
        random.setstate(states[0])
        numpy.random.set_state(states[1])
        torch.set_rng_state(states[2])
        if devices:
            torch.cuda.set_rng_state_all(devices)


def _forget_compiled(model: Any) -> None:
    """Drop what torch.compile has made of the steps: training on graphs from before `train` gave gradients of NaN
    (unslothai/unsloth pull request 6511). A step that ran out of memory also leaves Unsloth's counts of checkpoints and
    their buffers half way. `train` would do both, with a warning, where Unsloth has seen such steps."""
    import torch

    if "torch._dynamo" in sys.modules:
        torch._dynamo.reset()
    checkpoints = sys.modules.get("unsloth_zoo.gradient_checkpointing")
    if checkpoints is not None and "GPU_BUFFERS" in vars(checkpoints):  # made with the first of its checkpoints
        checkpoints.reset_unsloth_gradient_checkpointing_buffers()
    for module in model.modules():
        seen = vars(module).get("_unsloth_pretrain_marker")
        if seen is not None:
            seen["seen"] = False


@contextmanager
def _allocation_fails() -> Iterator[None]:
    """Without a GPU: allocations past what is there fail with an error, where the kernel would end the process."""
    import torch

    if sys.platform != "linux" or torch.cuda.is_available():
        yield
        return
    import resource

    import psutil

    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    most = psutil.Process().memory_info().vms + resources.limit() - resources.held()
    bounds = [value for value in (soft, hard, most) if value != resource.RLIM_INFINITY]
    resource.setrlimit(resource.RLIMIT_AS, (min(bounds), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
