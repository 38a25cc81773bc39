"""The batch that a method is evaluated on: plain tensors under the field's names."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from grolang.language.diagnostics import GroError

PER_TOKEN = ("logp", "logp_old", "logp_ref", "logp_sampler", "entropy")
PER_SEQUENCE = ("group", "label", "demonstration")
BY_SCORE = ("scores", "greedy_scores")


@dataclass(frozen=True, eq=False)
class Batch:
    """S sequences of T token slots; a whole optimizer step, however it was cut up.

    ============================================ ============ ==================================================
    field                                        shape        meaning
    ============================================ ============ ==================================================
    mask                                         [S, T] bool  completion tokens; a row that is all off is padding
    group                                        [S] int      the prompt (or pair) that a sequence belongs to
    logp, logp_old, logp_ref, logp_sampler       [S, T]       log-probs in nats
    entropy                                      [S, T]       of the policy over the vocabulary, nats
    label                                        [S]          +1 or -1
    demonstration                                [S]          1 or 0
    scores                                       name -> [S]  one number per completion
    greedy_scores                                name -> [S]  the score of the greedy completion of the same prompt
    mismatched                                   Batch        row i: the completion of another prompt under prompt i
    ============================================ ============ ==================================================

    Only `mask` is always needed. A tensor of another shape is a GroError.
    """

    mask: Tensor
    group: Tensor | None = None
    logp: Tensor | None = None
    logp_old: Tensor | None = None
    logp_ref: Tensor | None = None
    logp_sampler: Tensor | None = None
    entropy: Tensor | None = None
    label: Tensor | None = None
    demonstration: Tensor | None = None
    scores: Mapping[str, Tensor] = field(default_factory=dict)
    greedy_scores: Mapping[str, Tensor] = field(default_factory=dict)
    mismatched: Batch | None = None

    def __post_init__(self) -> None:
        for name, tensor in [("mask", self.mask), *self.tensors()]:
            if not isinstance(tensor, Tensor):
                raise GroError.plain(f"`{name}` must be a tensor, not {type(tensor).__name__}", help="torch.tensor(…)")
        if self.mask.ndim != 2 or self.mask.dtype != torch.bool:
            found = f"{self.mask.dtype} {list(self.mask.shape)}"
            raise GroError.plain(f"`mask` must be a bool tensor [S, T], not {found}", help="pass `mask.bool()`")
        rows, slots = self.mask.shape
        for name, tensor in self.tensors():
            axes, expected = ("[S, T]", [rows, slots]) if name in PER_TOKEN else ("[S]", [rows])
            if list(tensor.shape) != expected:
                message = f"`{name}` must have shape {axes} = {expected}, not {list(tensor.shape)}"
                raise GroError.plain(message, help="S and T are those of `mask`")
        there = None if self.group is None or not self.group.is_floating_point() else self.group[self.mask.any(1)]
        if there is not None and bool((there % 1 != 0).any()):
            raise GroError.plain("`group` must hold whole numbers, one for each prompt", help="pass integers")
        if self.mismatched is not None and self.mismatched.mask.shape[0] != rows:
            message = f"`mismatched` must have {rows} rows, not {self.mismatched.mask.shape[0]}"
            raise GroError.plain(message, help="row i belongs to prompt i")

    def tensors(self) -> list[tuple[str, Tensor]]:
        """Every tensor but the mask, with the name that a message shows."""
        named: list[tuple[str, Tensor | None]] = [(name, getattr(self, name)) for name in PER_TOKEN + PER_SEQUENCE]
        named += [(f"{name}['{score}']", one) for name in BY_SCORE for score, one in getattr(self, name).items()]
        return [(name, tensor) for name, tensor in named if tensor is not None]

    def flat(self) -> dict[str, Tensor]:
        """Every tensor under its field's name; a dot leads into a field: `scores.correct`, `mismatched.logp`."""
        found: dict[str, Tensor] = {}
        for name in _FIELDS:
            value = getattr(self, name)
            if isinstance(value, Tensor):
                found[name] = value
            elif value is not None:
                inner = value.flat() if isinstance(value, Batch) else value
                found.update({f"{name}.{key}": tensor for key, tensor in inner.items()})
        return found

    @staticmethod
    def of(tensors: Mapping[str, Tensor]) -> Batch:
        """The batch that `flat` took apart."""
        fields: dict[str, Any] = {}
        for name, tensor in tensors.items():
            head, _, key = name.partition(".")
            if key:
                fields.setdefault(head, {})[key] = tensor
            else:
                fields[head] = tensor
        if "mismatched" in fields:
            fields["mismatched"] = Batch.of(fields["mismatched"])
        return Batch(**fields)

    @property
    def dtype(self) -> torch.dtype:
        """Of the arithmetic: float64 where an input is, else float32, whatever the model's dtype."""
        parts = [self] if self.mismatched is None else [self, self.mismatched]
        doubles = any(tensor.dtype == torch.float64 for part in parts for _, tensor in part.tensors())
        return torch.float64 if doubles else torch.float32

    def replace(self, **changes: Any) -> Batch:
        """The same batch with other fields."""
        return dataclasses.replace(self, **changes)

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on a device."""
        return Batch.of({name: tensor.to(device) for name, tensor in self.flat().items()})


_FIELDS = tuple(one.name for one in dataclasses.fields(Batch))  # torch.compile of 2.6 knows no other way to them
