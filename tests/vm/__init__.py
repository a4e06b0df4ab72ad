"""Running the kernel tests on another kernel, in a virtual machine."""
