"""Declares the walk over pcapng blocks: a binding of its own, since who reads streams needs no libbpf."""

import cffi

ffi = cffi.FFI()

ffi.cdef("""
struct blocks { uint32_t in_section; uint32_t interfaces; uint32_t longest; uint64_t packets; uint64_t bytes;
    uint32_t length; };
enum blocks_stop { BLOCKS_INCOMPLETE, BLOCKS_ENOUGH, BLOCKS_SECTION, BLOCKS_INTERFACE, BLOCKS_OTHER,
    BLOCKS_BAD_LENGTH, BLOCKS_BAD_TRAILER, BLOCKS_BAD_CAPTURED, BLOCKS_BAD_INTERFACE, BLOCKS_BAD_OPTIONS,
    BLOCKS_BAD_PACKET, BLOCKS_BAD_VERSION, BLOCKS_FOREIGN_ORDER, BLOCKS_NO_SECTION };
#define BLOCKS_WORDS ...
#define BLOCKS_UNTOLD ...
size_t east_blocks_walk(struct blocks *known, const void *buffer, size_t start, size_t end, uint64_t most,
                        int *stop);
size_t east_blocks_choose(const void *buffer, size_t start, size_t end, uint32_t enterprise, uint32_t service,
                          void *to, uint64_t *packets, uint32_t *numbers, uint32_t *told);
void east_blocks_renumber(void *buffer, size_t start, size_t end, const uint32_t *numbers);
""")

ffi.set_source(
    "eastwest.kernel._blocks",
    '#include "blocks.h"',
    include_dirs=["src/eastwest/kernel/include"],
    depends=["src/eastwest/kernel/include/blocks.h", "src/eastwest/kernel/include/pcapng.h"],
    py_limited_api=True,
)

if __name__ == "__main__":
    ffi.compile(verbose=True)
