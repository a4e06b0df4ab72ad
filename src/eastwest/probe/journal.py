"""The probe's memory on disk: what must be right after a kill -9 at any moment.

One SQLite database. A cut is one transaction: rows, totals, numbers and decisions of a generation are all
there or not at all, and only then is the generation forgotten in the kernel.
"""

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, Self

import msgspec

from eastwest.errors import StoreError
from eastwest.meter.accounts import AccountRow

_SCHEMA = """
CREATE TABLE IF NOT EXISTS numbers (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS outbox (
    boot INTEGER, sequence INTEGER, subject TEXT NOT NULL, packets BLOB NOT NULL, payload BLOB NOT NULL,
    PRIMARY KEY (boot, sequence));
CREATE TABLE IF NOT EXISTS held (id INTEGER PRIMARY KEY, rows BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS accounts (
    account INTEGER PRIMARY KEY, serial INTEGER NOT NULL, label INTEGER NOT NULL, decided INTEGER NOT NULL,
    port TEXT NOT NULL, ifindex INTEGER NOT NULL, cgroup INTEGER NOT NULL, first_seen INTEGER NOT NULL,
    last_seen INTEGER NOT NULL, packets INTEGER NOT NULL,
    lost_packets INTEGER NOT NULL, lost_bytes INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS retired (label INTEGER PRIMARY KEY, seen INTEGER NOT NULL, lost BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS orders (
    bucket TEXT, name TEXT, document BLOB NOT NULL, PRIMARY KEY (bucket, name)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS workloads (
    identity TEXT PRIMARY KEY, label INTEGER UNIQUE NOT NULL, present INTEGER NOT NULL, history BLOB NOT NULL)
    WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS present ON workloads (present) WHERE present;
"""


_SETTINGS = """
PRAGMA page_size=16384;
PRAGMA journal_mode=WAL;
PRAGMA synchronous=NORMAL;
PRAGMA secure_delete=OFF;
"""
"""NORMAL: a power cut loses the last transactions, and the kernel's counters with them. Debian's SQLite
overwrites what is deleted unless told not to: each message was written twice. Messages are large, so pages
are."""

_OUTGOING = "boot, sequence, subject, payload, packets"


class Outgoing(NamedTuple):
    """A numbered message on its way to the stream; `packets`: label → packets in its flow rows."""

    boot: int
    sequence: int
    subject: str
    payload: bytes
    packets: dict[int, int]


