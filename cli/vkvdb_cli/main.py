"""`vkvdb`: the commands are the files in `commands/`, imported when they are called and not before.

A new command is a new file: `commands/score.py` is `vkvdb score`, the first line of its docstring is its line in
`vkvdb --help`, and its variable `command` is the Click command (or group). Command modules import only light modules at
their top, so that help is instant.
"""

from __future__ import annotations

import ast
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from keyword import iskeyword
from pathlib import Path

import click

from vkvdb import __version__
from vkvdb.errors import VkvdbError
from vkvdb.registry import nearest

_FOLDER = Path(__file__).parent / "commands"

# Threads that wait for each other sleep instead of spinning: beside another busy process, spinning made small products
# fifty times slower. Read by OpenMP when torch is imported, long after this.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

INTERRUPTED = 130  # what a shell reports for a process that Ctrl-C ended


def command_names() -> list[str]:
    """The names of all commands, in order."""
    stems = (path.stem for path in _FOLDER.glob("*.py") if not path.stem.startswith("_"))
    return sorted(stem.rstrip("_").replace("_", "-") for stem in stems)


def _stem(name: str) -> str:
    """The file of a command; a word that Python keeps for itself has an underscore behind it (`import_.py`)."""
    stem = name.replace("-", "_")
    return f"{stem}_" if iskeyword(stem) else stem


def help_line(name: str) -> str:
    """The first line of a command file's docstring, read without importing it."""
    tree = ast.parse((_FOLDER / f"{_stem(name)}.py").read_text(encoding="utf-8"))
    return (ast.get_docstring(tree) or "").partition("\n")[0]


class CommandFiles(click.Group):
    """A group whose commands are files, each imported only when it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Name the files."""
        return command_names()

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import one file; an error in it is ours and is not swallowed."""
        if cmd_name not in command_names():
            return None
        command: click.Command = import_module(f"vkvdb_cli.commands.{_stem(cmd_name)}").command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Suggest the nearest name for an unknown one."""
        known = command_names()
        if args[0] not in known and not args[0].startswith("-"):
            ctx.fail(f"no command is called '{args[0]}'{nearest(args[0], known)}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands with the help lines of their files."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, help_line(name)) for name in command_names()])


@click.group(cls=CommandFiles, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
@click.option(
    "--home", metavar="DIR", help="Catalog, queue and charts lie here (else VKVDB_HOME, else the nearest .vkvdb)."
)
@click.option("--store", metavar="DIR", help="Captures and scores lie here (else VKVDB_STORE, else HOME/store).")
def vkvdb(home: str | None, store: str | None) -> None:
    """Ask vision-language models what their layers and heads see, and keep the answers."""
    # The environment is what processes that we start inherit.
    if home is not None:
        os.environ["VKVDB_HOME"] = home
    if store is not None:
        os.environ["VKVDB_STORE"] = store


def main(args: Sequence[str] | None = None) -> int:
    """Run a command line and return its exit code: 0 done, 1 refused in one line, 2 misused, 130 interrupted.

    What is neither a VkvdbError nor Click's is a bug of ours and leaves with its traceback.
    """
    try:
        # Without standalone mode Click returns the code of `ctx.exit(code)`, and what a command returns.
        code = vkvdb.main(args=args, prog_name="vkvdb", standalone_mode=False)
    except VkvdbError as error:
        click.echo("vkvdb: " + " ".join(str(error).split()), err=True)
        return 1
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except click.Abort:  # Ctrl-C, which Click has caught
        click.echo("vkvdb: interrupted", err=True)
        return INTERRUPTED
    return code if isinstance(code, int) else 0


if __name__ == "__main__":
    sys.exit(main())
