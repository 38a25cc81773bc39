"""Make the embedded defaults again.

    python -m grolang.runtime.defaults.make [--out DIR] [--steps N] [--seed N]

Four parts, in this order:

1. the tokenizer: one token per byte (so one per character of ASCII text, and no unknown ones), plus an
   end and a padding token; it adds nothing to a text by itself, and there is no beginning token;
2. pre-training: a Llama of transformers learns first careful solutions alone, then the mixture of which
   `CAREFUL` are careful and the rest careless (`task.py`), on fresh problems, the loss on completions;
3. rows: prompts with answers, careful demonstrations, and completions drawn from the model itself at
   temperature 1, marked by the verifier;
4. a check: sampled and greedy accuracy on held-out prompts, printed.

Measured: 13 minutes of CPU time on one core (3500 steps, 13,000 drawn completions). The seed fixes every
draw; rounding on another machine still changes the weights.
"""

from __future__ import annotations

import argparse
import json
import math
import random
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from rich import progress
from rich.console import Console
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from grolang.runtime.defaults import FILES, MAX_COMPLETION, task

PAD, END = "<|pad|>", "<|end|>"
WINDOW = 4096
CAREFUL = 0.36
CLEAN = 0.55  # share of the steps that see careful solutions alone
BATCH, BUCKET = 32, 8  # rows of a step; batches drawn and sorted by length together, against padding
MUON_RATE, ADAM_RATE, WARMUP = 0.02, 3e-3, 100
PROMPTS, TEST, DEMONSTRATIONS, PAIRS = 3000, 500, 2000, 1500
LABELLED = {True: 2400, False: 1800}  # 4 to 3, within what KTO asks for (arXiv:2402.01306, eq. 9)

Row = dict[str, Any]
Model = Any  # LlamaForCausalLM, whose own annotations are too partial for strict checks


def tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level tokens without merges: 256 bytes, `<|pad|>` (256) and `<|end|>` (257)."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: index for index, letter in enumerate(letters)}
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens([AddedToken(PAD, special=True), AddedToken(END, special=True)])
    wrapper: Any = PreTrainedTokenizerFast
    made: PreTrainedTokenizerFast = wrapper(
        tokenizer_object=core,
        pad_token=PAD,
        eos_token=END,
        padding_side="right",
        model_max_length=WINDOW,
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
    )
    return made


def new_model(tokens: PreTrainedTokenizerFast) -> Model:
    """A Llama of about a million parameters, randomly initialized."""
    config = LlamaConfig(
        vocab_size=len(tokens),
        hidden_size=160,
        intermediate_size=448,
        num_hidden_layers=3,
        num_attention_heads=5,
        num_key_value_heads=5,
        max_position_embeddings=WINDOW,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=tokens.eos_token_id,
        pad_token_id=tokens.pad_token_id,
    )
    model: Model = LlamaForCausalLM(config)
    generation: Any = GenerationConfig
    model.generation_config = generation(
        bos_token_id=None,
        eos_token_id=tokens.eos_token_id,
        pad_token_id=tokens.pad_token_id,
        max_new_tokens=MAX_COMPLETION,
    )
    return model


