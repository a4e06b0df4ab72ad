"""`eastwest label set`: what a user says of a workload."""

from urllib.parse import quote

import click

from eastwest.cli.client import Api
from eastwest.cli.render import Row, printable

KEYS = ("tenant", "network", "service", "service_id", "class")


@click.group("label")
def command() -> None:
    """Say what a workload is."""


@command.command("set")
@click.argument("name")
@click.argument("facts", metavar="KEY=VALUE…", nargs=-1, required=True)
def set_(name: str, facts: tuple[str, ...]) -> None:
    """Bind facts to the workload NAME; they win over rules.

    Keys: tenant, network, service, service_id (a number), class (normal or suspect).
    """
    document = dict(_fact(fact) for fact in facts)
    with Api() as api:
        answer = api.post(f"labels/{quote(name, safe='')}", document)
    click.echo(_said(answer))


def _said(answer: Row) -> str:
    """One line: the workload, and all that users have said of it so far."""
    facts = ", ".join(f"{key}={value}" for key, value in answer["facts"].items() if value is not None)
    return printable(f"{answer['name']} (label {answer['label']}): {facts}")


def _fact(text: str) -> tuple[str, str | int]:
    key, equals, value = text.partition("=")
    if not equals or key not in KEYS:
        raise click.UsageError(f"'{text}' is not KEY=VALUE with a key of: {', '.join(KEYS)}")
    if "," in value:
        raise click.UsageError(
            f"{key} '{value}' holds a comma, which a SELECTOR could not ask for; separate with spaces"
        )
    if key == "service_id":
        if not value.isascii() or not value.isdigit():
            raise click.UsageError(f"service_id '{value}' is not a number")
        return key, int(value)
    if key == "class" and value not in ("normal", "suspect"):
        raise click.UsageError(f"class '{value}' is neither normal nor suspect")
    return key, value
