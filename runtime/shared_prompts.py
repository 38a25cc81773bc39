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


OPTIONS = frozenset({"dropout", "is_causal", "output_attentions", "position_ids", "use_cache"})
"""What attention may be told that changes nothing here, where a model's own would have one query and no dropout."""


class Prompts:
    """Keys and values [P, heads, L, d] per layer, of prompts padded on the left, and the prompt `of` [S] sequences.

    `shown` [P, L] says what is no padding. For the products with prompts, sequences stand in P rows of as many places
    as the prompt with the most of them has: with `of` = 0, 1, 0 in rows (0, 2) and (1, –), so that `most` is 2, the
    `place` of each sequence among the four 0, 2, 1, and the one `at` each place 0, 2, 1, 0.
    """

    def __init__(self, layers: Sequence[tuple[Tensor, Tensor]], shown: Tensor, of: Tensor) -> None:
        self.layers = list(layers)
        self.bias = torch.zeros(shown.shape, dtype=layers[0][0].dtype, device=shown.device)
        self.bias = self.bias.masked_fill_(~shown, -torch.inf)[:, None, None]
        self.mask: Tensor | None = None  # the one that the model is given, and must not change
        self._set_out(of)

    def keep(self, rows: Tensor) -> None:
        """The sequences with these numbers remain, in this order, and the prompts of which some remain."""
        left, of = torch.unique(self.of[rows], return_inverse=True)
        if len(left) < len(self.bias):
            for number, (keys, values) in enumerate(self.layers):
                self.layers[number] = (keys[left], values[left])
            self.bias = self.bias[left]
        self._set_out(of)

    def _set_out(self, of: Tensor) -> None:
        self.of, count = of, torch.bincount(of, minlength=len(self.bias))
        self.most, order = int(count.max()), of.argsort(stable=True)
        within = torch.arange(len(of), device=of.device) - (count.cumsum(0) - count)[of[order]]
        self.place = torch.empty_like(of)
        self.place[order] = of[order] * self.most + within
        self.at = of.new_zeros(len(count) * self.most)  # gaps hold the first sequence, and are never read
        self.at[self.place] = torch.arange(len(of), device=of.device)

    def together(self, own: Tensor) -> Tensor:
        """[S, heads, n, d] as [P, heads, most · n, d]."""
        return torch.unflatten(own[self.at], 0, (-1, self.most)).transpose(1, 2).flatten(2, 3)

    def apart(self, found: Tensor) -> Tensor:
        """[P, heads, most · n, d] as [S, heads, n, d]."""
        return torch.unflatten(found, 2, (self.most, -1)).transpose(1, 2).flatten(0, 1)[self.place]


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    prompts: Prompts,
    scaling: float | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """[S, 1, heads, d] from queries [S, heads, 1, d], and keys and values [S, fewer heads, n, d] of what was drawn.

    ValueError where the model asks for more than that: a mask, window, cap or sink of its own.
    """
    more = [options[name] for name in options.keys() - OPTIONS]
    if attention_mask is not prompts.mask or any(one is not None and one is not False for one in more):
        raise ValueError("attention of a kind that takes no shared prompts")
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
