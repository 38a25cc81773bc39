"""What a run may be told: one frozen model, filled by the defaults of the data kind, a TOML file and the flags."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from grolang.language.diagnostics import GroError
from grolang.runtime import defaults

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


class Panel(BaseModel):
    """A set of settings that `grolang run --help` shows together, under the first line of its docstring.

    A field is a flag (`--micro-batch`) and a key of the TOML file (`micro_batch`); its description is the flag's help.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")


class MethodSettings(Panel):
    """Method"""

    method: str = Field(description="A .gro file or the name of a built-in method.")
    set: dict[str, float] = Field({}, description="A hyper-parameter of the method: --set beta=0.2")
    score: dict[str, str] = Field(
        {},
        description="A score of the method: --score correct=rewards.py:function, a built-in one, or the folder of a "
        "reward model.",
    )
    score_timeout: float = Field(
        600.0, ge=0, allow_inf_nan=False, description="Seconds that one call of a score function may take; 0: for ever."
    )
    score_retries: int = Field(0, ge=0, description="How often a call that fails is made again.")
    on_score_error: Literal["stop", "zero", "skip"] = Field(
        "stop", description="Where a score fails: stop, count it as zero, or skip the row; the last two are counted."
    )


class ModelSettings(Panel):
    """Model"""

    model: str | None = Field(None, description="Folder or hub name of the model; the embedded one if left out.")
    reference: str | None = Field(None, description="Folder or hub name of the reference model; the model if left out.")
    precision: Literal["auto", "fp32", "bf16", "fp16", "fp64"] = Field(
        "auto", description="auto, fp32, bf16, fp16 or fp64."
    )
    lora: int = Field(0, ge=0, description="Rank of a LoRA adapter, trained in place of the model; 0: none.")
    lora_alpha: float | None = Field(None, gt=0, description="Its scale is alpha / rank; twice the rank if left out.")
    lora_targets: Annotated[tuple[str, ...], BeforeValidator(_as_tuple)] = Field(
        (), description="Linear maps that get one, by the last part of their name; all but the head if left out."
    )
    lora_dropout: float = Field(0.0, ge=0, lt=1, description="Dropout before the adapter, in the gradient's pass.")
    quantize: Literal["4bit", "8bit"] | None = Field(None, description="Pack the frozen weights (QLoRA): 4bit or 8bit.")
    merge: bool = Field(False, description="Save the model with the adapter added into it too, in merged/.")
    attention: Literal["sdpa", "eager", "flash_attention_2"] | None = Field(
        None, description="Implementation: sdpa, eager or flash_attention_2; the model's own if left out."
    )
    packing: Literal["auto", "on", "off"] = Field(
        "auto",
        description="No padding, and prompts that sequences share run once: auto (where the model can), on, off.",
    )
    kernels: Literal["auto", "on", "off"] = Field(
        "auto", description="Triton kernels written from the method: auto (on CUDA, where Triton is), on, off."
    )
    checkpointing: bool = Field(False, description="Recompute activations in the backward pass, for memory.")
    compile: bool = Field(False, description="Run the model's layers through torch.compile.")
    chat_template: str | None = Field(
        None, description="Jinja file for conversational rows, in place of the tokenizer's chat template."
    )
    trust_remote_code: bool = Field(False, description="Run code that the model's hub folder brings along.")


class DataSettings(Panel):
    """Data"""

    data: Annotated[tuple[str, ...], BeforeValidator(_as_tuple)] = Field(
        (),
        description="JSONL, JSON, CSV, parquet or arrow file, folder or hub name, in TRL's columns; several as "
        "[KIND=]NAME[:WEIGHT].",
    )
    replay: int = Field(
        0, ge=0, description="Groups of earlier steps that join every step, with the log-probs they had."
    )
    replay_size: int = Field(256, ge=1, description="They are chosen from so many of the last ones.")
    max_prompt: int | None = Field(None, ge=1, description="Rows with more prompt tokens are left out.")
    max_completion: int | None = Field(None, ge=1, description="Tokens at which samples end and rows are cut.")


class SamplingSettings(Panel):
    """Sampling"""

    group: int | None = Field(
        None, ge=1, description="Completions drawn for each prompt; the method's number if left out."
    )
    temperature: float = Field(1.0, gt=0, allow_inf_nan=False, description="Of sampling, and of every log-prob.")
    top_p: float = Field(
        1.0, gt=0, le=1, description="Draw from the fewest tokens that have this probability together."
    )
    top_k: int = Field(0, ge=0, description="Draw from this many of the likeliest tokens; 0: from all.")
    min_p: float = Field(
        0.0, ge=0, le=1, description="Draw from the tokens with at least this share of the likeliest one's probability."
    )
    stop: Annotated[tuple[Annotated[str, Field(min_length=1)], ...], BeforeValidator(_as_tuple)] = Field(
        (), description="Text that a sample ends with, beside the end token; may be repeated."
    )
    engine: str = Field(
        "transformers",
        pattern=r"^(transformers|vllm|https?://.+)$",
        description="What draws: transformers, vllm in this process, or the address of a server of vLLM; "
        "vLLM is experimental on GPUs.",
    )
    engine_memory: float = Field(0.3, gt=0, lt=1, description="Share of the GPU's memory for --engine vllm.")


