"""Several processes that are one run: who is there, who does what, and what one of them meets all of them know."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object, patch_environment
from rich.console import Console

from grolang.language.diagnostics import GroError, cause
from grolang.runtime.progress import say

T = TypeVar("T")


def this_process() -> Accelerator:
    """This process among those that were started together.

    Without CUDA accelerate must be told so: else they would not see each other. Apple's GPUs have no float64, which
    sampling and metrics use. DeepSpeed takes over only when the model is there.
    """
    with patch_environment(ACCELERATE_USE_DEEPSPEED="false"):
        return Accelerator(cpu=not torch.cuda.is_available(), mixed_precision="no")  # the engine has its own


def joined(console: Console) -> tuple[Accelerator, Console]:
    """This process among those that were started together, and where it speaks: the main one alone is heard."""
    accelerator = this_process()
    if not accelerator.is_main_process:
        console = Console(quiet=True, stderr=True)
    if said := not_joined(accelerator):
        say(console, said)
    return accelerator, console


def not_joined(accelerator: Accelerator) -> str | None:
    """What to say where accelerate's launcher was asked for several processes and has started one.

    It does so where it finds no second GPU. An address to meet at, without a number in the ranks, tells of it.
    """
    asked = "ACCELERATE_USE_CPU" in os.environ and "MASTER_PORT" in os.environ
    if not asked or accelerator.num_processes > 1:
        return None
    said = "note: accelerate launch was asked for several processes and has started one, since it finds no second GPU"
    mend = "several processes on CPUs: accelerate launch --multi_gpu --num_processes N -m grolang run …"
    return said if torch.cuda.is_available() else f"{said}; {mend}"


def share(accelerator: Accelerator, count: int) -> slice:
    """This process's part of so many things."""
    processes, process = accelerator.num_processes, accelerator.process_index
    return slice(count * process // processes, count * (process + 1) // processes)


def of_all(accelerator: Accelerator, work: Callable[[], T]) -> list[T]:
    """What `work` gives in each process, in their order. What one of them raises is raised in all: none waits.

    Where it arose it is raised as it is, in the others as a GroError.
    """
    if accelerator.num_processes == 1:
        return [work()]
    own: tuple[T | None, GroError | None]
    raised: Exception | None = None
    try:
        own = work(), None
    except Exception as error:  # of any kind: the others must hear of it
        raised = error
        number, kind = accelerator.process_index, type(error).__name__
        said = error if isinstance(error, GroError) else GroError.plain(f"process {number}: {kind}: {cause(error)}")
        own = None, said
    found = gather_object([own])
    if raised is not None:
        raise raised
    for _, failed in found:
        if failed is not None:
            raise failed
    return [one for one, _ in found]


def anywhere(accelerator: Accelerator, here: bool) -> bool:
    """Whether it is so in any process; those that hear of it at different moments agree."""
    if accelerator.num_processes == 1:
        return here
    there = torch.tensor(float(here), device=accelerator.device)
    return bool(accelerator.reduce(there, "sum") > 0)


def add_up(parameters: Iterable[torch.nn.Parameter], processes: int) -> None:
    """The sum over processes of the gradient of each parameter that is trained, in place; 0 where nothing was run.

    A sum and no average: coefficients carry the denominators of the whole step.
    """
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    for parameter in trained:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    if processes > 1:
        waiting = [torch.distributed.all_reduce(parameter.grad, async_op=True) for parameter in trained]
        for work in waiting:
            work.wait()
