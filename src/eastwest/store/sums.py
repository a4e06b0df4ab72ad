"""Sums by hour and day, by label and pair of addresses, beside the rows of `flows_1m`: projections of it.

A projection is a part of each of its table's parts, so it never says anything else than the rows do and goes
with them; what has none yet is read row by row. Merges make them, as each small insert would pay for its own.
"""

from eastwest.store.engine import Database
from eastwest.store.schema import DATABASE

IS_IP = "protocol <= 255"
"""Else `protocol` is the EtherType of a frame, and its addresses are MAC addresses."""

SUMS = {"by_day": 86_400, "by_hour": 3_600}
"""Name → seconds; the longest first."""

_TABLE = f"{DATABASE}.flows_1m"
_BY_MERGES = {"materialize_projections_on_insert": 0, "materialize_projections_on_merge": 1}


def number(seconds: int) -> str:
    """Which day or hour since 1970 a minute lies in: what the sums of this length are by.

    Not `toStartOfDay`, which the database takes for a bound of `minute` itself, and so misses the projection.
    """
    return f"intDiv(toUnixTimestamp(minute), {seconds})"


def keep(database: Database) -> None:
    """Have the sums made; where a store of an older version has none yet, also of what it holds."""
    # A merge adds up rows of the same key, so it makes the sums anew.
    _set(database, "deduplicate_merge_projection_mode", "'rebuild'")
    known = {str(name) for (name,) in database.query("SELECT name FROM system.merge_tree_settings")}
    if known >= _BY_MERGES.keys():  # else inserts make them, which costs more
        for name, value in _BY_MERGES.items():
            _set(database, name, value)
    there = database.query(
        "SELECT name FROM system.projections WHERE database = {db:String} AND table = 'flows_1m'",
        {"db": DATABASE},
    )
    for name in SUMS.keys() - {str(name) for (name,) in there}:
        key = f"{number(SUMS[name])}, label, {IS_IP}, src, dst"
        columns = f"{key}, sum(packets), sum(bytes)"
        database.command(f"ALTER TABLE {_TABLE} ADD PROJECTION {name} (SELECT {columns} GROUP BY {key})")
        database.command(f"ALTER TABLE {_TABLE} MATERIALIZE PROJECTION {name}")


def _set(database: Database, name: str, value: object) -> None:
    database.command(f"ALTER TABLE {_TABLE} MODIFY SETTING {name} = {value}")
