"""Log-probs under the reference model, which no step changes: computed once for a data set, and kept on the disk.

They are found by the tokens of prompt and completion, and computed where they are first asked for, in the batch of
that step. What a file holds is a function of its name, so a run says the same whether it finds the file or not.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from array import array
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from grolang.runtime.sequences import Pair
from grolang.runtime.settings import RunSettings

SIZE = 16  # bytes of a key

LAYOUT = 2  # of packed rows; one more where a change of it changes how log-probs are rounded

SHAPES = (
    "batch", "micro_batch", "seed", "temperature", "precision", "attention", "packing", "kernels", "compile",
    "quantize", "max_prompt", "max_completion", "eval_rows",
)  # fmt: skip
"""The settings on which a log-prob or its rounding depends."""


class Store:
    """Log-probs [T] of completions by their tokens; `path` None keeps them in memory alone."""

    def __init__(self, path: Path | None = None) -> None:
        self.path = path
        self.rows: dict[bytes, Tensor] = {}
        self.written = 0
        if path is not None:
            with suppress(OSError, SafetensorError, KeyError, RuntimeError):  # what cannot be read is computed again
                self._read(load_file(str(path)))

    def _read(self, found: Mapping[str, Tensor]) -> None:
        keys = bytes(found["keys"].numpy().tobytes())
        parts = torch.split(found["logp"], found["lengths"].tolist())
        self.rows = {keys[at * SIZE : (at + 1) * SIZE]: part for at, part in enumerate(parts)}
        self.written = len(self.rows)

    def get(self, pairs: Sequence[Pair], like: Tensor) -> Tensor | None:
        """The log-probs as rows of a tensor of zeros shaped as `like` [S, T]; None where one of them is not known."""
        found = [self.rows.get(_key(pair)) for pair in pairs]
        whole = torch.zeros_like(like)
        for row, logp in enumerate(found):
            if logp is None:
                return None
            whole[row, : len(logp)] = logp.to(like)
        return whole

    def put(self, pairs: Sequence[Pair], logp: Tensor) -> None:
        """Keep the log-probs [S, T] of these pairs; what is known already stays as it is."""
        own = logp.cpu()
        for row, pair in enumerate(pairs):
            self.rows.setdefault(_key(pair), own[row, : len(pair[1])].clone())

    def save(self) -> None:
        """Write the file as a whole, if there is something new. Where it cannot be written the run goes on."""
        if self.path is None or len(self.rows) == self.written:
            return
        fresh = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        keys = torch.frombuffer(bytearray(b"".join(self.rows)), dtype=torch.uint8)
        lengths = torch.tensor([len(one) for one in self.rows.values()])
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            save_file({"keys": keys, "lengths": lengths, "logp": torch.cat([*self.rows.values()])}, str(fresh))
            fresh.replace(self.path)
            self.written = len(self.rows)
        except (OSError, SafetensorError):
            with suppress(OSError):
                fresh.unlink()


def _key(pair: Pair) -> bytes:
    prompt, completion = pair
    return hashlib.blake2b(array("q", [len(prompt), *prompt, *completion]).tobytes(), digest_size=SIZE).digest()


def cache_folder() -> Path:
    """`$GROLANG_CACHE`, or grolang in the user's cache folder: `$XDG_CACHE_HOME`, or `.cache` at home.

    A user without a home has what is temporary.
    """
    if own := os.environ.get("GROLANG_CACHE"):
        return Path(own)
    home = os.path.expanduser("~/.cache")  # noqa: PTH111 - pathlib's raises where a user has no home
    kept = tempfile.gettempdir() if home.startswith("~") else home
    return Path(os.environ.get("XDG_CACHE_HOME") or kept, "grolang")


def store(model: nn.Module, settings: RunSettings, data: Sequence[str], processes: int) -> Store:
    """The store of a reference model and a data set, under a fingerprint of all that its numbers come from."""
    digest = hashlib.blake2b(digest_size=SIZE)
    told = {name: getattr(settings, name) for name in SHAPES}
    device = next(model.parameters()).device.type
    digest.update(json.dumps([told, *data, processes, device, torch.__version__, LAYOUT]).encode())
    for name, parameter in model.named_parameters():
        if "lora_" not in name:
            digest.update(name.encode())
            digest.update(parameter.detach().cpu().reshape(-1).contiguous().view(torch.uint8).numpy().data)
    return Store(cache_folder() / "reference" / f"{digest.hexdigest()}.safetensors")
