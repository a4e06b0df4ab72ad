"""Ready-made topologies with real traffic and a record of the truth, for the demo, the docs and the tests."""

from eastwest.lab.lab import Lab, LabConfig
from eastwest.lab.record import FlowRecord, Record, WorkloadRecord

__all__ = ["FlowRecord", "Lab", "LabConfig", "Record", "WorkloadRecord"]
