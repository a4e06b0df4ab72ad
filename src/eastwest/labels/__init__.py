"""Labels: the numbers bound to workloads, what is known of them, and how people select them."""
