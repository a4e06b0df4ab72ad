"""eastwest shows, labels, copies and explains the traffic between workloads on virtualization hosts."""

__version__ = "0.1.0"
