"""A server that answers as vLLM's does, over real HTTP, with the weights that it is handed: the run is the same run.

No vLLM takes part: what is tested is what is asked, what is read, and when the weights go over.
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from accelerate import Accelerator
from rich.console import Console
from test_runtime_processes import launch
from transformers import AutoModelForCausalLM, PreTrainedModel

from grolang import GroError
from grolang.runtime import defaults, parquet, start
from grolang.runtime.adapters import add_lora
from grolang.runtime.assembly import Assembly
from grolang.runtime.engines import Weights, generator, request
from grolang.runtime.launch import resolve
from grolang.runtime.models import load_model, load_tokenizer
from grolang.runtime.sampling import Drawn, Generate, Sampling, Stop
from grolang.runtime.vllm_engine import Beside
from grolang.runtime.vllm_server import TOGETHER, together

PATH = str(defaults.model_path())
PROMPTS = str(defaults.data_path("prompts", "train"))


def embedded(dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    return load_model(PATH, dtype=dtype, device=torch.device("cpu"))


class Service(ThreadingHTTPServer):
    """The embedded model behind vLLM's addresses; `seen` has every question."""

    request_queue_size = 64  # as many as ask at once: one that finds no room may be refused, or comes a second later

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.model, self.tokenizer, self.lock = embedded(), load_tokenizer(PATH), threading.Lock()
        self.seen: list[tuple[str, Any]] = []
        self.broken: dict[str, Any] = {}
        self.other: PreTrainedModel | None = None  # that it goes on with, whatever weights it is handed
        self.emptied = True
        self.answers = 10_000  # questions until it is gone

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def complete(self, told: dict[str, Any]) -> dict[str, Any]:
        stop = Stop(tuple(told["stop"]), self.tokenizer) if "stop" in told else None
        how = Sampling(
            frozenset(told.get("stop_token_ids", [self.tokenizer.eos_token_id])), told["max_tokens"],
            told["temperature"] or 1.0, told.get("top_p", 1.0), told.get("top_k", 0), told.get("min_p", 0.0), stop,
        )  # fmt: skip
        keys = [told.get("seed", 0)] if told["temperature"] else None
        (one,) = Generate(self.model)([told["prompt"]], keys, how, keep_logp=True)
        logps = [*one.logp, *[0.0] * (len(one.ids) - len(one.logp))]
        return {
            "token_ids": one.ids,
            "logprobs": {"token_logprobs": logps},
            "finish_reason": "stop" if one.finished else "length",
        } | self.broken


class Answer(BaseHTTPRequestHandler):
    server: Service

    def do_GET(self) -> None:
        self.reply({"data": [{"id": "policy"}]})

    def do_POST(self) -> None:
        told = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            self.server.seen.append((self.path, told))
            self.server.answers -= 1
            if self.server.answers < 0:
                self.close_connection = True
            elif self.path == "/collective_rpc":
                assert told["method"] == "reload_weights"
                new = AutoModelForCausalLM.from_pretrained(told["kwargs"]["weights_path"]).eval()
                self.server.model = self.server.other or new
                self.reply({"results": [None]})
            elif self.path == "/v1/completions":
                self.reply({"choices": [self.server.complete(told)]})
            else:
                self.reply({"success": self.server.emptied})

    def reply(self, value: Any) -> None:
        text = b"" if value is None else json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def serving() -> Iterator[Service]:
    one = Service()
    thread = threading.Thread(target=one.serve_forever, daemon=True)
    thread.start()
    yield one
    one.shutdown()
    one.server_close()
    thread.join()


@pytest.fixture
def service() -> Iterator[Service]:
    with serving() as one:
        yield one


def go(output: Path, **flags: Any) -> list[dict[str, Any]]:
    given = {"method": "tis", "data": PROMPTS, "output": str(output), "steps": 2, "batch": 3, "group": 3, "lr": 1e-3}
    start(given | {"warmup": 0, "eval_rows": 0, "max_completion": 16} | flags, None, Console(file=io.StringIO()))
    found = parquet.read_samples(output)
    assert found is not None
    rows: list[dict[str, Any]] = found.to_pylist()
    return rows


