"""A log file that cannot fill the disk."""

from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self


class LogFile:
    """Appends to `path`; past half of `max_bytes` the file becomes `path`.1 and a new one is begun."""

    def __init__(self, path: Path, max_bytes: int) -> None:
        self._path = path
        self._half = max_bytes // 2
        self._file: BinaryIO | None = None
        self._size = 0

    def __enter__(self) -> Self:
        self._open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    def write(self, line: bytes) -> None:
        """Append. A disk that is full costs log lines, never the process that prints them."""
        try:
            if self._size and self._size + len(line) > self._half:
                self._close()
                self._path.replace(self._path.with_name(self._path.name + ".1"))
                self._open()
            if self._file is not None:
                self._file.write(line)
                self._size += len(line)
        except OSError:
            return

    def _open(self) -> None:
        self._file = None
        try:
            # Unbuffered: the last words of a process are the interesting ones.
            self._file = self._path.open("ab", buffering=0)
            self._size = self._file.tell()
        except OSError:
            return

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
