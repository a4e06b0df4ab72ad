/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * What a tap shares with user space: who is tapped for whom (points.h), what was counted, and the buffers that
 * packets are written to. Python reads the layouts from the object's BTF. Padding is explicit.
 */
#ifndef EASTWEST_TAP_H
#define EASTWEST_TAP_H

#include <linux/bpf.h>
#include <linux/types.h>
#include <bpf/bpf_helpers.h>

#include "points.h"
#include "ring.h"

/*
 * On one CPU. Packets offered = matched + not_matched; matched = written + every loss. Of an order for copies as on
 * the wire a super-packet counts as what it is cut into; what is relayed and has not arrived is a loss too.
 */
struct tap_count {
	__u64 matched;
	__u64 not_matched;
	__u64 written;
	__u64 written_bytes; /* of packets, as far as they were copied */
	__u64 buffer_full;   /* lost: the destination did not take what was there */
	__u64 busy;	     /* lost: came in between while this CPU was writing to the same buffer */
	__u64 load_failed;   /* lost: the kernel did not hand out the packet's bytes */
	__u64 no_buffer;     /* lost: the destination is gone */
	__u64 relayed;	     /* of matched, those that are made by the relay */
	__u64 arrived;	     /* … and came out of it */
	__u64 own;	     /* eastwest's own, which no order is offered (own.h) */
	__u64 unreported;    /* of the losses, those that no block's epb_dropcount has told yet */
};

/* By index of the interface. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, TAP_STREAMS);
	__type(key, __u32);
	__type(value, struct tap_point);
} port_points SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, TAP_STREAMS);
	__type(key, __u32);
	__type(value, struct tap_count);
} tap_counts SEC(".maps");

/*
 * User space's notes, which programs do not read: with the counters they are pinned, so that a probe that is
 * killed leaves word of what it copied, and how far it came with that.
 */
struct tap_stream {
	char tap[64];
};

struct tap_delivery {
	char tap[64];
	__u64 confirmed;
	__u64 unconfirmed;
	__u64 sent_bytes;
	__u64 reconnects;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, TAP_STREAMS);
	__type(key, __u32);
	__type(value, struct tap_stream);
} tap_streams SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, TAP_DESTINATIONS);
	__type(key, __u32);
	__type(value, struct tap_delivery);
} tap_deliveries SEC(".maps");

/* A destination's rings: an element per CPU, its size chosen before loading. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, TAP_DESTINATIONS);
	__type(key, __u32);
	__array(values, struct {
		__uint(type, BPF_MAP_TYPE_ARRAY);
		__uint(map_flags, BPF_F_MMAPABLE);
		__uint(max_entries, 1);
		__type(key, __u32);
		__uint(value_size, 2 * RING_BEYOND);
	});
} rings SEC(".maps");

/* How far CLOCK_TAI is ahead of UTC, ns. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __s64);
} tai_offset SEC(".maps");

/* Destinations whose reader sleeps and has something to read. */
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 4096);
} tap_wakes SEC(".maps");

#endif
