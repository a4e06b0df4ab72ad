"""The agent of one host: keeps the kernel's programs fed with labels and drains what they count."""
