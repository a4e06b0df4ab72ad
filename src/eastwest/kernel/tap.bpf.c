// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * The tap: writes copies of a workload's packets as complete pcapng blocks into the mapped ring of this CPU, for
 * each order that takes them. User space hands the rings' memory to sendmsg() as it is.
 *
 * A block never wraps: the last one of a lap runs beyond the ring, lap_end says where it ended, and head goes on at
 * the next lap's start. Head is published with an exchange, which orders it behind the block's bytes; tail is looked
 * at before anything is written, and the writing depends on it. ARCHITECTURE.md has the whole argument.
 */
#include <linux/bpf.h>
#include <stdbool.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "filters.h"
#include "own.h"
#include "pcapng.h"
#include "relay.h"
#include "scope.h"
#include "tap.h"

const volatile struct {
	__u64 netns_cookie; /* the scope's network namespace, 0 where the kernel cannot tell a program */
	__u32 netns_inode;  /* … and then its inode */
	__u32 ring_mask;    /* the ring's bytes, a power of two, less one */
	__u32 enterprise;   /* whose our own option is */
	__u32 hold_irqs;    /* the kernel lets programs hold interrupts off */
} tunables = {};

const struct ring *ring_type __attribute__((unused, section(".rodata.types")));
const struct epb_head *epb_head_type __attribute__((unused, section(".rodata.types")));
const struct epb_tail *epb_tail_type __attribute__((unused, section(".rodata.types")));
const struct tap_delivery *tap_delivery_type __attribute__((unused, section(".rodata.types")));
const struct relay_way *relay_way_type __attribute__((unused, section(".rodata.types")));
const struct endpoint *endpoint_type __attribute__((unused, section(".rodata.types")));
const enum tap_sizes *sizes_type __attribute__((unused, section(".rodata.types")));
const enum relay_sizes *relay_sizes_type __attribute__((unused, section(".rodata.types")));
const enum tap_flags *flags_type __attribute__((unused, section(".rodata.types")));

extern void bpf_local_irq_save(unsigned long *flags) __ksym __weak;
extern void bpf_local_irq_restore(unsigned long *flags) __ksym __weak;

/* Only the field read here; the loader finds where this kernel has it. */
struct sk_buff {
	__u8 ip_summed : 2;
} __attribute__((preserve_access_index));

enum {
	PASS_ON = -1,	      /* TCX_NEXT and TC_ACT_UNSPEC: whoever comes after us decides */
	DROP = 2, /* TCX_DROP and TC_ACT_SHOT */
	ALLOW = 1,
	CHECKSUM_PARTIAL = 3, /* linux/skbuff.h */
	MAC_ADDRESSES = 12,
	TAG = 4,
};

#define add(counter, n) __sync_fetch_and_add(&(counter), (n))

/* What a packet is to all its orders. */
struct job {
	__u64 time;
	__u32 label;
	__u32 length; /* with the tag put back */
	__u32 flags;  /* enum epb_flags */
	__u32 wire;   /* packets it is on the wire, where an order asks for that */
	__be16 tag[2]; /* protocol and control information, as in a frame; 0: none */
	struct tap_option option;
};

static __always_inline bool checksum_unfinished(struct __sk_buff *skb)
{
	return BPF_CORE_READ_BITFIELD_PROBED((struct sk_buff *)skb, ip_summed) == CHECKSUM_PARTIAL;
}

static __always_inline __u32 reception(struct __sk_buff *skb)
{
	__u8 to[6];

	if (bpf_skb_load_bytes(skb, 0, to, sizeof(to)))
		return 0;
	if (!(to[0] & 1))
		return EPB_UNICAST;
	return (to[0] & to[1] & to[2] & to[3] & to[4] & to[5]) == 0xff ? EPB_BROADCAST : EPB_MULTICAST;
}

