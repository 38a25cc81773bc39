"""Completions drawn token by token are those of transformers' `generate`, whatever the architecture."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from conftest import tiny_model
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from grolang.runtime import decoding
from grolang.runtime.decoding import Rows, refusal
from grolang.runtime.examples import Ids
from grolang.runtime.sampling import WORTH, Drawn, Generate, Sampling

PROMPTS: list[Ids] = [[10, 11, 12], [20], [10, 11, 12], [30, 31], [40, 41, 42, 43, 44, 9, 8, 7], [20]]
ENDS = frozenset([3, 50, 51])
SIZES: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.1,
}
WINDOW = {"head_dim": 8, "sliding_window": 6}
OTHERS: dict[str, dict[str, Any]] = {
    "GPT2": {"vocab_size": 96, "n_embd": 32, "n_layer": 2, "n_head": 4, "initializer_range": 0.1},
    "Qwen3": SIZES | {"head_dim": 8},
    "Mistral": SIZES | WINDOW,
    "Gemma2": SIZES | WINDOW,
    "Bloom": {"vocab_size": 96, "hidden_size": 32, "n_layer": 2, "n_head": 4, "initializer_range": 0.1},
    "Lfm2": SIZES | {"layer_types": ["conv", "full_attention"], "block_auto_adjust_ff_dim": False},
}
STATES = {"vocab_size": 96, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4, "initializer_range": 0.1}


def made(kind: str, sizes: dict[str, Any]) -> PreTrainedModel:
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**sizes)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    nn.Module.eval(model)
    return model


def draw(model: PreTrainedModel, keys: list[int] | None, own: bool | None = None, **how: Any) -> list[Drawn]:
    told: dict[str, Any] = {"ends": ENDS, "limit": 16} | how
    return Generate(model, own=own)(PROMPTS, keys, Sampling(**told), keep_logp=True)


@pytest.mark.parametrize("kind", OTHERS)
def test_completions_are_those_of_generate(kind: str) -> None:
    """Past the window of those that have one; greedy ones, sampled ones, and their log-probs."""
    model, keys = made(kind, OTHERS[kind]), list(range(6))
    assert refusal(model) is None
    for given, how in ((None, {}), (keys, {}), (keys, {"temperature": 0.7, "top_p": 0.9, "min_p": 0.02})):
        ours, theirs = (draw(model, given, own, **how) for own in (True, False))
        assert [one.ids for one in ours] == [one.ids for one in theirs]
        assert [one.finished for one in ours] == [one.finished for one in theirs]
        for left, right in zip(ours, theirs, strict=True):
            assert left.logp == pytest.approx(right.logp, abs=1e-5) and len(left.logp) == len(left.ids) * bool(given)


def test_a_long_completion_outgrows_its_room_more_than_once() -> None:
    model = tiny_model(max_position_embeddings=512)
    ours, theirs = (draw(model, list(range(6)), own, ends=frozenset([3]), limit=120) for own in (True, False))
    assert [one.ids for one in ours] == [one.ids for one in theirs]
    assert max(len(one.ids) for one in ours) > 100


@pytest.mark.parametrize("kind", ["Mamba", "Rwkv"])
def test_a_model_with_a_state_of_its_own_kind_is_left_to_generate(kind: str) -> None:
    sizes = STATES if kind == "Mamba" else {"vocab_size": 96, "hidden_size": 32, "num_hidden_layers": 2}
    model, said, how = made(kind, sizes), list[str](), Sampling(ENDS, 6)
    generate = Generate(model, say=said.append)
    found = generate(PROMPTS[:1], [0], how)
    assert found == Generate(model, own=False)(PROMPTS[:1], [0], how)
    assert generate(PROMPTS[:1], [0], how) == found
    assert len(said) == 1 and kind.lower() in said[0]


def test_a_cache_that_is_wrong_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """That forgets a token, or that mixes up the rows."""
    model, own = tiny_model(), decoding._Roomy.update
    assert refusal(model) is None

    def forgets(layer: Any, keys: Tensor, values: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        return own(layer, keys, values * (layer.get_seq_length() != 10))

    with monkeypatch.context() as patch:
        patch.setattr(decoding._Roomy, "update", forgets)
        assert "something else" in str(refusal(model))
    with monkeypatch.context() as patch:
        patch.setattr(decoding._Roomy, "reorder_cache", lambda layer, rows: None)
        assert refusal(model) is not None
    keep = Rows.keep
    monkeypatch.setattr(Rows, "keep", lambda self, rows: keep(self, rows.flip(0)))
    assert "something else" in str(refusal(model))


def watched(model: nn.Module) -> list[tuple[int, int]]:
    """The shapes of what goes through the model from now on."""
    seen: list[tuple[int, int]] = []
    model.register_forward_pre_hook(lambda _, args, told: seen.append(tuple(told["input_ids"].shape)), with_kwargs=True)
    return seen


@pytest.mark.parametrize("kind", ["sdpa", "eager", "Mistral", "Bloom"])
def test_a_mask_is_made_beforehand_where_attention_is_torchs_and_has_no_window(kind: str) -> None:
    model = made(kind, OTHERS[kind]) if kind in OTHERS else tiny_model()
    if kind == "eager":
        model.set_attn_implementation(kind)
    rows = Rows(model)
    rows.begin([[5, 6, 7], [8]], 4)
    mask = rows._mask(1)
    assert mask.tolist() == ([[[[True] * 3]], [[[False, False, True]]]] if kind == "sdpa" else [[1, 1, 1], [0, 0, 1]])
    assert rows._mask(2).shape == (2, 3)
    assert refusal(model) is None


def test_a_prompt_goes_through_the_model_once_and_what_has_ended_leaves_it() -> None:
    model = tiny_model()
    seen, ends = watched(model), frozenset(range(0, 258, 6))
    prompts = [prompt for prompt in PROMPTS[3:] for _ in range(16)]
    found = Generate(model, own=True)(prompts, list(range(48)), Sampling(ends, 40))
    assert seen[0] == (3, 8)
    assert all(width == 1 for _, width in seen[1:])
    assert len(seen) == max(len(one.ids) for one in found)
    rows, needed = sum(rows for rows, _ in seen[1:]), sum(len(one.ids) - 1 for one in found)
    assert rows * WORTH <= needed < rows < 48 * (len(seen) - 1) / 2
    alone = Generate(model, 1, own=True)(prompts, list(range(48)), Sampling(ends, 40))
    assert [one.ids for one in alone] == [one.ids for one in found]


def test_no_pass_follows_the_last_token() -> None:
    model = tiny_model()
    seen = watched(model)
    Generate(model, own=True)(PROMPTS, None, Sampling(frozenset([3]), 1))
    assert len(seen) == 1
