"""Attention of a token that is drawn for each of several sequences, where many of them began with one prompt.

The keys and values of a prompt stay where they are, once, and are read once for all that continue it: as products of
matrices, with as many rows as there are completions. Only what came after is each sequence's own. The softmax goes over
both parts together, so nothing else changes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
import transformers
from torch import Tensor, nn
from transformers import PreTrainedModel

NAME = "shared-prompts"


class Prompts:
    """Keys and values [P, heads, L, d] per layer, of prompts padded on the left, and the prompt `of` [S] sequences.

    `shown` [P, L] says what is no padding. For the products with prompts, sequences stand in P rows of like length.
    """

    def __init__(self, layers: Sequence[tuple[Tensor, Tensor]], shown: Tensor, of: Tensor) -> None:
        self.layers = list(layers)
        self.bias = torch.zeros(shown.shape, dtype=layers[0][0].dtype, device=shown.device)
        self.bias = self.bias.masked_fill_(~shown, -torch.inf)[:, None, None]
        self._deal(of)

    def keep(self, rows: Tensor) -> None:
        """The sequences with these numbers remain, in this order, and the prompts of which some remain."""
        left, of = torch.unique(self.of[rows], return_inverse=True)
        if len(left) < len(self.bias):
            self.layers = [(keys[left], values[left]) for keys, values in self.layers]
            self.bias = self.bias[left]
        self._deal(of)

    def _deal(self, of: Tensor) -> None:
        """`slot` [S] is a sequence's place among P · most, `row` [P · most] the sequence there, the first in gaps."""
        self.of, count = of, torch.bincount(of, minlength=len(self.bias))
        self.most, order = int(count.max()), of.argsort(stable=True)
        within = torch.arange(len(of), device=of.device) - (count.cumsum(0) - count)[of[order]]
        self.slot = torch.empty_like(of)
        self.slot[order] = of[order] * self.most + within
        self.row = of.new_zeros(len(count) * self.most)
        self.row[self.slot] = torch.arange(len(of), device=of.device)

    def together(self, own: Tensor) -> Tensor:
        """[S, heads, n, d] as [P, heads, most · n, d]."""
        return torch.unflatten(own[self.row], 0, (-1, self.most)).transpose(1, 2).flatten(2, 3)

    def apart(self, found: Tensor) -> Tensor:
        """[P, heads, most · n, d] as [S, heads, n, d]."""
        return torch.unflatten(found, 2, (self.most, -1)).transpose(1, 2).flatten(0, 1)[self.slot]


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    prompts: Prompts,
    scaling: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """[S, 1, heads, d] from queries [S, heads, 1, d], and keys and values [S, fewer heads, n, d] of what was drawn."""
    keys, values = prompts.layers[cast(int, module.layer_idx)]
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    own = (query * scale).reshape(len(query), keys.shape[1], -1, query.shape[-1])  # heads that read the same keys
    before = (prompts.together(own) @ keys.transpose(2, 3)).add_(prompts.bias)
    scores = torch.cat([before, prompts.together(own @ key.transpose(2, 3))], -1)
    weights = scores.softmax(-1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(value.dtype)
    of_prompt, of_own = torch.split(weights, [keys.shape[2], key.shape[2]], -1)
    found = prompts.apart(of_prompt @ values) + prompts.apart(of_own) @ value
    return found.reshape(len(query), 1, -1, value.shape[-1]), None


@contextmanager
def attended(model: PreTrainedModel) -> Iterator[None]:
    """While this holds the model's attention is the one here, and asks for `prompts`."""
    cast(Any, transformers).AttentionInterface().register(NAME, _attention)
    config = model.config.get_text_config()
    before, config._attn_implementation = config._attn_implementation, NAME
    try:
        yield
    finally:
        config._attn_implementation = before
