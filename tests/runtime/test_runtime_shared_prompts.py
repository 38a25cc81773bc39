"""A prompt that is kept once for all of its completions changes none of them."""

from __future__ import annotations

from math import inf
from typing import Any

import pytest
import torch
from conftest import tiny_model
from test_runtime_decoding import ENDS, OTHERS, made

from grolang.runtime import shared_prompts
from grolang.runtime.decoding import LONG, Rows, refusal, shared_from
from grolang.runtime.examples import Ids
from grolang.runtime.sampling import Generate, Sampling
from grolang.runtime.shared_prompts import Prompts

PROMPTS: list[Ids] = [[10, 11, 12], [20], [10, 11, 12], [30, 31, 5, 6, 7, 8], [20], [20], [10, 11, 12], [60], [60]]
"""Groups of three, three, two and one, mixed."""


@pytest.mark.parametrize("kind", ["Llama", "Qwen3", "GPT2"])
@pytest.mark.parametrize("greedy", [True, False])
def test_completions_are_those_of_generate(kind: str, greedy: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """With heads that share keys and without; groups get smaller, and some end as a whole."""
    model = made(kind, OTHERS[kind]) if kind in OTHERS else tiny_model()
    keys, how = None if greedy else list(range(len(PROMPTS))), Sampling(ENDS | frozenset(range(0, 90, 9)), 24)
    kept, keep = list[tuple[int, int]](), Prompts.keep

    def seen(prompts: Prompts, rows: torch.Tensor) -> None:
        keep(prompts, rows)
        kept.append((len(prompts.bias), len(rows)))

    monkeypatch.setattr(Prompts, "keep", seen)
    theirs = Generate(model, own=False)(PROMPTS, keys, how, keep_logp=True)
    assert not kept
    ours = Generate(model, own=True, shared_from=0)(PROMPTS, keys, how, keep_logp=True)
    assert [one.ids for one in ours] == [one.ids for one in theirs]
    for left, right in zip(ours, theirs, strict=True):
        assert left.logp == pytest.approx(right.logp, abs=1e-5)
    assert kept[0] == (4, len(PROMPTS)) and (greedy or kept[-1][0] < 4)


def test_only_what_was_drawn_is_each_sequences_own() -> None:
    model = tiny_model()
    rows = Rows(model, shared_from=6)
    rows.begin(PROMPTS, 8)
    for tokens in ([5] * 9, [7] * 9):
        rows.extend(torch.tensor(tokens))
    assert rows.prompts is not None
    for layer, (keys, values) in zip(rows.cache.layers, rows.prompts.layers, strict=True):
        assert keys.shape[:3] == values.shape[:3] == (4, 4, 6)
        assert layer.keys.shape[:3] == layer.values.shape[:3] == (9, 4, 2)
    rows.keep(torch.tensor([5, 4, 0]))
    assert rows.prompts.layers[0][0].shape[0] == 2 and rows.prompts.of.tolist() == [1, 1, 0]


@pytest.mark.parametrize(
    ("kind", "from_", "prompts"),
    [
        ("Mistral", 0, PROMPTS),
        ("eager", 0, PROMPTS),
        ("Llama", 7, PROMPTS),
        ("Llama", 0, PROMPTS[2:5]),
        ("Llama", 0, [*PROMPTS, [60], [60], [60]]),
    ],
)
def test_prompts_are_copied_otherwise(kind: str, from_: int, prompts: list[Ids]) -> None:
    """With a window, with attention that is not torch's, where they are short, no two the same, or groups uneven."""
    model = made(kind, OTHERS[kind]) if kind in OTHERS else tiny_model()
    if kind == "eager":
        model.set_attn_implementation(kind)
    rows = Rows(model, shared_from=from_)
    rows.begin(prompts, 4)
    rows.extend(torch.full((len(prompts),), 5))
    assert rows.prompts is None and rows.cache.get_seq_length() == max(map(len, prompts)) + 1


def test_it_is_tried_before_it_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model's own attention may do what this one does not know of."""
    model, said = tiny_model(), list[str]()
    assert shared_from(model) == LONG
    monkeypatch.setattr(Prompts, "apart", lambda self, found: found.flatten(0, 1)[: len(self.of)])
    assert refusal(model) is None
    assert shared_from(model) == inf
    generate = Generate(model, say=said.append)
    generate(PROMPTS, None, Sampling(ENDS, 2))
    assert generate.own and generate.shared_from == inf and not said


def test_a_model_that_hands_nothing_on_has_its_prompts_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model()
    own = type(model).forward

    def forward(self: Any, **told: Any) -> Any:
        told.pop("prompts", None)
        return own(self, **told)

    monkeypatch.setattr(type(model), "forward", forward)
    assert shared_from(model) == inf


def test_the_models_own_attention_comes_back() -> None:
    model = tiny_model()
    with pytest.raises(KeyError), shared_prompts.attended(model):
        assert model.config._attn_implementation == shared_prompts.NAME
        raise KeyError
    assert model.config._attn_implementation == "sdpa"
    shared_from(model)
    assert model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("kind", ["bf16", "autocast", "eager", "Mistral"])
def test_where_it_is_not_done_the_length_is_infinite(kind: str) -> None:
    """In half precision scores would be rounded before the softmax."""
    model = made(kind, OTHERS[kind]) if kind in OTHERS else tiny_model()
    if kind == "eager":
        model.set_attn_implementation(kind)
    with torch.autocast("cpu", torch.bfloat16, enabled=kind == "autocast"):
        found = shared_from(model.to(torch.bfloat16) if kind == "bf16" else model)
    assert found == inf


@pytest.mark.parametrize("more", ["nothing", "a mask of the layer's own", "a cap"])
def test_what_a_short_trial_may_not_show_is_refused(more: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A window or a cap may matter only far from the beginning; so may the length that a model reads off its cache."""
    model = tiny_model()
    attention = type(model.model.layers[0].self_attn)
    own = attention.forward

    def forward(self: Any, hidden_states: Any, *, attention_mask: Any = None, **told: Any) -> Any:
        if (cache := told["past_key_values"]) is not None:
            assert told["position_ids"].max() < cache.get_seq_length(self.layer_idx) + hidden_states.shape[1]
        if more == "a mask of the layer's own":
            attention_mask = None if attention_mask is None else attention_mask.clone()
        if more == "a cap":
            told["cap"] = 1e9
        return own(self, hidden_states, attention_mask=attention_mask, **told)

    monkeypatch.setattr(attention, "forward", forward)
    assert shared_from(model) == (LONG if more == "nothing" else inf)
