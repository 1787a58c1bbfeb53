"""The command line as a person meets it: instant, one line for a mistake, a traceback only for a bug."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import vkvdb_cli.commands
from vkvdb_cli import main as cli
from vkvdb_cli import output
from vkvdb_cli.progress import progress

HEAVY = {
    "alembic",
    "altair",
    "duckdb",
    "mlflow",
    "numpy",
    "polars",
    "pyarrow",
    "rich",
    "sqlalchemy",
    "torch",
    "transformers",
}


@pytest.fixture
def drop_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Put one more file beside the commands."""
    monkeypatch.setattr(cli, "_FOLDER", tmp_path)
    monkeypatch.setattr(vkvdb_cli.commands, "__path__", [str(tmp_path)])

    def write(name: str, body: str) -> None:
        source = f'"""What {name} does.\n\nMore.\n"""\nimport click\n{body}\n'
        (tmp_path / f"{name}.py").write_text(source, encoding="utf-8")
        monkeypatch.delitem(sys.modules, f"vkvdb_cli.commands.{name}", raising=False)

    yield write
    for path in tmp_path.glob("*.py"):
        sys.modules.pop(f"vkvdb_cli.commands.{path.stem}", None)


def raising(statement: str) -> str:
    return f"@click.command()\ndef command():\n    {statement}\n"


@pytest.mark.parametrize("command", ["", *cli.command_names()])
def test_help_is_light(command: str) -> None:
    words = [command, "--help"] if command else ["--help"]
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "vkvdb_cli.main", *words], capture_output=True, text=True, check=True
    )
    loaded = {line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines()}
    assert "Usage: vkvdb" in done.stdout
    assert "click" in loaded, "importtime was not read"
    assert not loaded & HEAVY


def test_every_command_has_a_help_line_and_a_command() -> None:
    with cli.vkvdb.make_context("vkvdb", [], resilient_parsing=True) as ctx:
        for name in cli.command_names():
            assert cli.help_line(name)
            assert cli.vkvdb.get_command(ctx, name) is not None


def test_help_lists_a_dropped_in_file_without_importing_it(
    drop_in: Callable[[str, str], None], capsys: pytest.CaptureFixture[str]
) -> None:
    drop_in("two_words", "raise RuntimeError('imported')")
    assert cli.main(["--help"]) == 0
    listed = capsys.readouterr().out
    assert "two-words  What two_words does." in listed
    assert "More." not in listed
    with pytest.raises(RuntimeError, match="imported"):
        cli.main(["two-words"])


def test_a_refusal_is_one_line(drop_in: Callable[[str, str], None], capsys: pytest.CaptureFixture[str]) -> None:
    body = "from vkvdb.errors import BadOption\n"
    drop_in("refuse", body + raising("raise BadOption(option='--limit', value='x\\ny', why='no number')"))
    assert cli.main(["refuse"]) == 1
    caught = capsys.readouterr()
    assert caught.err == "vkvdb: --limit x y: no number\n"
    assert caught.out == ""


def test_a_bug_keeps_its_traceback(drop_in: Callable[[str, str], None]) -> None:
    drop_in("bug", raising("1 / 0"))
    with pytest.raises(ZeroDivisionError):
        cli.main(["bug"])


def test_ctrl_c_is_130(drop_in: Callable[[str, str], None], capsys: pytest.CaptureFixture[str]) -> None:
    drop_in("wait", raising("raise KeyboardInterrupt"))
    assert cli.main(["wait"]) == 130
    assert capsys.readouterr().err.strip() == "vkvdb: interrupted"


@pytest.mark.parametrize(("statement", "code"), [("pass", 0), ("click.get_current_context().exit(3)", 3)])
def test_exit_codes(drop_in: Callable[[str, str], None], statement: str, code: int) -> None:
    drop_in("leave", raising(statement))
    assert cli.main(["leave"]) == code


def test_misuse_is_2_and_names_the_nearest(
    drop_in: Callable[[str, str], None], capsys: pytest.CaptureFixture[str]
) -> None:
    drop_in("score", raising("pass"))
    assert cli.main(["scroe"]) == 2
    assert "no command is called 'scroe', did you mean 'score'?" in capsys.readouterr().err
    assert cli.main(["score", "--nonsense"]) == 2
    assert cli.main(["--nonsense"]) == 2


def test_home_and_store_reach_the_environment(
    drop_in: Callable[[str, str], None], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("VKVDB_HOME", "/before")
    monkeypatch.setenv("VKVDB_STORE", "/before")
    drop_in("show", "import os\n" + raising("click.echo(os.environ['VKVDB_HOME'] + ' ' + os.environ['VKVDB_STORE'])"))
    assert cli.main(["--home", "h", "--store", "s", "show"]) == 0
    assert capsys.readouterr().out == "h s\n"


def test_installed_script() -> None:
    script = Path(sys.executable).with_name("vkvdb")
    done = subprocess.run([script, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"vkvdb, version {cli.__version__}\n"


def test_a_closed_pipe_is_no_traceback() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "vkvdb_cli.main", "--help"],
            stdout=writer,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    finally:
        os.close(writer)
    assert "Traceback" not in done.stderr


def test_progress_is_silent_when_not_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with progress("capturing", 3) as advance:
        advance()
        advance(2)
    assert capsys.readouterr() == ("", "")


def test_progress_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("COLUMNS", "120")
    with progress("capturing", 3) as advance:
        advance(3)
    assert "capturing" in terminal.getvalue()
    assert "3/3" in terminal.getvalue()


COLUMNS = ["layer", "pck", "note"]
ROWS = [(0, 0.123456, "a\nb"), (10, float("nan"), None)]


def test_table(capsys: pytest.CaptureFixture[str]) -> None:
    output.print_table(COLUMNS, ROWS)
    assert capsys.readouterr().out.splitlines() == [
        "layer     pck  note",
        "    0  0.1235  a b",
        "   10     nan",
    ]
    output.print_table(COLUMNS, [])
    assert capsys.readouterr().out == "layer  pck  note\n"


def test_table_on_a_terminal_takes_values_literally(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    output.print_table(["[bold]"], [("[red]x[/red]",)])
    printed = capsys.readouterr().out
    assert "[bold]" in printed
    assert "[red]x[/red]" in printed


def test_csv(capsys: pytest.CaptureFixture[str]) -> None:
    output.print_csv(COLUMNS, ROWS)
    assert capsys.readouterr().out == 'layer,pck,note\n0,0.123456,"a\nb"\n10,nan,\n'


def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    output.print_json(COLUMNS, ROWS)
    assert json.loads(capsys.readouterr().out) == [
        {"layer": 0, "pck": 0.123456, "note": "a\nb"},
        {"layer": 10, "pck": None, "note": None},
    ]
