"""Declares what reads streams of pcapng blocks: a binding of its own, since who does needs no libbpf."""

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

struct pour { int from; int to; uint64_t most; uint64_t until; const int *stop; unsigned char *room;
    size_t size; };
struct poured { size_t held; uint64_t received; uint64_t written; uint64_t packets; uint64_t bytes;
    uint64_t unwritten; _Bool empty; int read_error; int write_error; };
void east_pour(struct blocks *known, const struct pour *pour, struct poured *done);
""")

ffi.set_source(
    "eastwest.kernel._blocks",
    '#include "pour.h"',
    include_dirs=["src/eastwest/kernel/include"],
    depends=[f"src/eastwest/kernel/include/{name}.h" for name in ("blocks", "pcapng", "pour")],
    py_limited_api=True,
)

if __name__ == "__main__":
    ffi.compile(verbose=True)
