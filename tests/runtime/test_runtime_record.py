"""What a run leaves, read back: its record, its report, the list of runs, runs compared, and the doctor."""

from __future__ import annotations

import io
import json
import re
import shlex
import signal
import subprocess
import sys
import time
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import psutil
import pytest
from conftest import Write, rows_of
from rich.console import Console

from grolang import GroError
from grolang.cli import main
from grolang.explain import mathml
from grolang.runtime import doctor, record, start
from grolang.runtime.record import Record, is_alive, process
from grolang.runtime.report import pieces, report

PARENT = "method parent\ndata prompts\ngroup 2\nscore correct\nparam scale = 1 in (0, inf)\nreward = scale * correct\n"


class Page(HTMLParser):
    """Tags that are open, links that lead out, and the text."""

    VOID = {"meta", "br", "line", "circle", "rect", "polyline"}

    def __init__(self, text: str) -> None:
        super().__init__()
        self.stack: list[str] = []
        self.links: list[str] = []
        self.text = ""
        self.tags: list[str] = []
        self.feed(text)
        assert not self.stack

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [str(value) for name, value in attributes if name in ("href", "src")]
        if tag not in self.VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.stack.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def folder(tiny: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two finished runs of an extended method with a score file, and one of pairs that failed."""
    made = tmp_path_factory.mktemp("runs")
    (made / "parent.gro").write_text(PARENT)
    (made / "child.gro").write_text('method child "A <child>"\nextends parent\nbaseline = mean(correct over group)\n')
    (made / "score.py").write_text(
        "def score(completion_ids, **_):\n    return [len(ids) / 6 for ids in completion_ids]\n"
    )
    (made / "broken.py").write_text("def score(completions, **_):\n    raise OSError('no <server>')\n")
    (made / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows_of("prompts")))
    given = {
        "model": tiny, "data": str(made / "prompts.jsonl"), "method": str(made / "child.gro"), "batch": 3, "steps": 3,
        "eval_every": 1, "max_completion": 6, "score": {"correct": f"{made / 'score.py'}:score"}, "track": "none",
    }  # fmt: skip
    for name, more in (("a", {}), ("b", {"set": {"scale": 2.0}, "seed": 1})):
        start(given | more | {"output": str(made / f"runs/{name}")}, None, Console(quiet=True))
    broken = {"score": {"correct": f"{made / 'broken.py'}:score"}, "output": str(made / "runs/c"), "eval_rows": 0}
    with pytest.raises(GroError):
        start(given | broken | {"eval_every": 0}, None, Console(quiet=True))
    return made


def test_a_folder_holds_everything_that_repeats_its_run(folder: Path, tmp_path: Path) -> None:
    run = Record(folder / "runs/a")
    assert (run.path / "parent.gro").read_text() == PARENT and (run.path / "scores/score.py").is_file()
    assert run.info["data"][str(folder / "prompts.jsonl")]["bytes"] == (folder / "prompts.jsonl").stat().st_size
    assert run.versions["torch"] and run.settings["seed"] == 0 and run.info["processes"] == 1
    words = shlex.split(run.repeat)
    assert words[:2] == ["grolang", "run"]
    (folder / "child.gro").rename(folder / "moved.gro")  # its own text is enough
    try:
        words[words.index("--output") + 1] = str(tmp_path / "again")
        assert main(words[1:]) == 0
    finally:
        (folder / "moved.gro").rename(folder / "child.gro")
    again = Record(tmp_path / "again")
    for one, two in zip(run.metrics, again.metrics, strict=True):
        assert one == two | {"seconds": one["seconds"]}
    assert again.evaluations == run.evaluations


def test_a_run_is_known_by_how_it_ended(folder: Path) -> None:
    runs = {name: Record(folder / "runs" / name) for name in "abc"}
    assert [run.status for run in runs.values()] == ["finished", "finished", "failed"]
    assert "no <server>" in runs["c"].info["error"] and runs["a"].info["ended"]
    assert runs["a"].key == "correct/sampled" and (runs["a"].steps, runs["a"].planned) == (3, 3)


def test_a_run_whose_process_is_gone_is_interrupted(tmp_path: Path) -> None:
    code = "import json, time\nfrom grolang.runtime.record import process\nprint(json.dumps(process()), flush=True)\n"
    alive = subprocess.Popen([sys.executable, "-c", code + "time.sleep(6000)"], stdout=subprocess.PIPE, text=True)
    assert alive.stdout is not None
    noted = json.loads(alive.stdout.readline())
    run = tmp_path / "run"
    run.mkdir()
    (run / "run.json").write_text(json.dumps({"status": "running", "process": noted}))
    assert Record(run).status == "running"
    alive.send_signal(signal.SIGKILL)
    while psutil.Process(alive.pid).status() != psutil.STATUS_ZOMBIE:  # until its parent asks for it
        time.sleep(0.01)
    assert Record(run).status == "interrupted"
    alive.wait()
    assert Record(run).status == "interrupted"
    assert is_alive(process()) and not is_alive(process() | {"created": 0}) and not is_alive({})


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the time of a process is that of the clock")
def test_a_clock_that_is_set_ends_no_run(monkeypatch: pytest.MonkeyPatch) -> None:
    noted, booted = process(), psutil.boot_time()
    monkeypatch.setattr(psutil._psplatform, "boot_time", lambda: booted + 3600)
    assert is_alive(noted)


def test_score_files_of_one_name_are_both_kept(tiny: str, tmp_path: Path, write: Write) -> None:
    (tmp_path / "two.gro").write_text("method two\ndata prompts\nscore a\nscore b\nreward = a + b\n")
    given = {}
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "r.py").write_text(
            f"def f(completions, **_):  # {name}\n    return [1.0] * len(completions)\n"
        )
        given[name] = f"{tmp_path / name / 'r.py'}:f"
    flags = {"method": str(tmp_path / "two.gro"), "data": write(rows_of("prompts")), "steps": 1, "batch": 2}
    flags |= {"model": tiny, "score": given, "max_completion": 3, "eval_rows": 0, "output": str(tmp_path / "out")}
    start(flags, None, Console(quiet=True))
    kept = {path.name: path.read_text() for path in (tmp_path / "out/scores").iterdir()}
    assert "# a" in kept["r.py"] and "# b" in kept["r-2.py"] and len(kept) == 2


def test_a_run_that_goes_on_elsewhere_is_not_taken_over(folder: Path, tmp_path: Path) -> None:
    path = folder / "runs/b/run.json"
    before = path.read_text()
    path.write_text(json.dumps(json.loads(before) | {"status": "running", "process": process()}))
    try:
        with pytest.raises(GroError, match="is being run, by process"):
            start({"output": str(folder / "runs/b"), "resume": True, "steps": 4}, None, Console(quiet=True))
        with pytest.raises(GroError, match="is being run, by process"):  # and nobody is told to remove it
            start({"output": str(folder / "runs/b"), "method": "rloo"}, None, Console(quiet=True))
    finally:
        path.write_text(before)


def test_a_resumed_run_notes_it_and_says_that_its_data_changed(folder: Path) -> None:
    said, data = io.StringIO(), folder / "prompts.jsonl"
    before = data.read_text()
    data.write_text(before + json.dumps({"prompt": "1+1=", "answer": "2"}) + "\n")
    try:
        start({"output": str(folder / "runs/b"), "resume": True, "steps": 4}, None, Console(file=said))
    finally:
        data.write_text(before)
    assert "is not the file that the run began with" in said.getvalue()
    run = Record(folder / "runs/b")
    assert len(run.info["resumed"]) == 1 and run.status == "finished" and run.steps == 4


def test_settings_that_a_resumed_run_changes_are_named(tiny: str, tmp_path: Path, write: Write) -> None:
    out, said = str(tmp_path / "out"), io.StringIO()
    flags = {"model": tiny, "output": out, "batch": 2, "eval_rows": 0, "lr": 0.5}
    start({"method": "dpo", "data": write(rows_of("preference")), "steps": 1, **flags}, None, Console(quiet=True))
    start({"output": out, "resume": True, "steps": 2, "lr": 0.5}, None, Console(file=said, width=999))
    assert "note: settings" not in said.getvalue()
    start({"output": out, "resume": True, "steps": 3, "lr": 0.25, "set": {"beta": 0.3}}, None, Console(file=said))
    told = "note: settings are not those that the run began with: lr = 0.25 (0.5 before), beta = 0.3 (none before)"
    assert told in said.getvalue()


def test_a_changed_parent_is_another_method(folder: Path) -> None:
    (folder / "parent.gro").write_text(PARENT.replace("scale = 1", "scale = 3"))
    try:
        with pytest.raises(GroError, match="the method is not the one of"):
            start({"output": str(folder / "runs/a"), "resume": True, "steps": 5}, None, Console(quiet=True))
    finally:
        (folder / "parent.gro").write_text(PARENT)


def test_the_report_is_one_page_that_fetches_nothing(folder: Path) -> None:
    text = (folder / "runs/a/report.html").read_text()
    found = Page(text)
    fetched = re.findall(r"(?:url\(|@import)\s*(.{5})", text)
    assert not found.links and set(fetched) <= {"data:", "'data", '"data'}
    assert not [word for word in re.findall(r"https?://[^\s\"'<]+", text) if "www.w3.org" not in word]
    assert "<math" in text and "Row of Table 1" in found.text
    for part in ("A <child>", "mean(correct over group)", "Held out", "Where the data fell", "Coefficients by token",
                 "Before and after", "To repeat it", Record(folder / "runs/a").repeat, "correct/sampled"):  # fmt: skip
        assert part in found.text, part
    assert found.tags.count("svg") > 10 and 'class="tokens"' in text.replace("'", '"')


def test_formulas_are_texts_where_nothing_sets_them(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "math_core", None)
    mathml._converter.cache_clear()
    text = report(Record(folder / "runs/a"))
    monkeypatch.undo()
    found = Page(text)
    assert "<math" not in text and "∇" in found.text and "pip install 'grolang[explain]'" in found.text


def test_a_report_of_a_failed_run_says_why(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "no <server>" in Page((folder / "runs/c/report.html").read_text()).text  # it was made when the run failed
    (folder / "runs/c/report.html").unlink()
    assert main(["report", str(folder / "runs/c")]) == 0
    found = Page((folder / "runs/c/report.html").read_text())
    assert "no <server>" in found.text and "failed" in found.text and "No samples were kept." in found.text
    assert main(["report", str(folder)]) == 2 and "holds no run" in capsys.readouterr().err


def test_runs_are_listed(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["runs", str(folder)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4 and lines[1].split()[1:4] == ["child", "3/3", "finished"] and "correct/sampled" in lines[1]
    assert re.search(r"\d → \d", lines[1]) and "failed" in lines[3]
    assert main(["runs", str(folder), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [row["status"] for row in found] == ["finished", "finished", "failed"]
    assert main(["runs", str(folder / "nowhere")]) == 2


def test_runs_are_compared(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = [str(folder / "runs/a"), str(folder / "runs/b")]
    page = tmp_path / "page.html"
    assert main(["compare", *names, "--html", str(page)]) == 0
    said = capsys.readouterr().out
    for part in (
        "settings that differ",
        "set.scale",
        "seed",
        "correct/sampled ↑",
        "the methods say the same",
        "reward",
    ):
        assert part in said, part
    assert "batch" not in said
    found = Page(page.read_text())
    assert not found.links and "set.scale" in found.text and found.tags.count("svg") > 5
    assert main(["compare", names[0]]) == 2


def test_methods_of_compared_runs_are_compared(folder: Path, tmp_path: Path) -> None:
    from grolang.runtime.compare import compare

    other = tmp_path / "other"
    other.mkdir()
    for name in ("settings.toml", "metrics.jsonl", "run.json", "parent.gro"):
        (other / name).write_text((folder / "runs/a" / name).read_text())
    (other / "method.gro").write_text("method child\nextends parent\nbaseline = mean(correct over others)\n")
    found = compare([Record(folder / "runs/a"), Record(other)])
    assert found.parts == (
        ("baseline", ("baseline = mean(correct over group)", "baseline = mean(correct over others)")),
    )
    assert found.settings == () and found.held_out[0][2][1] is None


def test_listing_and_comparing_need_no_torch() -> None:
    code = "import sys, grolang.runtime.record, grolang.runtime.compare, grolang.runtime.report, grolang.cli.runs\n"
    code += "import grolang.cli.compare, grolang.cli.report\nprint('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_pieces_of_a_character_of_several_tokens_come_together() -> None:
    from conftest import tokenizer

    core = tokenizer().backend_tokenizer
    ids = core.encode("a→b").ids
    assert len(ids) == 5
    assert pieces(ids, [1.0, 2.0, 4.0, 6.0, 5.0], core) == [("a", 1.0), ("→", 4.0), ("b", 5.0)]
    assert pieces([7, 8], [1.0, 2.0], None) == [("7 ", 1.0), ("8 ", 2.0)]


def test_the_doctor_finds_what_is_broken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(doctor, "ROOM", 0)  # a machine that tests may have a full disk
    assert main(["doctor", str(tmp_path), "--no-test"]) == 0
    said = capsys.readouterr().out
    assert "torch" in said and "(asks for >=2.6)" in said and "broken" not in said

    def version(name: str) -> str:
        if name == "rich":
            raise doctor.PackageNotFoundError(name)
        return "0.1" if name == "lark" else "999"

    monkeypatch.setattr(doctor, "version", version)
    assert main(["doctor", str(tmp_path), "--no-test"]) == 1
    said = capsys.readouterr().out
    assert re.search(r"broken +rich +not installed", said) and re.search(r"broken +lark +0.1", said)
    assert "pip install 'rich>=13'" in said and main(["doctor", str(tmp_path / "nowhere")]) == 2


def test_the_self_test_passes_and_can_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "differ by" in doctor._gradient() and "methods check" in doctor._compiles()

    def fail() -> str:
        raise ArithmeticError("off by 2")

    found: Any = doctor._tried("gradient", fail)
    assert found.good is False and found.found == "ArithmeticError: off by 2" and found.mend


def test_the_self_test_trains_a_step() -> None:
    assert doctor._step() == "1 step of dpo on the embedded model"


def test_a_small_file_that_does_not_fit_leaves_the_old_one_and_nothing_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record.write_text(tmp_path / "run.json", "old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(record.os, "fsync", full)
    with pytest.raises(GroError, match="No space left on device"):
        record.write_text(tmp_path / "run.json", "new")
    assert [(one.name, one.read_text()) for one in tmp_path.iterdir()] == [("run.json", "old")]


def test_doctor_says_each_package_once() -> None:
    names = [found.what for found in doctor.examine(test=False)]
    assert len(names) == len(set(names)) and "peft" in names
