"""Saved states of a run: written beside, forced to the disk, renamed; so a kill leaves the old one or the new one.

Only safetensors and JSON are written, and nothing is ever unpickled.
"""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from grolang.language.diagnostics import GroError
from grolang.runtime.descent import Descent, Scale
from grolang.runtime.feed import Past
from grolang.runtime.sharding import gathered, like

FOLDER, NAME = "checkpoints", "step-{:08d}"


def replace_folder(folder: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a folder that takes the place of `folder` only once all of it is on the disk.

    Raises GroError where it cannot be written (a full disk, no right to); what was there before stays.
    """
    fresh, old = folder.with_name(f".{folder.name}.new"), folder.with_name(f".{folder.name}.old")
    try:
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(parents=True)
        write(fresh)
        for path in (*fresh.rglob("*"), fresh):
            _to_disk(path)
        shutil.rmtree(old, ignore_errors=True)
        if folder.exists():
            folder.rename(old)
        fresh.rename(folder)
        _to_disk(folder.parent)
        shutil.rmtree(old, ignore_errors=True)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(fresh, ignore_errors=True)
        raise GroError.plain(
            f"cannot save to {folder}: {error}", help="free space there, or give another folder with --output"
        ) from error


def _to_disk(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@dataclass(frozen=True)
class State:
    """What a run is besides its settings and data: rows and samples follow from the seed and the step."""

    step: int
    num_tokens: int
    before: dict[str, float]
    skipped: int = 0


def save(
    output: Path,
    model: PreTrainedModel,
    descent: Descent,
    state: State,
    accelerator: Accelerator,
    keep: int,
    best: int | None = None,
    past: Past | None = None,
) -> None:
    """Write the checkpoint of this step and remove all but the last `keep` and that of step `best`.

    To be called in every process: the main one writes what they hold together.
    """
    weights = {name: gathered(one).contiguous() for name, one in _weights(model, descent).items()}
    tensors, rest = _flat(descent.state())
    own = [(_generators(), random.getstate())]
    generators = gather_object(own) if accelerator.num_processes > 1 else own
    if not accelerator.is_main_process:
        return

    def write(folder: Path) -> None:
        save_file(weights, str(folder / "model.safetensors"))
        save_file(tensors, str(folder / "optimizer.safetensors"))
        named = {f"{at}.{name}": one for at, (some, _) in enumerate(generators) for name, one in some.items()}
        save_file(named, str(folder / "generators.safetensors"))
        scale = None if descent.scale is None else vars(descent.scale)
        python = [one for _, one in generators]
        text = {"state": vars(state), "optimizer": rest, "scale": scale, "python": python}
        (folder / "state.json").write_text(json.dumps(text), encoding="utf-8")
        if past is not None:
            past.save(folder)

    replace_folder(output / FOLDER / NAME.format(state.step), write)
    for old in kept(output)[:-keep]:
        if best is None or old.name != NAME.format(best):
            shutil.rmtree(old, ignore_errors=True)


def restore(
    output: Path, model: PreTrainedModel, descent: Descent, process: int = 0, past: Past | None = None
) -> State | None:
    """Put the last checkpoint back into model, optimizer, random generators and past; None where there is none."""
    found = kept(output)
    if not found:
        return None
    folder = found[-1]
    try:
        text: dict[str, Any] = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        _check_keys(model, descent, load_file(str(folder / "model.safetensors")))
        state = _unflat(load_file(str(folder / "optimizer.safetensors")), text["optimizer"], descent)
        descent.optimizer.load_state_dict(state)
        generators = load_file(str(folder / "generators.safetensors"))
        if past is not None:
            past.load(folder)
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        raise GroError.plain(
            f"the checkpoint {folder} cannot be read: {error}", help="remove that folder to resume from the one before"
        ) from error
    if descent.scale is not None and text.get("scale"):
        descent.scale = Scale(**text["scale"])
    process %= len(text["python"])  # where there were fewer of them
    version, numbers, gauss = text["python"][process]
    random.setstate((version, tuple(numbers), gauss))
    own = f"{process}."
    _set_generators({name[len(own) :]: one for name, one in generators.items() if name.startswith(own)})
    return State(**text["state"])


def kept(output: Path) -> list[Path]:
    """The checkpoints of a run, oldest first."""
    return sorted((output / FOLDER).glob("step-*"))


def _weights(model: PreTrainedModel, descent: Descent) -> dict[str, Tensor]:
    """What training changes, tied weights once: of a model with an adapter the adapter, else also its buffers."""
    found: dict[str, Tensor] = dict(descent.named)
    if len(found) == sum(1 for _ in model.named_parameters()):
        parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
        found |= {name: one for name, one in model.state_dict().items() if name not in parameters}
    return found


def _check_keys(model: PreTrainedModel, descent: Descent, tensors: dict[str, Tensor]) -> None:
    wanted = set(_weights(model, descent))
    if wanted != set(tensors):
        raise ValueError(f"it holds other weights than the model: {sorted(wanted ^ set(tensors))[:5]}")
    with torch.no_grad():
        for name, parameter in descent.named.items():
            parameter.copy_(like(tensors.pop(name), parameter))
    model.load_state_dict(tensors, strict=False)


def _flat(state: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """An optimizer's state as named tensors and a JSON value of the rest."""
    tensors = {
        f"{index}.{name}": gathered(value).contiguous()
        for index, values in state["state"].items()
        for name, value in values.items()
        if isinstance(value, Tensor)
    }
    return tensors, {"param_groups": state["param_groups"]}


def _unflat(tensors: dict[str, Tensor], rest: dict[str, Any], descent: Descent) -> dict[str, Any]:
    state: dict[int, dict[str, Tensor]] = {}
    parameters = list(descent.named.values())
    for path, value in tensors.items():
        index, name = path.split(".", 1)
        parameter = parameters[int(index)]
        state.setdefault(int(index), {})[name] = like(value, parameter) if value.shape == parameter.shape else value
    return {"state": state, "param_groups": rest["param_groups"]}


def _generators() -> dict[str, Tensor]:
    """States of torch's and numpy's generators; Python's own goes to the JSON file."""
    numpy: Any = np.random.get_state(legacy=False)
    found = {"torch": torch.get_rng_state(), "numpy": torch.tensor(numpy["state"]["key"].astype(np.int64))}
    found["numpy.pos"] = torch.tensor([numpy["state"]["pos"], numpy["has_gauss"]])
    found["numpy.gauss"] = torch.tensor([numpy["gauss"]], dtype=torch.float64)
    if torch.cuda.is_available():
        found |= {f"cuda.{device}": state for device, state in enumerate(torch.cuda.get_rng_state_all())}
    return found


def _set_generators(found: dict[str, Tensor]) -> None:
    torch.set_rng_state(found["torch"])
    position, has_gauss = found["numpy.pos"].tolist()
    key = found["numpy"].numpy().astype(np.uint32)
    np.random.set_state(("MT19937", key, position, has_gauss, float(found["numpy.gauss"])))
    if torch.cuda.is_available():
        for device in range(torch.cuda.device_count()):
            if f"cuda.{device}" in found:
                torch.cuda.set_rng_state(found[f"cuda.{device}"], device)
