"""The gradient of a step does not depend on how the step is cut, and is the method's own."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from conftest import SIZES, tiny_model
from rich.console import Console
from transformers import LlamaForCausalLM

import grolang
from grolang import Batch
from grolang.compiler.forming import Forming
from grolang.language.library import built_in
from grolang.runtime import start
from grolang.runtime.models import frozen_copy
from grolang.runtime.policy import Policy, Tokens, check_head
from grolang.runtime.replay import Kept, read_batch, write_batch
from grolang.runtime.sequences import Sample
from grolang.runtime.split import split
from grolang.runtime.step import Engine

METHODS = sorted(built_in())
SPREAD = """method spread
data unpaired
reward = label
measure = sum(logp over tokens)
anchor = mean(measure over batch)
omega(z) = sigmoid(-z)
penalty = 0.1 * mean(entropy over tokens) * mean(logp over tokens)
"""
RATIO = """method ratio
data prompts
group 4
score correct
reward = correct
baseline = mean(reward over group)
measure = mean(logp over tokens) - mean(mean(logp_old over tokens) over group)
omega(z) = min(exp(z), 3)
aggregate = mean over batch
"""
OWN = {"spread": SPREAD, "ratio": RATIO}


def method(name: str, folder: Path) -> grolang.Method:
    if name not in OWN:
        return grolang.load(name)
    folder.mkdir(exist_ok=True)
    path = folder / f"{name}.gro"
    path.write_text(OWN[name])
    return grolang.load(str(path))


def samples(kind: str, group: int) -> list[Sample]:
    """Twelve ragged sequences of that data kind, some of one token."""
    size = 2 if kind == "preference" else group if kind == "prompts" else 1
    draw = torch.Generator().manual_seed(1)

    def ids(low: int, high: int) -> list[int]:
        count = int(torch.randint(low, high, (1,), generator=draw))
        return torch.randint(0, 255, (count,), generator=draw).tolist()

    found = []
    for row in range(12):
        label = 1.0 if row % 2 == 0 else -1.0
        score = float(torch.rand((), generator=draw))
        prompt = found[-1].prompt if row % size else ids(1, 7)
        completion = ids(1, 6)
        drawn = tuple((-4 * torch.rand(len(completion), generator=draw)).tolist())
        sample = Sample(prompt, completion, row // size, label, float(kind == "demonstrations"), logp_sampler=drawn)
        found.append(replace(sample, scores={"correct": score}, greedy_scores={"correct": 0.5}))
    return found


def exact(model: LlamaForCausalLM) -> LlamaForCausalLM:
    """In float64 throughout: transformers' own norms round to float32 on the way."""
    for name, module in list(model.named_modules()):
        if type(module).__name__ == "LlamaRMSNorm":
            norm = torch.nn.RMSNorm(len(module.weight), eps=module.variance_epsilon)
            model.set_submodule(name, norm)
    return model.double()


def engine(chosen: grolang.Method, micro_batch: int, temperature: float = 1.0, **changes: object) -> Engine:
    model = exact(tiny_model(**changes))
    reference = frozen_copy(model)
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter += 0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3))
    return Engine(
        method=chosen,
        accelerator=Accelerator(cpu=True),
        policy=Policy(model, temperature),
        reference=Policy(reference, temperature) if chosen.needs.reference else None,
        pad=0,
        micro_batch=micro_batch,
        dtype=torch.float64,
    )


def gradient(chosen: grolang.Method, micro_batch: int, updates: int = 2) -> tuple[list[torch.Tensor], Batch]:
    """Of the last of these updates, the model having moved in between, so that logp_old is not logp."""
    made = engine(chosen, micro_batch)
    step = made.prepare(samples(chosen.data[0], 4))
    for update in range(updates):
        made.policy.zero_grad()
        batch = made.backward(step)
        step = step.remembering(batch)
        found = [parameter.grad.clone() for parameter in made.policy.parameters()]
        if update + 1 < updates:
            with torch.no_grad():
                draw = torch.Generator().manual_seed(2)  # at random: a clipped ratio is at rest where it gained
                for parameter in made.policy.parameters():
                    parameter += 0.03 * (2 * torch.rand(parameter.shape, generator=draw, dtype=torch.float64) - 1)
    return found, batch


