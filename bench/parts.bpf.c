// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * The product's metering program around its own functions, cut off after each of its parts in turn: what one
 * takes more than the one before is that part's cost. Every run is of another flow, and of another source.
 */
#include "meter.bpf.c"
#include "vary.h"

enum part {
	NOTHING, /* the variation alone */
	PARSE,
	SOURCE,
	HOOK,
	ACCOUNT,
	CLOCK,
	FLOW,
	WHOLE,
};

/* Makes the compiler believe that somebody looks at this. */
#define keep(value) asm volatile("" : : "r"(&(value)) : "memory")

static __always_inline int up_to(struct __sk_buff *skb, const enum part part)
{
	struct packet p = {.key.direction = DIRECTION_EGRESS};
	struct variety *v = bpf_map_lookup_elem(&variety, &(__u32){0});
	struct source *source;
	struct meter_state *s;
	struct account *a;
	__u32 flow, ifindex, index, half;
	__u64 packets, bytes, now;

	if (!v)
		return -1;
	flow = next_flow(v);
	ifindex = 1 + flow % (v->sources ?: 1);
	write_ports((void *)(long)skb->data, (void *)(long)skb->data_end, flow);
	keep(ifindex);
	if (part == NOTHING)
		return -1;
	parse_frame(skb, &p);
	keep(p);
	if (part == PARSE)
		return -1;
	source = bpf_map_lookup_elem(&port_sources, &ifindex);
	keep(source);
	if (part == SOURCE)
		return -1;
	if (part == WHOLE) {
		count(skb, HOOK_PORT, source, &p, false, false);
		return -1;
	}
	s = bpf_map_lookup_elem(&state, &(__u32){0});
	if (!s)
		return -1;
	half = *(volatile __u64 *)&s->generation & 1;
	p.key.account = source ? source->account : 0;
	packets = segments(skb, &p);
	bytes = p.length + (packets - 1) * p.headers;
	count_hook(HOOK_PORT, half, p.key.direction, packets, bytes);
	if (part == HOOK)
		return -1;
	index = p.key.account * 2 + half;
	a = bpf_map_lookup_elem(&accounts, &index);
	if (!a)
		return -1;
	count_account(a, runs_alone(HOOK_PORT), &p, packets, bytes);
	if (part == ACCOUNT)
		return -1;
	now = bpf_ktime_get_coarse_ns();
	keep(now);
	if (part == CLOCK)
		return -1;
	keep(p);
	struct flow_counters *found = find_flow(half, &p.key);
	keep(found);
	return -1;
}

#define PROGRAM(name, part) \
	SEC("tc") int name(struct __sk_buff *skb) { return up_to(skb, part); }

PROGRAM(part_nothing, NOTHING)
PROGRAM(part_parse, PARSE)
PROGRAM(part_source, SOURCE)
PROGRAM(part_hook, HOOK)
PROGRAM(part_account, ACCOUNT)
PROGRAM(part_clock, CLOCK)
PROGRAM(part_flow, FLOW)
PROGRAM(part_whole, WHOLE)

/* What the kernel's own loop takes. */
SEC("tc")
int part_empty(struct __sk_buff *skb)
{
	return -1;
}
