/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * How a program asks the filters of its port or cgroup: one tail call to what tap/filter.py generated.
 *
 * The function that makes the call must be global (noinline, weak): the verifier then takes it for one that returns
 * anything. A static one it follows, sees it return 0, and removes whatever depends on another answer.
 * Attach with neither direction in the section's name (SEC("tc"), SEC("cgroup/skb")): since Linux 6.18 a tail call
 * wants both programs loaded for the same attach type.
 */
#ifndef EASTWEST_FILTERS_H
#define EASTWEST_FILTERS_H

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

enum {
	FILTER_PLACES = 4096,
};

/* Two maps, since the programs in one are all of one type. */
struct {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__uint(max_entries, FILTER_PLACES);
	__type(key, __u32);
	__type(value, __u32);
} port_filters SEC(".maps"), cgroup_filters SEC(".maps");

/* A bit for each order that takes the packet; 0 where no filter is at this place. */
__weak __noinline __u64 matching_port_orders(struct __sk_buff *skb, __u32 place)
{
	bpf_tail_call(skb, &port_filters, place);
	return 0;
}

__weak __noinline int run_cgroup_filters(struct __sk_buff *skb, __u32 place)
{
	bpf_tail_call(skb, &cgroup_filters, place);
	return 0;
}

/*
 * The same at a cgroup hook. What a program there returns may be 0 or 1 only, so the answer comes in the packet's
 * control buffer, which the kernel saves before these programs and restores behind them. A map would not do: egress
 * runs in process context, and is interrupted by ingress.
 */
static __always_inline __u64 matching_cgroup_orders(struct __sk_buff *skb, __u32 place)
{
	skb->cb[0] = 0;
	skb->cb[1] = 0;
	run_cgroup_filters(skb, place);
	return skb->cb[0] | (__u64)skb->cb[1] << 32;
}

#endif
