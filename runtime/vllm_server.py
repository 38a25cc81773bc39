"""A server of vLLM (`vllm serve`) that draws over HTTP. It has run on a CPU; on a GPU it is experimental.

Prompts go to `/v1/completions` as token ids, and come back as token ids with a log-prob each. Weights that have moved
are written to a folder which the server reads as well, and `/collective_rpc` makes it load them. That one and
`/reset_prefix_cache` are there when it was started with VLLM_SERVER_DEV_MODE=1.
"""

from __future__ import annotations

import json
import os
import tempfile
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from http.client import HTTPException
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

from accelerate import Accelerator
from safetensors import SafetensorError
from safetensors.torch import save_file

from grolang.language.diagnostics import GroError
from grolang.runtime.engines import Weights, requests
from grolang.runtime.examples import Ids
from grolang.runtime.processes import of_all
from grolang.runtime.reference import cache_folder
from grolang.runtime.sampling import Drawn, Sampling

START = "VLLM_SERVER_DEV_MODE=1 vllm serve MODEL --logprobs-mode processed_logprobs --generation-config vllm"
TIMEOUT = 1800.0  # seconds for one answer; a completion may wait for many others
TOGETHER = 64  # requests that wait at the same time
T = TypeVar("T")
R = TypeVar("R")


class Server:
    """The server at an address. Every process sends its own prompts; the first one hands the weights over."""

    def __init__(self, url: str, accelerator: Accelerator, policy: Weights) -> None:
        self.url, self.accelerator, self.policy = url, accelerator, policy
        self.checked = False

    def __call__(
        self, prompts: Sequence[Ids], keys: Sequence[int] | None, how: Sampling, *, keep_logp: bool = False
    ) -> list[Drawn]:
        moved = self._hand_over()
        if not self.checked and prompts:
            self._check_log_probs(prompts[0])
        told = requests(how, keys, len(prompts))
        drawn = together(lambda one: self._complete(*one), list(zip(prompts, told, strict=True)))
        if moved and drawn:
            self.policy.check(prompts, drawn, how, self.url, greedy=keys is None)
        return drawn

    @cached_property
    def name(self) -> str:
        """Of the model that it serves."""
        answer = self._ask("/v1/models")
        try:
            return str(answer["data"][0]["id"])
        except (KeyError, IndexError, TypeError):
            message = f"{self.url} does not say which model it serves: {json.dumps(answer)[:300]}"
            raise GroError.plain(message, help=f"it must be a server of vLLM: {START}") from None

    @cached_property
    def weights(self) -> Path:
        """The folder that weights are handed over in; gone with this process."""
        served = cache_folder() / "served"
        try:
            served.mkdir(parents=True, exist_ok=True)
            self._kept = tempfile.TemporaryDirectory(dir=served)
        except OSError as error:
            message = f"cannot write the weights for {self.url} to {served}: {error.strerror}"
            raise GroError.plain(message, help="export GROLANG_CACHE=FOLDER, one that the server reads too") from error
        return Path(self._kept.name)

    def _hand_over(self) -> bool:
        """The policy's weights, if they have moved; in all processes together."""
        if not self.policy.moved():
            return False
        of_all(self.accelerator, lambda: self._load() if self.accelerator.is_main_process else None)
        return True

    def _load(self) -> None:
        fresh = self.weights / ".model.safetensors.new"
        state = {name: weight.cpu().contiguous() for name, weight in self.policy.weights()}
        try:
            save_file(state, str(fresh), metadata={"format": "pt"})
            fresh.replace(self.weights / "model.safetensors")
            self.policy.model.config.save_pretrained(self.weights)
        except (OSError, SafetensorError) as error:
            raise GroError.plain(f"cannot write the weights for {self.url} to {self.weights}: {error}") from error
        self._ask(
            "/collective_rpc",
            {"method": "reload_weights", "kwargs": {"weights_path": str(self.weights)}},
            help=f"start it again, with the model of the run and where it can read {self.weights}: {START}",
        )
        if self._ask("/reset_prefix_cache", {}).get("success") is False:
            message = f"{self.url} kept what the old weights made of prompts: it is drawing for others too"
            raise GroError.plain(message, help="give the run a server of its own")

    def _check_log_probs(self, prompt: Ids) -> None:
        """The likeliest token alone has probability 1 where log-probs are those of what was drawn from."""
        told = {"max_tokens": 1, "temperature": 1.0, "top_k": 1, "logprobs": 1}
        (logp,) = self._complete(prompt, told).logp
        if abs(logp) > 1e-3:
            message = f"{self.url} gives the log-probs of the model, not those of what it draws from"
            raise GroError.plain(message, help=f"start it with {START}")
        self.checked = True

    def _complete(self, prompt: Ids, told: Mapping[str, Any]) -> Drawn:
        answer = self._ask("/v1/completions", {"model": self.name, "prompt": prompt, "return_token_ids": True, **told})
        try:
            (choice,) = answer["choices"]
            ids, logp = choice["token_ids"], choice["logprobs"]["token_logprobs"]
            if not ids or len(ids) != len(logp) or choice["finish_reason"] not in ("stop", "length"):
                raise ValueError
            return Drawn([int(one) for one in ids], [float(one) for one in logp], choice["finish_reason"] == "stop")
        except (KeyError, TypeError, ValueError):
            message = f"{self.url} gave no completion of token ids with their log-probs: {json.dumps(answer)[:300]}"
            raise GroError.plain(message, help=f"it must be a server of vLLM: {START}") from None

    def _ask(self, path: str, body: Mapping[str, Any] | None = None, help: str = f"start it with {START}") -> Any:
        headers = {"Content-Type": "application/json"}
        if secret := os.environ.get("VLLM_API_KEY"):
            headers["Authorization"] = f"Bearer {secret}"
        data = None if body is None else json.dumps(body).encode()
        try:
            question = urllib.request.Request(self.url + path, data, headers)
            with urllib.request.urlopen(question, timeout=TIMEOUT) as answer:
                text = answer.read()
            return json.loads(text) if text.strip() else {}
        except urllib.error.HTTPError as error:
            said = error.read().decode(errors="replace")[:300]
            raise GroError.plain(f"{self.url}{path}: {error.code} {said}", help=help) from None
        except (OSError, ValueError, HTTPException) as error:
            cause = getattr(error, "reason", error)
            raise GroError.plain(f"no answer from {self.url}{path}: {cause}", help=f"start it with {START}") from None


def together(work: Callable[[T], R], given: Sequence[T]) -> list[R]:
    """`work` of each, in their order, `TOGETHER` at the same time; what one raises is raised, and no more are begun.

    An interrupt waits for none of them, and neither does the end of the process: a server may be silent for long.
    """
    waiting, found = SimpleQueue[tuple[int, T]](), SimpleQueue[tuple[int, R | None, Exception | None]]()
    over = threading.Event()

    def take() -> None:
        while not over.is_set():
            try:
                at, one = waiting.get_nowait()
            except Empty:
                return
            try:
                found.put((at, work(one), None))
            except Exception as error:  # raised again below
                over.set()
                found.put((at, None, error))

    for at, one in enumerate(given):
        waiting.put((at, one))
    for _ in range(min(TOGETHER, len(given))):
        threading.Thread(target=take, daemon=True).start()
    results: dict[int, Any] = {}
    try:
        while len(results) < len(given):
            at, result, error = found.get()
            if error is not None:
                raise error
            results[at] = result
    finally:
        over.set()
    return [results[at] for at in range(len(given))]
