"""The command line: one file per verb, imported when it is called, so that `--help` is quick.

Components are wired together here and nowhere else.
"""

import os
import sys
from importlib import import_module

import click

from eastwest import __version__
from eastwest.errors import EastwestError

VERBS = {
    "up": "Run every role on this host until stopped.",
    "down": "Stop, and remove what stays in the kernel.",
    "top": "Watch every workload's traffic live.",
    "labels": "Labels with their counters.",
    "workloads": "Workloads of all hosts.",
    "ports": "Workloads' ports.",
    "flows": "Flow records.",
    "talkers": "Who talks to whom most.",
    "capture": "Packets of workloads, live, as pcapng.",
    "taps": "What is copied now.",
    "ledger": "Where every packet is accounted for.",
    "hosts": "Hosts, and what their probes cost.",
    "label": "Say what a workload is.",
    "suspect": "Declare prefixes and flows suspect.",
    "enforce": "Drop the suspect packets of workloads.",
    "tap": "Standing orders to copy packets.",
    "extcap": "Workloads as interfaces in Wireshark.",
    "alerts": "Alerts, and which of them to keep quiet.",
    "watch": "What is to raise an alert.",
    "doctor": "What this host can do, and how to mend the rest.",
    "probe": "Run the probe alone.",
    "server": "Run the server alone.",
    "lab": "Make or remove a topology with real traffic.",
    "demo": "Run the demonstration.",
}
"""Verb → help. Kept here because asking the verbs themselves would import them all."""

HIDDEN = frozenset({"demo"})

_USAGE = 2
_INTERRUPTED = 130
_BROKEN_PIPE = 1  # what click makes of it when it notices first


class _Verbs(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return [verb for verb in VERBS if verb not in HIDDEN]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            return None
        command: click.Command = import_module(f"eastwest.cli.{cmd_name}").command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Verbs"):
            formatter.write_dl([(verb, VERBS[verb]) for verb in self.list_commands(ctx)])


@click.group(
    cls=_Verbs,
    help="Label, meter and show the traffic between workloads on virtualization hosts.",
    epilog="Settings: flags, then environment (EASTWEST_*), then TOML file, then defaults.",
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(__version__, prog_name="eastwest")
def _group() -> None:
    pass


def main(arguments: list[str] | None = None) -> int:
    """Run a command line. Returns the exit code: 0, 1 refused, 2 wrong usage."""
    try:
        code = _group.main(arguments, prog_name="eastwest", standalone_mode=False)
        sys.stdout.flush()
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except EastwestError as error:
        print(one_line(error), file=sys.stderr)
        return 1
    except (click.Abort, KeyboardInterrupt):
        return _INTERRUPTED
    except BrokenPipeError:
        # The interpreter flushes stdout once more at its end; it must not complain then.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _BROKEN_PIPE
    return code if isinstance(code, int) else 0


def one_line(error: EastwestError) -> str:
    """An error as a script finds it on stderr."""
    return "eastwest: " + " ".join(str(error).split())