static __always_inline void describe(struct __sk_buff *skb, __u32 label, __u32 direction, bool frame, struct job *job)
{
	__s64 *offset = bpf_map_lookup_elem(&tai_offset, &(__u32){0});

	job->time = bpf_ktime_get_tai_ns() - (offset ? *offset : 0);
	job->label = label;
	job->length = skb->len;
	job->flags = direction;
	if (frame) {
		job->flags |= reception(skb);
		if (skb->vlan_present) {
			job->tag[0] = skb->vlan_proto;
			job->tag[1] = bpf_htons(skb->vlan_tci);
			job->length += TAG;
			job->option.flags |= TAP_TAG_RESTORED;
		}
	}
	if (skb->gso_size) {
		job->flags |= EPB_SEGMENTATION_OFFLOADED;
		job->option.flags |= TAP_SUPER_PACKET;
		job->option.gso_size = skb->gso_size;
		job->option.gso_segs = skb->gso_segs;
	}
	if (checksum_unfinished(skb)) {
		job->flags |= EPB_CHECKSUM_NOT_READY;
		job->option.flags |= TAP_CHECKSUM_UNFINISHED;
	}
}

/* From 1 to `bound`. A compiler compares a copy, or a difference; Linux 6.1 would learn nothing of the value then. */
static __always_inline __u64 bounded(__u64 value, __u64 bound)
{
	asm volatile("if %[value] <= %[bound] goto +1\n%[value] = %[bound]" : [value] "+r"(value) : [bound] "i"(bound));
	asm volatile("if %[value] > 0 goto +1\n%[value] = 1" : [value] "+r"(value));
	return value;
}

/* `captured` bytes of the packet to `to`, where there is room for TAP_CAPTURE. */
static __always_inline long load_packet(struct __sk_buff *skb, const __be16 tag[2], __u8 *to, __u64 captured)
{
	if (tag[0]) {
		if (bpf_skb_load_bytes(skb, 0, to, MAC_ADDRESSES))
			return -1;
		((__be16 *)(to + MAC_ADDRESSES))[0] = tag[0];
		((__be16 *)(to + MAC_ADDRESSES))[1] = tag[1];
		to += MAC_ADDRESSES + TAG;
		captured = bounded(captured - MAC_ADDRESSES - TAG, TAP_CAPTURE - MAC_ADDRESSES - TAG);
		return bpf_skb_load_bytes(skb, MAC_ADDRESSES, to, captured);
	}
	return bpf_skb_load_bytes(skb, 0, to, captured);
}

/* Options and trailing length; `dropped`: packets lost since the last block of this stream on this CPU. */
static __always_inline void write_tail(struct epb_tail *tail, const struct job *job, __u32 service, bool cut,
				       __u64 dropped, __u32 length)
{
	tail->flags_code = EPB_FLAGS;
	tail->flags_length = sizeof(tail->flags);
	tail->flags = job->flags;
	tail->dropcount_code = EPB_DROPCOUNT;
	tail->dropcount_length = 8;
	tail->dropcount_low = dropped;
	tail->dropcount_high = dropped >> 32;
	tail->custom_code = OPT_CUSTOM;
	tail->custom_length = sizeof(tail->enterprise) + sizeof(tail->custom);
	tail->enterprise = tunables.enterprise;
	tail->custom.label = job->label;
	tail->custom.service = service;
	tail->custom.flags = job->option.flags | (cut ? TAP_CUT : 0);
	tail->custom.gso_size = job->option.gso_size;
	tail->custom.gso_segs = job->option.gso_segs;
	tail->custom.format = TAP_OPTION_FORMAT;
	tail->end_of_options = 0;
	tail->length = length;
}

/* Writes a block and publishes it. Whoever calls has the ring for himself. Returns the counter to be raised. */
static __always_inline __u64 *write(struct __sk_buff *skb, const struct job *job, const struct tap_order *order,
				    struct tap_count *count, struct ring *at)
{
	__u64 captured = bounded(job->length < order->snaplen ? job->length : order->snaplen, TAP_CAPTURE);
	__u64 padded = (captured + 3) & ~3ULL;
	__u64 head = at->head, place, length, next, end, dropped;
	struct epb_head *block;

