"""Several real processes, and processes that are killed: the same numbers in the end."""

from __future__ import annotations

import json
import os
import pickle
import random
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from conftest import Write, lines, rows_of
from safetensors.torch import load_file

from grolang import GroError
from grolang.runtime.processes import not_joined, of_all, this_process

RUN = """
import json, sys, torch
torch.set_num_threads(1)
from accelerate import PartialState
from grolang.runtime import start
flags, processes = json.loads(sys.argv[1]), int(sys.argv[2])
start(flags)
assert PartialState().num_processes == processes
"""


def command(flags: dict[str, Any], processes: int = 1) -> list[str]:
    script = str(Path(flags["output"]).parent / "go.py")
    Path(script).write_text(RUN)
    launch = [sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={processes}"]
    launch += [f"--master_port={free_port()}"]
    return [*(launch if processes > 1 else [sys.executable]), script, json.dumps(flags), str(processes)]


def free_port() -> int:
    return random.Random(time.time_ns()).randint(20_000, 60_000)


def environment() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}


def launch(flags: dict[str, Any], processes: int = 1) -> None:
    done = subprocess.run(command(flags, processes), env=environment(), capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]


def flags(tiny: str, data: str, method: str, output: Path) -> dict[str, Any]:
    return {
        "model": tiny, "data": data, "method": method, "output": str(output), "steps": 4, "batch": 5, "lr": 1e-3,
        "max_completion": 6, "micro_batch": 4, "precision": "fp64", "eval_rows": 6,
    }  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 3])
@pytest.mark.parametrize(
    ("method", "kind"), [("grpo", "prompts"), ("kto", "unpaired"), ("gro", "prompts"), ("dpo", "preference")]
)
def test_several_processes_are_one(
    method: str, kind: str, processes: int, tiny: str, tmp_path: Path, write: Write
) -> None:
    """5 rows a step do not divide evenly; the metrics and the weights are those of one process."""
    data = write(rows_of(kind))
    one, many = flags(tiny, data, method, tmp_path / "one"), flags(tiny, data, method, tmp_path / "many")
    more: dict[str, Any] = {"updates": 2, "eval_every": 2, "eval_samples": 3}
    more |= {"score": {"correct": "length"}} if kind == "prompts" else {}
    launch(one | more)
    launch(many | more, processes)
    for first, second in zip(lines(one["output"]), lines(many["output"]), strict=True):
        assert second == pytest.approx(first | {"seconds": second["seconds"]}, rel=1e-5, abs=1e-7)
    for first, second in zip(lines(one["output"], "evaluations"), lines(many["output"], "evaluations"), strict=True):
        assert second == pytest.approx(first, rel=1e-5, abs=1e-7)
    ours, theirs = (load_file(Path(run["output"], "model/model.safetensors")) for run in (one, many))
    for name, value in ours.items():
        # transformers' RMSNorm rounds to fp32 on the way, whatever the dtype, and AdamW magnifies that where v is small
        torch.testing.assert_close(theirs[name], value, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 3])
def test_mixed_data_and_the_past_are_the_same_in_several_processes(
    processes: int, tiny: str, tmp_path: Path, write: Write
) -> None:
    """Prompts of two weighted files, demonstrations of them, and groups of earlier steps with their own log-probs."""
    mixed = tmp_path / "mixed.gro"
    mixed.write_text(
        "method mixed\nextends grpo\ndata prompts + demonstrations\ngroup 3\n"
        "reward = 4 if demonstration else correct\nreport gap = mean(logp - logp_old over tokens)\n"
    )
    rows = rows_of("prompts")
    parts = [f"prompts={write(rows[:15], 'a.jsonl')}:2", f"prompts={write(rows[15:], 'b.jsonl')}:1"]
    data: Any = [*parts, f"demonstrations={write(rows_of('demonstrations')[::2], 'd.jsonl')}"]
    more: dict[str, Any] = {"updates": 2, "steps": 6, "replay": 2, "score": {"correct": "length"}, "lr": 1e-2}
    one, many = (flags(tiny, data, str(mixed), tmp_path / name) | more for name in ("one", "many"))
    launch(one)
    launch(many, processes)
    same_metrics(one, many)
    found = lines(one["output"])
    assert [line["replayed"] for line in found] == [0, 0, 2, 2, 2, 2] and abs(found[2]["report/gap"]) > 1e-4


