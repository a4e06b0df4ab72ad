// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* Asks the filters of the place that is a packet's mark, and keeps the answer with what the packet was. */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#include "filters.h"

enum {
	KEPT = 65536 + 64,
	PACKETS = 512,
};

struct seen {
	__u64 orders;
	__u32 length;
	__u32 linear;
	__u32 tagged;
	__u32 segment;
	__u8 bytes[KEPT];
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, PACKETS);
	__type(key, __u32);
	__type(value, struct seen);
} packets SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} count SEC(".maps");

/* How often each answer to a whole program came, by its lowest bits. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 16);
	__type(key, __u32);
	__type(value, __u64);
} answers SEC(".maps");

static __always_inline void keep(struct __sk_buff *skb, __u64 orders)
{
	__u32 length = skb->len, first = 0, at;
	__u64 *number = bpf_map_lookup_elem(&count, &first);
	struct seen *seen;

	if (!number)
		return;
	at = __sync_fetch_and_add(number, 1);
	seen = bpf_map_lookup_elem(&packets, &at);
	if (!seen)
		return;
	seen->orders = orders;
	seen->length = length;
	seen->linear = skb->data_end - skb->data;
	seen->tagged = skb->vlan_present ? skb->vlan_tci | 1 << 16 : 0;
	seen->segment = skb->gso_size;
	if (length > KEPT)
		return;
	/* Else clang tests both bounds at once in another register, and Linux 6.1 sees none in this one. */
	asm volatile("" : "+r"(length));
	if (length < 2)
		return;
	bpf_skb_load_bytes(skb, 0, seen->bytes, length);
}

SEC("tc")
int port_seen(struct __sk_buff *skb)
{
	keep(skb, matching_port_orders(skb, skb->mark));
	return -1;
}

SEC("cgroup/skb")
int cgroup_seen(struct __sk_buff *skb)
{
	keep(skb, matching_cgroup_orders(skb, 0));
	return 1;
}

SEC("tc")
int port_counted(struct __sk_buff *skb)
{
	__u32 answer = matching_port_orders(skb, 0) & 15;
	__u64 *times = bpf_map_lookup_elem(&answers, &answer);

	if (times)
		__sync_fetch_and_add(times, 1);
	return -1;
}

char _license[] SEC("license") = "Dual BSD/GPL";
