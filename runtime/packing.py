"""Sequences end to end through the model, and what they begin with alike once: the same states, without padding.

The state of a token is a function of the tokens up to it. So a row of N tokens stands for all sequences: each token
that some sequence has after the same beginning is there once (the prompt of a group, of a pair), and padding is not
there. What a decoder does token by token (embedding, projections, norms, MLP) runs on this row. Attention alone needs
sequences: queries, keys and values are copied into blocks of sequences of like length, pass through the model's own
attention under the mask that the model itself asks for, and go back to the row. A sequence that shares most of its
tokens with others brings the queries of the rest alone.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from math import inf
from typing import Any, cast

import torch
import transformers
from torch import Tensor, nn
from transformers import PreTrainedModel

from grolang.runtime.examples import Ids

FULL = 0.6  # of a block's products of queries and keys are those of tokens, at least, and the rest of padding
WORTH = 0.95  # of the tokens of the padded pass: where more remain, packing is not worth the copying
PREFIX = "packed-"
SAME, HALF = 1e-3, 0.1  # of what a token changes: states that are the same, but for rounding, and in half precision
LEAK = 1e-5  # of a state: more than sums in another order, less than any rounding to half precision


@dataclass(frozen=True)
class Layout:
    """Where the tokens of s sequences stand in a row of N: `place` [s, longest] numbers them, and is 0 after their end.

    ids [N] and positions [N] are what the model reads. For attention the row is copied into `blocks` of (sequences,
    queries, keys), queries being fewer than keys where each sequence is asked for its end alone: `asked` [Q] and
    `spread` [K] are the flattened places of queries and keys, and `gather` [N] names for each token one of Q.
    """

    ids: Tensor
    positions: Tensor
    place: Tensor
    asked: Tensor
    spread: Tensor
    gather: Tensor
    blocks: tuple[tuple[int, int, int], ...]

    def to(self, device: torch.device) -> Layout:
        names = ("ids", "positions", "place", "asked", "spread", "gather")
        return replace(self, **{name: getattr(self, name).to(device) for name in names})

    @cached_property
    def at(self) -> Tensor:
        """[Q]: the positions of the queries, for every layer of the model."""
        return self.positions[self.asked]


def lay_out(sequences: Sequence[Ids], enough: float = 0.3) -> Layout:
    """The row of these sequences, none of which is empty.

    One that shares at least the part `enough` of its tokens with others is asked for the rest alone.
    """
    ids, positions, place, shared = _shared(sequences)
    begins = [
        same if same >= enough * len(own) else 0 for own, same in zip(place, shared, strict=True)
    ]  # the token of each sequence from which on it is asked
    padded = nn.utils.rnn.pad_sequence([torch.tensor(one, dtype=torch.long) for one in place], batch_first=True)
    gather = torch.empty(len(ids), dtype=torch.long)
    asked: list[Tensor] = []
    spread: list[Tensor] = []
    blocks, slots = _blocks([(len(own) - begin, len(own)) for own, begin in zip(place, begins, strict=True)]), 0
    for rows, queries, keys in blocks:
        for row in rows:
            own = torch.tensor(place[row][begins[row] :])
            gather[own] = torch.arange(slots, slots + len(own))
            asked.append(nn.functional.pad(own, (0, queries - len(own))))
            spread.append(padded[row, :keys])  # after its end a sequence looks at nothing, and is not looked at
            slots += queries
    return Layout(
        torch.tensor(ids),
        torch.tensor(positions),
        padded,
        torch.cat(asked),
        torch.cat(spread),
        gather,
        tuple((len(rows), queries, keys) for rows, queries, keys in blocks),
    )


def _shared(sequences: Sequence[Ids]) -> tuple[list[int], list[int], list[list[int]], list[int]]:
    """ids [N], positions [N], the numbers of each sequence's tokens among them, and how many stood there before it.

    In dictionary order each sequence shares with the one before it all that it shares with any before it.
    """
    ids: list[int] = []
    positions: list[int] = []
    place: list[list[int]] = [[] for _ in sequences]
    shared = [0] * len(sequences)
    before = None
    for row in sorted(range(len(sequences)), key=lambda row: sequences[row]):
        own, same = sequences[row], 0
        if before is not None:
            other = sequences[before]
            ends = min(len(own), len(other))
            same = next((at for at in range(ends) if own[at] != other[at]), ends)
            place[row] = place[before][:same]
        place[row] = [*place[row], *range(len(ids), len(ids) + len(own) - same)]
        ids += own[same:]
        positions += range(same, len(own))
        shared[row], before = same, row
    return ids, positions, place, shared


def _blocks(sizes: Sequence[tuple[int, int]]) -> list[tuple[list[int], int, int]]:
    """Sequences of like (queries, keys), with the most of each: whole ones apart, since they need no mask."""
    blocks: list[tuple[list[int], int, int]] = []
    asked, products = [row for row, (queries, _) in enumerate(sizes) if queries], 0
    for row in sorted(asked, key=lambda row: (sizes[row][0] < sizes[row][1], -sizes[row][1], -sizes[row][0])):
        own, length = sizes[row]
        products += own * length
        if blocks:
            rows, queries, keys = blocks[-1]
            most = max(queries, own)
            if (queries < keys) == (own < length) and products >= FULL * (len(rows) + 1) * most * keys:
                blocks[-1] = ([*rows, row], most, keys)
                continue
        blocks.append(([row], own, length))
        products = own * length
    return blocks


def states(decoder: Callable[..., Any], layout: Layout) -> Tensor:
    """[N, D] states of a row, from a decoder whose attention was prepared by `enable`."""
    told = torch.ones((1, layout.place.shape[1]), dtype=torch.long, device=layout.ids.device)
    found: Tensor = decoder(
        input_ids=layout.ids[None],
        position_ids=layout.positions[None],
        attention_mask=told,
        use_cache=False,
        packed=layout,
    )[0]
    return found[0]


def take(values: Tensor, rows: Tensor) -> Tensor:
    """values [N, …] at these rows; the backward pass adds up in one order, on every device."""
    found = nn.functional.embedding(rows, values.flatten(1))
    return found.view(*rows.shape, *values.shape[1:])


def _attention(
    inner: Callable[..., Any] | None,
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *args: Any,
    packed: Layout | None = None,
    **options: Any,
) -> tuple[Tensor, Tensor | None]:
    """The model's own attention `inner`, block by block where the row is packed."""
    if inner is None:  # eager attention is each architecture's own
        inner = sys.modules[type(module).__module__].eager_attention_forward
    if packed is None:
        own: tuple[Tensor, Tensor | None] = inner(module, query, key, value, attention_mask, *args, **options)
        return own
    options.pop("position_ids", None)  # of the row; attention looks at them for packed rows of another kind
    asked = [rows * queries for rows, queries, _ in packed.blocks]
    spread = [rows * keys for rows, _, keys in packed.blocks]
    parts = [
        torch.split(take(query[0].transpose(0, 1), packed.asked), asked),
        *(torch.split(take(one[0].transpose(0, 1), packed.spread), spread) for one in (key, value)),
        torch.split(packed.at, asked),
    ]
    found = []
    for (rows, queries, keys), *block, positions in zip(packed.blocks, *parts, strict=True):
        if queries == keys:
            mask = attention_mask if attention_mask is None else attention_mask[..., :keys, :keys]
        else:
            mask = _rows(attention_mask, positions.view(rows, queries), keys)
        inputs = (one.view(rows, -1, *one.shape[1:]).transpose(1, 2) for one in block)
        found.append(inner(module, *inputs, mask, *args, **options)[0].flatten(0, 1))
    return take(torch.cat(found), packed.gather)[None], None


