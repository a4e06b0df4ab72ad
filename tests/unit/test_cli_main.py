"""The command as scripts meet it: quick help, exit codes, one line of error."""

import subprocess
import sys
from pathlib import Path

import click
import pytest

from eastwest import cli
from eastwest.errors import EastwestError

EASTWEST = [sys.executable, "-m", "eastwest"]


HEAVY = ("asyncio", "httpx", "msgspec", "numpy", "rich", "textual")


def test_help_lists_the_verbs_and_imports_none() -> None:
    """It names every verb that is not hidden and loads nothing but click, which is what makes it quick."""
    code = (
        "import sys; from eastwest.cli import main; main(['--help']);"
        f"print(*[m for m in sys.modules if m.startswith('eastwest.') or m in {HEAVY}])"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    *shown, loaded = output.splitlines()
    assert sorted(loaded.split()) == ["eastwest.cli", "eastwest.errors"]
    listed = {line.split()[0] for line in shown if line.startswith("  ") and line.split()}
    assert set(cli.VERBS) - cli.HIDDEN <= listed
    assert not cli.HIDDEN & listed


@pytest.mark.parametrize("verb", sorted(cli.VERBS))
def test_every_verb_is_a_command_of_its_name(verb: str) -> None:
    """Each verb of the table has a file with a click command that bears its name."""
    command = cli._group.get_command(click.Context(cli._group), verb)
    assert command is not None
    assert command.name == verb
    assert cli.main([verb, "--help"]) == 0


def test_every_command_file_is_in_the_table() -> None:
    """A file of cli that holds a `command` is a verb that `--help` can show."""
    files = Path(cli.__file__).parent.glob("*.py")
    verbs = {file.stem for file in files if "\ndef command(" in file.read_text()}
    assert verbs <= set(cli.VERBS)


def test_wrong_usage_exits_2(capsys: pytest.CaptureFixture[str]) -> None:
    """Unknown verbs and options are wrong usage, told on stderr."""
    for arguments in (["frobnicate"], ["labels", "--frob"], ["flows", "--limit", "0"], ["label", "set", "x"]):
        assert cli.main(arguments) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        assert "Usage: eastwest" in captured.err


def test_error_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """An EastwestError is one line on stderr, whatever it holds, and exit 1."""

    def refuse(*_: object, **__: object) -> None:
        raise EastwestError("it broke\nbadly", "mend it")

    monkeypatch.setattr(cli._group, "main", refuse)
    assert cli.main([]) == 1
    assert capsys.readouterr() == ("", "eastwest: it broke badly; mend it\n")


def test_interrupt_is_quiet(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Ctrl-C says nothing; the code is the shell's for it."""

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli._group, "main", interrupted)
    assert cli.main([]) == 130
    assert capsys.readouterr() == ("", "")


def test_broken_pipe_is_quiet() -> None:
    """A reader that leaves early causes no complaint."""
    command = subprocess.Popen(
        [*EASTWEST, "doctor", "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert command.stdout is not None
    command.stdout.close()
    _, err = command.communicate(timeout=30)
    assert err == ""
    assert command.returncode == 1
