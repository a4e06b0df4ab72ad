"""Files of what is suspect, as feeds write them: read again when they change, never trusted, never missed.

What was read last stays in force when a file goes; a copy in the state directory tells the next probe.
"""

import errno
import logging
import os
import stat
import zlib
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from eastwest.errors import RefusedError
from eastwest.inventory.model import readable
from eastwest.labels import suspect

log = logging.getLogger(__name__)

_MOST_BYTES = 16 << 20
_LATEST = 1 << 62
_SHOWN = 60
"""Characters of a bad line that are repeated."""


class Content(NamedTuple):
    """Keys of prefixes and flows, in the order of the lines (no values), when the file was written (unix ns),
    and what is wrong with its lines."""

    prefixes: dict[bytes, None]
    flows: dict[bytes, None]
    written: int
    problem: str | None


class _Version(NamedTuple):
    """What tells one state of a file from another."""

    inode: int
    modified: int
    size: int


class SuspectFiles:
    """The files and their contents. `look` blocks: call it off the event loop."""

    def __init__(self, files: Sequence[Path], state_dir: Path) -> None:
        self._files = files
        self._state_dir = state_dir
        self._versions: dict[Path, _Version] = {}
        self._unread: dict[Path, str] = {}
        self.contents: dict[Path, Content] = {}
        """In the order of the settings."""

    @property
    def problems(self) -> list[str]:
        """What is wrong, each with its remedy."""
        bad = [f"suspect file {path}: {c.problem}" for path, c in self.contents.items() if c.problem]
        return bad + list(self._unread.values())

    def look(self) -> bool:
        """Read what has changed; True where any content did."""
        changed = [self._look(path) for path in self._files]
        return any(changed)

    def _look(self, path: Path) -> bool:
        try:
            content = self._read(path)
            self._unread.pop(path, None)
        except OSError as e:
            content = self._recall(path)
            stays = (
                "what was read before stays" if content or path in self.contents else "nothing is known of it"
            )
            remedy = "split it" if e.errno == errno.EFBIG else "put the file back"
            self._complain(path, f"{e.strerror or e}, {stays}; {remedy}")
        if content is None or content == self.contents.get(path):
            return False
        self.contents[path] = content
        self.contents = {one: self.contents[one] for one in self._files if one in self.contents}
        log.info("%s: %d prefixes, %d flows", path, len(content.prefixes), len(content.flows) // 2)
        return True

    def _complain(self, path: Path, what: str) -> None:
        problem = f"suspect file {path} cannot be read: {what}"
        if self._unread.get(path) != problem:
            log.warning("%s", problem)
        self._unread[path] = problem

    def _read(self, path: Path) -> Content | None:
        """The content, None where it is as it was, or is being written just now. Raises OSError."""
        before = _version(path)
        if before == self._versions.get(path):
            return None
        with path.open("rb") as file:
            data = file.read(before.size + 1)
        if len(data) != before.size or _version(path) != before:
            return None
        self._versions[path] = before
        with suppress(OSError):  # without a copy it is only the next probe that would not know
            _write(self._copy(path), data)
        return parse(data, before.modified)

    def _recall(self, path: Path) -> Content | None:
        """What an earlier probe read of a file that is not there; None where this one knows."""
        self._versions.pop(path, None)
        if path in self.contents:
            return None
        try:
            copy = self._copy(path)
            version = _version(copy)
            return parse(copy.read_bytes(), version.modified)
        except OSError:
            return None

    def _copy(self, path: Path) -> Path:
        return self._state_dir / f"suspect-{zlib.crc32(os.fsencode(path)):08x}.copy"


def _version(path: Path) -> _Version:
    """The state of a file that is small enough to be read. Raises OSError."""
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "it is no regular file")  # a pipe would keep us waiting
    if status.st_size > _MOST_BYTES:
        raise OSError(errno.EFBIG, f"it is larger than {_MOST_BYTES >> 20} MiB")
    return _Version(status.st_ino, status.st_mtime_ns, status.st_size)


def _write(path: Path, data: bytes) -> None:
    fresh = path.with_name(f".{path.name}")
    fresh.write_bytes(data)
    fresh.replace(path)


def parse(data: bytes, written: int = 0) -> Content:
    """Every line that is a prefix or a flow; the first that is neither is named, all such are counted."""
    prefixes: dict[bytes, None] = {}
    flows: dict[bytes, None] = {}
    bad, problem = 0, ""
    for number, line in enumerate(data.decode(errors="backslashreplace").split("\n"), 1):
        text = line.partition("#")[0].strip()
        if not text:
            continue
        try:
            if " " in text or "\t" in text:
                flows.update(dict.fromkeys(_flow(text)))
            else:
                prefixes[suspect.prefix_key(text)] = None
        except RefusedError as e:
            bad += 1
            problem = problem or f"line {number} is left out: {readable(e.what[:_SHOWN])}"
    if bad > 1:
        problem += f", and {bad - 1} more lines"
    problem = f"{problem}; correct it" if bad else ""
    return Content(prefixes, flows, min(max(written, 0), _LATEST), problem or None)


def _flow(text: str) -> tuple[bytes, ...]:
    target = suspect.parse(text)
    if target.kind != "flow":
        raise RefusedError(f"'{text}' is no flow")
    return target.keys
