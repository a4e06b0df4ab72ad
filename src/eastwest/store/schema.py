"""Every table, derived from the rows that probes send: a wider row widens its table and nothing else.

flows      one row per flow and drain; what `stored` in the ledger counts
flows_1m   the same by minute, kept longer
totals     the accounts of the probes, the latest state of each
workloads  the latest document of each label, per host that had it
evidence   first packets of suspect traffic, kept as long as flows
alerts     the latest document of each alert, kept as long as flows_1m
batches    the number of every message ever stored, so that a repeat is refused however late it comes
expired    packets of the days of `flows` that were dropped, counted before the drop
"""

from collections.abc import Iterable

import numpy as np

from eastwest.meter.rows import FLOW_ROW, TOTAL_ROW

DATABASE = "eastwest"

_NEVER = 1 << 32
"""Parts: more than there ever are."""

Columns = dict[str, str]
"""Column name → ClickHouse type, in the order of the row's bytes."""

# What a field means, where its numpy type alone does not say it.
_MEANING = {
    "direction": "Enum8('ingress' = 0, 'egress' = 1)",
    "class": "Enum8('normal' = 0, 'suspect' = 1)",
    "src": "IPv6",
    "dst": "IPv6",
}
_UNSIGNED = {1: "UInt8", 2: "UInt16", 4: "UInt32", 8: "UInt64"}
_CODECS = {"DateTime64(9, 'UTC')": " CODEC(Delta, ZSTD(1))", "UInt64": " CODEC(T64, ZSTD(1))"}


def column_type(name: str, dtype: np.dtype[np.void]) -> str:
    """The ClickHouse type whose binary form is this numpy field."""
    if name in _MEANING:
        return _MEANING[name]
    if dtype.kind == "u":
        return _UNSIGNED[dtype.itemsize]
    if dtype.kind == "i" and dtype.itemsize == 8:
        return "DateTime64(9, 'UTC')"  # every signed field is a time
    return f"FixedString({dtype.itemsize})"


def _columns(row: np.dtype[np.void]) -> Columns:
    assert row.names is not None
    return {name: column_type(name, row[name]) for name in row.names}


# The message that a row came with.
ORIGIN: Columns = {"host": "LowCardinality(String)", "boot": "UInt64", "sequence": "UInt64"}
FLOWS: Columns = {**ORIGIN, "received": "DateTime('UTC')", **_columns(FLOW_ROW)}
TOTALS: Columns = {**ORIGIN, **_columns(TOTAL_ROW)}

_MINUTE_KEY = ("label", "minute", "host", "port", "class", "direction", "src", "dst", "protocol")
_MINUTES: Columns = {
    "day": "Date",
    **{name: FLOWS.get(name, "DateTime('UTC')") for name in _MINUTE_KEY},
    "packets": "UInt64",
    "bytes": "UInt64",
}


def names(columns: Iterable[str]) -> str:
    """Column names for SQL; quoted, as `end` is a keyword."""
    return ", ".join(f"`{name}`" for name in columns)


def _declare(columns: Columns) -> str:
    codecs = {name: _CODECS.get(kind, " CODEC(ZSTD(1))") for name, kind in columns.items()}
    return ", ".join(f"`{name}` {kind}{codecs[name]}" for name, kind in columns.items())


def _flows() -> str:
    # `received` is one value per insert, so an insert is one part: stored whole or not at all. The
    # projection is kept by ClickHouse for each part: the ledger counts by it without reading every row.
    return f"""
        CREATE TABLE IF NOT EXISTS {DATABASE}.flows ({_declare(FLOWS)},
            PROJECTION by_message (
                SELECT received, host, boot, sequence, label, sum(packets), count()
                GROUP BY received, host, boot, sequence, label
            )
        ) ENGINE = MergeTree PARTITION BY toYYYYMMDD(received) ORDER BY (label, `end`)
        SETTINGS lightweight_mutation_projection_mode = 'rebuild',
                 deduplicate_merge_projection_mode = 'rebuild'
    """


