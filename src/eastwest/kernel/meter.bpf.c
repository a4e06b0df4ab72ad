// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * The meter: labels and counts every packet of a workload at its one counting hook. A workload with a port
 * is counted at the port (TCX or clsact), any other at the cgroup of its sockets.
 *
 * Counters and flows exist twice, as generations. Programs write the one that the lowest bit of
 * meter_state.generation names; the probe flips it, waits until no program can still be in the old one
 * (an RCU grace period), and reads that at leisure: no update is lost and both halves agree exactly.
 *
 * What is suspect is dropped where that is enforced; by the programs here only where their dropping is
 * effective for whatever lies behind the hook.
 */
#include "skb.h"
#include "count.h"
#include "scope.h"

const volatile struct {
	__u64 netns_cookie;    /* the scope's network namespace, 0 where the kernel cannot tell a program */
	__u32 netns_inode;     /* … and then its inode */
	__u32 host_interfaces; /* 0: nobody asked for not_seen_by_cgroup */
} tunables = {};

/* Types that only this declaration brings into BTF. */
const struct cgroup_event *cgroup_event_type __attribute__((unused, section(".rodata.types")));
const struct process_event *process_event_type __attribute__((unused, section(".rodata.types")));
const struct evidence *evidence_type __attribute__((unused, section(".rodata.types")));
const enum enforcement *enforcement_type __attribute__((unused, section(".rodata.types")));
const enum suspect_match *suspect_match_type __attribute__((unused, section(".rodata.types")));
const enum malformed *malformed_type __attribute__((unused, section(".rodata.types")));
const enum hook *hook_type __attribute__((unused, section(".rodata.types")));
const enum direction *direction_type __attribute__((unused, section(".rodata.types")));
const enum traffic_class *traffic_class_type __attribute__((unused, section(".rodata.types")));

/*
 * First packet of a cgroup: open an account under its own id. The probe books it to the nearest workload at
 * or above the cgroup, so a packet costs the same however deep its cgroup lies. NULL: no account is left.
 */
static __noinline struct source *open_cgroup(__u64 id)
{
	struct source fresh = {};

	if (bpf_map_pop_elem(&free_accounts, &fresh.account))
		return NULL;
	/* Another CPU, or whom we interrupted, may have been first: then theirs is used. */
	if (bpf_map_update_elem(&cgroup_sources, &id, &fresh, BPF_NOEXIST))
		bpf_map_push_elem(&free_accounts, &fresh.account, 0);
	return bpf_map_lookup_elem(&cgroup_sources, &id);
}

static __always_inline struct source *cgroup_source(struct __sk_buff *skb)
{
	__u64 id = bpf_skb_cgroup_id(skb);
	struct source *source = bpf_map_lookup_elem(&cgroup_sources, &id);

	return source ? source : open_cgroup(id);
}

enum {
	PASS = -1, /* TCX_NEXT, TC_ACT_UNSPEC: whoever comes after us decides */
};

/*
 * Drops the packet by sending it to an interface that cannot be. TCX_DROP would tell the sender (ENOBUFS), and a
 * switch that sends in batches (sendmmsg) then gives up the rest of the batch, innocent packets among them.
 */
static __always_inline int drop(void)
{
	return bpf_redirect(0, 0);
}

static __always_inline int meter_port(struct __sk_buff *skb, __u8 direction)
{
	struct packet p = {.key.direction = direction};
	__u32 ifindex = skb->ifindex;
	struct source *source;
	bool enforced;

	parse_frame(skb, &p);
	/* After that: an element that the probe replaces is another port's at once. */
	source = bpf_map_lookup_elem(&port_sources, &ifindex);
	/* Too late for what the workload sends: a switch that reads the port by AF_PACKET has it already. */
	enforced = source && source->enforcement == ENFORCE_PORT && direction == DIRECTION_INGRESS;
	return count(skb, HOOK_PORT, source, &p, enforced, false) ? drop() : PASS;
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
	struct source *source;
	bool dropped;

	if (!in_scope(skb, tunables.netns_cookie, tunables.netns_inode))
		return 1; /* a socket of another namespace has a port that counts it */
	p.key.protocol = bpf_ntohs(skb->protocol);
	parse_network(skb, &p, skb->protocol);
	source = cgroup_source(skb);
	dropped = count(skb, HOOK_CGROUP, source, &p, source && source->enforcement == ENFORCE_CGROUP, false);
	if (tunables.host_interfaces) {
		__u32 ifindex = skb->ifindex;
		struct interface_count *i = bpf_map_lookup_elem(&interfaces, &ifindex);

		if (i && direction == DIRECTION_INGRESS)
			add(i->cgroup_ingress_packets, segments(skb, &p));
		else if (i)
			add(i->cgroup_egress_packets, segments(skb, &p));
	}
	return !dropped;
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
		return PASS;
	parse_frame(skb, &p);
	if (direction == DIRECTION_INGRESS)
		add(i->ingress_packets, segments(skb, &p));
	else
		add(i->egress_packets, segments(skb, &p));
	return PASS;
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
