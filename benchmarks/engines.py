"""The engines: transformers, its continuous batching and, where it is installed, vLLM: `python benchmarks/engines.py`.

The embedded model. CPU seconds of the process for the same prompts, the least of three rounds after one that is not
counted.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from importlib.util import find_spec

import torch
from transformers import GenerationConfig
from transformers.utils import logging

from grolang.runtime import defaults
from grolang.runtime.engines import Weights
from grolang.runtime.launch import resolve
from grolang.runtime.models import load_model, load_tokenizer
from grolang.runtime.sampling import Generate, Sampling
from grolang.runtime.vllm_engine import Beside

PROMPTS, LIMIT, ROUNDS = 64, 48, 3


def least(work: Callable[[], int]) -> tuple[float, int]:
    """(CPU seconds, tokens drawn)"""
    found = []
    for _ in range(1 + ROUNDS):
        began = time.process_time()
        tokens = work()
        found.append((time.process_time() - began, tokens))
    return min(found[1:])


def main() -> None:
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    path = str(defaults.model_path())
    model = load_model(path, dtype=torch.float32, device=torch.device("cpu"))
    tokenizer = load_tokenizer(path)
    rows = [json.loads(line) for line in defaults.data_path("prompts", "train").read_text().splitlines()[:PROMPTS]]
    prompts = [tokenizer(row["prompt"], add_special_tokens=False)["input_ids"] for row in rows]
    how = Sampling(frozenset([tokenizer.eos_token_id]), LIMIT)
    end = tokenizer.eos_token_id
    config = GenerationConfig(do_sample=True, max_new_tokens=LIMIT, eos_token_id=end, pad_token_id=end)

    own = Generate(model)

    def batch() -> int:
        return sum(len(one.ids) for one in own(prompts, list(range(PROMPTS)), how))

    def continuous() -> int:
        return sum(len(one.generated_tokens) for one in model.generate_batch(prompts, config).values())

    def show(name: str, work: Callable[[], int]) -> None:
        seconds, tokens = least(work)
        print(f"{name}: {seconds:.2f} s for {tokens} tokens")  # noqa: T201  # a benchmark prints

    show("transformers", batch)
    show("continuous", continuous)
    if find_spec("vllm") is not None:  # last, since it changes how this process uses threads
        _, settings = resolve({"method": "rloo", "engine": "vllm", "engine_memory": 0.05})
        draw = Beside(Weights(model), path, settings, 512, torch.float32)
        show("vllm", lambda: sum(len(one.ids) for one in draw(prompts, list(range(PROMPTS)), how)))


if __name__ == "__main__":
    main()
