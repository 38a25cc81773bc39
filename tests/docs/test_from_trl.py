"""The page for those who come from TRL: its methods, flags and parameters exist here, and its names there."""

from __future__ import annotations

import dataclasses
import re
from importlib import import_module

import pytest

import grolang
from grolang.cli.elsewhere import ELSEWHERE
from grolang.language import library
from grolang.runtime.settings import RunSettings

from .tables import DOCS

PAGE = (DOCS / "howto" / "from-trl.md").read_text(encoding="utf-8")
#: arguments of a trainer, a model or LoRA, not fields of a TRL configuration
LORA = {"r", "lora_alpha", "lora_dropout", "target_modules"}
OTHERS = {"reward_funcs", "ref_model", "peft_config", "attn_implementation", "loss_type"} | LORA


def methods() -> list[tuple[str, str]]:
    """The two cells of each row of the first table: TRL's words, and ours."""
    lines = PAGE.split("| trainer | method |")[1].split("\n\n")[0].splitlines()[2:]
    return [(line.split("|")[1], line.split("|")[2]) for line in lines]


def test_flags_and_methods_are_there() -> None:
    flags = set(re.findall(r"--([a-z][a-z-]+)", PAGE))
    known = {name.replace("_", "-") for name in RunSettings.model_fields}
    assert len(flags) > 30 and flags <= known | {"set", "score", "data"}
    commands = [command for _, here in methods() for command in re.findall(r"`([^`]+)`", here)]
    named = {command.split()[0] for command in commands} - {"beta", "grolang"}
    assert len(named) > 20 and {name for name in named if name[0] != "-"} <= set(library.built_in())
    for _, here in methods():
        words = [command.split() for command in re.findall(r"`([^`]+)`", here)]
        names = [first for first, *_ in words if first in library.built_in()]
        for first, *rest in words:  # a parameter alone is one of every method of the row
            for parameter in re.findall(r"--set ([a-z_]+)=", " ".join([first, *rest])):
                for name in [first] if first in names else names:
                    assert parameter in grolang.load(name).params, f"{name} has no {parameter}"
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


def test_trainers_and_losses_of_trl_are_trls() -> None:
    """Each configuration of the first table is there, has the fields that are named, and knows the losses."""
    trl = pytest.importorskip("trl", reason="needs TRL")
    names, seen = ["GRPOConfig"], set()
    for there, _ in methods():
        names = re.findall(r"`([A-Z]\w+Config)", there) or names  # a row without one goes on with the one before
        for name in names:
            own = getattr(trl, name, None) or getattr(import_module(f"trl.experimental.{name[:-6].lower()}"), name)
            known = {field.name: field for field in dataclasses.fields(own)}
            assert (named := set(re.findall(r"([a-z_]+)=", there))) <= set(known), (name, named - set(known))
            for loss in set(re.findall(r'"([a-z_]+)"', there)) - {"sequence", "none"}:
                said = known["loss_type"].metadata
                assert f"'{loss}'" in said["help"] or loss in said.get("choices", ()), (name, loss)
            seen.add(name)
    assert len(seen) > 6
    default = {field.name: field.default for field in dataclasses.fields(trl.GRPOConfig)}
    assert default["beta"] == 0 and default["loss_type"] == "dapo" and default["epsilon"] == 0.2
    assert grolang.load("grpo").params["beta"] == 0.04 and grolang.load("robust_dpo").params["beta"] == 0.01


def test_flags_that_are_trls_are_answered_with_ours() -> None:
    known = {name.replace("_", "-") for name in RunSettings.model_fields} | {"set", "score", "data"}
    for there, here in ELSEWHERE.items():
        assert there.replace("_", "-") not in known, there
        assert set(re.findall(r"--([a-z-]+)", here)) <= known, here
