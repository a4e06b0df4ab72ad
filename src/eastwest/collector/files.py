"""Packets on disk: files that are whole by themselves, of bounded size and age, on a disk that stays usable.

Everything here blocks, and is called from threads of its own; a `Recording` from one at a time.
"""

import logging
import os
import re
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from eastwest.collector.streamconfig import StreamsConfig
from eastwest.errors import ConfigError
from eastwest.kernel.blocks import Malformed, Stop, Walker

log = logging.getLogger(__name__)

_OPEN = ".open"
"""A directory with a name in it for each file that is being written: what a crash leaves behind is there."""

_SUFFIX = ".pcapng"
_PLAIN = re.compile("[^A-Za-z0-9_-]")
_LONGEST_NAME = 100
_MEND_BYTES = 1 << 20
_DAY = 86400.0
MOST_FILES = 50_000
"""Of all taps: a stream that comes and goes makes one each time."""
_ROOMY_BYTES = 2 << 20
_DIRECT_BYTES = 8 << 20
"""By how much several streams may be beyond a limit at once, each, since none knows what the others write."""
_NO_FILE = -1


class Files:
    """The directory of captures: PATH/TAP/HOST-TIME.pcapng."""

    def __init__(self, config: StreamsConfig) -> None:
        self._config = config
        self._marks = config.path / _OPEN
        self._lock = threading.Lock()
        self._writing: dict[Path, Recording] = {}
        self._left: list[Path] = []
        self.problem = ""
        """Why nothing is stored now, with the remedy."""
        self._roomy = True
        self.removed = 0
        """Files that were deleted to keep within the limits."""

    def prepare(self) -> None:
        """Make the directory, and see what a crash has left. Raises ConfigError."""
        try:
            self._marks.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._left = sorted(self._marks.iterdir())
        except OSError as error:
            raise ConfigError(
                f"cannot write {self._config.path}: {error.strerror}",
                "give [streams] path a directory that this user can write",
            ) from None

    def mend(self) -> None:
        """Cut the files that a crash has left after their last whole block; this reads each of them."""
        for mark in self._left:
            tap, _, name = mark.name.partition(",")
            path = self._config.path / tap / f"{name}{_SUFFIX}"
            try:
                if path.exists():
                    mend(path)
                mark.unlink()
            except OSError as error:
                log.warning("cannot mend %s, which was cut by a crash: %s", path, error.strerror)
        self._left = []

    def recording(self, tap: str, host: str) -> "Recording":
        """What takes the packets of one stream. `tap` must be a plain name."""
        return Recording(self, tap, _PLAIN.sub("_", host)[:_LONGEST_NAME])

    # -- for recordings --------------------------------------------------------------------------------------

    @property
    def config(self) -> StreamsConfig:
        return self._config

    def create(self, recording: "Recording", tap: str, host: str) -> tuple[Path, int]:
        """A new file and its descriptor. Raises OSError."""
        directory = self._config.path / tap
        now = f"{datetime.now(UTC):%Y%m%dT%H%M%S.%f}"[:-3] + "Z"
        with self._lock:
            directory.mkdir(mode=0o700, exist_ok=True)
            path, number = directory / f"{host}-{now}{_SUFFIX}", 1
            while path.exists():
                number += 1
                path = directory / f"{host}-{now}-{number}{_SUFFIX}"
            self._mark(path).touch(mode=0o600)
            made = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            self._writing[path] = recording
            return path, made

    def closed(self, path: Path) -> None:
        """This file is whole, and nobody writes it any more."""
        with self._lock:
            self._writing.pop(path, None)
            with suppress(OSError):
                self._mark(path).unlink(missing_ok=True)

    def free(self) -> int:
        """Bytes that the disk has beyond its reserve; below zero: some of that is gone. Raises OSError."""
        found = os.statvfs(self._config.path)
        return found.f_bavail * found.f_frsize - self._config.min_free_bytes

    def has_room(self, more: int) -> bool:
        """Whether the disk would still have its reserve with so many bytes more. Raises OSError."""
        free, least = self.free(), self._config.min_free_bytes
        self._roomy = free - more >= _ROOMY_BYTES
        if free >= more:
            return True
        self.report(
            f"packets are not stored: {free + least >> 20} MiB are free on the disk of {self._config.path}; "
            f"make it more than {least >> 20} MiB, or lower [streams] min_free_bytes"
        )
        return False

    def stored(self) -> None:
        """Something was: whatever the problem was, it is over, unless just a little still finds room."""
        if self._roomy:
            self.problem = ""

    def report(self, problem: str) -> None:
        """Say a problem, once as long as it lasts."""
        if not self.problem:
            log.warning("%s", problem)
        self.problem = problem

    def _mark(self, path: Path) -> Path:
        return self._marks / f"{path.parent.name},{path.stem}"

    # -- limits ----------------------------------------------------------------------------------------------

    def keep_limits(self) -> None:
        """Delete files that are too old, then the oldest until the rest is not too much."""
        with self._lock:
            writing = dict(self._writing)
        found = sorted(self._found())
        total, count = sum(size for _, size, _ in found), len(found)
        oldest = time.time() - self._config.retention_days * _DAY
        for changed, size, path in found:
            if changed >= oldest and total <= self._config.retention_bytes and count <= MOST_FILES:
                break
            if path in writing:
                # Its stream begins another with its next packets; then this one can go.
                writing[path].turn()
                continue
            with self._lock, suppress(OSError):
                path.unlink()
                total, count = total - size, count - 1
                self.removed += 1
                path.parent.rmdir()

    def _found(self) -> list[tuple[float, int, Path]]:
        """Time of the last change, size and path of every file."""
        found = []
        for path in self._config.path.glob(f"*/*{_SUFFIX}"):
            with suppress(FileNotFoundError):
                state = path.stat()
                found.append((state.st_mtime, state.st_size, path))
        return found


