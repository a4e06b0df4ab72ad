"""The database itself: chDB in a directory of its own, or a ClickHouse server by URL, with the same SQL."""

import asyncio
import fcntl
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

from eastwest.credentials import read_password
from eastwest.errors import StoreError

T = TypeVar("T")
P = ParamSpec("P")

_FULL = ("NOT_ENOUGH_SPACE", "No space left on device", "CANNOT_RESERVE")
_TOO_MUCH = ("TIMEOUT_EXCEEDED", "MEMORY_LIMIT_EXCEEDED")
_MAX_INSERT_ROWS = 2_000_000

BOUNDS: Mapping[str, int] = {"max_execution_time": 20, "max_memory_usage": 2 << 30}
"""What a question that anybody may ask can take, in seconds and bytes: writing waits behind it."""
OWN_BOUNDS: Mapping[str, int] = {"max_execution_time": 60}
"""What the server's own questions can take: the ledger's and the watcher's; writing waits behind them."""


class Database:
    """Blocking access to the tables; used by one thread at a time."""

    def __init__(
        self, client: Any, where: str, bounds: Mapping[str, int] | None = None, remedy: str = ""
    ) -> None:
        self._client = client
        self._where = where
        self._bounds = dict(bounds or {})
        self._remedy = remedy

    def bounded(self, bounds: Mapping[str, int], remedy: str) -> "Database":
        """The same, whose SELECTs are given up beyond `bounds`; `remedy`: what to do then."""
        return Database(self._client, self._where, bounds, remedy)

    def query(self, sql: str, parameters: Mapping[str, object] | None = None) -> Sequence[Sequence[Any]]:
        """Rows of a SELECT; parameters are bound by the database. Raises StoreError."""
        rows: Sequence[Sequence[Any]] = self._try(
            lambda: (
                self._client.query(sql, parameters=dict(parameters or {}), settings=self._bounds).result_rows
            )
        )
        return rows

    def json(self, sql: str, parameters: Mapping[str, object], lines: bool = False) -> bytes:
        """The rows of a SELECT as one JSON list of objects, or (`lines`) as one a line. Raises StoreError."""
        settings = {
            **self._bounds,
            "output_format_json_array_of_rows": int(not lines),
            "output_format_json_quote_64bit_integers": 0,
        }
        document: bytes = self._try(
            lambda: self._client.raw_query(
                sql, parameters=dict(parameters), settings=settings, fmt="JSONEachRow"
            )
        )
        return document or (b"" if lines else b"[]")

    def command(self, sql: str, parameters: Mapping[str, object] | None = None) -> None:
        """Run a statement. Raises StoreError."""
        self._try(lambda: self._client.command(sql, parameters=dict(parameters or {})))

    def insert(self, table: str, columns: Sequence[str], rows: bytes, form: str = "RowBinary") -> None:
        """Insert rows in one of ClickHouse's formats. Raises StoreError."""
        self._try(
            lambda: self._client.raw_insert(table, column_names=list(columns), insert_block=rows, fmt=form)
        )

    def close(self) -> None:
        self._client.close()

    def _try(self, action: Callable[[], T]) -> T:
        from clickhouse_connect.driver.exceptions import ClickHouseError

        try:
            return action()
        except (ClickHouseError, OSError) as error:
            if self._bounds and any(sign in str(error) for sign in _TOO_MUCH):
                raise StoreError(
                    "the question takes the store too long, or too much memory", self._remedy
                ) from error
            raise _explain(error, self._where) from error


class Engine:
    """Opens the database and runs functions on it in one worker thread, one after the other."""

    def __init__(
        self, path: Path | None, url: str | None, user: str = "", password_file: Path | None = None
    ) -> None:
        self._path = path
        self._url = url
        self._user = user
        self._password_file = password_file
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="store")
        self._database: Database | None = None
        self._lock: int | None = None

    async def open(self) -> None:
        """Raises StoreError if the database cannot be used, with the reason; ConfigError."""
        await asyncio.get_running_loop().run_in_executor(self._worker, self._open)

    async def close(self) -> None:
        await asyncio.get_running_loop().run_in_executor(self._worker, self._close)
        self._worker.shutdown()

    async def run(
        self, function: Callable[Concatenate[Database, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """`function(database, …)` in the worker. A cancelled caller does not stop what has begun."""

        def work() -> T:
            if self._database is None:
                raise StoreError("the store is not open")
            return function(self._database, *args, **kwargs)

        return await asyncio.get_running_loop().run_in_executor(self._worker, work)

    async def ask(
        self, function: Callable[Concatenate[Database, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """As `run`, but within BOUNDS: for what users ask."""
        remedy = "ask for less: a shorter time, a lower limit or one label"
        return await self.run(lambda database: function(database.bounded(BOUNDS, remedy), *args, **kwargs))

    async def look(
        self, function: Callable[Concatenate[Database, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """As `run`, but within OWN_BOUNDS: for what the server asks itself."""
        remedy = "see that the store's disk and processors keep up, or lower retention_days of [store]"
        return await self.run(
            lambda database: function(database.bounded(OWN_BOUNDS, remedy), *args, **kwargs)
        )

    def _open(self) -> None:
        try:
            import clickhouse_connect
        except ImportError as error:
            raise StoreError("the store's packages are missing", "pip install 'eastwest[server]'") from error
        from clickhouse_connect.driver.exceptions import ClickHouseError

        where = str(self._path or self._url)
        # One block per insert, so that an insert is one part.
        settings = {"min_insert_block_size_rows": _MAX_INSERT_ROWS, "max_insert_block_size": _MAX_INSERT_ROWS}
        try:
            if self._path is not None:
                self._claim(self._path)
                client = clickhouse_connect.get_client(
                    interface="chdb", path=str(self._path / "chdb"), settings=settings
                )
            else:
                client = clickhouse_connect.get_client(
                    dsn=self._url,
                    username=self._user or None,
                    password=read_password(self._password_file, "store") or "",
                    settings=settings,
                )
        except (ClickHouseError, OSError) as error:
            self._release()
            raise _explain(error, where) from error
        self._database = Database(client, where)

    def _claim(self, path: Path) -> None:
        """Keep other processes out: chDB's own refusal does not say why."""
        path.mkdir(parents=True, exist_ok=True)
        self._lock = os.open(path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._release()
            raise StoreError(
                f"the store {path} is in use by another server",
                "stop it (eastwest down), or choose another state directory",
            ) from None

    def _release(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _close(self) -> None:
        if self._database is not None:
            self._database.close()
            self._database = None
        self._release()


def _explain(error: Exception, where: str) -> StoreError:
    # chDB appends a stack trace; its first line says it all.
    text = str(error).split(", Stack trace")[0].splitlines()[0][:300]
    if any(sign in str(error) for sign in _FULL) or getattr(error, "errno", None) == 28:
        return StoreError(f"the disk of the store {where} is full", "free space, or lower retention_days")
    if isinstance(error, PermissionError):
        return StoreError(f"cannot write the store {where}", "give it a directory that this user can write")
    if isinstance(error, OSError):
        return StoreError(f"cannot open the store {where}: {error.strerror}", "correct the path of the store")
    return StoreError(f"the store {where} failed: {text}", "see that its disk and memory suffice")
