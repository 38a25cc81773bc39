"""Sampling draws from the softmax, or the part of it that is asked for, and a completion depends on its key alone."""

from __future__ import annotations

import functools
import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TEMPLATE, Write, rows_of, tiny_model
from rich.console import Console
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from grolang import GroError
from grolang.runtime import defaults, parquet, start
from grolang.runtime.examples import Ids
from grolang.runtime.models import load_model, load_tokenizer
from grolang.runtime.policy import Policy, Tokens
from grolang.runtime.sampling import Drawn, Generate, Sampling, Stop, drawn_at, uniform

ENDS = frozenset([3])
PROMPTS = [[10, 11, 12], [20], [30, 31], [40, 41, 42, 43, 44]]
Embedded = tuple[PreTrainedModel, PreTrainedTokenizerBase, list[Ids]]


def draw(
    model: Any, prompts: list[Ids], keys: list[int] | None, *, batch: int = 256, keep_logp: bool = False, **how: Any
) -> list[Drawn]:
    return Generate(model, batch)(prompts, keys, Sampling(**({"ends": ENDS} | how)), keep_logp=keep_logp)


@pytest.fixture(scope="module")
def embedded() -> Embedded:
    """The model that a run takes by itself, its tokenizer, and 24 prompts."""
    path = str(defaults.model_path())
    tokenizer = load_tokenizer(path)
    rows = [json.loads(line) for line in defaults.data_path("prompts", "train").read_text().splitlines()[:24]]
    ids = [tokenizer(row["prompt"], add_special_tokens=False)["input_ids"] for row in rows]
    return load_model(path, dtype=torch.float32, device=torch.device("cpu")), tokenizer, ids


def test_tokens_are_drawn_from_the_softmax_and_one_that_cannot_come_never_is() -> None:
    share = torch.tensor([0.0, 0.05, 0.15, 0.0, 0.3, 0.5, 0.0], dtype=torch.float64)
    keys = torch.arange(40_000) * 7919
    found = torch.bincount(drawn_at(uniform(keys, 3), share.log().expand(len(keys), -1))[:, 0], minlength=7)
    torch.testing.assert_close(found / len(keys), share.float(), atol=0.01, rtol=0)
    assert not found[share == 0].any()
    ends = torch.tensor([2.0**-54, 1 - 2.0**-53], dtype=torch.float64)  # the least and the largest number
    assert drawn_at(ends, share.log().expand(2, -1)).tolist() == [[1], [5]]


def test_the_numbers_of_places_and_keys_have_nothing_to_do_with_each_other() -> None:
    keys = torch.arange(40_000)
    found = torch.stack([uniform(keys, 0), uniform(keys, 1), uniform(keys + 1, 0)])
    assert float((torch.corrcoef(found) - torch.eye(3)).abs().max()) < 0.02
    assert float(found.min()) > 0 and float(found.max()) < 1


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


