"""`eastwest label set`: what a user says of a workload."""

from urllib.parse import quote

import click

from eastwest.cli.client import Api

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
        api.post(f"labels/{quote(name, safe='')}", document)


def _fact(text: str) -> tuple[str, str | int]:
    key, equals, value = text.partition("=")
    if not equals or key not in KEYS:
        raise click.UsageError(f"'{text}' is not KEY=VALUE with a key of: {', '.join(KEYS)}")
    if key == "service_id":
        if not value.isascii() or not value.isdigit():
            raise click.UsageError(f"service_id '{value}' is not a number")
        return key, int(value)
    if key == "class" and value not in ("normal", "suspect"):
        raise click.UsageError(f"class '{value}' is neither normal nor suspect")
    return key, value
