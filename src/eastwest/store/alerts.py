"""Alerts on disk: the latest document of each, so that they outlive the server.

What is in a document is the watcher's affair; here it has an id, a time and whether it is over.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from eastwest.store.binary import integers, string
from eastwest.store.engine import Database
from eastwest.store.schema import DATABASE

_COLUMNS = ("id", "version", "open", "last", "document")


@dataclass(frozen=True)
class StoredAlert:
    """`last`: unix ns of its last change."""

    id: str
    open: bool
    last: int
    document: bytes


def put(database: Database, alerts: Sequence[StoredAlert], version: int) -> None:
    """Store these states; `version` is higher than that of any before."""
    rows = b"".join(
        string(alert.id.encode())
        + integers("<u8", version)
        + bytes([alert.open])
        + integers("<i8", alert.last)
        + string(alert.document)
        for alert in alerts
    )
    if rows:
        database.insert(f"{DATABASE}.alerts", _COLUMNS, rows)


def read(database: Database, open_only: bool, since: int, limit: int) -> list[bytes]:
    """Documents that changed since (unix ns), the latest first."""
    rows = database.query(
        f"""
        SELECT document FROM {DATABASE}.alerts FINAL
        WHERE last >= fromUnixTimestamp64Nano({{since:Int64}}, 'UTC') {"AND open" if open_only else ""}
        ORDER BY last DESC LIMIT {{limit:UInt32}}
        """,
        {"since": since, "limit": limit},
    )
    return [str(document).encode() for (document,) in rows]


def expire(database: Database, before: int) -> None:
    """Delete what last changed before a moment (unix ns): every version of it, or an old one would return."""
    old = f"last < fromUnixTimestamp64Nano({before}, 'UTC')"
    ((count,),) = database.query(f"SELECT count() FROM {DATABASE}.alerts WHERE {old}")
    if count:
        database.command(f"ALTER TABLE {DATABASE}.alerts DELETE WHERE {old}")
