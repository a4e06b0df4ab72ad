"""The store: schema and queries, the only SQL of eastwest."""
