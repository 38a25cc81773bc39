"""What a run may be told: one frozen model, filled by the defaults of the data kind, a TOML file and the flags."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from grolang.language.diagnostics import GroError

tomllib = importlib.import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")
Settings = Mapping[str, Any]

DEFAULTS: dict[str, dict[str, Any]] = {
    # kind: `lr` is for the embedded model, `own_lr` for a model of the user's, which is likely larger
    "preference": {"steps": 60, "batch": 24, "lr": 2e-4, "own_lr": 1e-6},
    "unpaired": {"steps": 100, "batch": 64, "lr": 1.5e-4, "own_lr": 1e-6},
    "demonstrations": {"steps": 80, "batch": 32, "lr": 5e-4, "own_lr": 1e-5},
    "prompts": {"steps": 60, "batch": 64, "lr": 3e-4, "own_lr": 1e-6},
    "prompts in groups": {"steps": 50, "batch": 16, "lr": 1e-3, "own_lr": 1e-6},
}
"""The hyper-parameters of a run that is told nothing, by the first data kind of the method.

`prompts in groups` is for methods that draw several completions for each prompt.
"""


def _as_tuple(value: object) -> object:
    return (str(value),) if isinstance(value, (str, Path)) else value


class RunSettings(BaseModel):
    """Every setting of a run. A field is a flag (`--micro-batch`) and a key of the TOML file (`micro_batch`)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    method: str = Field(description="a .gro file or the name of a built-in method")
    set: dict[str, float] = Field({}, description="hyper-parameters of the method, by name")
    score: dict[str, str] = Field({}, description="score functions by name: BUILTIN[:OPTION] or FILE.py:FUNCTION")

    model: str | None = Field(None, description="path or hub name of the model; the embedded one by default")
    reference: str | None = Field(None, description="path or hub name of the reference model; `model` by default")
    data: Annotated[tuple[str, ...], BeforeValidator(_as_tuple)] = Field(
        (), description="data file or hub name, one for each data kind or one for all; the embedded rows by default"
    )
    eval_data: str | None = Field(None, description="held-out rows")
    eval_rows: int = Field(256, ge=0, description="held-out rows used before and after; 0 leaves evaluation out")
    output: str | None = Field(None, description="folder of the run; runs/METHOD-N by default")
    resume: bool = Field(False, description="continue the run of the output folder from its last checkpoint")

    steps: int = Field(ge=1, description="optimizer steps")
    batch: int = Field(ge=1, description="rows of the data in one optimizer step")
    micro_batch: int = Field(32, ge=1, description="sequences that pass through the model at once; changes no result")
    updates: int = Field(1, ge=1, description="optimizer steps on the same rows and completions")
    lr: float = Field(gt=0, allow_inf_nan=False, description="learning rate")
    schedule: Literal["constant", "linear", "cosine"] = Field("linear", description="of the rate, after warm-up")
    warmup: int = Field(10, ge=0, description="steps over which the rate rises to its value")
    weight_decay: float = Field(0.0, ge=0, allow_inf_nan=False)
    max_grad_norm: float = Field(1.0, gt=0, description="gradients above this norm are scaled down to it")
    seed: int = Field(0, ge=0)

    group: int | None = Field(None, ge=1, description="completions drawn per prompt; the method's by default")
    temperature: float = Field(1.0, gt=0, allow_inf_nan=False, description="of sampling and of every log-prob")
    max_prompt: int | None = Field(None, ge=1, description="rows with more prompt tokens are left out")
    max_completion: int | None = Field(None, ge=1, description="tokens: samples end there, rows are cut there")

    precision: Literal["auto", "fp32", "bf16", "fp64"] = Field(
        "auto", description="bf16: autocast over fp32 weights; auto: that on a GPU, else fp32"
    )
    trust_remote_code: bool = Field(False, description="run code that a model's hub folder brings along")
    save_every: int = Field(0, ge=0, description="steps between checkpoints; 0 keeps one, at the end or at Ctrl-C")
    keep: int = Field(2, ge=1, description="checkpoints kept")

    @model_validator(mode="after")
    def _whole_draws(self) -> RunSettings:
        if self.steps % self.updates:
            whole = self.steps + self.updates - self.steps % self.updates
            raise ValueError(f"--steps {self.steps} is no multiple of --updates {self.updates}: give --steps {whole}")
        return self


def flag(name: str) -> str:
    """The command-line spelling of a field."""
    return "--" + name.replace("_", "-")


def read_config(path: str | None) -> dict[str, Any]:
    """The TOML file as a mapping; a missing or broken file is an error that names it."""
    if path is None:
        return {}
    try:
        values: dict[str, Any] = tomllib.loads(Path(path).read_text(encoding="utf-8"))
        return values
    except OSError as error:
        raise GroError.plain(f"cannot read the settings file {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise GroError.plain(f"{path} is not TOML: {error}", help="write settings as `steps = 100`") from error


def read_settings(kind: str, given: Settings) -> RunSettings:
    """Settings of a run whose method learns from `kind` first; `given` overrides the defaults of the kind.

    Raises GroError with one finding for every wrong value.
    """
    defaults = dict(DEFAULTS[kind])
    own_lr = defaults.pop("own_lr")
    if given.get("model") is not None:
        defaults["lr"] = own_lr
    try:
        return RunSettings(**(defaults | dict(given)))
    except ValidationError as error:
        raise GroError.plain("\n".join(_finding(item) for item in error.errors())) from None


def _finding(item: Any) -> str:
    name = ".".join(str(part) for part in item["loc"])
    if item["type"] == "extra_forbidden":
        known = ", ".join(RunSettings.model_fields)
        return f"there is no setting `{name}`; the settings are {known}"
    if item["type"] == "missing":
        return f"the setting `{name}` has no value: give {flag(name)}"
    if item["type"] == "value_error":
        return str(item["ctx"]["error"])
    message = item["msg"][0].lower() + item["msg"][1:]
    return f"{flag(name)} {item['input']}: {message}"


def to_toml(settings: RunSettings) -> str:
    """The settings as a file for `--config`; what is None is left out, `resume` is no property of a run."""
    values = settings.model_dump(exclude={"resume"}, exclude_none=True)
    plain = {name: value for name, value in values.items() if not isinstance(value, dict)}
    lines = [f"{name} = {_toml(value)}" for name, value in plain.items()]
    for name, table in values.items():
        if isinstance(table, dict) and table:
            lines += ["", f"[{name}]"] + [f"{json.dumps(key)} = {_toml(value)}" for key, value in table.items()]
    return "\n".join(lines) + "\n"


def _toml(value: object) -> str:
    if isinstance(value, tuple):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    if isinstance(value, float):
        return repr(value)  # json would write Infinity; TOML says inf, as Python does
    return json.dumps(value, ensure_ascii=False)
