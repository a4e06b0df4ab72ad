/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * What is on its way through the relay, a pair of veths: clones of packets that the kernel is to cut into segments,
 * or whose checksum it is to finish. A clone's mark says which it is; what it was is kept here until its segments
 * come out at the other end.
 *
 * Segments wait in the queue that a CPU has for all veths (netdev_max_backlog), and what is too much for it is thrown
 * away, a workload's own packets too. So no more than half of it is ever given to clones. The queue keeps its order:
 * a segment that comes out says that all clones before its own are through, or lost.
 */
#ifndef EASTWEST_RELAY_H
#define EASTWEST_RELAY_H

#include <linux/bpf.h>
#include <linux/types.h>
#include <stdbool.h>
#include <bpf/bpf_helpers.h>

#include "tap.h"

enum relay_sizes {
	RELAY_CLONES = 512,	     /* on their way, of one CPU */
	RELAY_INDEX_BITS = 22,	     /* of a mark: the clone's place in the map */
	RELAY_LAPS = 1 << 9,	     /* above it: how often that place was used */
	RELAY_PATIENCE = 20000000,   /* ns without a segment, after which those that are missing are taken to be lost */
};

#define RELAY_MARK (1U << 31)

struct relay_device {
	__u32 ifindex; /* the sending end, 0: there is none */
	__u32 most;    /* segments on their way, of one CPU */
};

struct relay_clone {
	__u64 number; /* of this CPU's clones */
	__u64 before; /* segments of all clones before it */
	__u64 time;   /* when the packet was seen */
	struct tap_order order;
	__u32 label;
	__u32 direction;
	__u32 segments;
	__u32 left; /* segments that have not come out */
};

/* What one CPU sent, and how far it has come out. */
struct relay_way {
	__u64 clones;
	__u64 segments;
	__u64 clones_out;
	__u64 segments_out;
	__u64 since; /* when something came out, or nothing was on its way */
	__u64 pad[3];
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct relay_device);
} relay_device SEC(".maps");

/* An element for each CPU, made so many when loading. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct relay_way);
} relay_ways SEC(".maps");

/* RELAY_CLONES for each CPU. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct relay_clone);
} relay_clones SEC(".maps");

/* By stream: `segment` of the order whose segments are taken. What is on its way for an order before it is not. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, TAP_STREAMS);
	__type(key, __u32);
	__type(value, __u32);
} relay_serials SEC(".maps");

static __always_inline bool relay_has_room(struct relay_way *way, __u32 segments, __u32 most)
{
	__u64 now = bpf_ktime_get_coarse_ns();

	if (way->clones == way->clones_out)
		way->since = now;
	if (way->clones - way->clones_out < RELAY_CLONES && way->segments - way->segments_out + segments <= most)
		return true;
	if (now - way->since < RELAY_PATIENCE)
		return false;
	way->clones_out = way->clones;
	way->segments_out = way->segments;
	way->since = now;
	return segments <= most;
}

/* Sends a clone on its way; false where it is lost at once. The packet's own mark is as it was. */
static __always_inline bool relay_send(struct __sk_buff *skb, const struct relay_clone *what)
{
	__u32 zero = 0, cpu = bpf_get_smp_processor_id(), index, lap, mark;
	struct relay_device *device = bpf_map_lookup_elem(&relay_device, &zero);
	struct relay_way *way = bpf_map_lookup_elem(&relay_ways, &cpu);
	struct relay_clone *clone;
	long failed;

	if (!device || !device->ifindex || !way || !relay_has_room(way, what->segments, device->most))
		return false;
	index = cpu * RELAY_CLONES + way->clones % RELAY_CLONES;
	clone = bpf_map_lookup_elem(&relay_clones, &index);
	if (!clone)
		return false;
	*clone = *what;
	clone->number = way->clones;
	clone->before = way->segments;
	clone->left = what->segments;
	lap = way->clones / RELAY_CLONES % RELAY_LAPS;
	way->clones++;
	way->segments += what->segments;
	mark = skb->mark;
	skb->mark = RELAY_MARK | lap << RELAY_INDEX_BITS | index;
	failed = bpf_clone_redirect(skb, device->ifindex, 0);
	skb->mark = mark;
	return !failed;
}

/* What a segment that came out was cut from; NULL where nobody waits for it. `more`: than were expected. */
static __always_inline struct relay_clone *relay_take(struct __sk_buff *skb, bool *more)
{
	__u32 mark = skb->mark, index = mark & ((1 << RELAY_INDEX_BITS) - 1), cpu = index / RELAY_CLONES, stream;
	struct relay_clone *clone = bpf_map_lookup_elem(&relay_clones, &index);
	struct relay_way *way = bpf_map_lookup_elem(&relay_ways, &cpu);
	__u32 *serial;

	if (!(mark & RELAY_MARK) || !clone || !way ||
	    clone->number / RELAY_CLONES % RELAY_LAPS != (mark & ~RELAY_MARK) >> RELAY_INDEX_BITS)
		return NULL;
	*more = !clone->left;
	if (clone->left)
		clone->left--;
	way->clones_out = clone->number;
	way->segments_out = clone->before;
	if (!clone->left) {
		way->clones_out++;
		way->segments_out += clone->segments;
	}
	way->since = bpf_ktime_get_coarse_ns();
	stream = clone->order.stream;
	serial = bpf_map_lookup_elem(&relay_serials, &stream);
	return serial && *serial == clone->order.segment ? clone : NULL;
}

#endif