@pytest.mark.parametrize("flags", [{}, {"lora": 4, "top_p": 0.9, "stop": ["="], "temperature": 1.2}])
def test_a_run_on_a_server_is_the_run_without(service: Service, tmp_path: Path, flags: dict[str, Any]) -> None:
    """Each completion is asked with its own seed, so weights that are not handed over would draw others."""
    here = go(tmp_path / "here", **flags)
    there = go(tmp_path / "there", engine=service.url, **flags)
    assert [row["ids"] for row in there] == [row["ids"] for row in here]
    for one, other in zip(there, here, strict=True):
        assert one["finished"] == other["finished"]
        assert one["logp_sampler"] == pytest.approx(other["logp_sampler"], abs=0.03)  # Adam enlarges rounding
    asked = [path for path, _ in service.seen]
    assert asked.count("/collective_rpc") == asked.count("/reset_prefix_cache") == 2  # the start and one update
    assert asked.count("/v1/completions") == 2 * 9 + 1  # one more to see whose log-probs they are
    assert 'engine = "http' in (tmp_path / "there/settings.toml").read_text()


def test_the_adapter_is_in_the_weights_that_are_handed_over() -> None:
    model, plain = embedded(), embedded()
    _, settings = resolve({"method": "rloo", "lora": 4})
    add_lora(model, PATH, settings)
    for name, parameter in model.named_parameters():
        if ".lora_B." in name:
            torch.nn.init.normal_(parameter, std=0.1)
    plain.load_state_dict(dict(Weights(model).weights()), strict=False)
    ids = torch.arange(40)[None]
    assert torch.allclose(plain(input_ids=ids).logits, model(input_ids=ids).logits, atol=1e-3)
    assert not torch.allclose(plain(input_ids=ids).logits, embedded()(input_ids=ids).logits, atol=1e-2)
    assert {name for name, _ in Weights(model).weights()} == {name for name, _ in plain.named_parameters()}


def test_weights_are_handed_over_when_they_have_moved_and_only_then() -> None:
    model = embedded()
    policy = Weights(model)
    assert [policy.moved(), policy.moved()] == [True, False]
    optimizer = torch.optim.AdamW(model.parameters())
    model(input_ids=torch.arange(9)[None]).logits.sum().backward()
    assert not policy.moved()
    optimizer.step()
    assert [policy.moved(), policy.moved()] == [True, False]
    model.load_state_dict(embedded().state_dict())
    assert policy.moved()


def test_what_is_neutral_is_said_too() -> None:
    """Else a server takes it from the generation settings of the model."""
    how = Sampling(frozenset([7, 3]), 9)
    told = {"max_tokens": 9, "stop_token_ids": [3, 7], "logprobs": 1, "skip_special_tokens": False}
    told |= {"top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0, "ignore_eos": True}
    assert request(how, 5) == told | {"temperature": 1.0, "seed": 5}
    assert request(how, None) == told | {"temperature": 0.0}
    how = Sampling(frozenset([3]), 9, 0.5, 0.9, 20, 0.1, Stop(("\n",), load_tokenizer(PATH)))
    extra = {"top_p": 0.9, "top_k": 20, "min_p": 0.1, "stop": ["\n"], "temperature": 0.5, "seed": 5}
    assert request(how, 5) == told | {"stop_token_ids": [3]} | extra


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        ({"token_ids": None}, "gave no completion of token ids"),
        ({"logprobs": None}, "gave no completion of token ids"),
        ({"finish_reason": "abort"}, "gave no completion of token ids"),
        ({"token_ids": [1], "logprobs": {"token_logprobs": [-0.7]}}, "not those of what it draws from"),
    ],
)
def test_answers_that_cannot_be_trained_on_are_refused(
    service: Service, tmp_path: Path, broken: dict[str, Any], said: str
) -> None:
    service.broken = broken
    with pytest.raises(GroError, match=said):
        go(tmp_path / "out", engine=service.url)


def test_a_server_that_draws_from_other_weights_is_refused(service: Service, tmp_path: Path) -> None:
    service.other = embedded()
    with torch.no_grad():
        for parameter in service.other.parameters():
            parameter.mul_(3)
    with pytest.raises(GroError, match=r"does not draw from the policy: log-probs of its tokens are [\d.]+ nats off"):
        go(tmp_path / "out", engine=service.url)


def test_a_server_that_keeps_its_cache_is_refused(service: Service, tmp_path: Path) -> None:
    """Else it would continue prompts from what the old weights made of them."""
    service.emptied = False
    with pytest.raises(GroError, match="kept what the old weights made of prompts"):
        go(tmp_path / "out", engine=service.url)


