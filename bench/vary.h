/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* One frame as many flows: each run of a program writes other ports into it. UDP without checksum stays valid. */
#ifndef EASTWEST_BENCH_VARY_H
#define EASTWEST_BENCH_VARY_H

#include <linux/bpf.h>
#include <linux/types.h>
#include <bpf/bpf_helpers.h>

enum {
	PORTS_OFFSET = 34, /* behind an Ethernet header and an IPv4 header without options */
	PORT_FIRST = 1024,
	PORTS = 50000,
};

struct variety {
	__u32 flows;
	__u32 sources;	  /* flows are spread over so many */
	__u32 sequential; /* one flow after the other; else at random */
	__u32 next;
	__u32 redirect;	  /* the interface that generated frames go to */
	__u32 pad;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct variety);
} variety SEC(".maps");

/* The flow that comes next: 0 to flows - 1. */
static __always_inline __u32 next_flow(struct variety *v)
{
	if (v->sequential)
		return v->next++ % v->flows;
	v->next = v->next * 1664525 + 1013904223;
	return ((__u64)v->next * v->flows) >> 32;
}

static __always_inline void write_ports(void *data, void *end, __u32 flow)
{
	__u16 *ports = data + PORTS_OFFSET;

	if ((void *)(ports + 2) > end)
		return;
	ports[0] = __builtin_bswap16(PORT_FIRST + flow % PORTS);
	ports[1] = __builtin_bswap16(PORT_FIRST + flow / PORTS);
}

#endif
