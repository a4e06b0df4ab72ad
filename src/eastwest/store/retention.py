"""Retention: whole days go, and the packets of the flows that go are counted first.

A day is expired from the moment it is in `expired`; what still lies in `flows` of such a day is not counted
as stored. So a crash between counting and dropping loses and doubles nothing: the next run drops the rest.
"""

from datetime import UTC, date, datetime, timedelta

from eastwest.store import alerts
from eastwest.store.engine import Database
from eastwest.store.schema import DATABASE


def expire(database: Database, today: date, flow_days: int, minute_days: int) -> list[int]:
    """Drop what is older than so many whole days; the days dropped from `flows`, as yyyymmdd."""
    done = {int(day) for (day,) in database.query(f"SELECT DISTINCT day FROM {DATABASE}.expired")}
    gone = [day for day in _days(database, "flows") if day < _yyyymmdd(today - timedelta(flow_days))]
    for day in gone:
        if day not in done:
            _count(database, day)
        _drop(database, "flows", day)
    for table, days in (("flows_1m", minute_days), ("evidence", flow_days)):
        for day in _days(database, table):
            if day < _yyyymmdd(today - timedelta(days)):
                _drop(database, table, day)
    oldest = datetime.combine(today - timedelta(minute_days), datetime.min.time(), UTC)
    alerts.expire(database, int(oldest.timestamp()) * 1_000_000_000)
    return gone


def utc_today() -> date:
    return datetime.now(UTC).date()


def _days(database: Database, table: str) -> list[int]:
    rows = database.query(
        "SELECT DISTINCT partition_id FROM system.parts WHERE database = {db:String} AND table = {t:String}"
        " AND active ORDER BY partition_id",
        {"db": DATABASE, "t": table},
    )
    return [int(day) for (day,) in rows]


def _count(database: Database, day: int) -> None:
    database.command(
        f"""
        INSERT INTO {DATABASE}.expired
        SELECT {day}, host, boot, label, sum(packets) FROM {DATABASE}.flows
        WHERE toYYYYMMDD(received) = {day} GROUP BY host, boot, label
        """
    )


def _drop(database: Database, table: str, day: int) -> None:
    database.command(f"ALTER TABLE {DATABASE}.{table} DROP PARTITION ID '{day}'")


def _yyyymmdd(day: date) -> int:
    return day.year * 10000 + day.month * 100 + day.day
