"""Every error eastwest raises on purpose; each message says what happened and what to do.

EastwestError             shown to the user as one line, exit 1
├── ConfigError           a setting that cannot be used
├── RefusedError          a request that is understood and not granted
│   └── NotFoundError     … because what it names does not exist
├── KernelError           the kernel said no
│   ├── MissingPrivilege  … because of a capability
│   └── MissingFeature    … because this kernel cannot do it
├── InventoryError        a source of workloads cannot be read
├── BusError              nats-server cannot be reached or refuses
└── StoreError            the database cannot be opened, read or written
"""


class EastwestError(Exception):
    """An error with its remedy: `what` happened, and what to do about it."""

    def __init__(self, what: str, remedy: str = "") -> None:
        super().__init__(f"{what}; {remedy}" if remedy else what)
        self.what = what
        self.remedy = remedy


class ConfigError(EastwestError):
    """A setting that cannot be used."""


class RefusedError(EastwestError):
    """A request that is understood and not granted."""


class NotFoundError(RefusedError):
    """A request for something that does not exist."""


class KernelError(EastwestError):
    """The kernel refused; `errno` is its reason, 0 where it gave none."""

    def __init__(self, what: str, remedy: str = "", errno: int = 0) -> None:
        super().__init__(what, remedy)
        self.errno = errno


class MissingPrivilege(KernelError):
    """The process lacks a capability."""


class MissingFeature(KernelError):
    """This kernel cannot do what was asked."""


class InventoryError(EastwestError):
    """A source of workloads cannot be read."""


class BusError(EastwestError):
    """The bus cannot be reached, or refuses."""


class StoreError(EastwestError):
    """The store cannot be opened, read or written."""
