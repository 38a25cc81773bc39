"""Where each score of a method comes from: `--score`, a column of the data, the default of the file."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from grolang.language.diagnostics import GroError
from grolang.runtime.reward_model import RewardModel
from grolang.runtime.scores import PATIENT, Patience, Scorer
from grolang.runtime.verifiers import BUILTINS, ScoreFunction


@dataclass(frozen=True)
class Sources:
    """Score functions by what `--score` says, each made once: a file is imported and a model loaded a single time."""

    patience: Patience = PATIENT
    device: torch.device | str = "cpu"
    trust_remote_code: bool = False
    say: Callable[[str], None] = print
    made: dict[str, ScoreFunction] = field(default_factory=dict)
    files: dict[Path, ModuleType] = field(default_factory=dict)

    def scorers(
        self, wanted: Mapping[str, str | None], given: Mapping[str, str], columns: Sequence[str], *, drawn: bool
    ) -> list[Scorer]:
        """The function behind each score of a method.

        `wanted` names the scores and their built-in defaults, `given` is what `--score` says, `columns` are the
        data's. A column of the score's name counts for completions of the data, not for `drawn` ones.
        """
        for name in given:
            if name not in wanted:
                known = ", ".join(f"`{score}`" for score in wanted) or "none"
                mend = f"declare it in the method: `score {name}`, and a reward that reads it"
                if wanted:
                    mend = f"write --score {next(iter(wanted))}={given[name]}, or {mend}"
                message = f"--score {name}: the method has no score of that name; it has {known}"
                raise GroError.plain(message, help=mend)
        found = []
        for name, default in wanted.items():
            if name not in given and not drawn and name in columns:
                found.append(Scorer(name, f"column {name}", column(name), (name,), self.patience))
            else:
                found.append(self._scorer(name, given.get(name) or default, columns, drawn=drawn))
        return found

    def _scorer(self, name: str, source: str | None, columns: Sequence[str], *, drawn: bool) -> Scorer:
        if source is None:
            mend = f"add --score {name}=FILE.py:FUNCTION or one of the built-in scores: {', '.join(BUILTINS)}"
            mend += (
                "" if drawn else f"; or a column `{name}` to the data, `chosen_{name}` and `rejected_{name}` to pairs"
            )
            raise GroError.plain(f"nothing supplies the score `{name}`", help=mend)
        head, _, option = source.partition(":")
        if head in BUILTINS:
            return self._builtin(name, head, option, columns)
        path, _, attribute = source.rpartition(":")
        if Path(path).suffix == ".py":
            return self._of(name, source, lambda: self._function(Path(path), attribute))
        if Path(source).is_dir() or ("/" in source and ":" not in source) or source.startswith("."):
            return self._of(name, source, lambda: self._model(source))
        known = ", ".join(head + (f":{row.option}" if row.option else "") for head, row in BUILTINS.items())
        raise GroError.plain(
            f"--score {name}={source}: expected FILE.py:FUNCTION, the folder of a reward model or one of {known}"
        )

    def _builtin(self, name: str, head: str, option: str, columns: Sequence[str]) -> Scorer:
        row = BUILTINS[head]
        if option and not row.option:
            raise GroError.plain(f"the score {head} takes no option", help=f"write --score {name}={head}")
        if not option and row.option and not row.option.startswith("["):
            raise GroError.plain(f"the score {head} needs a pattern", help=f"add --score '{name}={head}:{row.option}'")
        reads = () if row.instead and option else row.reads
        missing = [f"`{one}`" for one in reads if one not in columns]
        if missing:
            there = ", ".join(f"`{one}`" for one in columns)
            other = f"{head}:{row.option.strip('[]')}" if row.instead else "FILE.py:FUNCTION"
            raise GroError.plain(
                f"the score {head} reads the column {', '.join(missing)}; the data has {there}",
                help=f"add the column, or another score with --score {name}={other}",
            )
        return self._of(name, f"{head}:{option}" if option else head, lambda: row.make(option), reads)

    def _of(self, name: str, source: str, make: Callable[[], ScoreFunction], reads: tuple[str, ...] = ()) -> Scorer:
        if source not in self.made:
            self.made[source] = make()
        return Scorer(name, source, self.made[source], reads, self.patience)

    def _function(self, path: Path, attribute: str) -> ScoreFunction:
        if path not in self.files:
            self.files[path] = load(path)
        function: ScoreFunction | None = getattr(self.files[path], attribute, None)
        if function is None or not callable(function):
            help = f"define `def {attribute}(completions, **columns)`"
            raise GroError.plain(f"{path} has no function `{attribute}`", help=help)
        return function

    def _model(self, path: str) -> ScoreFunction:
        return RewardModel(path, self.device, self.say, trust_remote_code=self.trust_remote_code)


def column(name: str) -> ScoreFunction:
    """The data's own column of that name."""

    def values(**columns: Any) -> Sequence[float]:
        found: Sequence[float] = columns[name]
        return found

    return values


def load(path: Path) -> ModuleType:
    """The user's file. Running it is what `--score` asks for; a `.gro` file never does it."""
    if not path.is_file():
        raise GroError.plain(f"there is no file {path}", help="check the path that --score gives")
    name = f"grolang_score_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None  # a .py file always has both
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    sys.path.insert(0, str(path.parent.resolve()))
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # a user's module raises what it raises
        raise GroError.plain(f"{path} fails when it is imported: {type(error).__name__}: {error}") from error
    finally:
        sys.path.pop(0)
    return module
