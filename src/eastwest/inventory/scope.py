"""What of this machine is the probe's host: several may share one machine, each with a scope of its own."""

from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from eastwest.inventory.model import readable
from eastwest.inventory.processes import cgroup_of


@dataclass(frozen=True)
class Scope:
    """A network namespace (None: the present one), and a cgroup as a path from the hierarchy's root."""

    netns: Path | None = None
    cgroup: str = "/"

    def below(self, cgroup: str) -> str | None:
        """A path from the hierarchy's root as one from the scope's; None: it lies outside."""
        path = PurePosixPath(cgroup)
        if not path.is_relative_to(self.cgroup) or ".." in path.parts:
            return None
        return readable(str("/" / path.relative_to(self.cgroup)))

    def cgroup_of(self, pid: int) -> str | None:
        """The cgroup of a process as a path from the scope's; None: it lies outside, or the process ended."""
        cgroup = cgroup_of(pid)
        return None if cgroup is None else self.below(cgroup)