def test_a_folder_that_cannot_take_the_weights_is_named(
    service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GROLANG_CACHE", "/dev/null/nobody")
    with pytest.raises(GroError, match=r"cannot write the weights for .* to /dev/null/nobody/served: ") as caught:
        go(tmp_path / "out", engine=service.url)
    assert "export GROLANG_CACHE=FOLDER" in str(caught.value)


@pytest.mark.parametrize("how", [{}, {"temperature": 1.3, "top_p": 0.9, "top_k": 9, "min_p": 0.01}])
def test_what_is_apart_is_measured_as_it_was_drawn(how: dict[str, Any]) -> None:
    model = embedded()
    tokenizer = load_tokenizer(PATH)
    prompts = [tokenizer(text)["input_ids"] for text in ("1+1=", "Tom has 3 apples.")]
    told = Sampling(frozenset([tokenizer.eos_token_id]), 12, **how)
    drawn = Generate(model)(prompts, [1, 2], told, keep_logp=True)
    assert Weights(model).apart(prompts, drawn, told) < 1e-4
    Weights(model).check(prompts, drawn, told, "it", greedy=False)
    off = [replace(one, logp=[logp - 1.0 for logp in one.logp]) for one in drawn]
    assert Weights(model).apart(prompts, off, told) == pytest.approx(1.0, abs=1e-4)
    assert 0 < Weights(embedded(torch.bfloat16)).apart(prompts, drawn, told) < 0.05


class Output:
    """What `vllm.LLM` answers with: (token_ids, logprobs, finish_reason)."""

    def __init__(self, one: Drawn) -> None:
        self.outputs = [self]
        self.token_ids, self.finish_reason = tuple(one.ids), "stop" if one.finished else "length"
        self.logprobs = [{token: SimpleNamespace(logprob=x)} for token, x in zip(one.ids, one.logp, strict=True)]


class Stated:
    """In the place of `vllm.LLM`: the embedded model, which takes weights as vLLM's worker does."""

    def __init__(self, **told: Any) -> None:
        self.told, self.model, self.emptied = told, embedded(), True
        self.asked: list[str] = []

    def collective_rpc(self, method: str, kwargs: dict[str, Any]) -> None:
        self.asked.append(method)
        self.model.load_state_dict(dict(kwargs["weights_iterator"]), strict=False)

    def reset_prefix_cache(self) -> bool:
        return self.emptied

    def generate(self, given: list[Any], told: list[dict[str, Any]], use_tqdm: bool) -> list[Output]:
        torch.rand(1)
        how = Sampling(frozenset(told[0]["stop_token_ids"]), told[0]["max_tokens"], told[0]["temperature"])
        prompts, keys = [one["prompt_token_ids"] for one in given], [one["seed"] for one in told]
        return [Output(one) for one in Generate(self.model)(prompts, keys, how, keep_logp=True)]


def test_the_engine_in_this_process_gets_weights_and_moves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The calls; what the real one makes of them is in `test_runtime_vllm.py`."""
    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace(LLM=Stated, SamplingParams=dict))  # type: ignore[arg-type]  # a stand-in
    monkeypatch.setattr("grolang.runtime.engines.need", lambda *_: None)
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "1")
    _, settings = resolve({"method": "rloo", "engine": "vllm", "seed": 7, "max_prompt": 90, "max_completion": 10})
    model = embedded()
    draw = generator(settings, model, PATH, Accelerator(cpu=True), print, torch.bfloat16)
    assert isinstance(draw, Beside)
    engine = draw.engine
    given = {"dtype": "bfloat16", "seed": 7, "max_model_len": 100, "logprobs_mode": "processed_logprobs"}
    assert given.items() <= engine.told.items()
    assert os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] == "0"
    prompts, how = [load_tokenizer(PATH)("1+1=")["input_ids"]] * 2, Sampling(frozenset([257]), 10)
    state = torch.random.get_rng_state()
    before = draw(prompts, [1, 2], how)
    assert draw(prompts, [1, 2], how) == before and torch.equal(torch.random.get_rng_state(), state)
    assert engine.asked == ["reload_weights"]
    with torch.no_grad():
        cast(Any, model).lm_head.weight.mul_(0.3)
    assert draw(prompts, [1, 2], how) != before
    assert engine.asked == ["reload_weights"] * 2
    engine.emptied = False
    with torch.no_grad():
        cast(Any, model).lm_head.weight.mul_(1.1)
    with pytest.raises(GroError, match="vLLM cannot take the weights of the policy: its prefix cache is in use"):
        draw(prompts, [1, 2], how)


def test_requests_come_back_in_order_and_one_that_fails_ends_all() -> None:
    assert together(lambda one: 2 * one, list(range(99))) == [2 * one for one in range(99)]
    assert together(lambda one: 2 * one, []) == []
    begun, answered, before = [], threading.Event(), set(threading.enumerate())

    def work(one: int) -> None:
        begun.append(one)
        if one == 100:
            raise ValueError("one of them")
        answered.wait(600)  # so that no other request ends before the one that fails

    with pytest.raises(ValueError, match="one of them"):
        together(work, list(range(100, 10_000)))
    answered.set()
    for thread in set(threading.enumerate()) - before:
        thread.join(600)
    assert 100 in begun and len(begun) <= TOGETHER


def test_an_interrupt_waits_for_no_answer() -> None:
    """A second Ctrl-C in the midst of a draw from a server that is silent."""
    script = """
import os, signal, threading, time
from grolang.runtime.vllm_server import together
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background has it ignored
signal.signal(signal.SIGURG, lambda *_: None)
def press():
    time.sleep(0.2)
    os.kill(os.getpid(), signal.SIGINT)
    while True:  # a signal in the moment before a thread waits does not wake it
        time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGURG)