GRADIENT = """
import random, sys
from pathlib import Path
folder, tests, name, order = sys.argv[1:]
sys.path.insert(0, tests)
import torch
from dataclasses import replace
from safetensors.torch import save_file
from test_runtime_exact import engine, method, samples

chosen = method(name, Path(folder) / str(random.random()))
made = engine(chosen, 3)
groups = {}
for sample in samples(chosen.data[0], 4):
    groups.setdefault(sample.group, []).append(sample)
shuffled = [*groups.values()]
random.Random(int(order)).shuffle(shuffled)
drawn = [replace(one, group=at) for at, group in enumerate(shuffled) for one in group]
step = made.prepare(drawn)
for update in range(2):
    made.policy.zero_grad()
    step = step.remembering(made.backward(step))
    if update == 0:
        with torch.no_grad():
            draw = torch.Generator().manual_seed(2)
            for parameter in made.policy.parameters():
                parameter += 0.03 * (2 * torch.rand(parameter.shape, generator=draw, dtype=torch.float64) - 1)
if made.accelerator.is_main_process:
    processes = made.accelerator.num_processes
    found = {name: parameter.grad for name, parameter in made.policy.named_parameters() if parameter.grad is not None}
    save_file(found, f"{folder}/{processes}-{order}.safetensors")
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["spread", "ratio", "grpo", "dpo"])
def test_the_gradient_is_one_for_any_number_of_processes_and_order_of_groups(name: str, tmp_path: Path) -> None:
    """Twelve ragged rows in micro-batches of three, float64; two of the methods are files that no code has seen."""
    (tmp_path / "gradient.py").write_text(GRADIENT)
    for processes, order in ((1, 0), (1, 1), (2, 0), (3, 0), (3, 1)):
        words = [str(tmp_path / "gradient.py"), str(tmp_path), str(Path(__file__).parent), name, str(order)]
        alone = [sys.executable]
        together = [sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={processes}"]
        words = [*(alone if processes == 1 else [*together, f"--master_port={free_port()}"]), *words]
        done = subprocess.run(words, env=environment(), capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, done.stderr[-3000:]
    one = load_file(tmp_path / "1-0.safetensors")
    assert max(float(part.abs().max()) for part in one.values()) > 1e-6
    for other in ("1-1", "2-0", "3-0", "3-1"):
        for key, value in load_file(tmp_path / f"{other}.safetensors").items():
            torch.testing.assert_close(value, one[key], rtol=1e-10, atol=1e-12)


def same_metrics(one: dict[str, Any], many: dict[str, Any]) -> None:
    for first, second in zip(lines(one["output"]), lines(many["output"]), strict=True):
        assert second == pytest.approx(first | {"seconds": second["seconds"]}, rel=1e-5, abs=1e-7)


@pytest.mark.slow
def test_the_launcher_of_accelerate_gives_the_same_metrics_file(tiny: str, tmp_path: Path, write: Write) -> None:
    """On a machine without GPUs it starts several processes only if told --multi_gpu; gloo is taken then."""
    one, many = (flags(tiny, write(rows_of("prompts")), "grpo", tmp_path / name) for name in ("one", "many"))
    launch(one)
    words = ["--multi_gpu", "--num_processes", "2", "--num_machines", "1", "--mixed_precision", "no"]
    words += [
        "--dynamo_backend",
        "no",
        "--main_process_port",
        str(free_port()),
        "-m",
        "grolang",
        "run",
        many.pop("method"),
    ]
    for name, value in many.items():
        words += ["--" + name.replace("_", "-"), str(value)]
    done = subprocess.run(
        [sys.executable, "-m", "accelerate.commands.launch", *words],
        env=environment(), capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    same_metrics(one, many)


@pytest.mark.parametrize(
    ("error", "words"),
    [(GroError.plain("mend it"), "mend it"), (ValueError("no such thing"), "process 1: ValueError: no such thing")],
)
def test_what_one_process_raises_all_of_them_raise(
    error: Exception, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one where it arose as it is; one after the other here, with what the first has told."""
    told: list[Any] = []

    def gathered(own: list[Any]) -> list[Any]:
        told.extend(pickle.loads(pickle.dumps(own)))
        return told

    def fail() -> None:
        raise error

    monkeypatch.setattr("grolang.runtime.processes.gather_object", gathered)
    one, other = (cast(Any, SimpleNamespace(num_processes=2, process_index=number)) for number in range(2))
    with pytest.raises(type(error)) as raised:
        of_all(other, fail)
    assert raised.value is error
    with pytest.raises(GroError, match=words):
        of_all(one, lambda: 1)


