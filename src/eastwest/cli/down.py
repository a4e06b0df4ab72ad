"""`eastwest down`: stop, and remove what stays in the kernel."""

import os
import select
import shutil
import signal
import sys
import tomllib
from pathlib import Path

import click

from eastwest.cli import options
from eastwest.cli.config import ProbeSettings, load
from eastwest.cli.lock import MADE_BY_UP, PROBE_LOCK, UP_LOCK, ProbeLock, StateLock, holder
from eastwest.errors import MissingPrivilege, RefusedError

_STOP_SECONDS = 90.0

_OWN = (
    *MADE_BY_UP,
    "bpf",
    "captures",
    "*filters.json",
    "lock",
    "probe.db*",
    "probe.lock",
    "relay.json",
    "store",
    "suspect-*.copy",
    "taps.json*",
)
"""What eastwest keeps in a state directory. Only this is deleted: the directory may hold more."""


@click.command("down")
@click.option("--purge", is_flag=True, help="Also delete the state: counters, flows, labels, captures, logs.")
@options.state_dir
@options.config
def command(purge: bool, state_dir: Path | None, config_file: Path | None) -> None:
    """Stop a running `eastwest up` or probe, and end the counting that it left in the kernel."""
    from eastwest.meter import pins
    from eastwest.tap import relay

    if os.geteuid() != 0:
        raise MissingPrivilege("eastwest down detaches BPF programs, which needs root", "run it with sudo")
    # The file is asked only where it matters: one that is broken must not keep eastwest running.
    directory = state_dir or load(ProbeSettings, config_file).probe.state_dir
    directory = directory.absolute()
    done = ["stopped eastwest"] if _stop(directory, UP_LOCK, "eastwest") else []
    # With `up` its probe has ended; one that is left was started alone.
    done += ["stopped the probe"] if _stop(directory, PROBE_LOCK, "the probe") else []
    if directory.is_dir():
        _forget_key(directory)
        with StateLock(directory), ProbeLock(directory):  # nobody starts one meanwhile
            if pins.remove(directory):
                done.append("removed its programs and counters from the kernel")
            if relay.remove_leftover(relay.note(directory)):
                done.append("removed the veths that a killed probe left")
            if purge:
                _purge(directory)
                done.append(f"deleted its state in {directory}")
    print("; ".join(done) or f"nothing to do: eastwest does not run on {directory}")


def _forget_key(directory: Path) -> None:
    """The secret of an `up` that was killed and could not take it away itself."""
    from eastwest.cli import apikey

    try:
        settings = tomllib.loads((directory / "roles" / "server.toml").read_text())
        key = Path(settings["server"]["write_token_file"])
    except (OSError, ValueError, KeyError, TypeError):
        return  # there is none, or whoever wrote this wrote something else
    if key.parent == apikey.DIRECTORY:
        key.unlink(missing_ok=True)


def _stop(directory: Path, lock: str, who: str) -> bool:
    """End who holds the lock; False if there is nobody. Raises RefusedError if it does not end."""
    pid = holder(directory, lock)
    if pid is None:
        return False
    if pid == 0:
        raise RefusedError(
            f"{who} on {directory} runs in another pid namespace", "run `eastwest down` in that one"
        )
    try:
        process = os.pidfd_open(pid)
    except ProcessLookupError:
        return False
    try:
        if holder(directory, lock) != pid:  # it ended, and the number may be somebody else's by now
            return False
        signal.pidfd_send_signal(process, signal.SIGTERM)
        poll = select.poll()
        poll.register(process, select.POLLIN)
        if not poll.poll(_STOP_SECONDS * 1000):
            raise RefusedError(f"{who} (process {pid}) does not end", f"see its log, then kill -9 {pid}")
    finally:
        os.close(process)
    return True


def _purge(directory: Path) -> None:
    for path in (path for pattern in _OWN for path in directory.glob(pattern)):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    try:
        directory.rmdir()
    except OSError:
        left = ", ".join(sorted(path.name for path in directory.iterdir()))
        print(f"eastwest: {directory} stays: {left} is not eastwest's", file=sys.stderr)
