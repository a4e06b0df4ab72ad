/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * eastwest's own ends of TCP. Packets to and from them are never copied: a copy on its way would be copied again.
 * The functions are global, so that the verifier follows the parser once and not for each hook's ways to it.
 */
#ifndef EASTWEST_OWN_H
#define EASTWEST_OWN_H

#include "skb.h"
#include "parse.h"

enum own_sizes {
	OWN_ENDPOINTS = 4096,
};

struct endpoint {
	__u8 address[16]; /* IPv4 mapped into IPv6 */
	__be16 port;
	__u16 pad;
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, OWN_ENDPOINTS);
	__type(key, struct endpoint);
	__type(value, __u32);
} own_endpoints SEC(".maps");

static __always_inline bool is_endpoint(const __u8 address[16], __be16 port)
{
	struct endpoint end = {.port = port};

	__builtin_memcpy(end.address, address, sizeof(end.address));
	return bpf_map_lookup_elem(&own_endpoints, &end);
}

static __always_inline int is_own(const struct packet *p)
{
	return p->key.protocol == IPPROTO_TCP &&
	       (is_endpoint(p->key.dst, p->key.dst_port) || is_endpoint(p->key.src, p->key.src_port));
}

__noinline int own_frame(struct __sk_buff *skb)
{
	struct packet p = {};

	parse_frame(skb, &p);
	return is_own(&p);
}

__noinline int own_packet(struct __sk_buff *skb)
{
	struct packet p = {};

	parse_network(skb, &p, skb->protocol);
	return is_own(&p);
}

#endif
