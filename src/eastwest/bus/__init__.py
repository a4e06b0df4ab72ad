"""The bus: what travels between probe, server and collector, over NATS."""
