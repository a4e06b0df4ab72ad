"""Numbers out: metrics for Prometheus, flow records for IPFIX collectors."""