class Journal:
    """The database at `path`. Its methods raise StoreError where the disk refuses."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._numbers: dict[str, int] = {}
        self.undone = False
        """Whether a transaction failed, and the disk is behind memory since."""

    def __enter__(self) -> Self:
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._db = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False)
            self._db.executescript(_SETTINGS + _SCHEMA)
        except (OSError, sqlite3.Error) as e:
            raise StoreError(f"cannot open {self._path}: {e}", "choose a writable state_dir") from None
        return self

    def __exit__(self, *_: object) -> None:
        self._db.close()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All or nothing of what the body writes; after nothing, `undone` stays true until somebody has
        written again what is in memory."""
        self._execute("BEGIN IMMEDIATE")
        try:
            yield
            self._execute("COMMIT")
        except BaseException:
            self.undone = True
            if self._db.in_transaction:
                self._db.rollback()
            raise

    def _execute(self, statement: str, values: Sequence[object] = ()) -> sqlite3.Cursor:
        try:
            return self._db.execute(statement, values)
        except sqlite3.Error as e:
            raise StoreError(f"cannot use {self._path}: {e}", "make room on its disk") from None

    def number(self, name: str) -> int:
        if name not in self._numbers:
            row = self._execute("SELECT value FROM numbers WHERE name = ?", (name,)).fetchone()
            self._numbers[name] = int(row[0]) if row else 0
        return self._numbers[name]

    def set_number(self, name: str, value: int) -> None:
        # Not undone with a transaction: a number that was given must not be given again.
        self._numbers[name] = value
        self._execute("INSERT OR REPLACE INTO numbers VALUES (?, ?)", (name, value))

    def save_series(self) -> None:
        """Write again how far every series has come, lest a number be given twice."""
        for name in ("serial", "sequence", "label_next", "label_end"):
            self.set_number(name, self.number(name))

    def take(self, name: str) -> int:
        """The next number of a series that starts at 1; kept for good once the transaction is."""
        value = self.number(name) + 1
        self.set_number(name, value)
        return value

    # -- messages ------------------------------------------------------------------------------------------

    def send(self, message: Outgoing) -> None:
        packets = msgspec.json.encode(message.packets)
        self._execute(f"INSERT INTO outbox ({_OUTGOING}) VALUES (?, ?, ?, ?, ?)", (*message[:4], packets))

    def outgoing(self, most: int) -> list[Outgoing]:
        """The oldest messages that are not acknowledged, in order: up to `most` of one boot and subject."""
        first = self._execute("SELECT boot, subject FROM outbox ORDER BY boot, sequence LIMIT 1").fetchone()
        if first is None:
            return []
        other = "SELECT min(sequence) FROM outbox WHERE boot = ?1 AND subject != ?2"
        rows = self._execute(
            f"SELECT {_OUTGOING} FROM outbox WHERE boot = ?1 AND sequence < coalesce(({other}), 1 << 62) "
            "ORDER BY sequence LIMIT ?3",
            (*first, most),
        )
        decode = msgspec.json.Decoder(dict[int, int]).decode
        return [Outgoing._make((*row[:4], decode(row[4]))) for row in rows]

    def sent(self, messages: Sequence[Outgoing]) -> None:
        with self.transaction():
            for boot, sequence, *_ in messages:
                self._execute("DELETE FROM outbox WHERE boot = ? AND sequence = ?", (boot, sequence))

    def unsent(self, boot: int) -> list[tuple[int, dict[int, int]]]:
        """Sequence and packets by label of each flows message not acknowledged."""
        rows = self._execute(
            "SELECT sequence, packets FROM outbox WHERE boot = ? AND packets != '{}'", (boot,)
        )
        return [(sequence, msgspec.json.decode(packets, type=dict[int, int])) for sequence, packets in rows]

    def outbox_bytes(self) -> int:
        row = self._execute("SELECT coalesce(sum(length(payload)), 0) FROM outbox").fetchone()
        return int(row[0])

    # -- rows that wait for a label ------------------------------------------------------------------------

    def held(self) -> list[bytes]:
        return [row[0] for row in self._execute("SELECT rows FROM held ORDER BY id")]

    def hold(self, rows: list[bytes]) -> None:
        """Replace all that is held."""
        self._execute("DELETE FROM held")
        for one in rows:
            self._execute("INSERT INTO held (rows) VALUES (?)", (one,))

    # -- accounts ------------------------------------------------------------------------------------------

    def accounts(self) -> list[AccountRow]:
        return [
            AccountRow._make((*row[:3], bool(row[3]), *row[4:]))
            for row in self._execute("SELECT * FROM accounts")
        ]

    def keep_account(self, row: AccountRow) -> None:
        self._execute("INSERT OR REPLACE INTO accounts VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", row)

    def drop_account(self, account: int) -> None:
        self._execute("DELETE FROM accounts WHERE account = ?", (account,))

    def drop_accounts(self) -> None:
        """Forget all of a boot's accounts, open and retired."""
        self._execute("DELETE FROM accounts")
        self._execute("DELETE FROM retired")

    def retired(self) -> list[tuple[int, int, bytes]]:
        """label, packets seen, losses (JSON) in accounts of this boot that were given back."""
        return list(self._execute("SELECT * FROM retired"))

    def keep_retired(self, label: int, seen: int, lost: bytes) -> None:
        self._execute("INSERT OR REPLACE INTO retired VALUES (?, ?, ?)", (label, seen, lost))

    # -- orders --------------------------------------------------------------------------------------------

    def orders(self, bucket: str) -> dict[str, bytes]:
        """The documents of a bucket as they were last known, by name."""
        return dict(self._execute("SELECT name, document FROM orders WHERE bucket = ?", (bucket,)))

    def keep_order(self, bucket: str, name: str, document: bytes | None) -> None:
        """Remember what a bucket says now; None: nothing."""
        if document is None:
            self._execute("DELETE FROM orders WHERE bucket = ? AND name = ?", (bucket, name))
        else:
            self._execute("INSERT OR REPLACE INTO orders VALUES (?, ?, ?)", (bucket, name, document))

    # -- workloads -----------------------------------------------------------------------------------------

    def present_workloads(self) -> list[bytes]:
        """Histories of the workloads that were there when this was last written."""
        return [row[0] for row in self._execute("SELECT history FROM workloads WHERE present")]

    def workload(self, identity: str) -> bytes | None:
        """The history of a workload that ever had a label here."""
        row = self._execute("SELECT history FROM workloads WHERE identity = ?", (identity,)).fetchone()
        return row[0] if row else None

    def keep_workload(self, identity: str, label: int, present: bool, history: bytes) -> None:
        # Not OR REPLACE: a label that another workload has must not pass unnoticed.
        statement = "INSERT INTO workloads VALUES (?, ?, ?, ?) ON CONFLICT (identity) DO UPDATE SET "
        row = (identity, label, present, history)
        self._execute(statement + "present = excluded.present, history = excluded.history", row)
