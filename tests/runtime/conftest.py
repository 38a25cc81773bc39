"""A really tiny Llama, a tokenizer of characters, and rows: made here, in a second."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

WINDOW = 64
SIZES: dict[str, Any] = {
    "vocab_size": 258,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": WINDOW,
    "initializer_range": 0.1,
}
TEMPLATE = (
    "{% for message in messages %}<{{ message['role'] }}>{{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}|end|{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)

torch.set_num_threads(1)


def tokenizer(template: str | None = None) -> PreTrainedTokenizerFast:
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE(vocab={letter: index for index, letter in enumerate(letters)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    made = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="|end|", pad_token="|pad|")
    made.chat_template = template
    return made


def tiny_model(seed: int = 0, **changes: Any) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    return LlamaForCausalLM(LlamaConfig(**(SIZES | changes))).eval()


def lines(output: Path | str, name: str = "metrics") -> list[dict[str, Any]]:
    """What a run has written down: `metrics`, or `evaluations`."""
    return [json.loads(line) for line in Path(output, f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Folder of the model, without a chat template."""
    folder = tmp_path_factory.mktemp("tiny")
    tiny_model().save_pretrained(folder)
    tokenizer().save_pretrained(str(folder))
    return str(folder)


@pytest.fixture(scope="session")
def tiny_chat(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The same with one."""
    folder = tmp_path_factory.mktemp("tiny_chat")
    tiny_model().save_pretrained(folder)
    tokenizer(TEMPLATE).save_pretrained(str(folder))
    return str(folder)


Write = Callable[..., str]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """write(rows, name) → path of a JSONL file; a text is written as it stands."""

    def put(rows: Iterable[dict[str, Any]] | str, name: str = "rows.jsonl") -> str:
        text = rows if isinstance(rows, str) else "".join(json.dumps(row) + "\n" for row in rows)
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return str(path)

    return put


def sums(count: int) -> list[tuple[str, str, str]]:
    """(question, right answer, wrong answer)."""
    pairs = [(a, b) for a in range(10) for b in range(10)]
    return [(f"{a}+{b}=", str(a + b), str(a + b + 1)) for a, b in pairs[:count]]


def rows_of(kind: str, count: int = 40) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for index, (question, right, wrong) in enumerate(sums(count)):
        if kind == "preference":
            found.append({"prompt": question, "chosen": right, "rejected": wrong})
        elif kind == "unpaired":
            good = index % 2 == 0
            found.append({"prompt": question, "completion": right if good else wrong, "label": good})
        elif kind == "demonstrations":
            found.append({"prompt": question, "completion": right})
        else:
            found.append({"prompt": question, "answer": right})
    return found


@pytest.fixture(scope="session")
def gsm8k() -> Path:
    """Real rows beside the repository; a user's checkout has none."""
    folder = Path(os.environ.get("GROLANG_DATA", Path(__file__).parents[3] / "shared/data")) / "gsm8k"
    if not folder.is_dir():
        pytest.skip(f"the GSM8K rows are not at {folder}; set GROLANG_DATA to the folder that holds gsm8k/")
    return folder