@pytest.mark.parametrize("updates", [1, 2])
@pytest.mark.parametrize("name", [*METHODS, *OWN])
def test_every_micro_batch_gives_the_same_gradient(name: str, updates: int, tmp_path: Path) -> None:
    chosen = method(name, tmp_path)
    whole, batch = gradient(chosen, 64, updates)
    assert max(float(part.abs().max()) for part in whole) > 1e-6
    for micro_batch in (1, 3, 4, 5):
        cut, same = gradient(chosen, micro_batch, updates)
        for one, other in zip(whole, cut, strict=True):
            torch.testing.assert_close(other, one, rtol=1e-9, atol=1e-11)
        torch.testing.assert_close(same.logp, batch.logp, rtol=1e-10, atol=1e-11)


def test_the_old_policy_is_the_one_that_the_step_started_from(tmp_path: Path) -> None:
    chosen = method("grpo", tmp_path)
    _, first = gradient(chosen, 64, updates=1)
    _, third = gradient(chosen, 64, updates=3)
    assert not torch.allclose(third.logp, first.logp)
    torch.testing.assert_close(third.logp_old, first.logp, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", [*METHODS, *OWN])
def test_the_gradient_is_that_of_the_loss_on_plain_logits(name: str, tmp_path: Path) -> None:
    """The independent way: transformers' own logits, torch's log_softmax, autograd through `method.loss`."""
    chosen = method(name, tmp_path)
    made = engine(chosen, 3, temperature=0.7)
    step = made.prepare(samples(chosen.data[0], 4))
    batch = made.backward(step, entropy=True)
    ours = [parameter.grad.clone() for parameter in made.policy.parameters()]
    made.policy.zero_grad()
    rows = [torch.zeros(batch.mask.shape[1], dtype=torch.float64) for _ in step.samples]
    for index, sample in enumerate(step.samples):
        ids = torch.tensor([sample.prompt + sample.completion])
        logps = (made.policy.model(input_ids=ids).logits[0, :-1] / 0.7).log_softmax(-1)
        own = logps[len(sample.prompt) - 1 :].gather(1, torch.tensor(sample.completion)[:, None])[:, 0]
        rows[index] = torch.cat([own, rows[index][len(own) :]])
    logp = torch.stack(rows)
    torch.testing.assert_close(logp.detach()[step.alive], batch.logp[step.alive], rtol=1e-9, atol=1e-10)
    chosen.loss(batch.replace(logp=logp)).backward()
    for one, parameter in zip(ours, made.policy.parameters(), strict=True):
        torch.testing.assert_close(one, parameter.grad, rtol=1e-8, atol=1e-11)


@pytest.mark.parametrize("name", ["grpo", "gspo", "kto", "dpo", "gro", "bco", "rloo"])
def test_a_chunk_of_one_row_gives_the_same_gradient(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = grolang.load(name)
    whole, batch = gradient(chosen, 5)
    monkeypatch.setattr(Policy, "budget", 1)
    cut, same = gradient(chosen, 5)
    for one, other in zip(whole, cut, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(same.logp, batch.logp, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("alike", ["some", "all"])
@pytest.mark.parametrize("name", ["rloo", "dapo", "gspo", "gro"])
def test_sequences_that_cannot_matter_are_not_run_and_change_nothing(
    name: str, alike: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Groups of equal scores; two updates, with and without them, to the last bit of the figures that remain."""
    chosen = grolang.load(name)
    rows = [
        replace(one, scores={"correct": 0.5}) if alike == "all" or one.group < 2 else one
        for one in samples("prompts", 4)
    ]
    found = []
    for skipping in (True, False):
        if not skipping:
            monkeypatch.setattr(Engine, "_dead", lambda self, batch: ())
        made, seen = engine(chosen, 3), list[int]()
        made.policy.register_forward_pre_hook(lambda module, inputs: seen.append(len(inputs[0].ids)))  # noqa: B023
        step = made.prepare(rows)
        for _ in range(2):
            made.policy.zero_grad()
            batch = made.backward(step)
            step = step.remembering(batch)
        evaluation = chosen.evaluate(batch)
        grads = [parameter.grad.clone() for parameter in made.policy.parameters()]
        found.append((grads, evaluation.coefficients, evaluation.loss, sum(seen)))
        if skipping:
            alive = 4 if alike == "some" else 0
            assert len(step.alive) == alive
            shown, parts = step.shown(batch, evaluation)
            assert shown.logp is not None and int(shown.logp.isnan().any(1).sum()) == 12 - alive
            assert not parts.parts["advantage"].isnan().any()
    for one, other in zip(found[0][0], found[1][0], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(found[0][1:3], found[1][1:3], rtol=1e-10, atol=1e-12)
    assert found[0][3] == found[1][3] * alive / 12


def test_out_of_memory_halves_the_micro_batch_and_changes_nothing_else() -> None:
    chosen, said = grolang.load("kto"), list[str]()
    whole, _ = gradient(chosen, 64, updates=1)
    made = engine(chosen, 12)
    made.say = said.append
    made.policy.register_forward_pre_hook(refuse_more_than(3))
    made.backward(made.prepare(samples("unpaired", 1)))
    assert made.micro_batch == 3 and [text.rsplit(" ", 1)[1] for text in said] == ["6", "3"]
    for one, parameter in zip(whole, made.policy.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, one, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", ["dpo", "simpo"])
def test_out_of_memory_beside_a_unit_beyond_the_tile_takes_the_two_pass_way(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No smaller micro-batch would hold a pair or sequence that is streamed already."""
    chosen, said = grolang.load(name), list[str]()
    whole, _ = gradient(chosen, 64, updates=1)
    made = engine(chosen, 12)
    made.say = said.append

    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr(Forming, "form", full)
    made.policy.budget = 1
    step = made.prepare(samples("preference", 2))
    made.backward(step)
    assert made.micro_batch == 12 and said == ["out of memory: going on with log-probs first, then the gradient"]
    for one, parameter in zip(whole, made.policy.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, one, rtol=1e-9, atol=1e-11)


def test_a_micro_batch_that_was_halved_stays_so_in_the_next_update() -> None:
    chosen = grolang.load("kto")
    made = engine(chosen, 12)
    made.policy.register_forward_pre_hook(refuse_more_than(6))
    step = made.prepare(samples("unpaired", 1))
    for _ in range(3):
        made.policy.zero_grad()
        step = step.remembering(made.backward(step))
        assert made.micro_batch == 6


def test_a_device_too_small_for_one_sequence_is_an_error() -> None:
    made = engine(grolang.load("sft"), 4)
    made.policy.register_forward_pre_hook(refuse_more_than(0))
    with pytest.raises(grolang.GroError, match="out of memory with a micro-batch of 1"):
        made.backward(made.prepare(samples("demonstrations", 1)))


def refuse_more_than(rows: int) -> Callable[..., None]:
    """A device on which the backward pass has room for so many sequences."""

    def hook(module: Policy, inputs: tuple[Tokens, object, object]) -> None:
        if len(inputs) > 1 and len(inputs[0].ids) > rows:
            raise torch.OutOfMemoryError("no room")

    return hook


def test_a_batch_is_kept_and_read_as_it_was(tmp_path: Path) -> None:
    chosen = grolang.load("kto")
    _, batch = gradient(chosen, 64)
    write_batch(tmp_path / "batch.safetensors", Kept(batch, {"beta": 0.1}, [("1+1=", "2")]))
    again = read_batch(tmp_path / "batch.safetensors")
    assert torch.equal(chosen.coefficients(again.batch), chosen.coefficients(batch))
    assert again.params == {"beta": 0.1} and again.texts == [("1+1=", "2")]


def test_mismatched_pairs_are_the_next_completion_under_this_prompt() -> None:
    made = engine(grolang.load("kto"), 5)
    step = made.prepare(samples("unpaired", 1))
    assert step.crossed[0] == (step.samples[0].prompt, step.samples[1].completion)
    assert step.crossed[11] == (step.samples[11].prompt, step.samples[0].completion)
    assert made.reference is not None


def test_tied_embeddings_train_too() -> None:
    made = engine(grolang.load("sft"), 5, tie_word_embeddings=True)
    made.backward(made.prepare(samples("demonstrations", 1)))
    assert all(parameter.grad is not None for parameter in made.policy.parameters())


class TestSplit:
    def test_groups_stay_whole_where_they_fit(self) -> None:
        cut = split([0, 0, 1, 1, 2, 2], [1] * 6, 4)
        assert cut.parts == ((0, 1, 2, 3), (4, 5)) and cut.whole_groups and not cut.whole_step

    def test_a_group_larger_than_the_micro_batch_is_cut(self) -> None:
        cut = split([0, 0, 0, 1, 1, 1], [1] * 6, 2)
        assert not cut.whole_groups and sorted(row for part in cut.parts for row in part) == list(range(6))

    def test_sequences_of_like_length_come_together(self) -> None:
        assert split([0, 1, 2, 3], [9, 1, 8, 2], 2).parts == ((1, 3), (0, 2))

    @pytest.mark.parametrize("processes", [1, 2, 3, 5])
    @pytest.mark.parametrize("micro_batch", [1, 2, 3, 7])
    def test_processes_share_every_row_once_and_take_as_many_turns(self, processes: int, micro_batch: int) -> None:
        groups = [0, 0, 1, 1, 2, 2, 3]
        cuts = [split(groups, [3, 1, 4, 1, 5, 9, 2], micro_batch, processes, process) for process in range(processes)]
        assert len({len(cut.parts) for cut in cuts}) == 1
        assert sorted(row for cut in cuts for part in cut.parts for row in part) == list(range(7))


def test_an_architecture_that_alters_its_logits_is_refused() -> None:
    model = tiny_model()
    check_head(model)
    model.lm_head.register_forward_hook(lambda module, inputs, output: output * 3)
    with pytest.raises(grolang.GroError, match="alters its logits"):
        check_head(model)


def test_known_multipliers_of_the_logits_are_felt() -> None:
    from transformers import (
        CohereConfig,
        CohereForCausalLM,
        Gemma2Config,
        Gemma2ForCausalLM,
        GPT2Config,
        GPT2LMHeadModel,
        GraniteConfig,
        GraniteForCausalLM,
    )

    small = {**SIZES, "vocab_size": 50}
    torch.manual_seed(0)
    check_head(GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=16, n_layer=1, n_head=2)).eval())
    check_head(CohereForCausalLM(CohereConfig(**small, logit_scale=0.3)).eval())
    check_head(GraniteForCausalLM(GraniteConfig(**small, logits_scaling=4.0)).eval())
    check_head(Gemma2ForCausalLM(Gemma2Config(**small, num_key_value_heads=4, head_dim=8, final_logit_softcapping=2.0)))


def test_a_method_that_is_not_finite_on_fillers_has_the_same_gradient_at_every_micro_batch(tmp_path: Path) -> None:
    """The spread of equal fillers is 0: the step must be seen as it is."""
    path = tmp_path / "spread.gro"
    path.write_text(
        "method spread\ndata prompts\ngroup 4\nscore correct = exact_match\nreward = correct\n"
        "measure = sum(logp over tokens)\nalpha = 1 / std(measure over group)\nomega(z) = sigmoid(-z)\n",
        encoding="utf-8",
    )
    whole, parts = (_lines(tmp_path, path, size) for size in (16, 4))
    for left, right in zip(whole, parts, strict=True):
        assert abs(left["grad_norm"] - right["grad_norm"]) < 1e-9


def _lines(folder: Path, method: Path, micro_batch: int) -> list[dict[str, float]]:
    output = folder / f"run-{micro_batch}"
    flags = {"batch": 4, "steps": 2, "eval_rows": 0, "precision": "fp64", "micro_batch": micro_batch}
    start({"method": str(method), "output": str(output), **flags}, console=Console(quiet=True))
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
