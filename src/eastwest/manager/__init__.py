"""The manager: API, fleet, ledger, and what users say of workloads.

The server role is these five, one inside the other (the wiring is cli's):

    async with (
        Bus(bus_config) as bus,
        Store(store_config) as store,
        Collector(collector_config, bus, store) as collector,
        Fleet(bus) as fleet,
        Manager(manager_config, bus, store, fleet, lambda: collector.status) as manager,
    ):
        print(manager.url)
        await stop.wait()

Entering raises ConfigError or StoreError where a setting, the port or the store cannot be used; nats-server
may be absent, now or later. With `nats = NatsServer(NatsServerConfig(state_dir=…)); nats.prepare()` the bus
config is `nats.bus_config(SERVER_USER)` here, `nats.bus_config(PROBE_USER)` in the probe, and the child to
supervise is `nats.command()`.
"""
