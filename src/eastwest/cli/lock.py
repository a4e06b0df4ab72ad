"""One `eastwest up` and one probe per state directory, and who they are.

A lock is the kernel's record lock on a file of that directory: it goes with its process, however that ends,
and the kernel says who holds it. A number in a file could by now be somebody else's.
"""

import errno
import fcntl
import os
import struct
from pathlib import Path
from types import TracebackType
from typing import ClassVar, Self

from eastwest.errors import ConfigError, RefusedError

UP_LOCK, PROBE_LOCK = "lock", "probe.lock"

MADE_BY_UP = ("log", "nats", "roles")
"""What `up` alone makes in a state directory, besides the lock."""

# struct flock, fcntl(2), as on every 64-bit Linux: type, whence, start, length, pid.
_FLOCK = struct.Struct("hhqqi4x")


class StateLock:
    """`up`'s lock, held while entered.

    Raises RefusedError if another process holds it, ConfigError if it cannot be.
    """

    name: ClassVar = UP_LOCK
    who: ClassVar = "eastwest"
    remedy: ClassVar = "choose another --state-dir and --listen, or stop it with `eastwest down`"

    def __init__(self, state_dir: Path) -> None:
        self._state_dir = state_dir
        self._descriptor = -1

    def __enter__(self) -> Self:
        self._refuse_foreign()
        try:
            self._state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._descriptor = os.open(
                self._state_dir / self.name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600
            )
        except OSError as error:
            forbidden = error.errno in (errno.EACCES, errno.EPERM)
            raise ConfigError(
                f"cannot write the state directory {self._state_dir}: {error.strerror}",
                f"{'run as root, or ' if forbidden else ''}choose another with --state-dir",
            ) from None
        try:
            fcntl.lockf(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._descriptor)
            pid = holder(self._state_dir, self.name)
            number = f" (process {pid})" if pid else ""
            raise RefusedError(f"{self.who} already runs on {self._state_dir}{number}", self.remedy) from None
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._descriptor)

    def _refuse_foreign(self) -> None:
        """`down --purge` deletes these names: they must be ours from the beginning (not those of /var)."""
        ours = any((self._state_dir / name).exists() for name in (UP_LOCK, PROBE_LOCK))
        foreign = [name for name in MADE_BY_UP if (self._state_dir / name).exists()]
        if foreign and not ours:
            raise ConfigError(
                f"{self._state_dir} holds '{foreign[0]}' of somebody else's", "choose another --state-dir"
            )


class ProbeLock(StateLock):
    """The lock of the one probe, be it `up`'s or alone."""

    name: ClassVar = PROBE_LOCK
    who: ClassVar = "a probe"
    remedy: ClassVar = "choose another --state-dir, or stop it with `eastwest down`"


def holder(state_dir: Path, name: str = UP_LOCK) -> int | None:
    """Process id of who holds a lock; 0 if it cannot be seen from this pid namespace; None if nobody.

    Not for the holder: closing any descriptor of the file would give up its lock (fcntl_locking(2)).
    """
    try:
        descriptor = os.open(state_dir / name, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        question = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
        kind, _, _, _, pid = _FLOCK.unpack(fcntl.fcntl(descriptor, fcntl.F_GETLK, question))
    finally:
        os.close(descriptor)
    return None if kind == fcntl.F_UNLCK else int(pid)