class Recording:
    """One stream's packets in files, each of which begins with the section and all interfaces so far."""

    def __init__(self, files: Files, tap: str, host: str) -> None:
        self._files = files
        self._tap, self._host = tap, host
        self._file: int | None = None
        self._path = Path()
        self._size = self._told = 0
        self._until = 0.0
        self._new = 0

    @property
    def open(self) -> bool:
        """Whether there is a file that is being written."""
        return self._file is not None

    def write(self, section: bytes, interfaces: Sequence[bytes], packets: memoryview) -> bool:
        """Append whole packet blocks, after what they need to be understood. False: they are not stored."""
        try:
            return self._write(section, interfaces, packets)
        except OSError as error:
            self._failed(error)
            return False

    def _failed(self, error: OSError) -> None:
        self._files.report(f"packets are not stored in {self._files.config.path}: {error.strerror}")
        self._cut()

    def direct(self, interfaces: int) -> tuple[int, int]:
        """The file, for who writes packets of so many interfaces to its end by himself, and how many bytes it
        may take now: 0 where there is anything else to be seen to, by `write`."""
        file, over = self._file, time.monotonic() >= self._until
        if file is None or over or self._told != interfaces or self._files.problem:
            return _NO_FILE, 0
        with suppress(OSError):  # said by the next `write`
            free = min(self._files.config.rotate_bytes - self._size, self._files.free(), _DIRECT_BYTES)
            return file, max(free, 0)
        return _NO_FILE, 0

    def written(self, size: int, error: int) -> None:
        """So many bytes were, to what `direct` said, and then there was an error of this number, or 0."""
        self._size += size
        if error:
            self._failed(OSError(error, os.strerror(error)))

    def _write(self, section: bytes, interfaces: Sequence[bytes], packets: memoryview) -> bool:
        config = self._files.config
        if not self._files.has_room(len(packets)):
            return False
        full = self._size + len(packets) > config.rotate_bytes
        if self._file is not None and (full or time.monotonic() >= self._until):
            self.close()
        if self._file is None:
            self._path, self._file = self._files.create(self, self._tap, self._host)
            self._size = self._told = 0
            self._until = time.monotonic() + config.rotate_seconds
            self._new += 1
        words = b"" if self._size else section
        words += b"".join(interfaces[self._told :])
        _write_all(self._file, words, packets)
        self._size += len(words) + len(packets)
        self._told = len(interfaces)
        self._files.stored()
        return True

    def _cut(self) -> None:
        """Take back what was written of something that did not fit."""
        if self._file is None:
            return
        try:
            os.ftruncate(self._file, self._size)
            os.lseek(self._file, self._size, os.SEEK_SET)
        except OSError:  # left to be mended
            made, self._file = self._file, None
            with suppress(OSError):
                os.close(made)
            return
        if not self._size:
            os.close(self._file)
            self._file = None
            with suppress(OSError):
                self._path.unlink()
            self._files.closed(self._path)

    def take_new(self) -> int:
        """How many files were begun since this was last asked."""
        new, self._new = self._new, 0
        return new

    def turn(self) -> None:
        """Begin another file with the next packets; from any thread."""
        self._until = 0.0

    def close(self) -> None:
        """End the file, if there is one."""
        if self._file is None:
            return
        made, self._file = self._file, None
        with suppress(OSError):
            os.close(made)
        self._files.closed(self._path)


def _write_all(file: int, words: bytes, packets: memoryview) -> None:
    """Raises OSError, after which a part may be written."""
    written = os.writev(file, [words, packets])
    while written < len(words):
        written += os.write(file, words[written:])
    while written < len(words) + len(packets):
        written += os.write(file, packets[written - len(words) :])


def mend(path: Path) -> None:
    """Cut a file after its last whole block; delete it if no packet is left. Raises OSError."""
    walker = Walker()
    whole = end = packets = 0
    buffer = bytearray(_MEND_BYTES)
    view = memoryview(buffer)
    with path.open("r+b") as file:
        while more := file.readinto(view[end:]):
            end += more
            try:
                found = walker.pass_over(buffer, 0, end)
            except Malformed:
                break
            whole, packets = whole + found.end, packets + found.packets
            if found.stop is Stop.BROKEN:
                break
            rest = bytes(view[found.end : end])
            end = len(rest)
            view[:end] = rest
        file.truncate(whole)
    if not packets:
        path.unlink()
        log.info("deleted %s, which held no packet", path)
