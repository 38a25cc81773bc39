"""Paths and hub names: which of the two a name is, told from the name alone, before any network is asked."""

from __future__ import annotations

import re
from pathlib import Path

from huggingface_hub import constants, get_session, try_to_load_from_cache

from grolang.language.diagnostics import GroError

HUB = re.compile(r"(?!.*(--|\.\.))[\w][\w.-]{0,95}(/[\w][\w.-]{0,95})?")
"""What the hub takes as a name: OWNER/NAME or NAME."""

PATIENCE = 10.0  # seconds for the hub to answer at all

FILES = (
    *(".jsonl", ".ndjson", ".json", ".csv", ".parquet", ".arrow", ".gz", ".bz2", ".xz"),
    *(".safetensors", ".bin", ".gguf", ".pt", ".pth", ".ckpt"),
)
"""Endings that files have and hub names do not."""


def is_path(name: str) -> bool:
    """Whether a name can only be a path: absolute, `./…`, with a file's ending, in a folder that exists, no hub name.

    What is left (`gpt2`, `owner/name` with no folder `owner` here) may stand on the hub.
    """
    path = Path(name)
    if path.is_absolute() or path.exists() or name.startswith((".", "~")) or path.suffix in FILES:
        return True
    return HUB.fullmatch(name) is None or (len(path.parts) > 1 and Path(path.parts[0]).is_dir())


def check_folder(name: str, flag: str) -> None:
    """A model's name is that of a folder, or may be one of the hub; else an error before anything is loaded."""
    path = Path(name)
    if path.is_file():
        raise GroError.plain(
            f"{name} is a file", help=f"{flag} takes the folder of a model, as save_pretrained writes it"
        )
    if is_path(name) and not path.is_dir():
        raise GroError.plain(f"there is no folder {name}", help=f"check the path that {flag} gives")
    if not is_path(name) and try_to_load_from_cache(name, "config.json") is None:
        check_hub(name, "folder")


def check_hub(name: str, what: str) -> None:
    """The hub answers, or nothing is asked of it; else an error at once: a loader would try again for a minute."""
    if constants.HF_HUB_OFFLINE:
        return
    try:
        get_session().head(constants.ENDPOINT, timeout=PATIENCE)
    except Exception as error:  # whatever the client's library raises
        raise GroError.plain(
            f"there is no {what} {name} here, and the hub cannot be reached to look for it there: {error}",
            help=f"check the name, or save it to a {what} first",
        ) from error
