"""`eastwest doctor`: what this host can do, and what to do about the rest."""

import dataclasses
from pathlib import Path

import click
from rich.console import Console
from rich.text import Text

from eastwest.cli import blindspots, checks, options
from eastwest.cli.machine import Check, Machine
from eastwest.cli.render import show_json

_MARKS = {"ok": ("✓", "green"), "degraded": ("!", "yellow"), "missing": ("✗", "bold red")}


@click.command("doctor")
@options.state_dir
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@click.pass_context
def command(context: click.Context, state_dir: Path | None, as_json: bool) -> None:
    """Say what this host can do; for each lack, the remedy. Exit 1 if something required is missing."""
    findings = examine(Machine(state_dir=state_dir.absolute()) if state_dir else Machine())
    if as_json:
        show_json([dataclasses.asdict(finding) for finding in findings])
    else:
        _show(findings)
    if any(finding.status == "missing" for finding in findings):
        context.exit(1)


def examine(machine: Machine) -> list[Check]:
    """Every check, the blind spots last. One that fails itself is a finding, not an end."""
    findings = []
    for check in (*checks.ALL, *blindspots.ALL):
        try:
            findings.append(check(machine))
        except (OSError, ValueError, KeyError) as error:
            name = check.__name__.replace("_", " ")
            findings.append(Check(name, "degraded", f"cannot be examined: {error}", "run as root"))
    return findings


def _show(findings: list[Check]) -> None:
    console = Console(highlight=False, soft_wrap=True)
    width = max(len(finding.check) for finding in findings)
    for finding in findings:
        mark, style = _MARKS[finding.status]
        console.print(
            Text(f"{mark} ", style).append(f"{finding.check:<{width}}  {finding.detail}", "default")
        )
        if finding.remedy:
            console.print(Text(f"  {'':<{width}}  → {finding.remedy}", "dim"))
    counts = {status: sum(f.status == status for f in findings) for status in _MARKS}
    console.print(f"\n{counts['ok']} ok, {counts['degraded']} degraded, {counts['missing']} missing")
