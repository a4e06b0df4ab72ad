"""Watching: what is stored is held against thresholds and patterns, and people are told.

In the server, not in the probes: it sees the whole fleet, and costs the hosts nothing.
"""
