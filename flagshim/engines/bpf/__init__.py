"""The BPF engine: opens seen, and flags taken off them, inside the kernel."""
