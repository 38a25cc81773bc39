"""vLLM in this process, beside the policy. Experimental: it has never run, since no GPU was at hand.

Everything here is vLLM's public interface: `LLM.generate` on token ids, `LLM.apply_model` to hand weights over, which
takes tensors as they are only in the same process, and `LLM.reset_prefix_cache`, without which prompts would be
continued from what the old weights made of them.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from grolang.runtime.engines import Policy, request
from grolang.runtime.examples import Ids
from grolang.runtime.sampling import Drawn, Sampling


class Beside:
    """A `vllm.LLM` that takes this share of the GPU's memory."""

    def __init__(self, policy: Policy, path: str, memory: float, window: int | None, trust: bool) -> None:
        os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        from vllm import LLM, SamplingParams

        self.policy, self.parameters = policy, SamplingParams
        self.engine: Any = LLM(
            model=path,
            trust_remote_code=trust,
            gpu_memory_utilization=memory,
            max_model_len=window,
            logprobs_mode="processed_logprobs",  # of what it draws from: temperature and truncation included
        )

    def __call__(
        self, prompts: Sequence[Ids], keys: Sequence[int] | None, how: Sampling, *, keep_logp: bool = False
    ) -> list[Drawn]:
        if self.policy.moved():
            self.engine.apply_model(self._load)
            self.engine.reset_prefix_cache()
        chosen = [None] * len(prompts) if keys is None else keys
        told = [self.parameters(**request(how, key)) for key in chosen]
        given = [{"prompt_token_ids": prompt} for prompt in prompts]
        return [_drawn(one.outputs[0]) for one in self.engine.generate(given, told, use_tqdm=False)]

    def _load(self, model: Any) -> None:
        model.load_weights(self.policy.weights())


def _drawn(output: Any) -> Drawn:
    ids = list(output.token_ids)
    logp = [place[token].logprob for place, token in zip(output.logprobs, ids, strict=True)]
    return Drawn(ids, logp, finished=output.finish_reason == "stop")