def next_logits(model: PreTrainedModel, prompt: Ids, completion: Ids) -> Tensor:
    """[T, V]: what stood before each token of the completion."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([prompt + completion])).logits[0]
    return logits[len(prompt) - 1 : -1].float()


def kept(logits: Tensor, *, top_p: float = 1.0, top_k: int = 0, min_p: float = 0.0) -> list[bool]:
    """Which tokens are left, said once more: by the likeliest one, by rank, then by the mass before a token."""
    p = logits.softmax(-1)
    order = p.argsort(descending=True).tolist()
    left = [token for token in order if p[token] >= min_p * p[order[0]]][: top_k or len(order)]
    whole, mass, nucleus = float(p[left].sum()), 0.0, []
    for token in left:
        if mass < top_p * whole:
            nucleus.append(token)
        mass += float(p[token])
    return [token in nucleus for token in range(len(p))]


def test_the_truncations_are_in_the_order_of_vllm() -> None:
    """Of 0.5, 0.3, 0.15, 0.05 min-p 0.2 leaves three; of these 0.8 is then reached by two, else by three."""
    how = Sampling(frozenset([0]), 1, top_p=0.82, min_p=0.2)
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()
    left = how.truncation(torch.zeros(1, 1, dtype=torch.long), logits)
    assert left.isfinite().tolist() == [[True, True, False, False]]


@pytest.mark.parametrize(
    "how", [{"top_k": 2}, {"top_p": 0.8}, {"min_p": 0.3}, {"top_k": 5, "top_p": 0.9, "min_p": 0.1}]
)
def test_a_truncated_draw_is_from_the_tokens_that_are_left(embedded: Embedded, how: dict[str, Any]) -> None:
    """Each token is among them, its log-prob is that of the rest scaled up to 1, and the draw is not the plain one."""
    model, tokenizer, prompts = embedded
    given = {"ends": frozenset([tokenizer.eos_token_id]), "limit": 24, "temperature": 1.7}
    keys = list(range(len(prompts)))
    found = draw(model, prompts, keys, keep_logp=True, **given, **how)
    chosen = 0
    for prompt, one in zip(prompts[:12], found, strict=False):
        logits = next_logits(model, prompt, one.ids) / 1.7
        for row, token, logp in zip(logits, one.ids, one.logp, strict=True):
            left = torch.tensor(kept(row, **how))
            assert left[token]
            assert logp == pytest.approx(float(row.masked_fill(~left, -torch.inf).log_softmax(-1)[token]), abs=1e-4)
            chosen += int(left.sum()) > 1
    assert chosen > 20
    assert [one.ids for one in found] != [one.ids for one in draw(model, prompts, keys, **given)]
    assert draw(model, prompts, None, **given, **how) == draw(model, prompts, None, **given)


@pytest.mark.parametrize("text", ["\n", "=", "\n##", "+"])
def test_a_completion_ends_with_the_token_that_completes_a_stop(embedded: Embedded, text: str) -> None:
    """It is the completion without the stop, cut there: nothing that follows is in it."""
    model, tokenizer, prompts = embedded
    given = {"ends": frozenset([tokenizer.eos_token_id]), "limit": 40}
    keys = list(range(len(prompts)))
    whole = draw(model, prompts, keys, keep_logp=True, **given)
    found = draw(model, prompts, keys, keep_logp=True, stop=Stop((text, "never there"), tokenizer), **given)
    stopped = 0
    for one, all_of_it in zip(found, whole, strict=True):
        places = [at for at in range(1, len(all_of_it.ids) + 1) if text in tokenizer.decode(all_of_it.ids[:at])]
        length = places[0] if places else len(all_of_it.ids)
        assert one.ids == all_of_it.ids[:length] and len(one.logp) == length
        assert one.logp == pytest.approx(all_of_it.logp[:length], abs=1e-5)
        assert one.finished == (bool(places) or all_of_it.finished)
        stopped += bool(places)
    assert stopped >= 3 and any(len(one.ids) < len(other.ids) for one, other in zip(found, whole, strict=True))
    alone = draw(model, prompts[:3], keys[:3], stop=Stop((text,), tokenizer), batch=1, **given)
    assert [one.ids for one in alone] == [one.ids for one in found[:3]]


def test_a_stop_of_several_bytes_is_complete_with_the_last_one(embedded: Embedded) -> None:
    ids = embedded[1]("so: né", add_special_tokens=False)["input_ids"]
    stop = Stop((": né",), embedded[1])
    assert [stop.here(ids[:end]) for end in range(len(ids) + 1)] == [False] * len(ids) + [True]


def test_a_stop_is_not_completed_by_the_prompt(embedded: Embedded) -> None:
    model, tokenizer, prompts = embedded
    given: dict[str, Any] = {"ends": frozenset([tokenizer.eos_token_id]), "limit": 6}
    plain = draw(model, prompts, None, **given)
    for prompt, one in zip(prompts[:4], plain, strict=False):
        text = tokenizer.decode(prompt)[-1] + tokenizer.decode(one.ids[:1])
        stop = Stop((text,), tokenizer)
        assert text not in tokenizer.decode(one.ids)
        assert draw(model, [prompt], None, stop=stop, **given)[0].ids == one.ids


@pytest.mark.parametrize("own", [True, False])
def test_out_of_memory_halves_what_is_drawn_at_once_and_draws_the_same(
    own: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, prompts, said = tiny_model(), [[number, *prompt] for number in range(4) for prompt in PROMPTS], list[str]()
    keys, how = list(range(16)), Sampling(ENDS, 12)
    whole = Generate(model, own=own)(prompts, keys, how)
    forward, sizes = model.forward, list[int]()

    def short(most: int) -> Any:
        @functools.wraps(forward)
        def run(input_ids: Tensor, **options: Any) -> Any:
            if options["past_key_values"].get_seq_length() == 0:
                sizes.append(len(input_ids))
                if len(input_ids) > most:
                    raise torch.OutOfMemoryError("CUDA out of memory.")
            return forward(input_ids=input_ids, **options)

        return run

    monkeypatch.setattr(model, "forward", short(5))
    generate = Generate(model, say=said.append, own=own)
    assert generate(prompts, keys, how) == whole
    assert sizes == [16, 8, 4, 4, 4, 4]
    assert said == [f"out of memory while sampling: going on with {count} completions at once" for count in (8, 4)]
    generate(prompts, keys, how)
    assert sizes[6:] == [4, 4, 4, 4]  # it does not forget
    monkeypatch.setattr(model, "forward", short(0))
    with pytest.raises(GroError, match="out of memory while one completion is drawn"):
        generate(prompts, keys, how)


def go(output: Path, data: str, **flags: Any) -> list[dict[str, Any]]:
    given = {"data": data, "output": str(output), "steps": 2, "batch": 8, "eval_rows": 0, "lr": 1e-3}
    start(given | flags, None, Console(file=io.StringIO()))
    found = parquet.read_samples(output)
    assert found is not None
    rows: list[dict[str, Any]] = found.to_pylist()
    return rows


def test_a_run_trains_at_the_log_probs_of_the_whole_policy(tmp_path: Path) -> None:
    """`logp_sampler` is that of the part that was drawn from, never below; settings and mask follow the flags."""
    data = str(defaults.data_path("prompts", "train"))
    flags = {"method": "tis", "top_p": 0.7, "temperature": 1.3, "stop": ["\n"], "group": 4}
    rows = go(tmp_path / "out", data, **flags)
    told = (tmp_path / "out/settings.toml").read_text()
    assert "top_p = 0.7" in told and 'stop = ["\\n"]' in told
    model, tokenizer = (read(str(defaults.model_path())) for read in (_model, load_tokenizer))
    for row in rows[:8]:
        prompt = tokenizer(row["prompt"], add_special_tokens=False)["input_ids"]
        pairs = [(prompt, row["ids"])]
        _, logp, _ = Policy(model, 1.3)(Tokens.of(pairs, 0, torch.device("cpu")))
        assert row["logp_old"] == pytest.approx(float(logp.sum()), abs=1e-3)
    assert all(row["logp_sampler"] >= row["logp_old"] - 1e-3 for row in rows)
    assert any(row["logp_sampler"] > row["logp_old"] + 0.1 for row in rows)
    assert all(len(row["coefficients"]) == row["length"] == len(row["ids"]) for row in rows)
    ended = [row for row in rows if "\n" in row["completion"]]
    assert len(ended) > 10 and all(row["finished"] and row["completion"].index("\n") + 1 for row in ended)
    assert all("\n" not in tokenizer.decode(row["ids"][:-1]) for row in rows)


def _model(path: str) -> PreTrainedModel:
    return load_model(path, dtype=torch.float32, device=torch.device("cpu"))


def test_conversations_take_the_template_that_is_given(tiny: str, tmp_path: Path, write: Write) -> None:
    """A model without one; it is saved with the model, and stands in the run's folder."""
    rows = [{"prompt": [{"role": "user", "content": row["prompt"]}]} for row in rows_of("prompts", 16)]
    data, file = write(rows), tmp_path / "chat.jinja"
    flags: dict[str, Any] = {"model": tiny, "method": "rloo", "score": {"correct": "length"}, "max_completion": 4}
    with pytest.raises(GroError, match="no chat template"):
        go(tmp_path / "none", data, **flags)
    with pytest.raises(GroError, match=r"cannot read the chat template .*chat\.jinja"):
        go(tmp_path / "none", data, chat_template=str(file), **flags)
    file.write_text(TEMPLATE)
    found = go(tmp_path / "out", data, chat_template=str(file), **flags)
    assert all(row["prompt"].startswith("<user>") and row["prompt"].endswith("<assistant>") for row in found)
    assert (tmp_path / "out/chat_template.jinja").read_text() == TEMPLATE
    assert AutoTokenizer.from_pretrained(tmp_path / "out/model").chat_template == TEMPLATE


@pytest.mark.parametrize("flag", [{"top_p": 0.0}, {"top_p": 1.5}, {"top_k": -1}, {"min_p": 2.0}, {"stop": [""]}])
def test_settings_that_would_draw_nothing_are_refused(tmp_path: Path, flag: dict[str, Any]) -> None:
    with pytest.raises(GroError, match=f"--{next(iter(flag))}".replace("_", "-")):
        start({"method": "rloo", "output": str(tmp_path / "out")} | flag, None, Console(file=io.StringIO()))