class OptimizerSettings(Panel):
    """Steps"""

    steps: int = Field(ge=1, description="Optimizer steps.")
    epochs: float = Field(
        0, ge=0, allow_inf_nan=False, description="Passes over the rows that are trained on, in place of --steps."
    )
    batch: int = Field(ge=1, description="Rows of the data in a step: pairs, completions or prompts.")
    micro_batch: int = Field(32, ge=1, description="Sequences that pass through the model at once; changes no result.")
    updates: int = Field(1, ge=1, description="Optimizer steps on the same rows and completions.")
    lr: float = Field(gt=0, allow_inf_nan=False, description="Learning rate.")
    schedule: Literal["constant", "linear", "cosine"] = Field(
        "linear", description="Of the rate, after the warm-up: constant, linear or cosine."
    )
    warmup: int = Field(10, ge=0, description="Steps over which the rate rises.")
    weight_decay: float = Field(0.0, ge=0, allow_inf_nan=False, description="AdamW's.")
    max_grad_norm: float = Field(1.0, gt=0, description="Larger gradients are scaled down to this norm.")
    shard: bool = Field(False, description="Share weights and optimizer out over the processes (FSDP2).")
    on_nonfinite: Literal["stop", "skip"] = Field(
        "stop", description="Where a number is not finite: stop, or skip the step and count it."
    )
    seed: int = Field(0, ge=0, description="Of the order of rows and of sampling.")


class EvaluationSettings(Panel):
    """Evaluation"""

    eval_data: str | None = Field(None, description="Held-out rows, measured before and after.")
    eval_rows: int = Field(256, ge=0, description="How many of them; 0 leaves evaluation out.")
    eval_every: int = Field(0, ge=0, description="Steps between evaluations on the way; 0 has none.")
    eval_samples: int = Field(1, ge=1, description="Completions sampled for each held-out prompt; pass@K from 2 on.")
    eval_metric: str | None = Field(
        None, description="Held-out figure by which the best model is chosen; the first score, else preferences."
    )
    early_stop: int = Field(0, ge=0, description="Evaluations in a row without gain after which to stop; 0: none.")


class OutputSettings(Panel):
    """Output"""

    output: str | None = Field(None, description="Folder of the run; runs/METHOD-N if left out.")
    resume: bool = Field(False, description="Continue the run of the output folder.")
    save_every: int = Field(0, ge=0, description="Steps between checkpoints; 0 saves at the end and at Ctrl-C.")
    keep: int = Field(2, ge=1, description="Checkpoints kept.")
    track: Annotated[
        tuple[Literal["tensorboard", "wandb", "trackio", "mlflow", "none"], ...], BeforeValidator(_as_tuple)
    ] = Field(
        (),
        description="Tracker for the figures: tensorboard, wandb, trackio, mlflow or none; tensorboard if installed.",
    )
    keep_samples: int = Field(1, ge=0, description="Samples of every Nth step are kept; 0 keeps none.")


PANELS = (
    MethodSettings,
    ModelSettings,
    DataSettings,
    SamplingSettings,
    OptimizerSettings,
    EvaluationSettings,
    OutputSettings,
)
"""In the order of `--help`."""


class RunSettings(
    OutputSettings,
    EvaluationSettings,
    OptimizerSettings,
    SamplingSettings,
    DataSettings,
    ModelSettings,
    MethodSettings,
):
    """Every setting of a run."""

    @property
    def model_path(self) -> str:
        """Folder or hub name of the model that is trained."""
        return self.model or str(defaults.model_path())

    @model_validator(mode="after")
    def _whole_draws(self) -> RunSettings:
        if not self.epochs and self.steps % self.updates:
            whole = self.steps + self.updates - self.steps % self.updates
            raise ValueError(f"--steps {self.steps} is no multiple of --updates {self.updates}: give --steps {whole}")
        adapter = ("lora_alpha", "lora_targets", "lora_dropout", "quantize", "merge")
        if not self.lora and (given := [name for name in adapter if getattr(self, name)]):
            raise ValueError(f"{flag(given[0])} is of an adapter: give --lora RANK as well")
        if self.packing == "on" and self.compile:
            raise ValueError("--packing on gives rows of ever new shapes, --compile wants few: leave one of them out")
        if self.replay > self.replay_size:
            most = f"--replay {self.replay} groups of the last {self.replay_size}"
            raise ValueError(f"{most}: give --replay-size {self.replay} or more")
        if self.early_stop and not self.eval_every:
            raise ValueError(
                f"--early-stop {self.early_stop} counts evaluations on the way: give --eval-every N as well"
            )
        return self


REWARD = (
    *("model", "chat_template", "trust_remote_code", "precision", "data", "max_prompt", "max_completion"),
    *("steps", "batch", "micro_batch", "lr", "schedule", "warmup", "weight_decay", "max_grad_norm", "seed"),
    *("eval_data", "eval_rows", "eval_every", "eval_metric", "early_stop"),
    *("output", "resume", "save_every", "keep", "track"),
)
"""The settings of `grolang reward train`."""


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
    name = ".".join(part for part in item["loc"] if isinstance(part, str))
    if item["type"] == "extra_forbidden":
        known = ", ".join(RunSettings.model_fields)
        return f"there is no setting `{name}`; the settings are {known}"
    if item["type"] == "missing":
        return f"the setting `{name}` has no value: give {flag(name)}"
    if item["type"] == "value_error":
        return str(item["ctx"]["error"])
    if item["type"] == "string_pattern_mismatch":
        return f"{flag(name)} {item['input']}: expected {RunSettings.model_fields[name].description}"
    message = item["msg"][0].lower() + item["msg"][1:]
    return f"{flag(name)} {item['input']}: {message}"


def to_toml(settings: RunSettings, only: Collection[str] = tuple(RunSettings.model_fields)) -> str:
    """The settings as a file for `--config`; what is None is left out, `resume` is no property of a run."""
    values = settings.model_dump(include={*only} - {"resume"}, exclude_none=True)
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
