"""`grolang reward train`: a sequence classifier of one output on pairs, by Eq. 1 of arXiv:2503.19523 (Bradley–Terry).

    L = −mean over pairs of log σ(r(x, chosen) − r(x, rejected))

The same rows, order, optimizer, checkpoints and view as any other run; the gradient of a step is that of all its
pairs, however they are cut into micro-batches and processes.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from accelerate.utils import broadcast_object_list, set_seed
from rich.console import Console
from torch import Tensor
from torch.nn.functional import logsigmoid

from grolang.language.diagnostics import GroError
from grolang.runtime import checkpoints, defaults
from grolang.runtime.assembly import autocast
from grolang.runtime.data import open_rows
from grolang.runtime.descent import Descent, learning_rate
from grolang.runtime.evaluation import Measured
from grolang.runtime.examples import Encoder, Example, Examples, Limits, load_examples, positions
from grolang.runtime.figures import Figures
from grolang.runtime.forms import checked
from grolang.runtime.launch import from_file
from grolang.runtime.loop import Training
from grolang.runtime.models import load_classifier, vocabulary, window
from grolang.runtime.output import Outcome, begin, fingerprint, open_folder
from grolang.runtime.processes import add_up, joined, share
from grolang.runtime.progress import Screen
from grolang.runtime.record import write_text
from grolang.runtime.reward_model import pad_of, rewards
from grolang.runtime.settings import REWARD, RunSettings, Settings, read_settings, to_toml
from grolang.runtime.setup import open_encoder
from grolang.runtime.sharding import wanted
from grolang.runtime.tracking import chosen

APART, APART_MOST = 20, 256  # held out of data that comes without such rows: one pair in 20, and 256 at most
DEFAULTS = {"steps": 100, "batch": 32}
LR, OWN_LR = 3e-4, 1e-5  # of the embedded model, and of one of the user's


def start(flags: Settings, config: str | Path | None = None, console: Console | None = None) -> Outcome:
    """Train as the flags and the file say, or go on with `resume` where a folder's last checkpoint stands."""
    given = {name: value for name, value in from_file(flags, config).items() if name != "method"} | dict(flags)
    for name in given:
        if name not in REWARD:
            raise GroError.plain(f"there is no setting `{name}` here; the settings are {', '.join(REWARD)}")
    if len(given.get("data", ())) > 1 and not isinstance(given["data"], str):
        raise GroError.plain("--data: a reward model is trained on one file of pairs", help="put them into one file")
    rate = LR if given.get("model") is None else OWN_LR
    settings = read_settings("preference", DEFAULTS | {"lr": rate} | given | {"method": "reward"})
    if settings.precision in ("fp16", "fp64"):
        raise GroError.plain(f"--precision {settings.precision}: a reward model is trained in fp32 or bf16")
    return train(settings, console or Screen())


def train(settings: RunSettings, console: Console) -> Outcome:
    """Everything that a user gave is checked before the first step."""
    accelerator, console = joined(console)
    if wanted(False, accelerator):
        message = "a reward model is not shared out, and accelerate's configuration asks for it"
        raise GroError.plain(message, help="leave out --use_deepspeed or --use_fsdp: each process holds all of it")
    set_seed(settings.seed)
    chosen(settings.track)
    encoder = replace(open_encoder(settings), whole=True)
    trust = settings.trust_remote_code
    model = load_classifier(settings.model_path, accelerator.device, fresh=True, trust_remote_code=trust)
    model.config.pad_token_id = pad_of(encoder)
    limits = Limits(window(model), settings.max_prompt, settings.max_completion, vocabulary(model))
    name = settings.data[0] if settings.data else str(defaults.data_path("preference", "train"))
    pairs, held = _hold_out(_pairs(name, encoder, limits), settings, limits)
    output = open_folder("reward", settings, accelerator)
    descent = Descent.of(model, settings)
    state = checkpoints.restore(output, model, descent, accelerator.process_index) if settings.resume else None
    training = RewardTraining(
        "reward model", settings, accelerator, model, encoder, descent, output, console, pairs=pairs, held=held
    )

    return training.go(state)


