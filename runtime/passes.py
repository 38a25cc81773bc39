"""The models on a step: sequences dealt to processes and micro-batches, run and gathered, cut finer out of memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils.memory import should_reduce_batch_size
from torch import Tensor

from grolang.language.diagnostics import GroError
from grolang.runtime.policy import Form, Tokens
from grolang.runtime.processes import anywhere
from grolang.runtime.sequences import Pair, Step
from grolang.runtime.split import Split, split

T = TypeVar("T")


@dataclass(kw_only=True)
class Passes:
    """What runs models on parts of a step; full buffers [S, T] are known to every process afterwards.

    `autocast` is the dtype of the products inside the models, `dtype` that of the method's arithmetic. Coefficients
    are multiplied by `scale` on their way into the backward pass, and with them the gradients. Where the policy is
    `sharded`, processes exchange weights and gradients within each pass, so that they move together.
    """

    accelerator: Accelerator
    policy: Any  # the Policy, or what shards it
    pad: int
    micro_batch: int
    sharded: bool = False
    say: Callable[[str], None] = print
    dtype: torch.dtype = torch.float32
    autocast: torch.dtype | None = None
    scale: float = 1.0

    @property
    def device(self) -> torch.device:
        device: torch.device = self.accelerator.device
        return device

    def cut(
        self, pairs: Sequence[Pair], groups: Sequence[int] | None = None, rows: Sequence[int] | None = None
    ) -> Split:
        """The micro-batches of this process, of these rows; without groups each sequence is one of its own.

        Where the policy is sharded every process has as many, and one at least.
        """
        accelerator = self.accelerator
        rows = range(len(pairs)) if rows is None else rows
        groups = rows if groups is None else [groups[row] for row in rows]
        lengths = [sum(map(len, pairs[row])) for row in rows]
        cut = split(groups, lengths, self.micro_batch, accelerator.num_processes, accelerator.process_index)
        parts = tuple(tuple(rows[at] for at in part) for part in cut.parts if part or self.sharded)
        return replace(cut, parts=(parts or ((),)) if self.sharded else parts)

    def log_probs(
        self,
        policy: Any,
        pairs: Sequence[Pair],
        mask: Tensor,
        groups: Sequence[int] | None = None,
        rows: Sequence[int] | None = None,
        *,
        entropy: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """log-probs (and entropies) [S, T] of these sequences (all) of all processes, without gradient; 0 elsewhere.

        Cut as the backward pass is, so that a policy that is its reference has its log-probs to the last bit.
        """

        def own() -> tuple[Tensor, Tensor]:
            logp, spread = self.buffer(mask), self.buffer(mask)
            for part in self.cut(pairs, groups, rows).parts:
                with torch.no_grad(), self._autocast():
                    _, found, found_entropy = policy(self._tokens(pairs, part), entropy=entropy)
                place = self._place(mask, part)
                logp[place] = found[: int(place.sum())].to(self.dtype)
                if found_entropy is not None:
                    spread[place] = found_entropy[: int(place.sum())].to(self.dtype)
            return logp, spread

        logp, spread = self.fitting(lambda: self.alone(own))
        return self.gather(logp), self.gather(spread) if entropy else None

    def gather(self, own: Tensor) -> Tensor:
        """Rows of all processes, from buffers that are zero in the rows of the others."""
        gathered: Tensor = self.accelerator.reduce(own, "sum")
        return gathered

    def fitting(self, work: Callable[[], T]) -> T:
        """`work`, with half the micro-batch as often as the device runs out of memory, which changes nothing else."""
        while True:
            try:
                return work()
            except torch.OutOfMemoryError:
                if self.micro_batch == 1:
                    message = "out of memory with a micro-batch of 1"
                    raise GroError.plain(message, help="lower --max-completion or --max-prompt") from None
            self.clear()
            self.micro_batch //= 2
            self.say(f"out of memory: going on with a micro-batch of {self.micro_batch}")

    def clear(self) -> None:
        """Let go of what a part of the step has left."""
        self.policy.zero_grad()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def alone(self, work: Callable[[], T]) -> T:
        """`work` in which no process waits for another. Where one runs out of memory all of them say so."""
        short, found = False, None
        try:
            found = work()
        except Exception as error:  # what is out of memory has no class of its own; the rest is raised again
            if not out_of_memory(error):
                raise
            if self.sharded and self.accelerator.num_processes > 1:  # the others wait for this one in the midst of it
                message = f"out of memory with a micro-batch of {self.micro_batch}"
                raise GroError.plain(message, help="lower --micro-batch") from None
            short = True
        if anywhere(self.accelerator, short):
            raise torch.OutOfMemoryError
        assert found is not None
        return found

    def _autocast(self) -> AbstractContextManager[None]:
        return torch.autocast(self.device.type, dtype=self.autocast, enabled=self.autocast is not None)

    def buffer(self, mask: Tensor) -> Tensor:
        return torch.zeros(mask.shape, dtype=self.dtype, device=self.device)

    def _tokens(self, pairs: Sequence[Pair], part: Sequence[int]) -> Tokens:
        """A turn without rows still passes through a sharded model, with the first sequence."""
        return Tokens.of([pairs[row] for row in part or (0,)], self.pad, self.device)

    @staticmethod
    def _place(mask: Tensor, part: Sequence[int]) -> Tensor:
        """[S, T] bool: the valid tokens of these rows."""
        rows = torch.zeros(len(mask), dtype=torch.bool, device=mask.device)
        rows[list(part)] = True
        return mask & rows[:, None]

    def turn(self, step: Step, part: Sequence[int], form: Form) -> None:
        """Forward and backward pass of one micro-batch."""
        scale = self.scale * (self.accelerator.num_processes if self.sharded else 1)  # which averages over processes
        with self._autocast():
            loss, _, _ = self.policy(self._tokens(step.pairs, part), form)
        (loss * scale).backward()


def out_of_memory(error: Exception) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or bool(should_reduce_batch_size(error))
