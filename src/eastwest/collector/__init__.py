"""The collector: flow rows from the stream into the store, each message once."""
