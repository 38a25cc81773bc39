"""From settings to the parts of a run: rows, scores, models. Every check of what a user gave happens here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import accumulate, pairwise
from math import ceil

import torch
from accelerate import Accelerator
from transformers import PreTrainedModel

from grolang import Method
from grolang.compiler.forming import kernel_failure
from grolang.compiler.fused import launch
from grolang.language.diagnostics import GroError
from grolang.runtime import defaults
from grolang.runtime.adapters import WithoutAdapter, add_lora, need, quantization
from grolang.runtime.data import Rows, open_rows
from grolang.runtime.engines import generator
from grolang.runtime.evaluation import HeldOut
from grolang.runtime.examples import Encoder, Examples, Limits, Together, load_examples, with_demonstrations
from grolang.runtime.feed import Feed, Mixture, Past
from grolang.runtime.forms import COLUMNS, check_filled, checked
from grolang.runtime.models import frozen_copy, load_model, load_tokenizer, recompute_activations, vocabulary, window
from grolang.runtime.names import check_folder
from grolang.runtime.packing import enable
from grolang.runtime.parts import data_parts
from grolang.runtime.policy import Policy, check_head
from grolang.runtime.rollout import Sampler
from grolang.runtime.sampling import Sampling, Stop, end_ids
from grolang.runtime.score_sources import Sources
from grolang.runtime.scores import Patience, Scorer
from grolang.runtime.scoring import Scoring
from grolang.runtime.settings import RunSettings
from grolang.runtime.sharding import deepspeed, share_out, wanted, whole
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
    """Everything is read and checked; nothing is trained or written."""
    kind, drawn, needs = method.data[0], method.data[0] == "prompts", method.needs
    past = _past(method, settings, say) if settings.replay else None
    path = settings.model or str(defaults.model_path())
    check_folder(path, "--model")
    if settings.reference is not None:
        check_folder(settings.reference, "--reference")
    trust, template = settings.trust_remote_code, settings.chat_template
    encoder = Encoder(load_tokenizer(path, trust_remote_code=trust, template=template))
    parts = data_parts(method.data, settings)
    files = [(part, checked(open_rows(part.name), part.kind)) for part in parts]
    main = [rows for part, rows in files if part.kind == kind]
    patience = Patience(settings.score_timeout, settings.score_retries, settings.on_score_error)
    sources = Sources(patience, accelerator.device, settings.trust_remote_code, say)
    columns = tuple(dict.fromkeys(name for rows in main for name in rows.columns))
    scoring = Scoring(_scorers(method, settings, sources, main, drawn=drawn), accelerator, say, columns)
    for scorer in scoring.scorers:
        scorer.check(columns)

    model = _model(path, settings, accelerator)
    longest = settings.max_completion or (LONGEST if settings.model else defaults.MAX_COMPLETION)
    known = vocabulary(model)
    limits = Limits(window(model), settings.max_prompt, longest if drawn else settings.max_completion, known)
    uncut = replace(limits, completion=settings.max_completion)  # rows of the data are cut only where that is said
    loaded = [load_examples(rows, kind, encoder, limits, old=needs.old) for rows in main]
    shown = [load_examples(rows, part.kind, encoder, uncut) for part, rows in files if part.kind != kind]
    if shown:
        loaded = with_demonstrations(loaded, shown)

    how = _sampling(settings, end_ids(model, encoder.end), longest, encoder)
    draws = generator(settings, model, path, accelerator, say, _autocast(settings, accelerator.device))
    sampler = Sampler(accelerator, draws, how, encoder, scoring, settings.seed)
    weights = [part.weight for part in parts if part.kind == kind]
    loaded, held = _hold_out(loaded, weights, settings, replace(limits, completion=longest))
    held_out = HeldOut(batch=settings.batch, samples=settings.eval_samples)
    if held:
        apart = [part.rows for part in held]
        own = replace(scoring, scorers=_scorers(method, settings, sources, apart, drawn=drawn))
        if held[0].kind != "prompts":
            held_out = replace(held_out, rows=Together(held), scoring=own)
        if asked := tuple(part for part in held if drawn or "answer" in part.rows.columns):
            using = own if drawn else replace(own, scorers=_answers(sources, [part.rows for part in asked]))
            spaced = tuple(_prompts(part, replace(limits, completion=longest)) for part in asked)
            held_out = replace(held_out, prompts=Together(spaced), sampler=replace(sampler, scoring=using))

    every = past is not None and past.old
    engine = _engine(method, settings, accelerator, model, encoder, say, every=every)
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


def _past(method: Method, settings: RunSettings, say: Callable[[str], None]) -> Past:
    if method.data[0] != "prompts":
        message = f"--replay {settings.replay}: `{method.name}` learns from rows of the data and draws no completions"
        raise GroError.plain(message, help="leave out --replay")
    if not (method.needs.old or method.needs.sampler):
        say(f"note: `{method.name}` does not read logp_old: groups of earlier steps count as if they were drawn now")
    return Past(settings.replay, settings.replay_size, settings.seed, old=method.needs.old)


def _sampling(settings: RunSettings, ends: frozenset[int], limit: int, encoder: Encoder) -> Sampling:
    told = {name: getattr(settings, name) for name in ("temperature", "top_p", "top_k", "min_p")}
    return Sampling(ends, limit, **told, stop=Stop(settings.stop, encoder.tokenizer) if settings.stop else None)


def _scorers(
    method: Method, settings: RunSettings, sources: Sources, files: Sequence[Rows], *, drawn: bool
) -> tuple[Scorer, ...]:
    wanted = {name: score.builtin for name, score in method.scores.items()}
    columns = [name for name in files[0].columns if all(name in rows.columns for rows in files)]
    return _filled(sources.scorers(wanted, settings.score, columns, drawn=drawn), files)


def _filled(scorers: Sequence[Scorer], files: Sequence[Rows]) -> tuple[Scorer, ...]:
    """The scorers, each of which finds what it reads in every row."""
    for scorer in scorers:
        for column in scorer.reads:
            for rows in files:
                check_filled(rows, column, f"the score {scorer.source}")
    return tuple(scorers)


def _answers(sources: Sources, files: Sequence[Rows]) -> tuple[Scorer, ...]:
    """What marks completions of rows with an answer, where the method itself has no scores for them."""
    return _filled(sources.scorers({"accuracy": "exact_match"}, {}, files[0].columns, drawn=True), files)


def _prompts(part: Examples, limits: Limits) -> Examples:
    """The same rows as prompts to complete."""
    spaced = load_examples(part.rows, "prompts", part.encoder, limits)
    return spaced.part([number for number in spaced.kept if number in set(part.kept)])


def _hold_out(
    loaded: list[Examples], weights: Sequence[float | None], settings: RunSettings, limits: Limits
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
    kind = "prompts" if answers else first.kind
    apart = load_examples(
        checked(rows, kind), kind, first.encoder, limits if kind == "prompts" else first.limits, old=first.old
    )
    return loaded, (apart.part(apart.kept[: settings.eval_rows]),)


def _model(path: str, settings: RunSettings, accelerator: Accelerator) -> PreTrainedModel:
    dtype = torch.float64 if settings.precision == "fp64" else torch.float32
    if settings.lora:  # weights that are not trained need no more digits than the products that they are in
        dtype = _autocast(settings, accelerator.device) or dtype
    if settings.attention == "flash_attention_2":
        need("flash_attn", "--attention flash_attention_2", "flash")
    model = load_model(
        path,
        dtype=dtype,
        device=accelerator.device,
        trust_remote_code=settings.trust_remote_code,
        attn_implementation=settings.attention,
        quantization_config=quantization(settings, dtype),
    )
    check_head(model)
    return model


def fresh_model(settings: RunSettings) -> PreTrainedModel:
    """The model as its files have it, on the CPU."""
    path, trust = settings.model or str(defaults.model_path()), settings.trust_remote_code
    return load_model(path, dtype=torch.float32, device=torch.device("cpu"), trust_remote_code=trust)


def _engine(
    method: Method,
    settings: RunSettings,
    accelerator: Accelerator,
    model: PreTrainedModel,
    encoder: Encoder,
    say: Callable[[str], None],
    *,
    every: bool,
) -> Engine:
    kernels = _kernels(settings, accelerator.device, say)

    def source(model: PreTrainedModel) -> Policy:
        packed = _packed(model, settings, say)
        return Policy(model, settings.temperature, compiled=settings.compile, packed=packed, kernels=kernels)

    policy = source(model)
    reference: Policy | WithoutAdapter | None = None
    if method.needs.reference and settings.lora and settings.reference is None:
        reference = WithoutAdapter(policy, model)
    elif method.needs.reference:
        own = frozen_copy(model) if settings.reference is None else _model(settings.reference, settings, accelerator)
        if vocabulary(own) < min(vocabulary(model), len(encoder.tokenizer)):
            message = f"--reference {settings.reference} knows {vocabulary(own)} tokens, fewer than the model"
            raise GroError.plain(message, help="give a reference with the model's own tokenizer")
        reference = source(own.requires_grad_(False))
    if settings.lora:
        add_lora(model, settings.model or str(defaults.model_path()), settings)
    if settings.checkpointing:
        recompute_activations(model)
    sharded = wanted(settings.shard, accelerator)
    if sharded and not deepspeed():
        for part in (policy, reference):
            if isinstance(part, Policy):
                share_out(part, accelerator, encoder.end)
    double = settings.precision == "fp64"
    return Engine(
        method=method,
        accelerator=accelerator,
        policy=policy,
        reference=reference,
        pad=encoder.end,
        micro_batch=settings.micro_batch,
        sharded=sharded,
        kernels=kernels,
        every=every,
        say=say,
        window=window(model),
        dtype=torch.float64 if double else torch.float32,
        autocast=_autocast(settings, accelerator.device),
    )


def _kernels(settings: RunSettings, device: torch.device, say: Callable[[str], None]) -> bool:
    """Whether Triton's kernels are taken; where that was left to us and a trial of them fails, a line says why."""
    if settings.kernels == "off":
        return False
    refusal = "they have no float64" if settings.precision == "fp64" else launch.refusal(device)
    failure = None
    if refusal is None:
        half = _autocast(settings, device) == torch.bfloat16
        failure = kernel_failure(device, torch.bfloat16 if half else torch.float32)
    if settings.kernels == "on" and (refusal or failure):
        message = f"--kernels on: {refusal or failure}"
        raise GroError.plain(message, help="leave it out: torch's operations are taken then")
    if failure is not None:
        say(f"note: the loss goes through torch's operations, not through kernels: {failure}")
    return not (refusal or failure)


def _packed(model: PreTrainedModel, settings: RunSettings, say: Callable[[str], None]) -> bool:
    """Whether sequences go through this model packed; where that was left to us and cannot be, a line says why."""
    if settings.packing == "off" or settings.compile:
        return False
    refusal = enable(model)
    if refusal is None:
        return True
    if settings.packing == "on":
        raise GroError.plain(f"--packing on: {refusal}", help="leave it out: sequences are padded then")
    say(f"note: sequences are padded: {refusal}")
    return False


def _autocast(settings: RunSettings, device: torch.device) -> torch.dtype | None:
    """The dtype of the models' products; weights are fp32 (or fp64) whatever it is."""
    if settings.precision == "auto":
        return torch.bfloat16 if device.type == "cuda" and torch.cuda.is_bf16_supported() else None
    return {"bf16": torch.bfloat16, "fp16": torch.float16}.get(settings.precision)
