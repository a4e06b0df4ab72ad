/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Counting one packet, and what becomes of it. Whichever program does it, the numbers are the same.
 *
 * What all CPUs share is added to atomically. So is what a cgroup's programs count on one CPU: egress runs in
 * process context, where a softirq program may interrupt it between load and store. Ports' programs are not
 * interrupted by one another: the kernel runs them with softirqs disabled. Theirs are plain additions, also in
 * account 0, which both kinds write: an atomic one is a single step to whatever interrupts it, and a plain one is
 * interrupted by none of the cgroups' programs. Where a kernel is preemptible even there, they are atomic as well.
 */
#ifndef EASTWEST_COUNT_H
#define EASTWEST_COUNT_H

#include <bpf/bpf_core_read.h>

#include "suspect.h"

#define add(counter, n) __sync_fetch_and_add(&(counter), (n))
#define add_on_cpu(alone, counter, n) ((alone) ? (void)((counter) += (n)) : (void)add(counter, n))

/* Only kernels with PREEMPT_RT have it (kernel/softirq.c); some of them run two with softirqs disabled at a time. */
struct softirq_ctrl {
	int cnt;
} __attribute__((preserve_access_index));

static __always_inline bool runs_alone(__u32 hook)
{
	return hook == HOOK_PORT && !bpf_core_type_exists(struct softirq_ctrl);
}

static __always_inline void count_account(struct account *a, bool alone, const struct packet *p, __u64 packets,
					  __u64 bytes)
{
	bool suspect = p->key.class == CLASS_SUSPECT;

	if (p->key.direction == DIRECTION_INGRESS) {
		add_on_cpu(alone, a->ingress_packets, packets);
		add_on_cpu(alone, a->ingress_bytes, bytes);
		if (suspect) {
			add_on_cpu(alone, a->suspect_ingress_packets, packets);
			add_on_cpu(alone, a->suspect_ingress_bytes, bytes);
		}
	} else {
		add_on_cpu(alone, a->egress_packets, packets);
		add_on_cpu(alone, a->egress_bytes, bytes);
		if (suspect) {
			add_on_cpu(alone, a->suspect_egress_packets, packets);
			add_on_cpu(alone, a->suspect_egress_bytes, bytes);
		}
	}
	if (p->dropped) {
		add_on_cpu(alone, a->enforced_packets, packets);
		add_on_cpu(alone, a->enforced_bytes, bytes);
	}
}

static __always_inline void count_hook(__u32 hook, __u32 half, __u8 direction, __u64 packets, __u64 bytes)
{
	const bool alone = runs_alone(hook);
	__u32 index = hook * 2 + half;
	struct hook_count *h = bpf_map_lookup_elem(&hooks, &index);

	if (!h)
		return;
	if (direction == DIRECTION_INGRESS) {
		add_on_cpu(alone, h->ingress_packets, packets);
		add_on_cpu(alone, h->ingress_bytes, bytes);
	} else {
		add_on_cpu(alone, h->egress_packets, packets);
		add_on_cpu(alone, h->egress_bytes, bytes);
	}
}

/*
 * Two calls that differ in their map alone become one to the compiler, with a variable map; of that the kernel makes
 * an indirect call (BPF_MAP_PTR_POISON, kernel/bpf/verifier.c): 11 ns a packet. So each is told apart.
 */
#define call_on(map, call, ...) \
	({ \
		__auto_type result_ = call(&(map), __VA_ARGS__); \
		asm volatile("# " #map : "+r"(result_)); \
		result_; \
	})
#define call_on_flows(half, call, ...) \
	((half) ? call_on(flows_odd, call, __VA_ARGS__) : call_on(flows_even, call, __VA_ARGS__))

static __always_inline struct flow_counters *find_flow(__u32 half, const struct flow_key *key)
{
	return call_on_flows(half, bpf_map_lookup_elem, key);
}

/* `flow`: the flow's counters where they are found already. Returns false where the map is full. */
static __always_inline bool count_flow(__u32 half, struct flow_counters *flow, const struct packet *p,
				       __u64 packets, __u64 bytes)
{
	__u64 now = bpf_ktime_get_coarse_ns();

	if (!flow) {
		struct flow_counters first = {
			.packets = packets, .bytes = bytes, .first = now, .last = now, .tcp_flags = p->tcp_flags,
		};
		if (!call_on_flows(half, bpf_map_update_elem, &p->key, &first, BPF_NOEXIST))
			return true;
		/* Another CPU, or whom we interrupted, may have made it meanwhile. */
		flow = find_flow(half, &p->key);
		if (!flow)
			return false;
	}
	add(flow->packets, packets);
	add(flow->bytes, bytes);
	flow->last = now;
	if ((flow->tcp_flags | p->tcp_flags) != flow->tcp_flags)
		__sync_fetch_and_or((__u64 *)&flow->tcp_flags, p->tcp_flags);
	return true;
}

static __always_inline void count_suspect(context *ctx, const struct packet *p, struct suspect_entry *entry,
					  __u64 packets, __u64 bytes)
{
	if (entry) {
		add(entry->packets, packets);
		add(entry->bytes, bytes);
		entry->last = bpf_ktime_get_coarse_ns();
	}
	give_evidence(ctx, p, entry);
}

/*
 * Returns whether the packet is to be dropped, which is so where it is suspect and its source `enforced`.
 * `dropped_only`: what is not dropped is another program's to count.
 *
 * A flow is sought as a normal one first, so that one that goes on costs no look at what is suspect. It was
 * made after that look, in the half being written, which is flipped whenever what is suspect changes.
 */
static __always_inline bool count(context *ctx, __u32 hook, const struct source *source, struct packet *p,
				  bool enforced, bool dropped_only)
{
	struct meter_state *s = bpf_map_lookup_elem(&state, &(__u32){0});
	struct suspect_entry *entry = NULL;
	struct flow_counters *flow = NULL;
	__u64 packets, bytes;
	__u32 half, index;
	struct account *a;

	if (!s)
		return false;
	half = *(volatile __u64 *)&s->generation & 1; /* read once: all of a packet goes to one half */
	p->key.account = source ? source->account : 0;
	p->key.class = source ? source->class : CLASS_NORMAL;
	if (p->key.class == CLASS_NORMAL)
		flow = find_flow(half, &p->key);
	if (!flow && s->suspects) {
		entry = find_suspect(p);
		if (entry)
			p->key.class = CLASS_SUSPECT;
	}
	p->dropped = enforced && p->key.class == CLASS_SUSPECT;
	if (dropped_only && !p->dropped)
		return false;
	packets = segments(ctx, p);
	bytes = p->length + (packets - 1) * p->headers;
	if (p->key.class == CLASS_SUSPECT) {
		count_suspect(ctx, p, entry, packets, bytes);
		flow = find_flow(half, &p->key);
	}
	count_hook(hook, half, p->key.direction, packets, bytes);
	index = p->key.account * 2 + half;
	a = bpf_map_lookup_elem(&accounts, &index);
	if (!a)
		return p->dropped;
	count_account(a, runs_alone(hook), p, packets, bytes);
	if (!count_flow(half, flow, p, packets, bytes)) {
		add(a->flow_map_full_packets, packets);
		add(a->flow_map_full_bytes, bytes);
	}
	if (p->malformed) {
		__u32 reason = p->malformed;
		__u64 *seen = bpf_map_lookup_elem(&malformed, &reason);

		if (seen)
			add(*seen, packets);
	}
	return p->dropped;
}

#endif