	length = sizeof(*block) + padded + sizeof(struct epb_tail);
	place = head & tunables.ring_mask;
	end = head + length;
	next = end;
	if (place + length > tunables.ring_mask)
		next = (head | tunables.ring_mask) + 1;
	if (next - *(volatile __u64 *)&at->tail > (__u64)tunables.ring_mask + 1)
		return &count->buffer_full;
	block = (void *)at + RING_PAGE + place;
	*(__u32 *)((void *)block + sizeof(*block) + padded - 4) = 0;
	if (load_packet(skb, job->tag, (void *)block + sizeof(*block), captured))
		return &count->load_failed;
	dropped = __sync_lock_test_and_set(&count->unreported, 0);
	block->type = EPB_TYPE;
	block->length = length;
	block->interface = order->interface;
	block->time_high = job->time >> 32;
	block->time_low = job->time;
	block->captured = captured;
	block->original = job->length;
	write_tail((void *)block + sizeof(*block) + padded, job, order->service, captured < job->length, dropped,
		   length);
	if (!(next & tunables.ring_mask))
		at->lap_end = end;
	__sync_lock_test_and_set(&at->head, next);
	add(count->written_bytes, captured);
	return &count->written;
}

/* Returns whether the reader is to be woken. Global, so that the verifier follows it once and not for each order. */
__noinline int copy(struct __sk_buff *skb, const struct job *job, const struct tap_order *order)
{
	__u32 cpu = bpf_get_smp_processor_id(), stream, destination;
	struct ring *at = NULL;
	struct tap_count *count;
	__u64 *counter;
	void *ring;

	if (!job || !order)
		return 0;
	/* Linux 6.1 takes keys from the stack only. */
	stream = order->stream;
	destination = order->destination;
	count = bpf_map_lookup_elem(&tap_counts, &stream);
	if (!count)
		return 0;
	add(*(job->option.flags & TAP_MADE ? &count->arrived : &count->matched), 1);
	ring = bpf_map_lookup_elem(&rings, &destination);
	if (ring)
		at = bpf_map_lookup_elem(ring, &cpu);
	if (!at) {
		counter = &count->no_buffer;
	} else if (__sync_val_compare_and_swap(&at->busy, 0, 1)) {
		counter = &count->busy;
	} else {
		counter = write(skb, job, order, count, at);
		*(volatile __u64 *)&at->busy = 0;
	}
	add(*counter, 1);
	if (counter != &count->written) {
		add(count->unreported, 1);
		return 0;
	}
	return *(volatile __u64 *)&at->head > *(volatile __u64 *)&at->wake_at &&
	       __sync_lock_test_and_set(&at->wake_at, ~0ULL) != ~0ULL;
}

/* Counts a packet that is not copied for an order: its own doing, or because it is one of eastwest's own. */
static __always_inline void leave(const struct tap_order *order, bool own, __u32 packets)
{
	struct tap_count *count = bpf_map_lookup_elem(&tap_counts, &order->stream);

	if (count)
		add(*(own ? &count->own : &count->not_matched), packets);
}

/* What a super-packet that the kernel has not counted will be cut into. */
__noinline int uncounted_segments(struct __sk_buff *skb)
{
	struct packet p = {};

	parse_frame(skb, &p);
	return segments(skb, &p);
}

static __always_inline __u32 wire_packets(struct __sk_buff *skb)
{
	if (!skb->gso_size)
		return 1;
	return skb->gso_segs ?: uncounted_segments(skb);
}

/* Has copies made as on the wire: they are written when they come out of the relay. */
__noinline int send_to_relay(struct __sk_buff *skb, const struct job *job, const struct tap_order *order)
{
	struct tap_count *count;
	__u32 stream;

	if (!job || !order)
		return 0;
	struct relay_clone clone = {
		.time = job->time,
		.order = *order,
		.label = job->label,
		.direction = job->flags & (EPB_INBOUND | EPB_OUTBOUND),
		.segments = job->wire,
	};
	stream = order->stream;
	count = bpf_map_lookup_elem(&tap_counts, &stream);
	if (!count)
		return 0;
	add(count->matched, job->wire);
	add(count->relayed, job->wire);
	if (!relay_send(skb, &clone))
		add(count->unreported, job->wire);
	return 0;
}

/*
 * Cgroup egress runs in process context and may be interrupted or preempted by another tap on this CPU: it holds
 * interrupts off where the kernel lets it. Those at ports run in softirq, where none interrupts another.
 */
