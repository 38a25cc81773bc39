"""The page for those who come from TRL: its methods, flags and parameters exist here, and its names there."""

from __future__ import annotations

import dataclasses
import re

import pytest

import grolang
from grolang.language import library
from grolang.runtime.settings import RunSettings

from .tables import DOCS

PAGE = (DOCS / "howto" / "from-trl.md").read_text(encoding="utf-8")
#: arguments of a trainer or a model, not fields of a TRL configuration
OTHERS = {"reward_funcs", "ref_model", "peft_config", "attn_implementation", "loss_type"}


def test_flags_and_methods_are_there() -> None:
    flags = set(re.findall(r"--([a-z][a-z-]+)", PAGE))
    known = {name.replace("_", "-") for name in RunSettings.model_fields}
    assert len(flags) > 30 and flags <= known | {"set", "score", "data"}
    rows = [
        row.split("|")[2] for row in PAGE.split("## Which method")[1].split("The built-in files")[0].splitlines()[4:-1]
    ]
    named = {name for row in rows for name in re.findall(r"`([a-z_]+)[ `]", row)} - {"epsilon_high", "grolang"}
    assert len(named) > 20 and named <= set(library.built_in())
    assert "epsilon_high" in grolang.load("dapo").params and "max_length" in grolang.load("dr_grpo").params


def test_names_of_trl_are_trls() -> None:
    trl = pytest.importorskip("trl", reason="needs TRL")
    fields: set[str] = set()
    for name in ("GRPOConfig", "DPOConfig", "KTOConfig", "RLOOConfig"):
        fields |= {field.name for field in dataclasses.fields(getattr(trl, name))}
    rows = PAGE.split("## Which flag")[1].split("verl:")[0]
    cells = [line.split("|")[1] for line in rows.splitlines() if line.startswith("| `")]
    named = {name for cell in cells for name in re.findall(r"`([a-z_]+)[`=]", cell)}
    assert len(named) > 40 and named - OTHERS <= fields, named - OTHERS - fields