class Muon(torch.optim.Optimizer):
    """Momentum whose update is made orthogonal, for the matrices inside the layers.

    U = NS₅((1-µ) g + µ m), W ← W - η √max(1, rows/columns) U, with m the running mean of the gradient g and
    NS₅ five steps of X ← aX + b(XXᵀ)X + c(XXᵀ)²X (K. Jordan et al. 2024, kellerjordan.github.io/posts/muon).
    It takes about half the steps of AdamW here.
    """

    def __init__(self, parameters: Iterable[torch.nn.Parameter], lr: float, momentum: float = 0.95) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One update; a closure is not called."""
        for group in self.param_groups:
            for weight in group["params"]:
                mean = self.state[weight].setdefault("mean", torch.zeros_like(weight))
                mean.lerp_(weight.grad, 1 - group["momentum"])
                update = _orthogonal(weight.grad.lerp(mean, group["momentum"]))
                scale = max(1.0, weight.shape[0] / weight.shape[1]) ** 0.5
                weight.add_(update, alpha=-group["lr"] * scale)


def pretrain(model: Model, tokens: PreTrainedTokenizerFast, steps: int, seed: int) -> None:
    """Learn careful solutions, then the mixture. The rate warms up, and falls linearly from half way on."""
    inner = [p for p in model.model.layers.parameters() if p.ndim == 2]
    outer = [p for p in model.parameters() if not any(p is q for q in inner)]
    optimizers = [Muon(inner, MUON_RATE), torch.optim.AdamW(outer, ADAM_RATE, (0.9, 0.98), weight_decay=0.0)]

    def rate(step: int) -> float:
        return min(1.0, (step + 1) / WARMUP, 2 * (1 - step / steps))

    schedules = [torch.optim.lr_scheduler.LambdaLR(optimizer, rate) for optimizer in optimizers]
    rng = random.Random(seed)
    clean, mixed = _batches(tokens, rng, 1.0), _batches(tokens, rng, CAREFUL)
    model.train()
    with _progress("loss {task.fields[loss]:.4f}") as bar:
        job = bar.add_task("pre-training", total=steps, loss=math.nan)
        average = math.nan
        for step in range(steps):
            ids, mask, labels = next(clean if step < CLEAN * steps else mixed)
            loss = model(input_ids=ids, attention_mask=mask, labels=labels).loss
            model.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for optimizer, schedule in zip(optimizers, schedules, strict=True):
                optimizer.step()
                schedule.step()
            value = float(loss.detach())
            average = value if math.isnan(average) else 0.98 * average + 0.02 * value
            bar.update(job, advance=1, loss=average)
    model.eval()


def draw(
    model: Model, tokens: PreTrainedTokenizerFast, prompts: list[str], *, greedy: bool = False
) -> list[str | None]:
    """One completion per prompt, at temperature 1 or greedy; None where the model did not come to an end."""
    completions: list[str | None] = []
    with _progress() as bar:
        job = bar.add_task("decoding" if greedy else "sampling", total=len(prompts))
        for first in range(0, len(prompts), 256):
            batch = prompts[first : first + 256]
            ids, mask = _padded([tokens.encode(p) for p in batch], int(tokens.pad_token_id), left=True)
            out = model.generate(
                input_ids=ids,
                attention_mask=mask,
                do_sample=not greedy,
                **({} if greedy else {"top_k": 0}),
                max_new_tokens=MAX_COMPLETION,
            )
            for row in out[:, ids.shape[1] :].tolist():
                if tokens.eos_token_id not in row:
                    completions.append(None)
                    continue
                completions.append(str(tokens.decode(row[: row.index(tokens.eos_token_id)])))
            bar.update(job, advance=len(batch))
    return completions


def rows(model: Model, tokens: PreTrainedTokenizerFast, seed: int) -> dict[str, list[Row]]:
    """The embedded rows by file name; completions of `preference` and `unpaired` are the model's own."""
    torch.manual_seed(seed + 1)
    rng = random.Random(seed + 1)
    train, test = _distinct(rng, PROMPTS, test=False), _distinct(rng, TEST, test=True)
    prompt_rows = [{"prompt": p.prompt, "answer": p.answer} for p in train]
    test_rows = [{"prompt": p.prompt, "answer": p.answer} for p in test]
    demonstrations = [{"prompt": p.prompt, "completion": task.careful(p)} for p in train[:DEMONSTRATIONS]]

    pairs: list[Row] = []
    unpaired: list[Row] = []
    draws = 4
    drawn = draw(model, tokens, [p.prompt for p in train for _ in range(draws)])
    for index, problem in enumerate(train):
        own = [c for c in drawn[index * draws : (index + 1) * draws] if c is not None]
        marked = [(c, task.correct(c, problem.answer)) for c in own]
        right, wrong = [c for c, good in marked if good], [c for c, good in marked if not good]
        if right and wrong:
            pairs.append({"prompt": problem.prompt, "chosen": right[0], "rejected": wrong[0]})
        unpaired += [{"prompt": problem.prompt, "completion": c, "label": good} for c, good in marked]
    rng.shuffle(unpaired)
    unpaired = [r for label, n in LABELLED.items() for r in [r for r in unpaired if r["label"] is label][:n]]
    rng.shuffle(unpaired)
    return {
        FILES["prompts", "train"]: prompt_rows,
        FILES["prompts", "test"]: test_rows,
        FILES["demonstrations", "train"]: demonstrations,
        FILES["preference", "train"]: pairs[:PAIRS],
        FILES["unpaired", "train"]: unpaired,
    }


