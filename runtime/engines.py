"""What draws completions, by `--engine`: transformers on the policy itself, vLLM beside it, or a server of vLLM.

vLLM keeps weights of its own, so the policy's are handed to it whenever they have moved since it drew last. Its
log-probs are those of the distribution that it drew from, and become `logp_sampler`; they also show whether what it
draws from is the policy.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from transformers import PreTrainedModel

from grolang.compiler.fused.head import logits
from grolang.compiler.fused.products import precision
from grolang.language.diagnostics import GroError
from grolang.runtime.adapters import need
from grolang.runtime.examples import Ids
from grolang.runtime.models import window
from grolang.runtime.policy import Policy, Tokens
from grolang.runtime.sampling import Drawn, Generate, Generator, Sampling
from grolang.runtime.settings import RunSettings
from grolang.runtime.sharding import wanted

NEAR = 0.3  # nats between two log-probs of a token, in the mean; what kernels and dtypes do is a few hundredths
ROWS, TOKENS = 8, 32  # that are looked at, of what was drawn


def generator(
    settings: RunSettings,
    model: PreTrainedModel,
    path: str,
    accelerator: Accelerator,
    say: Callable[[str], None],
    autocast: torch.dtype | None = None,
) -> Generator:
    """The engine that the settings name; `path` is where the model's files are."""
    engine = settings.engine
    if engine == "transformers":
        return Generate(model, say=say, autocast=autocast)
    for name, given in (("--quantize", settings.quantize), ("--shard", wanted(settings.shard, accelerator))):
        if given:
            message = f"{name}: the weights that --engine {engine} would draw with are not whole here"
            raise GroError.plain(message, help="leave --engine out")
    if engine != "vllm":
        from grolang.runtime.vllm_server import Server

        return Server(engine.rstrip("/"), accelerator, Weights(model))
    if accelerator.num_processes > 1:
        message = f"--engine vllm draws in one process, and there are {accelerator.num_processes}"
        raise GroError.plain(message, help="start a server of vLLM, and give its address: --engine http://HOST:8000")
    need("vllm", "--engine vllm", "vllm")
    from grolang.runtime.vllm_engine import Beside

    room = window(model)
    if settings.max_prompt and settings.max_completion:  # no more is ever asked for
        most = settings.max_prompt + settings.max_completion
        room = min(room or most, most)
    return Beside(Weights(model), path, settings, room, autocast or torch.float32)


@dataclass
class Weights:
    """The weights that an engine of its own must have, and whether they have moved since they were handed over."""

    model: PreTrainedModel
    seen: list[int] = field(default_factory=list)

    def moved(self) -> bool:
        """Whether a weight was written to since the last call that gave True; True the first time."""
        now = [parameter._version for parameter in self.model.parameters()]
        before, self.seen = self.seen, now
        return now != before

    @torch.no_grad()
    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """Name and value of each weight as the model's files name them, a LoRA adapter added into what it adapts.

        The sum is fp32, as the adapter is: in bf16 a small one would be lost in a large weight.
        """
        adapted = set()
        for name, layer in self.model.named_modules():
            if hasattr(layer, "get_delta_weight"):
                weight = layer.base_layer.weight
                delta = sum(layer.get_delta_weight(one) for one in layer.active_adapters)
                adapted.add(f"{name}.base_layer.weight")
                yield f"{name}.weight", weight + delta
        for name, parameter in self.model.named_parameters():
            if name not in adapted and ".lora_" not in name:
                yield name.replace(".base_layer.", "."), parameter.detach()

    def check(self, prompts: Sequence[Ids], drawn: Sequence[Drawn], how: Sampling, name: str, *, greedy: bool) -> None:
        """Raise GroError where the log-probs of what was drawn are not the policy's: the engine has other weights."""
        apart = self.apart(prompts[:ROWS], drawn[:ROWS], replace(how, temperature=1.0) if greedy else how)
        if apart > NEAR:
            message = f"{name} does not draw from the policy: log-probs of its tokens are {apart:.2g} nats off"
            raise GroError.plain(message, help="let it serve the model of the run, or leave --engine out")

    @torch.no_grad()
    def apart(self, prompts: Sequence[Ids], drawn: Sequence[Drawn], how: Sampling) -> float:
        """Mean over tokens of |logp − the engine's|, nats.

        A token at the edge of top-p, which rounding puts into one of the two distributions alone, is not counted.
        """
        pairs = [(prompt, one.ids[:TOKENS]) for prompt, one in zip(prompts, drawn, strict=True)]
        policy = Policy(self.model, how.temperature)
        hidden, ids = policy.hidden(Tokens.of(pairs, 0, self.model.device))
        head = policy.head(hidden)
        precise = precision(hidden, head.weight)
        out = hidden.new_empty((len(ids), head.vocabulary), dtype=precise.sums)
        found = logits(head, hidden.to(precise.operands), out)
        ours = how.truncation(ids, found).log_softmax(-1).gather(1, ids[:, None])[:, 0]  # type: ignore[arg-type]  # see `_Chance`
        theirs = torch.tensor([logp for one in drawn for logp in one.logp[:TOKENS]]).to(ours)
        both = ours.isfinite()
        return float((ours - theirs)[both].abs().mean()) if both.any() else math.inf


def requests(how: Sampling, keys: Sequence[int] | None, count: int) -> list[dict[str, Any]]:
    """The request for each of so many completions."""
    chosen: Sequence[int | None] = [None] * count if keys is None else keys
    return [request(how, key) for key in chosen]


def request(how: Sampling, key: int | None) -> dict[str, Any]:
    """What vLLM calls these settings; greedy without a key, else the key is the seed of this completion alone.

    What is left at its neutral value is told too: a server would take it from the model's generation settings.
    """
    chance = {"temperature": 0.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0}
    if key is not None:
        truncation = {"top_p": how.top_p, "top_k": how.top_k, "min_p": how.min_p}
        chance = {"temperature": how.temperature, "seed": key, **truncation}
    told: dict[str, Any] = {
        **chance,
        "repetition_penalty": 1.0,
        "max_tokens": how.limit,
        "stop_token_ids": sorted(how.ends),
        "ignore_eos": True,  # the tokens above end a completion, and no others
        "logprobs": 1,
        "skip_special_tokens": False,  # a stop may be the text of one
    }
    if how.stop is not None:
        told["stop"] = list(how.stop.texts)
    return told
