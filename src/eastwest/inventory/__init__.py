"""The inventory: which workloads are on this host, and which ports and cgroups are theirs."""