def _rows(mask: Tensor | None, positions: Tensor, keys: int) -> Tensor:
    """[s, 1, queries, keys]: the rows of the model's mask at these positions [s, queries]; without one, causality's."""
    if mask is None:
        return (torch.arange(keys, device=positions.device) <= positions[..., None])[:, None]
    return mask[0][:, positions, :keys].transpose(0, 1)


def _mask(inner: Callable[..., Any], **options: Any) -> Any:
    """The mask that the model asks for. Of a packed row it has more queries than keys: the longest sequence's."""
    if options["q_length"] > options["kv_length"]:
        options |= {"q_length": options["kv_length"], "attention_mask": None}
    return inner(**options)


def enough(model: PreTrainedModel) -> float:
    """What a sequence must share so that its own queries under a mask take less time than all of them without one.

    On a CPU that was measured. A GPU, where it was not, has a faster kernel without a mask, with half the products.
    """
    if model.config.get_text_config()._attn_implementation.removeprefix(PREFIX) not in ("sdpa", "eager"):
        return inf  # it takes no mask of another form
    return 0.3 if model.device.type == "cpu" else 0.67


def enable(model: PreTrainedModel) -> str | None:
    """Prepare the model's attention for packed rows. Where its states would not be the same: the reason, no change.

    Whether they are is tried out on a few tokens, and not read off the architecture's name: recurrent layers, position
    biases and attention that is not transformers' own mix the sequences of a row.
    """
    config = model.config.get_text_config()
    own = config._attn_implementation
    if own.startswith(PREFIX):
        return None
    try:
        attention, masks = (
            cast(Any, transformers).AttentionInterface(),
            cast(Any, transformers).AttentionMaskInterface(),
        )
        inner = None if own == "eager" else attention[own]
        attention.register(PREFIX + own, partial(_attention, inner))
        masks.register(PREFIX + own, partial(_mask, masks[own]))
    except (AttributeError, KeyError):
        return f"the attention `{own}` of {config.model_type} is not known to take packed rows"
    config._attn_implementation = PREFIX + own
    try:
        different = _different(model)
    except Exception:  # whatever an architecture does with what it does not know
        different = f"the layers of {config.model_type} do not take packed rows"
    if different is not None:
        config._attn_implementation = own
    return different


