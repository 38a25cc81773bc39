"""Sampling draws from the softmax, and a completion depends on its key alone."""

from __future__ import annotations

import pytest
import torch
from conftest import tiny_model

from grolang.runtime.policy import Policy, Tokens
from grolang.runtime.sampling import draw, gumbel

ENDS = frozenset([3])
PROMPTS = [[10, 11, 12], [20], [30, 31], [40, 41, 42, 43, 44]]


def test_the_argmax_of_noisy_logits_is_a_draw_from_the_softmax() -> None:
    share = torch.tensor([0.05, 0.15, 0.3, 0.5], dtype=torch.float64)
    keys = torch.arange(40_000) * 7919
    chosen = (share.log() + gumbel(keys, 3, 4)).argmax(1)
    found = torch.bincount(chosen, minlength=4) / len(keys)
    torch.testing.assert_close(found.double(), share, atol=0.01, rtol=0)
    first, second = gumbel(keys, 0, 1)[:, 0], gumbel(keys, 1, 1)[:, 0]
    assert abs(float(torch.corrcoef(torch.stack([first, second]))[0, 1])) < 0.02


def test_a_completion_does_not_depend_on_the_batch_that_it_is_drawn_in() -> None:
    model, keys = tiny_model(), [1, 2, 3, 4]
    together = draw(model, PROMPTS, keys, ends=ENDS, limit=12)
    for batch in (1, 3):
        assert [one.ids for one in draw(model, PROMPTS, keys, ends=ENDS, limit=12, batch=batch)] == [
            one.ids for one in together
        ]
    alone = draw(model, PROMPTS[2:3], keys[2:3], ends=ENDS, limit=12)
    assert alone[0].ids == together[2].ids
    assert draw(model, PROMPTS, [5, 6, 7, 8], ends=ENDS, limit=12) != together


def test_greedy_completions_are_the_models_own() -> None:
    model = tiny_model()
    ours = draw(model, PROMPTS[:1], None, ends=ENDS, limit=8)[0].ids
    ids = torch.tensor([PROMPTS[0]])
    for token in ours:
        assert token == int(model(input_ids=ids).logits[0, -1].argmax())
        ids = torch.cat([ids, torch.tensor([[token]])], 1)


def test_completions_end_with_the_end_token_or_at_the_limit() -> None:
    ends = frozenset(range(0, 258, 6))
    found = draw(tiny_model(), PROMPTS * 20, list(range(80)), ends=ends, limit=10)
    lengths = {len(one.ids) for one in found}
    assert len(lengths) > 3 and max(lengths) <= 10
    for one in found:
        assert not ends & set(one.ids[:-1])
        assert one.ids[-1] in ends or len(one.ids) == 10


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_the_samplers_log_probs_are_the_policys_at_the_same_temperature(temperature: float) -> None:
    model = tiny_model()
    found = draw(model, PROMPTS, [1, 2, 3, 4], ends=ENDS, limit=9, temperature=temperature, keep_logp=True)
    pairs = [(prompt, one.ids) for prompt, one in zip(PROMPTS, found, strict=True)]
    _, logp, _ = Policy(model, temperature)(Tokens.of(pairs, 0, torch.device("cpu")))
    torch.testing.assert_close(logp, torch.tensor([value for one in found for value in one.logp]), atol=2e-5, rtol=1e-4)


def test_generation_settings_of_the_model_do_not_alter_what_is_drawn() -> None:
    model = tiny_model()
    plain = draw(model, PROMPTS, [1, 2, 3, 4], ends=ENDS, limit=8)
    model.generation_config.repetition_penalty = 3.0
    model.generation_config.top_k = 2
    assert draw(model, PROMPTS, [1, 2, 3, 4], ends=ENDS, limit=8) == plain
    assert model.generation_config.top_k == 2
