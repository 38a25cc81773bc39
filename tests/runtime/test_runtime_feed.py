"""Several files, the past, and recorded log-probs: what a step is made of, and that a resume makes it again."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from accelerate import Accelerator
from conftest import Write, lines, rows_of, tiny_model, tokenizer
from rich.console import Console
from safetensors.torch import load_file

from grolang import GroError
from grolang.runtime import Outcome, resolve, start
from grolang.runtime.data import open_rows
from grolang.runtime.examples import Encoder, Limits, load_examples
from grolang.runtime.feed import Mixture
from grolang.runtime.parts import Part, read_parts
from grolang.runtime.setup import Run, prepare

QUICK: dict[str, Any] = {"steps": 4, "batch": 6, "lr": 1e-3, "max_completion": 6, "micro_batch": 16, "eval_rows": 0}
RATIO = (
    "method ratio\ndata KIND\nreward = label\nanchor = logp_old\nomega(z) = min(exp(z), 5)\n"
    "report gap = mean(logp - logp_old over tokens)\n"
)


def flags(tiny: str, output: Path, method: str, data: Any, **more: Any) -> dict[str, Any]:
    return QUICK | {"model": tiny, "output": str(output), "method": method, "data": data} | more


def run(tiny: str, output: Path, method: str, data: Any, **more: Any) -> Outcome:
    return start(flags(tiny, output, method, data, **more), None, Console(file=io.StringIO()))


def prepared(tiny: str, output: Path, method: str, data: Any, **more: Any) -> Run:
    return prepare(*resolve(flags(tiny, output, method, data, **more)), Accelerator(cpu=True))


def same(one: Path, two: Path) -> bool:
    ours, theirs = (load_file(path / "model/model.safetensors") for path in (one, two))
    return all(torch.equal(ours[name], theirs[name]) for name in ours)


# --- several files ----------------------------------------------------------------------------------------------


def mixture(write: Write, sizes: tuple[int, ...], weights: tuple[float, ...]) -> Mixture:
    parts = []
    for file, size in enumerate(sizes):
        rows = open_rows(write([{"prompt": f"{file}:{row}"} for row in range(size)], f"{file}.jsonl"))
        parts.append(load_examples(rows, "prompts", Encoder(tokenizer()), Limits(None)))
    return Mixture(tuple(parts), weights)


def drawn(rows: Mixture, start: int, size: int, seed: int = 3) -> list[str]:
    return [str(example.record["prompt"]) for example in rows.draw(seed, start, size)]


def test_files_come_by_their_weights_and_rows_once_an_epoch(write: Write) -> None:
    rows = mixture(write, (5, 7, 4), (2.0, 1.0, 1.0))
    found = drawn(rows, 0, 80)
    for at in range(0, 80, 16):
        counts = [sum(text.startswith(f"{file}:") for text in found[at : at + 16]) for file in range(3)]
        assert all(abs(count - share) <= 2 for count, share in zip(counts, (8, 4, 4), strict=True))
    for file, size in enumerate((5, 7, 4)):
        own = [text for text in found if text.startswith(f"{file}:")]
        for epoch in range(0, len(own) - size + 1, size):
            assert len(set(own[epoch : epoch + size])) == size
    assert found != drawn(rows, 0, 80, seed=4)


def test_the_order_goes_on_where_it_stood(write: Write) -> None:
    rows = mixture(write, (5, 7), (1.0, 3.0))
    assert [*drawn(rows, 0, 11), *drawn(rows, 11, 2), *drawn(rows, 13, 20)] == drawn(rows, 0, 33)


def test_what_data_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "odd:2").mkdir()
    assert read_parts(["a.jsonl:2", "b.jsonl:0.5"], ["prompts"]) == [
        Part("a.jsonl", "prompts", 2.0), Part("b.jsonl", "prompts", 0.5)
    ]  # fmt: skip
    assert read_parts(["odd:2"], ["prompts"]) == [Part("odd:2", "prompts")]
    both = ["prompts", "demonstrations"]
    assert read_parts(["a"], both) == [Part("a", "prompts"), Part("a", "demonstrations")]
    assert read_parts(["a", "b"], both) == [Part("a", "prompts"), Part("b", "demonstrations")]
    named = ["demonstrations=d", "prompts=a:2", "prompts=b:1"]
    assert [part.name for part in read_parts(named, both)] == ["a", "b", "d"]


@pytest.mark.parametrize(
    ("given", "kinds", "said"),
    [
        (["a:1", "b"], ["prompts"], "some files have a weight"),
        (["a:0"], ["prompts"], "--data a:0: a weight is a number above 0\n help: write a:1, or leave it out"),
        (["a.jsonl:-2"], ["prompts"], "--data a.jsonl:-2: a weight is a number above 0"),
        (["a:nan"], ["prompts"], "a weight is a number above 0"),
        (["a:inf"], ["prompts"], "a weight is a number above 0"),
        (["a:2", "./a:1"], ["prompts"], "--data ./a is given twice\n help: give it once; a larger share is ./a:WEIGHT"),
        (
            ["prompt=a"],
            ["prompts"],
            "--data prompt=a: there is no such file, and `prompt` is no kind of data\n help: write prompts=a",
        ),
        (["x=a"], ["prompts"], "help: write KIND=a, KIND one of preference, unpaired, prompts, demonstrations"),
        (["a", "b", "c"], ["prompts", "demonstrations"], "say of what kind each is: --data prompts=NAME"),
        (
            ["prompts=a"],
            ["prompts", "demonstrations"],
            "no file of demonstrations\n help: add --data demonstrations=NAME",
        ),
        (["unpaired=a"], ["prompts"], "--data unpaired=a: the method learns from prompts"),
        (["prompts=a", "demonstrations=b:2"], ["prompts", "demonstrations"], "have no weight\n help: leave out :2"),
    ],
)
def test_what_data_cannot_say(given: list[str], kinds: list[str], said: str) -> None:
    with pytest.raises(GroError) as caught:
        read_parts(given, kinds)
    assert said in str(caught.value)


def test_a_run_on_two_files_goes_on_to_the_same_bits(tiny: str, tmp_path: Path, write: Write) -> None:
    one, two = rows_of("demonstrations", 60)[:20], rows_of("demonstrations", 60)[20:]
    data = (write(one, "a.jsonl") + ":3", write(two, "b.jsonl") + ":1")
    run(tiny, tmp_path / "whole", "sft", data, steps=4)
    run(tiny, tmp_path / "cut", "sft", data, steps=4, save_every=2)
    for step in (tmp_path / "cut/checkpoints").glob("step-*4"):
        for file in step.iterdir():
            file.unlink()
        step.rmdir()
    start({"output": str(tmp_path / "cut"), "resume": True}, None, Console(quiet=True))
    assert same(tmp_path / "whole", tmp_path / "cut")


def test_a_score_reads_its_column_in_every_file(tiny: str, tmp_path: Path, write: Write) -> None:
    data = (write(rows_of("prompts"), "a.jsonl"), write([{"prompt": "x", "other": 1}], "b.jsonl"))
    with pytest.raises(GroError, match="the score exact_match reads the column `answer`; the data has `prompt`"):
        run(tiny, tmp_path / "out", "rloo", data)


def test_demonstrations_among_drawn_completions_become_likelier(tiny: str, tmp_path: Path, write: Write) -> None:
    (tmp_path / "mixed.gro").write_text(
        "method mixed\ndata prompts + demonstrations\ngroup 2\nscore correct = exact_match\n"
        "reward = demonstration\nreport shown = sum(logp over tokens) * demonstration\n"
    )
    files = write(rows_of("prompts", 12), "p.jsonl"), write(rows_of("demonstrations", 12), "d.jsonl")
    run(tiny, tmp_path / "out", str(tmp_path / "mixed.gro"), files, steps=20, lr=1e-2, batch=12)
    found = lines(tmp_path / "out")
    assert found[-1]["report/shown"] > found[0]["report/shown"] + 1.0


# --- recorded log-probs -----------------------------------------------------------------------------------------


def ratio(tmp_path: Path, kind: str = "unpaired") -> str:
    path = tmp_path / "ratio.gro"
    path.write_text(RATIO.replace("KIND", kind))
    return str(path)


def test_recorded_log_probs_are_logp_old(tiny: str, tmp_path: Path, write: Write) -> None:
    rows = [{"prompt": "a", "completion": "bc", "label": True, "logp_old": [-1.0, -2.0, -0.5]}] * 3
    rows += [{"prompt": "a", "completion": "d", "label": False, "logp_old": None}]
    made = prepared(tiny, tmp_path / "out", ratio(tmp_path), write(rows), batch=4)
    step = made.engine.prepare(made.feed.draw(0).samples)
    batch = made.engine.backward(step)
    assert batch.logp is not None and batch.logp_old is not None
    for row, sample in enumerate(step.samples):
        expected = torch.tensor([-1.0, -2.0, -0.5]) if len(sample.completion) == 3 else batch.logp[row, :2]
        torch.testing.assert_close(batch.logp_old[row, : len(sample.completion)], expected)


def test_pairs_have_a_column_for_each_side(tiny: str, tmp_path: Path, write: Write) -> None:
    pair = {"prompt": "a", "chosen": "b", "rejected": "cd"}
    data = write([pair | {"chosen_logp_old": [-1, -2], "rejected_logp_old": [-1, -2, -3]}])
    made = prepared(tiny, tmp_path / "out", ratio(tmp_path, "preference"), data, batch=1)
    assert [sample.logp_old for sample in made.feed.draw(0).samples] == [(-1, -2), (-1, -2, -3)]
    cut = prepared(tiny, tmp_path / "out", ratio(tmp_path, "preference"), data, batch=1, max_completion=2)
    assert [sample.logp_old for sample in cut.feed.draw(0).samples] == [(-1, -2), (-1, -2)]


def test_a_method_without_logp_old_does_not_look_at_them(tiny: str, tmp_path: Path, write: Write) -> None:
    rows = [row | {"chosen_logp_old": [-1.0]} for row in rows_of("preference", 4)]
    made = prepared(tiny, tmp_path / "out", "dpo", write(rows), batch=4)
    assert all(sample.logp_old == () for sample in made.feed.draw(0).samples)


def test_the_policys_own_log_probs_change_nothing(tiny: str, tmp_path: Path, write: Write) -> None:
    rows = rows_of("unpaired", 12)
    made = prepared(tiny, tmp_path / "out", ratio(tmp_path), write(rows), batch=12)
    step = made.engine.prepare(made.feed.draw(0).samples)
    logp = made.engine.current(step).logp
    assert logp is not None
    by_pair = {(tuple(s.prompt), tuple(s.completion)): logp[row, : len(s.completion)].tolist()
               for row, s in enumerate(step.samples)}  # fmt: skip
    encoder = Encoder(tokenizer())
    recorded = [
        row | {"logp_old": by_pair[
            tuple(encoder.prompts([row["prompt"]])[0]),
            tuple(encoder.completions([row["prompt"]], [row["completion"]])[0]),
        ]}
        for row in rows
    ]  # fmt: skip
    run(tiny, tmp_path / "plain", ratio(tmp_path), write(rows), steps=1, batch=12)
    run(tiny, tmp_path / "recorded", ratio(tmp_path), write(recorded, "r.jsonl"), steps=1, batch=12)
    first, second = lines(tmp_path / "plain")[0], lines(tmp_path / "recorded")[0]
    assert second["report/gap"] == pytest.approx(0, abs=1e-6)
    assert second["grad_norm"] == pytest.approx(first["grad_norm"], rel=1e-4)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ([-1.0, -2.0], "rows.jsonl:2: `logp_old` has 2 numbers, and `completion` has 3 tokens, the end token included"),
        ([-1.0, 0.5, -1.0], "`logp_old` has 0.5 at token 1; a log-prob is a finite number, at most 0"),
        ([-1.0, None, -1.0], "`logp_old` has None at token 1"),
        ([], "`logp_old` has 0 numbers"),
    ],
)
def test_recorded_log_probs_that_are_none(
    values: list[Any], said: str, tiny: str, tmp_path: Path, write: Write
) -> None:
    good = {"prompt": "a", "completion": "bc", "label": True, "logp_old": [-1.0, -1.0, -1.0]}
    with pytest.raises(GroError) as caught:
        run(tiny, tmp_path / "out", ratio(tmp_path), write([good, good | {"logp_old": values}]))
    assert said in str(caught.value) and "help: record the log-prob of each token" in str(caught.value)


def test_a_sum_of_log_probs_is_no_list(tiny: str, tmp_path: Path, write: Write) -> None:
    row = {"prompt": "a", "completion": "bc", "label": True, "logp_old": -3.5}
    with pytest.raises(GroError, match=r"rows.jsonl:1: `logp_old` is -3.5; expected a list of numbers, one for each"):
        run(tiny, tmp_path / "out", ratio(tmp_path), write([row]))


# --- the past ---------------------------------------------------------------------------------------------------


def test_groups_of_the_past_join_with_the_log_probs_they_were_drawn_with(
    tiny: str, tmp_path: Path, write: Write
) -> None:
    made = prepared(
        tiny,
        tmp_path / "out",
        "grpo",
        write(rows_of("prompts")),
        replay=2,
        replay_size=7,
        group=3,
        score={"correct": "length"},
    )
    feed, engine, past = made.feed, made.engine, made.feed.past
    assert past is not None
    known: dict[tuple[int, ...], list[float]] = {}
    for number in range(3):
        draw = feed.draw(number)
        again = [sample for sample in draw.samples if sample.replayed]
        assert draw.figures["replayed"] == (2 if number else 0) and len(again) == (6 if number else 0)
        step = engine.prepare(draw.samples)
        batch = engine.backward(step)
        assert batch.logp_old is not None and batch.logp is not None
        for row, sample in enumerate(draw.samples):
            old = batch.logp_old[row, : len(sample.completion)].tolist()
            if sample.replayed:
                assert old == pytest.approx(known[(*sample.prompt, -1, *sample.completion)], abs=1e-6)
            else:
                assert old == pytest.approx(batch.logp[row, : len(sample.completion)].tolist(), abs=1e-5)
                known[(*sample.prompt, -1, *sample.completion)] = old
        feed.remember(step.remembering(batch))
        with torch.no_grad():
            for parameter in made.model.parameters():
                parameter += 0.01 * torch.randn_like(parameter)
    assert len(past.groups) == 7


def test_the_past_survives_a_resume(tiny: str, tmp_path: Path, write: Write) -> None:
    more = {"replay": 2, "group": 2, "score": {"correct": "length"}, "updates": 2, "lr": 1e-2}
    data = write(rows_of("prompts"))
    run(tiny, tmp_path / "whole", "grpo", data, steps=8, schedule="constant", **more)
    run(tiny, tmp_path / "cut", "grpo", data, steps=4, schedule="constant", **more)
    start({"output": str(tmp_path / "cut"), "resume": True, "steps": 8}, None, Console(quiet=True))
    assert same(tmp_path / "whole", tmp_path / "cut")
    assert [line["replayed"] for line in lines(tmp_path / "cut")] == [0, 0, 2, 2, 2, 2, 2, 2]
    run(tiny, tmp_path / "none", "grpo", data, steps=8, schedule="constant", **{**more, "replay": 0})
    assert not same(tmp_path / "whole", tmp_path / "none")


def test_a_past_that_cannot_be_is_refused(tiny: str, tmp_path: Path, write: Write) -> None:
    with pytest.raises(
        GroError, match="`sft` learns from rows of the data and draws no completions\n help: leave out --replay"
    ):
        run(tiny, tmp_path / "out", "sft", write(rows_of("demonstrations")), replay=1)
    with pytest.raises(GroError, match="--replay 8 groups of the last 4: give --replay-size 8 or more"):
        run(tiny, tmp_path / "out", "grpo", write(rows_of("prompts")), replay=8, replay_size=4)


def test_a_method_that_does_not_weigh_the_past_is_told(tiny: str, tmp_path: Path, write: Write) -> None:
    said: list[str] = []
    given = flags(tiny, tmp_path / "out", "rloo", write(rows_of("prompts")), replay=2, score={"correct": "length"})
    made = prepare(*resolve(given), Accelerator(cpu=True), said.append)
    assert "`rloo` does not read logp_old: groups of earlier steps count as if they were drawn now" in said[0]
    draw = made.feed.draw(0)
    step = made.engine.prepare(draw.samples)
    made.feed.remember(step.remembering(made.engine.backward(step)))
    assert all(sample.logp_old == () for sample in made.feed.draw(1).samples)


def prompts_of(path: str) -> set[str]:
    return {json.loads(line)["prompt"] for line in Path(path).read_text().splitlines()}


def test_held_out_rows_come_from_every_file_by_its_weight(tiny: str, tmp_path: Path, write: Write) -> None:
    """Of 8 rows 6 and 2, and no more than one row in 20 of a file, however heavy it is; all of them are measured."""
    files = []
    for name, count in (("a", 160), ("b", 100), ("c", 20)):
        rows = [{"prompt": f"{name}{row}", "chosen": "1", "rejected": "2"} for row in range(count)]
        files.append(write(rows, f"{name}.jsonl"))
    for given, wanted in (
        ((f"{files[0]}:3", f"{files[1]}:1"), [6, 2]),
        ((f"{files[0]}:1", f"{files[2]}:9"), [1, 1]),
        ((files[0], files[1]), [5, 3]),
    ):
        made = prepared(tiny, tmp_path / "out", "dpo", given, eval_rows=8)
        held = made.held_out.rows
        assert held is not None and [len(part) for part in held.parts] == wanted
        found = [example.record["prompt"] for example in held.take(range(len(held)))]
        assert found == [example.record["prompt"] for part in held.parts for example in part.take(range(len(part)))]
        assert [
            e.record["prompt"]
            for at in range(3)
            for e in held.take(range(at * len(held) // 3, (at + 1) * len(held) // 3))
        ] == found
    figures = made.held_out.measure(made.engine).figures
    assert figures["rewards/accuracies"] == 0.5  # the policy is its reference


def test_held_out_prompts_are_in_no_file(tiny: str, tmp_path: Path, write: Write) -> None:
    one, two = write(rows_of("prompts", 40), "a.jsonl"), write(rows_of("prompts", 60), "b.jsonl")
    made = prepared(tiny, tmp_path / "out", "rloo", (one, two), eval_rows=256)
    held = made.held_out.prompts
    assert held is not None and [len(part) for part in held.parts] == [2, 3]
    prompts = {example.record["prompt"] for example in held.take(range(len(held)))}
    assert [len(part) for part in made.feed.rows.parts] == [40 - len(prompts & prompts_of(one)), 60 - len(prompts)]
    assert not prompts & {
        row["prompt"] for part in made.feed.rows.parts for row in map(part.rows.__getitem__, part.kept)
    }
    same = write([{"prompt": "a", "answer": "1"}] * 40, "same.jsonl")
    with pytest.raises(
        GroError, match=r"same.jsonl: every row has a prompt that is held out\n help: give held-out rows"
    ):
        prepared(tiny, tmp_path / "out", "rloo", same, eval_rows=256)


# --- real rows --------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_real_rows_mixed_weighted_and_replayed(gsm8k: Path, tmp_path: Path) -> None:
    """All of GSM8K, a small model made at random: shares as the weights say, every prompt with its demonstration."""
    tiny_model(max_position_embeddings=2048).save_pretrained(tmp_path / "model")
    tokenizer().save_pretrained(str(tmp_path / "model"))
    (tmp_path / "mixed.gro").write_text(
        "method mixed\nextends grpo\ndata prompts + demonstrations\ngroup 2\nreward = 1 if demonstration else correct\n"
    )
    data = [f"prompts={gsm8k}/prompts-train.jsonl:3", f"prompts={gsm8k}/prompts-test.jsonl:1"]
    data += [f"demonstrations={gsm8k}/demonstrations-{part}.jsonl" for part in ("train", "test")]
    output = tmp_path / "out"
    run(str(tmp_path / "model"), output, str(tmp_path / "mixed.gro"), data, steps=8, batch=4, replay=1)
    found = pq.read_table(output / "samples", partitioning=None).to_pylist()
    held = {json.loads(line)["prompt"] for line in (gsm8k / "prompts-test.jsonl").read_text().splitlines()}
    fresh = [row for row in found if not row["replayed"]]
    assert [line["replayed"] for line in lines(output)] == [0, 1, 1, 1, 1, 1, 1, 1]
    assert sum(row["demonstration"] for row in fresh) == 32 and len(fresh) == 32 * 3
    assert abs(sum(row["demonstration"] and row["prompt"] in held for row in fresh) - 8) <= 2
    assert sum(row["coefficient/max"] > 0 for row in found if row["demonstration"]) == 32 + 7