@torch.no_grad()
def _different(model: PreTrainedModel) -> str | None:
    """What a packed row changes in four short sequences, against what another token at their beginning does.

    Three share most of their tokens, so that ends of several lengths stand in one block.

    In half precision rounding alone changes something; but tokens that only one sequence has must then still be
    nothing to the others.
    """
    config, decoder = model.config.get_text_config(), cast(Any, model).get_decoder()
    draw = torch.Generator().manual_seed(0)
    drawn = [torch.randint(0, config.vocab_size, (length,), generator=draw) for length in (13, 12, 11, 7)]
    for ids, same in zip(drawn[1:], (9, 9, 3), strict=True):
        ids[:same] = drawn[0][:same]

    def alone(ids: Tensor) -> Tensor:
        found: Tensor = decoder(input_ids=ids[None].to(model.device), use_cache=False)[0]
        return found[0].double()

    def other(ids: Tensor, places: Any) -> Tensor:
        changed = ids.clone()
        changed[places] = (ids[places] + 1) % config.vocab_size
        return changed

    layout = lay_out([ids.tolist() for ids in drawn], enough(model)).to(model.device)
    row = states(decoder, layout).double()
    error = matters = 0.0
    for place, ids in zip(layout.place, drawn, strict=True):
        own = alone(ids)
        error = max(error, float((row[place[: len(ids)]] - own).norm(dim=-1).max()))
        matters += float((alone(other(ids, 1)) - own).norm(dim=-1)[2:].mean()) / len(drawn)
    whole = sorted(place[: len(ids)].tolist() for place, ids in zip(layout.place, drawn, strict=True))
    first, second, third, fourth = map(set, whole)  # in the order of the row
    own_alone = sorted((first | third) - second - fourth)
    leaks = (states(decoder, replace(layout, ids=other(layout.ids, own_alone))).double() - row).norm(dim=-1)
    leaks[own_alone] = 0
    rounding = HALF if model.dtype.itemsize < 4 else SAME
    if error <= rounding * matters and float(leaks.max()) <= LEAK * float(row.norm(dim=-1).mean()):
        return None
    return f"in a packed row the layers of {config.model_type} see tokens of other sequences"