@pytest.mark.slow
def test_what_fails_on_the_main_process_alone_ends_all(tiny: str, tmp_path: Path, write: Write) -> None:
    """A file that cannot be opened, before the first step: the other process waits for nothing."""
    given = flags(tiny, write(rows_of("demonstrations")), "sft", tmp_path / "out")
    (tmp_path / "out/evaluations.jsonl").mkdir(parents=True)
    done = subprocess.run(command(given, 2), env=environment(), capture_output=True, text=True, timeout=240)
    assert done.returncode != 0 and "process 0: IsADirectoryError" in done.stderr


def test_one_process_in_place_of_several_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """By what accelerate's launcher leaves in the environment of the one that it starts without a second GPU."""
    accelerator = this_process()
    assert not_joined(accelerator) is None
    monkeypatch.setenv("ACCELERATE_USE_CPU", "False")
    assert not_joined(accelerator) is None
    monkeypatch.setenv("MASTER_PORT", "29500")
    assert "--multi_gpu --num_processes" in str(not_joined(accelerator))


@pytest.mark.slow
def test_the_launcher_without_multi_gpu_is_told_of(tiny: str, tmp_path: Path, write: Write) -> None:
    words = ["--num_processes", "2", "-m", "grolang", "run", "sft", "--model", tiny, "--steps", "1"]
    words += ["--data", write(rows_of("demonstrations")), "--output", str(tmp_path / "out")]
    done = subprocess.run(
        [sys.executable, "-m", "accelerate.commands.launch", *words],
        env=environment(), capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert torch.cuda.device_count() > 1 or "has started one" in done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("replay", ["grpo", "gro"])
def test_shared_out_with_replayed_groups_it_is_the_run_of_one(
    replay: str, tiny: str, tmp_path: Path, write: Write
) -> None:
    """Groups of earlier steps join in with the log-probs they had, also after a resume."""
    data = write(rows_of("prompts"))
    more: dict[str, Any] = {"replay": 2, "group": 2, "score": {"correct": "length"}, "updates": 2, "steps": 6}
    one, many = (flags(tiny, data, replay, tmp_path / name) | more for name in ("one", "many"))
    launch(one)
    launch(many | {"shard": True, "steps": 4}, 2)
    launch({"output": many["output"], "resume": True, "steps": 6}, 2)
    same_metrics(one, many)
    assert [line["replayed"] for line in lines(one["output"])][2:] == [2, 2, 2, 2]


@pytest.mark.slow
@pytest.mark.parametrize("more", [{}, {"lora": 4}], ids=["whole", "lora"])
@pytest.mark.parametrize(("method", "kind"), [("grpo", "prompts"), ("dpo", "preference"), ("kto", "unpaired")])
def test_shared_out_over_two_processes_it_is_the_run_of_one(
    method: str, kind: str, more: dict[str, Any], tiny: str, tmp_path: Path, write: Write
) -> None:
    """FSDP2 with gloo: the same metrics and weights, a checkpoint that one process can go on from."""
    data = write(rows_of(kind))
    one, many = (flags(tiny, data, method, tmp_path / name) | more for name in ("one", "many"))
    launch(one)
    launch(many | {"shard": True, "steps": 2}, 2)
    launch({"output": many["output"], "resume": True, "steps": 3}, 2)
    launch({"output": many["output"], "resume": True, "steps": 4, "shard": False})
    same_metrics(one, many)
    name = "adapter_model" if more else "model"
    ours, theirs = (load_file(Path(run["output"], f"model/{name}.safetensors")) for run in (one, many))
    assert ours.keys() == theirs.keys()
    for key, value in ours.items():
        torch.testing.assert_close(theirs[key], value, rtol=1e-4, atol=1e-6)


KILLED = """
import json, os, random, shutil, signal, sys, threading
from pathlib import Path
import torch
torch.set_num_threads(1)
from rich.console import Console
from grolang.runtime import checkpoints, start

flags, kills = json.loads(sys.argv[1]), int(sys.argv[2])
output, luck = Path(flags["output"]), random.Random(sys.argv[3])

def child(given, place):
    die = lambda: os.kill(os.getpid(), signal.SIGKILL)
    if place == "save":  # after one of the files of a checkpoint, before or after a rename
        left, real = luck.randint(1, 14), checkpoints._to_disk
        def to_disk(path):
            nonlocal left
            left -= 1
            if left == 0:
                die()
            real(path)
        checkpoints._to_disk = to_disk
    elif place == "any":
        threading.Timer(luck.random() * 1.5, die).start()
    start(given, None, Console(quiet=True))
    os._exit(0)

for number in range(kills + 1):
    saved = any(output.glob("checkpoints/step-*"))
    if not saved:
        shutil.rmtree(output, ignore_errors=True)
    given = {"output": flags["output"], "resume": True} if saved else flags
    place = "none" if number == kills else ("save", "any")[number % 2]
    luck.random()
    process = os.fork()
    if not process:
        child(given, place)
    _, status = os.waitpid(process, 0)
    assert os.WIFSIGNALED(status) if number < kills else os.waitstatus_to_exitcode(status) == 0, (number, status)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "kind", "more"),
    [
        ("grpo", "prompts", {}),
        ("dpo", "preference", {}),
        ("grpo", "prompts", {"replay": 2, "group": 2, "score": {"correct": "length"}}),
    ],
    ids=["grpo", "dpo", "replay"],
)
def test_killed_twenty_times_it_ends_at_the_same_bits(
    method: str, kind: str, more: dict[str, Any], tiny: str, tmp_path: Path, write: Write
) -> None:
    """SIGKILL at random moments and inside saves: a checkpoint is there whole or not at all, and nothing is lost."""
    run = flags(tiny, write(rows_of(kind)), method, tmp_path / "whole") | {
        "steps": 200, "save_every": 1, "precision": "fp32", "eval_rows": 0,
    } | more  # fmt: skip
    launch(run)
    cut = run | {"output": str(tmp_path / "cut")}
    (tmp_path / "killed.py").write_text(KILLED)
    done = subprocess.run(
        [sys.executable, str(tmp_path / "killed.py"), json.dumps(cut), "20", method],
        env=environment(), capture_output=True, text=True, timeout=900,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    whole, again = (load_file(Path(one["output"], "model/model.safetensors")) for one in (run, cut))
    assert all(torch.equal(whole[name], again[name]) for name in whole)
    for first, second in zip(lines(run["output"]), lines(cut["output"]), strict=True):
        assert first == second | {"seconds": first["seconds"]}
