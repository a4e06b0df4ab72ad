"""The only door to the kernel: BPF programs, the libbpf binding, record layouts, attaching."""