def _pairs(name: str, encoder: Encoder, limits: Limits, flag: str = "--data") -> Examples:
    return load_examples(checked(open_rows(name), "preference", flag), "preference", encoder, limits)


def _hold_out(pairs: Examples, settings: RunSettings, limits: Limits) -> tuple[Examples, Examples]:
    if settings.eval_data is not None:
        held = _pairs(settings.eval_data, pairs.encoder, limits, "--eval-data")
        return pairs, held.part(held.kept[: settings.eval_rows])
    return pairs.divide(min(len(pairs) // APART, APART_MOST, settings.eval_rows), settings.seed)


@dataclass
class RewardTraining(Training):
    """Pairs to train on and held-out ones, on their course."""

    pairs: Examples = field(kw_only=True)
    held: Examples = field(kw_only=True)

    result: ClassVar[str] = "the reward model is in {0}: --score NAME={0}"

    def start(self) -> None:
        if self.main:
            write_text(self.output / "settings.toml", to_toml(self.settings, REWARD))
            files = {one: fingerprint(Path(one)) for one in (self.pairs.rows.name, self.settings.eval_data) if one}
            begin(self.output, self.name, files, self.accelerator)

    def updates(self, draw: int) -> Iterator[Figures]:
        began, settings = time.perf_counter(), self.settings
        examples = self.pairs.take(positions(settings.seed, len(self.pairs), draw * settings.batch, settings.batch))
        margins = self._margins(examples, train=True)
        add_up(self.descent.named.values(), self.accelerator.num_processes)
        norm = self.descent(draw)
        self.tokens += sum(len(one.prompt) + len(ids) for one in examples for ids in one.completions)
        found = {"step": draw + 1, **_figures(margins), "grad_norm": norm or 0.0}
        found |= {"learning_rate": learning_rate(settings, draw), "num_tokens": self.tokens}
        found |= {"epoch": (draw + 1) * settings.batch / len(self.pairs), "seconds": time.perf_counter() - began}
        yield found

    def measure(self) -> Measured:
        if not len(self.held):
            return Measured({})
        found = _figures(self._margins(self.held.take(range(len(self.held))), train=False))
        told = {name: found[name] for name in ("rewards/accuracies", "rewards/margins", "loss")}
        return Measured(broadcast_object_list([told])[0])  # each process decides by them what is the best

    def _margins(self, examples: Sequence[Example], *, train: bool) -> Tensor:
        """[pairs] of r(chosen) − r(rejected), the same in every process; with `train` the gradient is left behind."""
        own = range(len(examples))[share(self.accelerator, len(examples))]
        margins = torch.zeros(len(examples), device=self.accelerator.device)
        size = max(1, self.settings.micro_batch // 2)
        for start in range(own.start, own.stop, size):
            part = examples[start : min(start + size, own.stop)]
            with torch.set_grad_enabled(train), self._autocast():
                sides = [one.prompt + one.completions[side] for side in (0, 1) for one in part]
                chosen, rejected = rewards(self.model, sides, window(self.model)).chunk(2)
                margin = chosen - rejected
                if train:
                    (-logsigmoid(margin).sum() / len(examples)).backward()  # type: ignore[no-untyped-call]  # torch has no type for it
            margins[start : start + len(part)] = margin.detach()
        found: Tensor = self.accelerator.reduce(margins, "sum")
        return found

    def _autocast(self) -> Any:
        dtype = autocast(self.settings, self.accelerator.device)
        return torch.autocast(self.accelerator.device.type, dtype=dtype, enabled=dtype is not None)


def _figures(margins: Tensor) -> Figures:
    """Eq. 1 and what it means: the share of pairs in the right order, a tie counting half, and their mean distance."""
    won = (margins > 0).double() + 0.5 * (margins == 0).double()
    return {
        "loss": float(-logsigmoid(margins.double()).mean()),
        "rewards/accuracies": float(won.mean()),
        "rewards/margins": float(margins.mean()),
    }
