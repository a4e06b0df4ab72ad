// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * The meter: labels and counts every packet of a workload at its one counting hook. A workload with a port
 * is counted at the port (TCX or clsact), any other at the cgroup of its sockets.
 *
 * Counters and flows exist twice, as generations. Programs write the one that the lowest bit of
 * meter_state.generation names; the probe flips it, waits until no program can still be in the old one
 * (an RCU grace period), and reads that at leisure: no update is lost and both halves agree exactly.
 *
 * Counters are atomic, those per CPU as well: cgroup egress runs in process context, where a softirq program
 * may interrupt it between load and store.
 */
#include "parse.h"

const volatile struct {
	__u64 netns_cookie;    /* the scope's network namespace, 0 where the kernel cannot tell a program */
	__u32 netns_inode;     /* … and then its inode */
	__u32 host_interfaces; /* 0: nobody asked for not_seen_by_cgroup */
} tunables = {};

/* Types that only this declaration brings into BTF. */
const struct cgroup_event *cgroup_event_type __attribute__((unused, section(".rodata.types")));
const struct process_event *process_event_type __attribute__((unused, section(".rodata.types")));
const enum malformed *malformed_type __attribute__((unused, section(".rodata.types")));
const enum hook *hook_type __attribute__((unused, section(".rodata.types")));
const enum direction *direction_type __attribute__((unused, section(".rodata.types")));
const enum traffic_class *traffic_class_type __attribute__((unused, section(".rodata.types")));

#include "maps.h"
#include "scope.h"

#define add(counter, n) __sync_fetch_and_add(&(counter), (n))

static __always_inline void count_account(struct account *a, const struct flow_key *key, __u64 packets, __u64 bytes)
{
	bool suspect = key->class == CLASS_SUSPECT;

	if (key->direction == DIRECTION_INGRESS) {
		add(a->ingress_packets, packets);
		add(a->ingress_bytes, bytes);
		if (suspect) {
			add(a->suspect_ingress_packets, packets);
			add(a->suspect_ingress_bytes, bytes);
		}
	} else {
		add(a->egress_packets, packets);
		add(a->egress_bytes, bytes);
		if (suspect) {
			add(a->suspect_egress_packets, packets);
			add(a->suspect_egress_bytes, bytes);
		}
	}
}

static __always_inline void count_hook(__u32 hook, __u32 half, __u8 direction, __u64 packets, __u64 bytes)
{
	__u32 index = hook * 2 + half;
	struct hook_count *h = bpf_map_lookup_elem(&hooks, &index);

	if (!h)
		return;
	if (direction == DIRECTION_INGRESS) {
		add(h->ingress_packets, packets);
		add(h->ingress_bytes, bytes);
	} else {
		add(h->egress_packets, packets);
		add(h->egress_bytes, bytes);
	}
}

static __always_inline struct flow_counters *find_flow(__u32 half, const struct flow_key *key)
{
	if (half)
		return bpf_map_lookup_elem(&flows_odd, key);
	return bpf_map_lookup_elem(&flows_even, key);
}

