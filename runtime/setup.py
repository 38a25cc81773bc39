"""From settings to the parts of a run: rows, scores, models. Every check of what a user gave happens here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import accumulate, pairwise
from math import ceil

from accelerate import Accelerator
from transformers import PreTrainedModel

from grolang import Method
from grolang.language.declarations import canonical
from grolang.language.diagnostics import GroError
from grolang.language.usage import idle_scores, used, without
from grolang.runtime import defaults
from grolang.runtime.assembly import Assembly
from grolang.runtime.data import Rows, open_rows
from grolang.runtime.engines import generator
from grolang.runtime.evaluation import HeldOut
from grolang.runtime.examples import (
    COMPLETIONS,
    Encoder,
    Examples,
    Limits,
    Together,
    load_examples,
    one_each,
    with_demonstrations,
)
from grolang.runtime.feed import Feed, Mixture, Past
from grolang.runtime.forms import COLUMNS, check_filled, checked
from grolang.runtime.models import load_tokenizer, vocabulary, window
from grolang.runtime.names import check_folder
from grolang.runtime.parts import data_parts
from grolang.runtime.rollout import Sampler
from grolang.runtime.sampling import Sampling, Stop, end_ids
from grolang.runtime.score_sources import Sources
from grolang.runtime.scores import Patience, Scorer
from grolang.runtime.scoring import Scoring
from grolang.runtime.settings import RunSettings
from grolang.runtime.sharding import whole
from grolang.runtime.step import Engine

LONGEST = 256  # tokens of a sample where neither the settings nor the embedded defaults name a limit
APART, APART_MOST = 20, 64  # held out of data that comes without such rows: one row in 20, and 64 at most


@dataclass(frozen=True)
class Run:
    """The parts of a run, ready to train."""

    settings: RunSettings
    method: Method
    model: PreTrainedModel
    engine: Engine
    encoder: Encoder
    feed: Feed
    held_out: HeldOut


def prepare(method: Method, settings: RunSettings, accelerator: Accelerator, say: Callable[[str], None] = print) -> Run:
    """Everything is read and checked, what is cheap to check first; nothing is trained or written."""
    method = _in_use(method, settings, say)
    kind, drawn, needs = method.data[0], method.data[0] == "prompts", method.needs
    past = _past(method, settings, say) if settings.replay else None
    encoder = open_encoder(settings)
    if settings.reference is not None:
        check_folder(settings.reference, "--reference")
    parts = data_parts(method.data, settings)
    files = [checked(open_rows(part.name), part.kind) for part in parts]
    main = [rows for part, rows in zip(parts, files, strict=True) if part.kind == kind]
    scores = _Scores(method, settings, accelerator, say)
    columns = tuple(dict.fromkeys(name for rows in main for name in [*rows.columns, *one_each(rows.columns, kind)]))
    scoring = Scoring(scores.of(main), accelerator, say, columns)
    for scorer in scoring.scorers:
        scorer.check(columns)

    assembly = Assembly(settings, accelerator, say)
    model = assembly.model(settings.model_path)
    longest = settings.max_completion or (LONGEST if settings.model else defaults.MAX_COMPLETION)
    rows_cut = Limits(window(model), settings.max_prompt, settings.max_completion, vocabulary(model))
    sampled = replace(rows_cut, completion=longest)  # rows of the data are cut only where that is said, samples always
    loaded = [load_examples(rows, kind, encoder, sampled if drawn else rows_cut, old=needs.old) for rows in main]
    others = [(part.kind, rows) for part, rows in zip(parts, files, strict=True) if part.kind != kind]
    if others:
        loaded = with_demonstrations(loaded, [load_examples(rows, other, encoder, rows_cut) for other, rows in others])
    weights = [part.weight for part in parts if part.kind == kind]

    how = _sampling(settings, end_ids(model, encoder.end), longest, encoder)
    draws = generator(settings, model, settings.model_path, accelerator, say, assembly.autocast)
    sampler = Sampler(accelerator, draws, how, encoder, scoring, settings.seed)
    loaded, held = _hold_out(loaded, weights, settings, sampled)
    held_out = _held_out(held, scores, sampler, settings, sampled)

    # after what draws: vLLM looks how much memory is free when it starts, and the reference takes its part
    engine = assembly.engine(method, model, len(encoder.tokenizer), encoder.end, every=past is not None and past.old)
    if engine.sharded:
        sampler = replace(sampler, around=partial(whole, engine.policy))
        if held_out.sampler is not None:
            held_out = replace(held_out, sampler=replace(held_out.sampler, around=sampler.around))
    group = settings.group or method.group
    drawing = replace(sampler, group=group, greedy=needs.greedy, keep_logp=needs.sampler) if drawn else None
    mixture = Mixture(tuple(loaded), tuple(weight or len(rows) for weight, rows in zip(weights, loaded, strict=True)))
    feed = Feed(mixture, scoring, drawing, settings.batch, settings.seed, past)
    if settings.epochs:
        steps = settings.updates * ceil(settings.epochs * len(mixture) / settings.batch)
        settings = settings.model_copy(update={"steps": steps})
    return Run(settings, method, model, engine, encoder, feed, held_out)


def _in_use(method: Method, settings: RunSettings, say: Callable[[str], None]) -> Method:
    """The method without scores that it inherits and has put another in the place of; says so, as of a parameter."""
    idle = idle_scores(method.ir, settings.score)
    for name in idle:
        say(f"note: the score `{name}` is not measured: `{method.name}` inherits it, and no part of it reads it")
    for name in map(canonical, settings.set):
        if name in method.params and name not in used(method.ir):
            say(f"note: `{name}` = {method.params[name]:g} changes nothing: no part of `{method.name}` reads it")
    return replace(method, ir=without(method.ir, idle)) if idle else method


def _past(method: Method, settings: RunSettings, say: Callable[[str], None]) -> Past:
    if method.data[0] != "prompts":
        message = f"--replay {settings.replay}: `{method.name}` learns from rows of the data and draws no completions"
        raise GroError.plain(message, help="leave out --replay")
    if not (method.needs.old or method.needs.sampler):
        say(f"note: `{method.name}` does not read logp_old: groups of earlier steps count as if they were drawn now")
    return Past(settings.replay, settings.replay_size, settings.seed, old=method.needs.old)


def open_encoder(settings: RunSettings) -> Encoder:
    """The tokenizer of the model, whose name is checked first."""
    check_folder(settings.model_path, "--model")
    trust, template = settings.trust_remote_code, settings.chat_template
    return Encoder(load_tokenizer(settings.model_path, trust_remote_code=trust, template=template))


def _sampling(settings: RunSettings, ends: frozenset[int], limit: int, encoder: Encoder) -> Sampling:
    told = {name: getattr(settings, name) for name in ("temperature", "top_p", "top_k", "min_p")}
    return Sampling(ends, limit, **told, stop=Stop(settings.stop, encoder.tokenizer) if settings.stop else None)


class _Scores:
    """The scores of a method, for whichever files; a function or a model behind them is loaded once."""

    def __init__(
        self, method: Method, settings: RunSettings, accelerator: Accelerator, say: Callable[[str], None]
    ) -> None:
        patience = Patience(settings.score_timeout, settings.score_retries, settings.on_score_error)
        self.sources = Sources(patience, accelerator.device, settings.trust_remote_code, say)
        self.wanted = {name: score.builtin for name, score in method.scores.items()}
        self.kind, self.given, self.drawn = method.data[0], settings.score, method.data[0] == "prompts"

    def of(self, files: Sequence[Rows]) -> tuple[Scorer, ...]:
        """What marks completions of these files."""
        columns = [name for name in files[0].columns if all(name in rows.columns for rows in files)]
        columns += one_each(columns, self.kind)
        return _filled(self.sources.scorers(self.wanted, self.given, columns, drawn=self.drawn), files, self.kind)

    def of_answers(self, files: Sequence[Rows]) -> tuple[Scorer, ...]:
        """What marks completions of rows with an answer, where the method itself has no scores for them."""
        scorers = self.sources.scorers({"accuracy": "exact_match"}, {}, files[0].columns, drawn=True)
        return _filled(scorers, files, self.kind)


def _filled(scorers: Sequence[Scorer], files: Sequence[Rows], kind: str) -> tuple[Scorer, ...]:
    """The scorers, each of which finds what it reads in every row."""
    for scorer in scorers:
        for name in scorer.reads:
            for rows in files:
                both = [
                    f"{column}_{name}" for column in COMPLETIONS.get(kind, ()) if name in one_each(rows.columns, kind)
                ]
                for column in both or [name]:
                    check_filled(rows, column, f"the score {scorer.source}")
    return tuple(scorers)


def _hold_out(
    loaded: list[Examples], weights: Sequence[float | None], settings: RunSettings, sampled: Limits
) -> tuple[list[Examples], tuple[Examples, ...]]:
    """Rows to train on and held-out rows: from their own file, the embedded ones, or a part of the user's files.

    Each file gives its share of APART_MOST rows, by the weights, and no more than one row in APART. A prompt that is
    held out is in none of the files that are trained on.
    """
    first = loaded[0]
    if settings.eval_rows == 0:
        return loaded, ()
    if settings.data and settings.eval_data is None:
        shares = [weight or float(len(part)) for weight, part in zip(weights, loaded, strict=True)]
        bounds = [min(APART_MOST, settings.eval_rows) * upto / sum(shares) for upto in accumulate([0.0, *shares])]
        most = [round(after) - round(before) for before, after in pairwise(bounds)]
        counts = [min(len(part) // APART, share) for part, share in zip(loaded, most, strict=True)]
        held = tuple(part.chosen(count, settings.seed) for part, count in zip(loaded, counts, strict=True) if count)
        return [part.without(held) for part in loaded], held
    rows = open_rows(settings.eval_data or str(defaults.data_path("prompts", "test")))
    answers = "answer" in rows.columns and not set(COLUMNS[first.kind]) <= set(rows.columns)
    kind, limits = ("prompts", sampled) if answers or first.kind == "prompts" else (first.kind, first.limits)
    apart = load_examples(checked(rows, kind, "--eval-data"), kind, first.encoder, limits, old=first.old)
    return loaded, (apart.part(apart.kept[: settings.eval_rows]),)


def _held_out(
    held: tuple[Examples, ...], scores: _Scores, sampler: Sampler, settings: RunSettings, sampled: Limits
) -> HeldOut:
    """How these rows are measured: as data where they are no prompts; completed where completions can be marked."""
    found = HeldOut(batch=settings.batch, samples=settings.eval_samples)
    if not held:
        return found
    own = replace(sampler.scoring, scorers=scores.of([part.rows for part in held]))
    if held[0].kind != "prompts":
        found = replace(found, rows=Together(held), scoring=own)
    asked = tuple(part for part in held if scores.drawn or "answer" in part.rows.columns)
    if not asked:
        return found
    if not scores.drawn:
        own = replace(own, scorers=scores.of_answers([part.rows for part in asked]))
    prompts = Together(tuple(_prompts(part, sampled) for part in asked))
    return replace(found, prompts=prompts, sampler=replace(sampler, scoring=own))


def _prompts(part: Examples, limits: Limits) -> Examples:
    """The same rows as prompts to complete."""
    spaced = load_examples(part.rows, "prompts", part.encoder, limits)
    return spaced.part([number for number in spaced.kept if number in set(part.kept)])
