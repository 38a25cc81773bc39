"""The embedded defaults: a small causal language model, its tokenizer and rows of every data kind.

They make `grolang run METHOD` work on a fresh machine without a network. `task.py` states the task,
`make.py` makes every file again.
"""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

FILES = {
    ("prompts", "train"): "prompts-train.jsonl",
    ("prompts", "test"): "prompts-test.jsonl",
    ("demonstrations", "train"): "demonstrations-train.jsonl",
    ("preference", "train"): "preference-train.jsonl",
    ("unpaired", "train"): "unpaired-train.jsonl",
}
"""The embedded rows: file by data kind (LANGUAGE.md, `data`) and split."""

MAX_COMPLETION = 48
"""Tokens, the end-of-sequence token among them, that every completion of the task fits in."""


def model_path() -> Path:
    """Folder of the embedded model and tokenizer, for transformers' `from_pretrained`."""
    return Path(str(files(__name__) / "model"))


def data_path(kind: str, split: str = "train") -> Path:
    """File of the embedded rows of one data kind ("train"; prompts have a held-out "test" as well).

    Raises KeyError where no such rows are embedded.
    """
    if (kind, split) not in FILES:
        known = ", ".join(f"{k}/{s}" for k, s in FILES)
        raise KeyError(f"no embedded rows for {kind}/{split}; there are: {known}")
    return Path(str(files(__name__) / "data" / FILES[kind, split]))
