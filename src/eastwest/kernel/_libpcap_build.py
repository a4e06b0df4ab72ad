"""Declares the part of libpcap that eastwest calls: its filter compiler, and its interpreter for tests."""

import cffi

ffi = cffi.FFI()

ffi.cdef("""
struct bpf_insn { uint16_t code; uint8_t jt; uint8_t jf; uint32_t k; };
struct bpf_program { unsigned int bf_len; struct bpf_insn *bf_insns; };
typedef struct pcap pcap_t;

pcap_t *pcap_create(const char *source, char *errbuf);
int pcap_set_snaplen(pcap_t *p, int snaplen);
int pcap_set_buffer_size(pcap_t *p, int size);
int pcap_set_protocol_linux(pcap_t *p, int protocol);
int pcap_activate(pcap_t *p);
pcap_t *pcap_open_dead(int linktype, int snaplen);
int pcap_compile(pcap_t *p, struct bpf_program *fp, const char *str, int optimize, uint32_t netmask);
void pcap_freecode(struct bpf_program *fp);
char *pcap_geterr(pcap_t *p);
void pcap_close(pcap_t *p);
unsigned int bpf_filter(const struct bpf_insn *pc, const unsigned char *p, unsigned int wirelen,
                        unsigned int buflen);
""")

ffi.set_source("eastwest.kernel._libpcap", "#include <pcap/pcap.h>", libraries=["pcap"], py_limited_api=True)

if __name__ == "__main__":
    ffi.compile(verbose=True)
