"""vLLM in this process, beside the policy. It has run on a CPU; on a GPU it is experimental.

Everything here is vLLM's own interface: `LLM.generate` on token ids, its worker's `reload_weights`, which takes tensors
as they are only in the same process, and `LLM.reset_prefix_cache`, without which prompts would be continued from what
the old weights made of them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch

from grolang.language.diagnostics import GroError, cause
from grolang.runtime.engines import Weights, requests
from grolang.runtime.examples import Ids
from grolang.runtime.sampling import Drawn, Sampling
from grolang.runtime.settings import RunSettings

NAME = "vLLM"
T = TypeVar("T")


class Beside:
    """A `vllm.LLM` that takes this share of the GPU's memory; `room` tokens of a prompt and its completion, at most."""

    def __init__(self, policy: Weights, path: str, settings: RunSettings, room: int | None, dtype: torch.dtype) -> None:
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # else it would have the weights sent to it as bytes
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "CRITICAL")
        self.policy = policy
        self.engine: Any = _tried("start", lambda: _engine(path, settings, room, dtype))

    def __call__(
        self, prompts: Sequence[Ids], keys: Sequence[int] | None, how: Sampling, *, keep_logp: bool = False
    ) -> list[Drawn]:
        moved = self.policy.moved()
        if moved:
            _tried("take the weights of the policy", self._hand_over)
        drawn: list[Drawn] = _tried("draw", lambda: self._draw(prompts, keys, how))
        if moved and drawn:
            self.policy.check(prompts, drawn, how, NAME, greedy=keys is None)
        return drawn

    def _hand_over(self) -> None:
        self.engine.collective_rpc("reload_weights", kwargs={"weights_iterator": self.policy.weights()})
        if not self.engine.reset_prefix_cache():
            raise RuntimeError("its prefix cache is in use")

    def _draw(self, prompts: Sequence[Ids], keys: Sequence[int] | None, how: Sampling) -> list[Drawn]:
        from vllm import SamplingParams

        told = [SamplingParams(**one) for one in requests(how, keys, len(prompts))]
        given = [{"prompt_token_ids": prompt} for prompt in prompts]
        own = [torch.cuda.current_device()] if torch.cuda.is_available() else []
        with torch.random.fork_rng(own):  # it draws from torch's own generators too, where it does not matter
            return [_drawn(one.outputs[0]) for one in self.engine.generate(given, told, use_tqdm=False)]


def _engine(path: str, settings: RunSettings, room: int | None, dtype: torch.dtype) -> Any:
    from vllm import LLM

    told: dict[str, Any] = {} if room is None else {"max_model_len": room}
    if not torch.cuda.is_available():  # there a prompt with a seed cannot be read in parts: its generator has no offset
        told["enable_chunked_prefill"] = False
    return LLM(
        model=path,
        trust_remote_code=settings.trust_remote_code,
        gpu_memory_utilization=settings.engine_memory,
        dtype=str(dtype).removeprefix("torch."),  # vLLM's own choice would round fp32
        seed=settings.seed,  # of every generator of this process
        logprobs_mode="processed_logprobs",  # of what it draws from: temperature and truncation included
        use_tqdm_on_load=False,
        **told,
    )


def _tried(what: str, work: Callable[[], T]) -> T:
    """What the work gives; whatever vLLM raises is an error that says what it was to do."""
    try:
        return work()
    except Exception as error:  # of many classes
        help = "--engine-memory gives it more or less memory; VLLM_LOGGING_LEVEL=INFO shows what it does"
        raise GroError.plain(f"{NAME} cannot {what}: {cause(error)}", help=help) from error


def _drawn(output: Any) -> Drawn:
    ids = list(output.token_ids)
    logp = [place[token].logprob for place, token in zip(output.logprobs, ids, strict=True)]
    return Drawn(ids, logp, finished=output.finish_reason == "stop")