/* Returns false where the map is full: the caller counts that. */
static __always_inline bool count_flow(__u32 half, const struct packet *p, __u64 packets, __u64 bytes)
{
	struct flow_counters *flow = find_flow(half, &p->key);
	__u64 now = bpf_ktime_get_coarse_ns();

	if (!flow) {
		struct flow_counters first = {
			.packets = packets, .bytes = bytes, .first = now, .last = now, .tcp_flags = p->tcp_flags,
		};
		long error = half ? bpf_map_update_elem(&flows_odd, &p->key, &first, BPF_NOEXIST)
				  : bpf_map_update_elem(&flows_even, &p->key, &first, BPF_NOEXIST);
		if (!error)
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

static __always_inline void count(struct __sk_buff *skb, __u32 hook, const struct source *source, struct packet *p)
{
	struct meter_state *s = bpf_map_lookup_elem(&state, &(__u32){0});
	__u64 packets = segments(skb, p);
	__u64 bytes = p->length + (packets - 1) * p->headers;
	__u32 half, index;
	struct account *a;

	if (!s)
		return;
	half = *(volatile __u64 *)&s->generation & 1; /* read once: all of a packet goes to one half */
	p->key.account = source ? source->account : 0;
	p->key.class = source ? source->class : CLASS_NORMAL;
	count_hook(hook, half, p->key.direction, packets, bytes);
	index = p->key.account * 2 + half;
	a = bpf_map_lookup_elem(&accounts, &index);
	if (!a)
		return;
	count_account(a, &p->key, packets, bytes);
	if (!count_flow(half, p, packets, bytes)) {
		add(a->flow_map_full_packets, packets);
		add(a->flow_map_full_bytes, bytes);
	}
	if (p->malformed) {
		__u32 reason = p->malformed;
		__u64 *seen = bpf_map_lookup_elem(&malformed, &reason);

		if (seen)
			add(*seen, packets);
	}
}

static __always_inline int meter_port(struct __sk_buff *skb, __u8 direction)
{
	struct packet p = {.key.direction = direction};
	__u32 ifindex = skb->ifindex;

	parse_frame(skb, &p);
	count(skb, HOOK_PORT, bpf_map_lookup_elem(&port_sources, &ifindex), &p);
	return -1; /* TCX_NEXT and TC_ACT_UNSPEC: whoever comes after us decides */
}

/* The host's end of a port receives what the workload sends. */
SEC("tc")
int port_ingress(struct __sk_buff *skb)
{
	return meter_port(skb, DIRECTION_EGRESS);
}

SEC("tc")
int port_egress(struct __sk_buff *skb)
{
	return meter_port(skb, DIRECTION_INGRESS);
}

static __always_inline int meter_cgroup(struct __sk_buff *skb, __u8 direction)
{
	struct packet p = {.key.direction = direction};

	if (!in_scope(skb, tunables.netns_cookie, tunables.netns_inode))
		return 1; /* a socket of another namespace has a port that counts it */
	parse_packet(skb, &p);
	count(skb, HOOK_CGROUP, cgroup_source(skb), &p);
	if (tunables.host_interfaces) {
		__u32 ifindex = skb->ifindex;
		struct interface_count *i = bpf_map_lookup_elem(&interfaces, &ifindex);

		if (i && direction == DIRECTION_INGRESS)
			add(i->cgroup_ingress_packets, segments(skb, &p));
		else if (i)
			add(i->cgroup_egress_packets, segments(skb, &p));
	}
	return 1;
}

SEC("cgroup_skb/ingress")
int cgroup_ingress(struct __sk_buff *skb)
{
	return meter_cgroup(skb, DIRECTION_INGRESS);
}

SEC("cgroup_skb/egress")
int cgroup_egress(struct __sk_buff *skb)
{
	return meter_cgroup(skb, DIRECTION_EGRESS);
}

static __always_inline int meter_interface(struct __sk_buff *skb, __u8 direction)
{
	__u32 ifindex = skb->ifindex;
	struct interface_count *i = bpf_map_lookup_elem(&interfaces, &ifindex);
	struct packet p = {};

	if (!i)
		return -1;
	parse_frame(skb, &p);
	if (direction == DIRECTION_INGRESS)
		add(i->ingress_packets, segments(skb, &p));
	else
		add(i->egress_packets, segments(skb, &p));
	return -1;
}

SEC("tc")
int interface_ingress(struct __sk_buff *skb)
{
	return meter_interface(skb, DIRECTION_INGRESS);
}

SEC("tc")
int interface_egress(struct __sk_buff *skb)
{
	return meter_interface(skb, DIRECTION_EGRESS);
}

char _license[] SEC("license") = "Dual BSD/GPL";
