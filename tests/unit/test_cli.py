"""The commands: exit codes, forms of output, what they write and what they never touch."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Literal, get_args, get_origin, get_type_hints

import pytest

import grolang.cli
from grolang import GroError
from grolang.cli import app, main, paint
from grolang.language import library
from grolang.language.checker import check_file

GOOD = 'method mine "Mine"\ndata preference\nreward = label\n'
BAD = 'method mine "Mine"\ndata preference\nreward = labell\nreport r = sum(label over tokens)\n'
WARNS = 'method mine "Mine"\ndata preference\nparam unused = 1\nreward = label\n'


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    code = main(words)
    shown = capsys.readouterr()
    return code, shown.out, shown.err


def process(*words: str, **settings: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **settings}
    return subprocess.run([sys.executable, *words], capture_output=True, text=True, env=environment, timeout=600)


def test_a_method_without_a_law_is_said_to_have_none(capsys: pytest.CaptureFixture[str]) -> None:
    Path("mine.gro").write_text(GOOD)
    code, out, _ = run(capsys, "test", "mine.gro")
    assert code == 0 and out.startswith("mine has no law") and "law gradient: loss EXPR" in out


# --- check --------------------------------------------------------------------------------------------------------


def test_check_of_a_clean_file_exits_0(capsys: pytest.CaptureFixture[str]) -> None:
    Path("mine.gro").write_text(GOOD)
    assert run(capsys, "check", "mine.gro") == (0, "no findings in 1 file\n", "")


def test_check_prints_every_finding_in_house_style_and_exits_1(capsys: pytest.CaptureFixture[str]) -> None:
    Path("mine.gro").write_text(BAD)
    code, out, err = run(capsys, "check", "mine.gro")
    assert (code, err) == (1, "")
    assert "error[E201]: there is no `labell`\n --> mine.gro:3:10\n" in out
    assert "error[E301]: nothing to sum over tokens" in out and out.endswith("2 errors in 1 file\n")
    assert "\x1b" not in out


def test_warnings_fail_only_under_strict(capsys: pytest.CaptureFixture[str]) -> None:
    Path("mine.gro").write_text(WARNS)
    code, out, _ = run(capsys, "check", "mine.gro")
    assert code == 0 and "warning[W704]" in out and out.endswith("1 warning in 1 file\n")
    assert run(capsys, "check", "--strict", "mine.gro")[0] == 1


def test_check_walks_a_folder_and_says_a_shared_finding_once(capsys: pytest.CaptureFixture[str]) -> None:
    Path("deep/.hidden").mkdir(parents=True)
    Path("deep/.hidden/no.gro").write_text("garbage")
    Path("deep/notes.txt").write_text("garbage")
    Path("deep/base.gro").write_text(BAD)
    Path("deep/child.gro").write_text("method child\nextends base\n")
    code, out, _ = run(capsys, "check", "deep")
    assert code == 1 and out.endswith("2 errors in 2 files\n") and out.count("E201") == 1


def test_what_is_not_there_is_wrong_use_and_the_rest_is_checked(capsys: pytest.CaptureFixture[str]) -> None:
    Path("mine.gro").write_text(BAD)
    code, out, _ = run(capsys, "check", "dpoo", "mine.gro")
    assert code == 2 and "did you mean `dpo`?" in out and "E201" in out
    Path("empty").mkdir()
    code, _, err = run(capsys, "check", "empty")
    assert code == 2 and "no .gro file in `empty`" in err


def test_built_in_names_are_files_to_check_show_and_fmt(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "check", "dpo", "cpl")[0] == 0
    assert run(capsys, "fmt", "--check", "dpo")[0] == 0
    assert run(capsys, "show", "dpo") == (0, library.built_in()["dpo"].text, "")


def test_json_lists_every_finding_with_its_place(capsys: pytest.CaptureFixture[str]) -> None:
    Path("a.gro").write_text(BAD)
    Path("b.gro").write_text(WARNS)
    code, out, _ = run(capsys, "check", "a.gro", "b.gro", "--format", "json")
    rows = json.loads(out)
    assert code == 1
    assert [(row["file"], row["line"], row["column"], row["code"]) for row in rows] == [
        ("a.gro", 3, 10, "E201"),
        ("a.gro", 4, 16, "E301"),
        ("b.gro", 3, 7, "W704"),
    ]


def test_sarif_names_rules_levels_and_regions(capsys: pytest.CaptureFixture[str]) -> None:
    folder = Path("with space")
    folder.mkdir()
    (folder / "β.gro").write_text(BAD + "reward = 1\n", encoding="utf-8")
    code, out, _ = run(capsys, "check", str(folder), "dpoo", "--format", "sarif")
    log = json.loads(out)
    (only,) = log["runs"]
    rules = [rule["id"] for rule in only["tool"]["driver"]["rules"]]
    results = only["results"]
    assert code == 2 and log["version"] == "2.1.0" and rules == ["E201", "E202", "E301", "E602"]
    assert all(rules[row["ruleIndex"]] == row["ruleId"] and row["message"]["text"] for row in results)
    first = next(row for row in results if row["ruleId"] == "E201")["locations"][0]["physicalLocation"]
    assert first["artifactLocation"]["uri"] == "with%20space/%CE%B2.gro"
    assert first["region"] == {"startLine": 3, "startColumn": 10, "endLine": 3, "endColumn": 16}
    twice = next(row for row in results if row["ruleId"] == "E202")
    assert twice["relatedLocations"][0]["physicalLocation"]["region"]["startLine"] == 3
    assert "locations" not in next(row for row in results if row["ruleId"] == "E602")


# --- fmt ----------------------------------------------------------------------------------------------------------


def test_fmt_rewrites_a_file_and_then_leaves_it_alone(capsys: pytest.CaptureFixture[str]) -> None:
    file = Path("mine.gro")
    file.write_bytes(GOOD.replace("reward = ", "reward=").replace("\n", "\r\n").encode())
    file.chmod(0o640)
    assert run(capsys, "fmt", "mine.gro") == (0, "changed mine.gro\n", "")
    assert file.read_bytes() == GOOD.encode() and file.stat().st_mode & 0o777 == 0o640
    assert run(capsys, "fmt", "mine.gro") == (0, "", "")
    assert [path.name for path in Path().iterdir()] == ["mine.gro"]


@pytest.mark.parametrize("flag", ["--check", "--diff"])
def test_fmt_with_check_or_diff_writes_nothing(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    messy = GOOD.replace(" = ", "=")
    Path("mine.gro").write_text(messy)
    code, out, _ = run(capsys, "fmt", flag, "mine.gro")
    assert code == 1 and Path("mine.gro").read_text() == messy
    assert ("+reward = label" in out) if flag == "--diff" else out == "would change mine.gro\n"


def test_fmt_of_a_broken_file_reports_it_keeps_it_and_formats_the_others(capsys: pytest.CaptureFixture[str]) -> None:
    Path("bad.gro").write_text("method bad\nreward=\n")
    Path("good.gro").write_text(GOOD.replace(" = ", "="))
    code, _, err = run(capsys, "fmt", "bad.gro", "good.gro")
    assert code == 1 and "error[E101]" in err and "bad.gro:2" in err
    assert Path("bad.gro").read_text() == "method bad\nreward=\n" and Path("good.gro").read_text() == GOOD


def test_fmt_never_cuts_a_file_that_is_too_large(capsys: pytest.CaptureFixture[str]) -> None:
    raw = (GOOD + "# filler\n" * 30_000).replace("\n", "\r\n").encode()
    Path("large.gro").write_bytes(raw)
    assert run(capsys, "fmt", "large.gro")[0] == 1
    assert Path("large.gro").read_bytes() == raw


def test_fmt_does_not_rewrite_what_is_built_in(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capsys, "fmt", "dpo")
    assert code == 2 and "built-in" in err


# --- show, list, new, version -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stage", "expected"),
    [
        ("text", "omega(z)  = beta * sigmoid(-z)"),
        ("tree", "definition\n  NAME reward\n  name\n    NAME label"),
        ("ir", '"name": "dpo"'),
        ("facts", "omega(z)         sequence  number        (0, inf)     decreasing"),
        ("needs", "reference model      yes"),
        ("steps", "load(logp_ref) : token"),
    ],
)
def test_show_prints_each_stage(stage: str, expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "show", "dpo", "--stage", stage)
    assert code == 0 and expected in out


def test_show_ir_is_the_method_itself(capsys: pytest.CaptureFixture[str]) -> None:
    from grolang.language.ir import MethodIR

    out = run(capsys, "show", "kto", "--stage", "ir")[1]
    assert MethodIR.model_validate_json(out) == check_file("kto").unwrap()


def test_show_of_a_deep_tree_needs_no_recursion(capsys: pytest.CaptureFixture[str]) -> None:
    Path("deep.gro").write_text(GOOD + f"report r = {' + '.join(['1'] * 3000)}\n")
    code, out, _ = run(capsys, "show", "deep.gro", "--stage", "tree")
    assert code == 0 and out.count("literal") == 3000


def test_show_of_a_bad_file_prints_its_errors_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    Path("mine.gro").write_text(BAD)
    code, out, err = run(capsys, "show", "mine.gro", "--stage", "ir")
    assert (code, out) == (1, "") and "E201" in err and "E301" in err


def test_list_has_a_line_for_each_built_in_method(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "list")
    rows = out.splitlines()[1:]
    assert code == 0 and [row.split()[0] for row in rows] == sorted(library.built_in())
    kto = next(row for row in rows if row.startswith("kto "))
    assert "unpaired" in kto and "reference model, mismatched pass" in kto and kto.endswith("(Ethayarajh et al., 2024)")


@pytest.mark.parametrize("kind", ["preference", "unpaired", "prompts", "demonstrations"])
def test_new_writes_a_clean_canonical_file_and_never_overwrites(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "new", "mine", "--data", kind)[0] == 0
    written = Path("mine.gro").read_text(encoding="utf-8")
    assert check_file("mine.gro").findings == () and written.count("#") >= 4
    assert check_file("mine.gro").unwrap().data == (kind,)
    assert run(capsys, "fmt", "--check", "mine.gro")[0] == 0
    code, _, err = run(capsys, "new", "mine", "--data", kind)
    assert code == 2 and "there already" in err and Path("mine.gro").read_text(encoding="utf-8") == written


@pytest.mark.parametrize("parent", ["dpo", "dapo", "ppo_dual_clip", "own"])
def test_new_starts_from_another_method(parent: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("own.gro").write_text(GOOD.replace("mine", "own"))
    assert run(capsys, "new", "child", "--extends", parent)[0] == 0
    written = Path("child.gro").read_text(encoding="utf-8")
    assert f"\nextends {parent}\n" in written
    assert any(line.startswith(("# reward", "# omega")) for line in written.splitlines())
    assert not check_file("child.gro").errors and run(capsys, "fmt", "--check", "child.gro")[0] == 0
    code, out, _ = run(capsys, "test", "child.gro")
    assert code == 0 and "proved" in out
    uncommented = "\n".join(
        line[2:] if "=" in line and line.startswith("# ") else line for line in written.splitlines()
    )
    Path("child.gro").write_text(uncommented + "\n", encoding="utf-8")
    assert not check_file("child.gro").errors


@pytest.mark.parametrize(
    "more", [[], ["--extends", "dop"], ["--extends", "./own"], ["--extends", "dpo", "--data", "prompts"]]
)
def test_new_takes_one_start_that_is_there(more: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    Path("own").write_text(GOOD)
    assert run(capsys, "new", "child", *more)[0] == 2
    assert not Path("child.gro").exists()


@pytest.mark.parametrize("name", ["../up", "a/b", "2nd", "", "dpo", "a b"])
def test_new_takes_only_names_that_are_free(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "new", name, "--data", "prompts")[0] == 2
    assert list(Path().iterdir()) == []


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "version")[1] == run(capsys, "--version")[1]
    assert run(capsys, "version")[1].startswith(f"grolang {grolang.__version__} ")


# --- the top ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", [[], ["chek"], ["check"], ["show", "dpo", "--stage", "soup"], ["new", "x"]])
def test_wrong_use_exits_2(words: Sequence[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2


def test_every_command_is_in_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "--help")
    assert code == 0 and all(f" {name} " in out for name in app.COMMANDS)


def _command_that_raises(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    class Command:
        def main(self, **_: object) -> None:
            raise error

    monkeypatch.setattr(app, "command", lambda *_: Command())


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (GroError.plain("wrong", help="mend it"), 1),
        (GroError.plain("not there", code="E602"), 2),
        (KeyboardInterrupt(), 130),
        (RuntimeError("boom"), 70),
        (SystemExit(3), 3),
        (SystemExit("words"), 1),
    ],
)
def test_exit_code_of_each_ending(
    error: BaseException, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _command_that_raises(error, monkeypatch)
    found, out, err = run(capsys, "check")
    assert (found, out) == (code, "") and "Traceback" not in err
    assert (err == "") == (code in (130, 3))


def test_sigterm_ends_a_command_as_ctrl_c_does(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    class Command:
        def main(self, **_: object) -> None:
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(app, "command", lambda *_: Command())
    before = signal.getsignal(signal.SIGTERM)
    assert run(capfd, "check") == (130, "", "terminated\n") and signal.getsignal(signal.SIGTERM) is before


def test_a_bug_says_so_with_stage_and_version_and_its_traceback_only_on_request(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("mine.gro").write_text(GOOD)
    monkeypatch.setattr("grolang.language.checker._data", lambda *_: 1 / 0)
    monkeypatch.delenv("GROLANG_DEBUG", raising=False)
    code, _, err = run(capsys, "check", "mine.gro")
    assert code == 70 and "this is a bug in grolang" in err and "grolang.language.checker, `_check`" in err
    assert grolang.__version__ in err and "ZeroDivisionError" in err and "Traceback" not in err
    monkeypatch.setenv("GROLANG_DEBUG", "1")
    assert "Traceback" in run(capsys, "check", "mine.gro")[2]


def test_colour_only_on_a_terminal_and_never_against_no_color(monkeypatch: pytest.MonkeyPatch) -> None:
    import io

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    text = 'error[E201]: there is no `x`\n --> a.gro:1:1\n  |\n1 | reward = x\n  |          ^ "label"\n help: [bold]'
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    shown = Terminal()
    paint.say(text, shown)
    assert "\x1b[1;31merror[E201]\x1b[0m" in shown.getvalue() and '\x1b[1;31m^ "label"\x1b[0m' in shown.getvalue()
    assert "[bold]" in shown.getvalue()
    monkeypatch.setenv("NO_COLOR", "1")
    plain = Terminal()
    paint.say(text, plain)
    assert plain.getvalue() == text + "\n"


# --- real processes -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words", [["check", "dpo"], ["fmt", "--check", "dpo"], ["show", "dpo", "--stage", "steps"], ["list"], ["--help"]]
)
def test_no_command_of_the_language_imports_torch(words: list[str]) -> None:
    heavy = "torch transformers numpy datasets accelerate rich.console" if words != ["--help"] else "torch transformers"
    code = (
        f"import sys; from grolang.cli import main; assert main({words!r}) == 0\n"
        f"sys.exit(', '.join(set({heavy.split()!r}) & set(sys.modules)) or 0)"
    )
    found = process("-c", code)
    assert (found.returncode, found.stderr) == (0, "")


def test_python_dash_m_and_a_terminal_without_greek() -> None:
    Path("mine.gro").write_text(GOOD + "βeta = nothing\n", encoding="utf-8")
    found = process("-m", "grolang", "check", "mine.gro", PYTHONIOENCODING="ascii")
    assert found.returncode == 1 and "\\u03b2eta" in found.stdout and "bug" not in found.stderr


def test_a_closed_pipe_is_quiet() -> None:
    read, write = os.pipe()
    os.close(read)  # before it writes, as `| head` may be gone
    words = [sys.executable, "-m", "grolang", "show", "dpo", "--stage", "steps"]
    found = subprocess.run(words, stdout=write, stderr=subprocess.PIPE, text=True, timeout=600)
    os.close(write)
    assert found.stderr == ""


def test_needs_say_which_parameter_drops_a_model() -> None:
    from grolang.compiler.needs import vanishing
    from grolang.language.checker import check_file

    assert vanishing(check_file("grpo").unwrap()) == {"beta": ["reference model"]}
    assert vanishing(check_file("dpo").unwrap()) == {}


# --- emit ---------------------------------------------------------------------------------------------------------


def test_a_parameter_that_is_no_number_is_told_under_its_own_flag(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (("equiv", "dpo", "cpl", "--with"), ("emit", "dpo", "--set")):
        code, _, err = run(capsys, *words, "beta=much")
        assert code == 1 and f"{words[-1]}: `much` is not a number" in err


def test_emit_prints_what_show_prints_and_takes_parameters(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "emit", "dpo")[1] == run(capsys, "show", "dpo", "--stage", "python")[1]
    code, out, _ = run(capsys, "emit", "dpo", "--set", "beta=0.25")
    assert code == 0 and "beta: float = 0.25" in out
    assert run(capsys, "emit", "dpo", "--set", "betta=1")[0] == 1


def test_emit_replaces_a_file_only_when_told(capsys: pytest.CaptureFixture[str]) -> None:
    Path("dpo_loss.py").write_text("mine")
    code, _, err = run(capsys, "emit", "dpo", "-o", "dpo_loss.py")
    assert code == 2 and "`dpo_loss.py` is there already" in err and "--force" in err
    assert Path("dpo_loss.py").read_text() == "mine"
    assert run(capsys, "emit", "dpo", "-o", "dpo_loss.py", "--force") == (0, "wrote dpo_loss.py\n", "")
    assert Path("dpo_loss.py").read_text() == run(capsys, "emit", "dpo")[1]
    assert run(capsys, "emit", "dpo", "-o", "no/such/folder.py")[0] == 2


def test_emit_imports_no_torch() -> None:
    code = "import sys; from grolang.cli import main; main(['emit', 'dpo']); print('torch' in sys.modules)"
    assert process("-c", code).stdout.endswith("False\n")


# --- explain and table --------------------------------------------------------------------------------------------


def test_explain_prints_text_and_takes_parameters(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "explain", "dpo", "--no-plots", "--set", "beta=0.25")
    assert code == 0 and "ĝ = 1/G Σ_g" in out and "β = 0.25" in out and "The file" not in out
    assert "█" in run(capsys, "explain", "dpo")[1]


@pytest.mark.parametrize(
    ("name", "start"), [("a.html", "<!doctype html>"), ("a.tex", "\\documentclass"), ("a.md", "# ")]
)
def test_the_suffix_of_a_file_decides_the_form(name: str, start: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "explain", "rloo", "--no-plots", "-o", name) == (0, f"wrote {name}\n", "")
    assert Path(name).read_text().startswith(start)
    assert run(capsys, "explain", "rloo", "--no-plots", "-o", name)[0] == 2
    assert run(capsys, "explain", "rloo", "--no-plots", "-o", name, "--force")[0] == 0


def test_markdown_has_its_curves_beside_it(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    assert run(capsys, "explain", "slic", "-o", "slic.md")[0] == 0
    assert {path.name for path in Path().iterdir()} == {"slic.md", "slic-omega.svg", "slic-coefficient.svg"}
    text = Path("slic.md").read_text()
    assert "](slic-omega.svg)" in text and "](slic-coefficient.svg)" in text
    assert "](" not in run(capsys, "explain", "slic", "--markdown")[1]


def test_one_form_at_a_time(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capsys, "explain", "dpo", "--html", "--latex")
    assert code == 2 and "one form at a time, not --html and --latex" in err


def test_explain_of_a_broken_file_shows_its_findings(capsys: pytest.CaptureFixture[str]) -> None:
    Path("mine.gro").write_text(BAD)
    code, out, err = run(capsys, "explain", "mine.gro")
    assert (code, out) == (1, "") and "error[E201]" in err


def test_table_has_a_row_for_each_file(capsys: pytest.CaptureFixture[str]) -> None:
    Path("mine.gro").write_text(GOOD)
    code, out, _ = run(capsys, "table", "mine.gro", "dpo", "--markdown")
    rows = [line.split(" | ")[0] for line in out.splitlines() if line.startswith("| `")]
    assert code == 0 and rows == ["| `mine`", "| `dpo` †"]
    assert run(capsys, "table", "mine.gro", "-o", "t.html") == (0, "wrote t.html\n", "")
    assert run(capsys, "table", "nothing")[0] == 2


def test_formulas_and_the_table_import_no_torch() -> None:
    code = "import sys; from grolang.cli import main; main(['explain', 'dpo', '--no-plots']); main(['table', 'dpo']); "
    assert process("-c", code + "print('torch' in sys.modules)").stdout.endswith("False\n")


def test_the_words_that_an_option_takes_are_those_of_its_table() -> None:
    stages = import_module("grolang.cli.show")
    from grolang.cli.new import new
    from grolang.cli.templates import TEMPLATES
    from grolang.language.checker import KINDS

    def words(command: Callable[..., None], option: str) -> tuple[str, ...]:
        parts = [get_type_hints(command)[option]]
        while get_origin(parts[0]) is not Literal:  # X | None, which Python 3.10 writes of every default that is None
            parts = [*get_args(parts[0]), *parts[1:]]
        return get_args(parts[0])

    assert words(stages.show, "stage") == tuple(stages._STAGES)
    assert words(new, "data") == tuple(TEMPLATES) == KINDS