static __always_inline bool copy_undisturbed(struct __sk_buff *skb, const struct job *job,
					     const struct tap_order *order, bool frame)
{
	unsigned long flags;
	bool wake;

	if (frame || !tunables.hold_irqs)
		return copy(skb, job, order);
	bpf_local_irq_save(&flags);
	wake = copy(skb, job, order);
	bpf_local_irq_restore(&flags);
	return wake;
}

static __always_inline void tap(struct __sk_buff *skb, const struct tap_point *point, __u32 direction, bool frame)
{
	__u64 asked = direction == EPB_INBOUND ? point->ingress : point->egress;
	__u64 takers = point->every & asked, filtered = point->filtered & asked;
	struct job job = {.wire = 1};
	bool own = false;

	if (frame && point->segmenting)
		job.wire = wire_packets(skb);
	if (filtered)
		takers |= filtered & (frame ? matching_port_orders(skb, point->place)
					    : matching_cgroup_orders(skb, point->place));
	if (takers)
		own = frame ? own_frame(skb) : own_packet(skb);
	if (takers && !own)
		describe(skb, point->label, direction, frame, &job);
	for (__u32 i = 0; i < TAP_ORDERS; i++) {
		const struct tap_order *order = &point->order[i];

		if (i >= point->orders)
			break;
		if (own || !(takers >> i & 1)) {
			leave(order, takers >> i & 1, order->segment ? job.wire : 1);
			continue;
		}
		if (frame && order->segment && job.option.flags & (TAP_SUPER_PACKET | TAP_CHECKSUM_UNFINISHED)) {
			send_to_relay(skb, &job, order);
			continue;
		}
		/* Where the ring buffer is full the reader has not looked yet: it will. */
		if (copy_undisturbed(skb, &job, order, frame))
			bpf_ringbuf_output(&tap_wakes, (void *)&order->destination, 4, BPF_RB_FORCE_WAKEUP);
	}
}

static __always_inline int tap_port(struct __sk_buff *skb, __u32 direction)
{
	__u32 ifindex = skb->ifindex;
	struct tap_point *point = bpf_map_lookup_elem(&port_points, &ifindex);

	if (point)
		tap(skb, point, direction, true);
	return PASS_ON;
}

/* The host's end of a port receives what the workload sends. */
SEC("tc")
int tap_port_ingress(struct __sk_buff *skb)
{
	return tap_port(skb, EPB_OUTBOUND);
}

SEC("tc")
int tap_port_egress(struct __sk_buff *skb)
{
	return tap_port(skb, EPB_INBOUND);
}

/* The relay's other end, where nothing else is to go on. */
SEC("tc")
int tap_relay(struct __sk_buff *skb)
{
	struct job job = {};
	struct relay_clone *clone;
	struct tap_count *count;
	bool more = false;
	__u32 stream;

	clone = relay_take(skb, &more);
	if (!clone)
		return DROP;
	stream = clone->order.stream;
	count = bpf_map_lookup_elem(&tap_counts, &stream);
	if (more && count) {
		add(count->matched, 1);
		add(count->relayed, 1);
	}
	describe(skb, clone->label, clone->direction, true, &job);
	job.time = clone->time;
	job.option.flags |= TAP_MADE;
	if (copy(skb, &job, &clone->order))
		bpf_ringbuf_output(&tap_wakes, &clone->order.destination, 4, BPF_RB_FORCE_WAKEUP);
	return DROP;
}

static __always_inline int tap_cgroup(struct __sk_buff *skb, __u32 direction)
{
	__u64 id = bpf_skb_cgroup_id(skb);
	struct tap_point *point = bpf_map_lookup_elem(&cgroup_points, &id);

	/* A socket of another namespace has a port, which is tapped instead. */
	if (point && in_scope(skb, tunables.netns_cookie, tunables.netns_inode))
		tap(skb, point, direction, false);
	return ALLOW;
}

SEC("cgroup/skb")
int tap_cgroup_ingress(struct __sk_buff *skb)
{
	return tap_cgroup(skb, EPB_INBOUND);
}

SEC("cgroup/skb")
int tap_cgroup_egress(struct __sk_buff *skb)
{
	return tap_cgroup(skb, EPB_OUTBOUND);
}

char _license[] SEC("license") = "Dual BSD/GPL";