def accuracy(model: Model, tokens: PreTrainedTokenizerFast, problems: list[Row], *, greedy: bool) -> float:
    """Share of prompts whose one completion has the right answer."""
    drawn = draw(model, tokens, [row["prompt"] for row in problems], greedy=greedy)
    right = [c is not None and task.correct(c, row["answer"]) for c, row in zip(drawn, problems, strict=True)]
    return sum(right) / len(right)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Make the embedded model, tokenizer and rows.")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="folder to write to")
    parser.add_argument("--steps", type=int, default=3500, help="steps of pre-training")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    console = Console()
    torch.manual_seed(args.seed)

    tokens = tokenizer()
    model = new_model(tokens)
    console.print(f"{model.num_parameters():,} parameters, {len(tokens)} tokens")
    pretrain(model, tokens, args.steps, args.seed)
    model.save_pretrained(args.out / "model")
    tokens.save_pretrained(args.out / "model")
    for path in (args.out / "model").iterdir():
        path.chmod(0o644)  # safetensors' own files are readable by their owner alone

    made = rows(model, tokens, args.seed)
    (args.out / "data").mkdir(parents=True, exist_ok=True)
    for name, table in made.items():
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in table)
        (args.out / "data" / name).write_text(text, encoding="utf-8", newline="\n")
        console.print(f"{name}: {len(table)} rows, {len(text) / 1e6:.2f} MB")

    test = made[FILES["prompts", "test"]]
    for way, greedy in (("sampled", False), ("greedy", True)):
        console.print(f"{way} accuracy {accuracy(model, tokens, test, greedy=greedy):.3f} (n = {len(test)})")


def _orthogonal(matrix: torch.Tensor) -> torch.Tensor:
    """A matrix with the singular vectors of `matrix` and singular values near 1, by Newton-Schulz steps."""
    tall = matrix.shape[0] > matrix.shape[1]
    x: torch.Tensor = (matrix.T if tall else matrix) / (matrix.norm() + 1e-7)
    for _ in range(5):
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x.T if tall else x


def _batches(
    tokens: PreTrainedTokenizerFast, rng: random.Random, careful_share: float
) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Token ids, attention mask and labels, each [BATCH, T]; labels are -100 outside the completion."""
    source = task.problems(rng)
    pad, end = int(tokens.pad_token_id), int(tokens.eos_token_id)
    while True:
        drawn = [next(source) for _ in range(BATCH * BUCKET)]
        texts = [(p.prompt, task.solution(p, rng, careful_share)) for p in drawn]
        pairs = [(tokens.encode(prompt), [*tokens.encode(text), end]) for prompt, text in texts]
        pairs.sort(key=lambda pair: len(pair[0]) + len(pair[1]))
        starts = list(range(0, len(pairs), BATCH))
        rng.shuffle(starts)
        for start in starts:
            chunk = pairs[start : start + BATCH]
            ids, mask = _padded([prompt + completion for prompt, completion in chunk], pad)
            labels = ids.masked_fill(mask == 0, -100)
            for row, (prompt, _) in enumerate(chunk):
                labels[row, : len(prompt)] = -100
            yield ids, mask, labels


def _padded(ids: list[list[int]], pad: int, *, left: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of ids as one [S, T] tensor and its attention mask."""
    longest = max(map(len, ids))
    out = torch.full((len(ids), longest), pad)
    mask = torch.zeros((len(ids), longest), dtype=torch.long)
    for row, sequence in enumerate(ids):
        place = slice(longest - len(sequence), longest) if left else slice(0, len(sequence))
        out[row, place] = torch.tensor(sequence)
        mask[row, place] = 1
    return out, mask


def _distinct(rng: random.Random, count: int, *, test: bool) -> list[task.Problem]:
    """Problems with `count` different prompts."""
    found: dict[str, task.Problem] = {}
    for problem in task.problems(rng, test=test):
        found.setdefault(problem.prompt, problem)
        if len(found) == count:
            break
    return list(found.values())


def _progress(*extra: str) -> progress.Progress:
    columns: list[progress.ProgressColumn] = [
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        progress.TimeElapsedColumn(),
        progress.TimeRemainingColumn(),
        *(progress.TextColumn(text) for text in extra),
    ]
    return progress.Progress(*columns)


if __name__ == "__main__":
    main()