def _minutes() -> str:
    # By the day of storing, not of the traffic: one insert is one part, however wrong a host's clock is.
    return f"""
        CREATE TABLE IF NOT EXISTS {DATABASE}.flows_1m ({_declare(_MINUTES)})
        ENGINE = SummingMergeTree((packets, bytes))
        PARTITION BY toYYYYMMDD(day) ORDER BY ({names(_MINUTE_KEY)})
    """


def _minutes_view() -> str:
    keys = names(name for name in _MINUTE_KEY if name != "minute")
    return f"""
        CREATE MATERIALIZED VIEW IF NOT EXISTS {DATABASE}.flows_to_1m TO {DATABASE}.flows_1m AS
        SELECT toDate(received, 'UTC') AS day, {keys}, toStartOfMinute(toDateTime(`end`, 'UTC')) AS minute,
               sum(packets) AS packets, sum(bytes) AS bytes
        FROM {DATABASE}.flows GROUP BY day, {keys}, minute
    """


def _tables() -> dict[str, str]:
    """Name → statement that makes it."""
    return {
        "flows": _flows(),
        "flows_1m": _minutes(),
        "totals": f"""CREATE TABLE IF NOT EXISTS {DATABASE}.totals ({_declare(TOTALS)})
            ENGINE = ReplacingMergeTree(sequence) ORDER BY (host, boot, serial)""",
        "workloads": f"""CREATE TABLE IF NOT EXISTS {DATABASE}.workloads (
                label UInt32, host LowCardinality(String), present Bool, version UInt64, document String
            ) ENGINE = ReplacingMergeTree(version) ORDER BY (label, host)""",
        "evidence": f"""CREATE TABLE IF NOT EXISTS {DATABASE}.evidence (
                host LowCardinality(String), boot UInt64, sequence UInt64, place UInt32,
                received DateTime64(9, 'UTC'), document String CODEC(ZSTD(1))
            ) ENGINE = ReplacingMergeTree PARTITION BY toYYYYMMDD(received)
            ORDER BY (host, boot, sequence, place)""",
        "alerts": f"""CREATE TABLE IF NOT EXISTS {DATABASE}.alerts (
                id String, version UInt64, open Bool, last DateTime64(9, 'UTC'), document String
            ) ENGINE = ReplacingMergeTree(version) ORDER BY id""",
        "batches": f"""CREATE TABLE IF NOT EXISTS {DATABASE}.batches (
                host LowCardinality(String), boot UInt64, sequence UInt64 CODEC(Delta, ZSTD(1)),
                kind LowCardinality(String), rows UInt32, packets UInt64,
                stored_at DateTime('UTC') CODEC(Delta, ZSTD(1))
            ) ENGINE = ReplacingMergeTree ORDER BY (host, boot, sequence)""",
        "expired": f"""CREATE TABLE IF NOT EXISTS {DATABASE}.expired (
                day UInt32, host LowCardinality(String), boot UInt64, label UInt32, packets UInt64
            ) ENGINE = ReplacingMergeTree ORDER BY (day, host, boot, label)""",
    }


def statements() -> list[str]:
    """What makes the tables, and brings those of an older version up to date; harmless where they are."""
    tables = _tables()
    widen = [
        f"ALTER TABLE {DATABASE}.{table} ADD COLUMN IF NOT EXISTS `{name}` {kind}"
        for table, columns in (("flows", FLOWS), ("totals", TOTALS))
        for name, kind in columns.items()
    ]
    # Where a hundred parts are to be removed at once, ClickHouse makes 128 threads for it, and keeps them.
    remove_alone = [
        f"ALTER TABLE {DATABASE}.{table} MODIFY SETTING concurrent_part_removal_threshold = {_NEVER}"
        for table in tables
    ]
    # The view comes last: it reads the columns of the tables above.
    return [
        f"CREATE DATABASE IF NOT EXISTS {DATABASE}",
        *tables.values(),
        *widen,
        *remove_alone,
        _minutes_view(),
    ]