threading.Thread(target=press, daemon=True).start()
together(lambda one: time.sleep(6000), [1, 2, 3])
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=600, check=False)
    assert "KeyboardInterrupt" in done.stderr and done.returncode != 0


def test_a_server_that_goes_away_costs_one_step(service: Service, tmp_path: Path) -> None:
    """What was learned before is saved, and goes on with another server to the same end."""
    whole = go(tmp_path / "whole", engine=service.url)
    service.answers = 18  # of 24: in the midst of the second step
    with pytest.raises(GroError, match=f"no answer from {service.url}/v1/completions"):
        go(tmp_path / "out", engine=service.url)
    with serving() as other:
        rows = go(tmp_path / "out", engine=other.url, resume=True)
    assert [row["step"] for row in rows] == [1] * 9 + [2] * 9
    assert [row["ids"] for row in rows] == [row["ids"] for row in whole]


def test_a_server_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(GroError, match=r"no answer from http://127\.0\.0\.1:9/collective_rpc"):
        go(tmp_path / "out", engine="http://127.0.0.1:9")


def test_what_vllm_would_need_is_said_before_anything_is_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And before a reference is loaded, which would take of the memory that vLLM finds free."""
    monkeypatch.setattr(Assembly, "engine", None)
    with pytest.raises(GroError, match="--engine vllm needs the package vllm") as raised:
        go(tmp_path / "out", engine="vllm")
    assert "pip install 'grolang[vllm]'" in str(raised.value)
    with pytest.raises(GroError, match="--engine sglang: expected"):
        go(tmp_path / "out", engine="sglang")
    _, settings = resolve({"method": "rloo", "lora": 4, "quantize": "4bit", "engine": "vllm"})
    with pytest.raises(GroError, match="--quantize: the weights that --engine vllm would draw with are not whole here"):
        generator(settings, embedded(), PATH, Accelerator(cpu=True), print)


def test_processes_share_an_error() -> None:
    """It is sent to the others, which raise it too."""
    import pickle

    error = GroError.plain("no answer", help="start it")
    assert str(pickle.loads(pickle.dumps(error))) == str(error)
    assert Accelerator(cpu=True).is_main_process


@pytest.mark.slow
def test_several_processes_ask_one_server(service: Service, tmp_path: Path) -> None:
    """The first hands the weights over, each asks for its own completions, and it is the run of one process."""
    here = go(tmp_path / "here")
    given = {"method": "tis", "data": PROMPTS, "steps": 2, "batch": 3, "group": 3, "lr": 1e-3, "warmup": 0}
    given |= {"eval_rows": 0, "max_completion": 16, "engine": service.url, "output": str(tmp_path / "there")}
    launch(given, 2)
    found = parquet.read_samples(tmp_path / "there")
    assert found is not None and [row["ids"] for row in found.to_pylist()] == [row["ids"] for row in here]
    assert [path for path, _ in service.seen].count("/collective_rpc") == 2
