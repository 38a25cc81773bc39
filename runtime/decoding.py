"""Sequences that go through a model token by token, without what transformers' `generate` does around each token.

A prompt that several completions begin with goes through once, and a long one is kept once. What has ended leaves the
model. Keys and values are written into memory that is already there.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from math import inf
from typing import Any

import torch
from accelerate.utils.memory import should_reduce_batch_size
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache, DynamicLayer

from grolang.runtime.examples import Ids
from grolang.runtime.packing import HALF, PREFIX, SAME
from grolang.runtime.shared_prompts import Prompts, attended

LONG = 64  # tokens of the longest prompt; where all are shorter each completion has a copy of its own
EVEN = 1.5  # (prompts · completions of the prompt that has the most) / all completions, at most


class _Roomy(DynamicLayer):  # type: ignore[no-untyped-call]  # transformers has no types for its caches
    """Keys and values [S, heads, length, d], views of memory with room for more: it is copied where that is full."""

    room: tuple[Tensor, Tensor] | None = None
    left = 0  # tokens that are no longer here

    def get_seq_length(self) -> int:
        return self.left + super().get_seq_length()

    def update(self, keys: Tensor, values: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        start = self.get_seq_length() - self.left
        end = start + keys.shape[-2]
        if self.room is None or self.room[0].shape[-2] < end:
            size = end + max(32, end // 4) if start else end  # a prompt alone: the rows of its completions come next
            own = [new.new_empty((*new.shape[:2], size, new.shape[-1])) for new in (keys, values)]
            if start and self.keys is not None and self.values is not None:
                own[0][:, :, :start], own[1][:, :, :start] = self.keys, self.values
            self.dtype, self.device, self.is_initialized = keys.dtype, keys.device, True
            self.room = (own[0], own[1])
        self.room[0][:, :, start:end], self.room[1][:, :, start:end] = keys, values
        self.keys, self.values = (whole[:, :, :end] for whole in self.room)
        return self.keys, self.values

    def leave(self) -> tuple[Tensor, Tensor]:
        """What is there, which from now on is kept elsewhere; its tokens are counted still."""
        keys, values = self.keys, self.values
        assert keys is not None and values is not None
        self.left = keys.shape[-2]
        self.keys, self.values, self.room = keys[:, :, :0], values[:, :, :0], None
        return keys, values

    def reorder_cache(self, beam_idx: Tensor) -> None:
        super().reorder_cache(beam_idx)  # type: ignore[arg-type]
        self.room = None


class Rows:
    """Sequences in the model: `begin`, then `extend` by a token each, as often as is wanted; `keep` some of them.

    Padding stands on the left, so that all of them end at the same place of the cache. Where about as many sequences
    begin with each prompt, the longest of which has `shared_from` tokens, prompts are not copied for them.
    """

    def __init__(self, model: PreTrainedModel, shared_from: float = inf) -> None:
        self.model, self.shared_from = model, shared_from
        self.prompts: Prompts | None = None
        self.takes = inspect.signature(model.forward).parameters
        self.cache: Any = DynamicCache(config=model.config)
        make: Any = _Roomy
        self.cache.layers = [make() if type(layer) is DynamicLayer else layer for layer in self.cache.layers]
        attention = str(model.config.get_text_config()._attn_implementation).removeprefix(PREFIX)
        whole = all(type(layer) is make for layer in self.cache.layers)  # none of them has a window, or a state
        self.direct = whole and attention == "sdpa" and bool(model._supports_attention_backend)
        # in half precision two products would be rounded before the softmax; on a GPU it was not measured
        self.shares = self.direct and model.device.type == "cpu" and not torch.is_autocast_enabled("cpu")
        self.shares &= model.dtype.itemsize >= 4 and shared_from < inf

    def begin(self, prompts: Sequence[Ids], limit: int) -> Tensor:
        """Logits [S, V] after each prompt, to which `limit` tokens at most will be added."""
        distinct = {tuple(prompt): number for number, prompt in enumerate(dict.fromkeys(map(tuple, prompts)))}
        self.seen = max(map(len, distinct))
        ids = torch.zeros((len(distinct), self.seen), dtype=torch.long)
        self.attention = torch.zeros((len(distinct), self.seen + limit), dtype=torch.long)
        for prompt, number in distinct.items():
            ids[number, self.seen - len(prompt) :] = torch.tensor(prompt)
            self.attention[number, self.seen - len(prompt) :] = 1
        self.attention = self.attention.to(self.model.device)
        self.positions = (self.attention[:, : self.seen].cumsum(1) - 1).clamp_(min=0)
        logits = self._logits(ids.to(self.model.device))
        if len(distinct) == len(prompts):
            return logits
        rows = torch.tensor([distinct[tuple(prompt)] for prompt in prompts], device=self.model.device)
        places = len(distinct) * int(rows.bincount().max())
        if self.shares and self.seen >= self.shared_from and places <= EVEN * len(prompts):
            layers = [layer.leave() for layer in self.cache.layers]
            self.prompts = Prompts(layers, self.attention[:, : self.seen] > 0, torch.arange(len(distinct)).to(rows))
        self.keep(rows)
        return logits[rows]

    def keep(self, rows: Tensor) -> None:
        """The sequences with these numbers remain, in this order; a number may come more than once."""
        if self.prompts is not None:
            self.prompts.keep(rows)
        self.cache.reorder_cache(rows)
        self.attention, self.positions = self.attention[rows], self.positions[rows]

    def extend(self, tokens: Tensor) -> Tensor:
        """Logits [S, V] after one more token [S] each."""
        self.seen += 1
        self.positions = self.positions[:, -1:] + 1
        return self._logits(tokens[:, None])

    def _mask(self, queries: int) -> Tensor:
        """[S, L], or at once what transformers makes of it for every token: [S, 1, 1, L] bool, all but padding."""
        mask = self.attention[:, : self.seen]
        return mask[:, None, None] > 0 if self.direct and queries == 1 else mask

    def _logits(self, ids: Tensor) -> Tensor:
        told = {
            "input_ids": ids,
            "attention_mask": self._mask(ids.shape[1]),
            "position_ids": self.positions,
            "past_key_values": self.cache,
            "use_cache": True,
            "logits_to_keep": 1,
        }
        told = {name: value for name, value in told.items() if name in self.takes}
        if self.prompts is None:
            logits: Tensor = self.model(**told).logits
        else:
            self.prompts.mask = told["attention_mask"]
            with attended(self.model):
                logits = self.model(**told, prompts=self.prompts).logits
        return logits[:, -1].float()


def refusal(model: PreTrainedModel) -> str | None:
    """Why sequences cannot go through this model by `Rows`; None where they can.

    Whether its logits are then those of the whole sequences is tried out, and not read off the architecture's name.
    """
    kind = model.config.model_type
    try:
        same = _same(model, inf)
    except Exception as raised:  # whatever an architecture does with a cache that it does not know
        if should_reduce_batch_size(raised):
            raise
        return f"{kind} does not take a cache that is kept for it"
    return None if same else f"{kind} says something else from a cache that is kept for it"


def shared_from(model: PreTrainedModel) -> float:
    """The length from which on a model that `Rows` suits takes prompts that are kept once. It is tried, too."""
    if not Rows(model, LONG).shares:
        return inf
    try:
        return LONG if _same(model, 0) else inf
    except Exception as raised:  # as above
        if should_reduce_batch_size(raised):
            raise
        return inf


def _same(model: PreTrainedModel, shared_from: float) -> bool:
    error, matters = _error(model, shared_from)
    half = model.dtype.itemsize < 4 or torch.is_autocast_enabled(model.device.type)
    return error <= (HALF if half else SAME) * matters


@torch.no_grad()
def _error(model: PreTrainedModel, shared_from: float) -> tuple[float, float]:
    """What becomes of logits on the way through `Rows`, and what another token at the beginning changes in them."""
    draw, size = torch.Generator().manual_seed(0), model.config.get_text_config().vocab_size
    first, second, third, more = (torch.randint(size, shape, generator=draw) for shape in ((9,), (4,), (6,), (4, 7)))
    prompts = [one.tolist() for one in (first, second, first, third)]

    def alone(ids: Tensor) -> Tensor:
        logits: Tensor = model(input_ids=ids[None].to(model.device), use_cache=False).logits
        return logits[0].double()

    rows, alive = Rows(model, shared_from), torch.arange(4)
    found = [rows.begin(prompts, more.shape[1])]
    assert rows.shares == (rows.prompts is not None)
    for place in range(more.shape[1]):
        if place == 4:  # one leaves
            alive = torch.tensor([3, 1, 2])
            rows.keep(alive.to(model.device))
        found.append(rows.extend(more[alive, place].to(model.device)))
    error, whole = 0.0, [alone(torch.cat([torch.tensor(one), own])) for one, own in zip(prompts, more, strict=True)]
    for place, logits in enumerate(found):
        order = [0, 1, 2, 3] if place < 5 else [3, 1, 2]
        for own, row in zip(logits, order, strict=True):
            error = max(error, float((whole[row][len(prompts[row]) - 1 + place] - own).norm()))
    changed = torch.cat([first, more[0]])
    changed[1] = (changed[1] + 1) % size
    return error, float((alone(changed) - whole[0]).norm(dim=-1)[2:].mean())
