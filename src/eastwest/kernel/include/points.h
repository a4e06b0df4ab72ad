/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Who is tapped for whom. */
#ifndef EASTWEST_POINTS_H
#define EASTWEST_POINTS_H

#include <linux/bpf.h>
#include <linux/types.h>
#include <bpf/bpf_helpers.h>

enum tap_sizes {
	TAP_ORDERS = 16,	     /* at one port or cgroup */
	TAP_DESTINATIONS = 256,
	TAP_STREAMS = 4096,	     /* an order at a port or cgroup */
	TAP_CAPTURE = 122880,	     /* longest copy of a packet; what is beyond is cut */
};

/* One order at one port or cgroup. */
struct tap_order {
	__u32 destination;
	__u32 interface; /* the pcapng interface's number in the destination's section */
	__u32 stream;	 /* index of its counters */
	__u32 snaplen;
	__u32 service;
	__u32 segment; /* not 0: copies as on the wire; a number that no other order has (relay.h) */
};

/* What is copied at a port or cgroup. Orders are the lowest bits of what a filter answers. */
struct tap_point {
	__u64 filtered; /* orders that take what the filters at `place` say */
	__u64 every;	/* orders that take every packet */
	__u64 ingress;	/* orders that take what the workload receives, … */
	__u64 egress;	/* … and what it sends */
	__u64 heir_of;	/* of a cgroup's that the kernel copied (inherit.bpf.c): the cgroup whose it is; else 0 */
	__u32 label;
	__u32 place;
	__u32 orders;
	__u32 segmenting; /* some order is for copies as on the wire */
	struct tap_order order[TAP_ORDERS];
};

/* By id. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, TAP_STREAMS);
	__type(key, __u64);
	__type(value, struct tap_point);
} cgroup_points SEC(".maps");

#endif
