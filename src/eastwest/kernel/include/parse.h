/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * From a frame or an IP packet to a flow key. Nothing here changes or drops a packet: what cannot be read
 * to its end gets a reason and keeps what was read.
 *
 * Headers are read from the linear part; where that is too short, a helper reads them. What differs between
 * kinds of programs is in the header of the context (skb.h, xdp.h), which comes before this one.
 */
#ifndef EASTWEST_PARSE_H
#define EASTWEST_PARSE_H

#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <stdbool.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "records.h"

enum {
	PROTOCOL_LLC = 1500,	    /* an IEEE 802.3 length field stands where the EtherType should */
	ETHERTYPE_LOWEST = 1536,    /* IEEE 802.3, 3.2.6 */
	VLAN_TAGS_MAX = 2,	    /* 802.1ad: one service tag, one customer tag */
	IPV6_EXTENSIONS_MAX = 8,
	IP_OFFSET_MASK = 0x1fff,
	TCP_FLAGS_OFFSET = 12,
	UDP_HEADER = 8,
	OFFSET_MASK = 0x3fff,	    /* shows the verifier that an offset is small */
};

struct vlan_tag {
	__be16 tci;
	__be16 ethertype;
};

struct ipv6_extension {
	__u8 next;
	__u8 length;
	__be16 fragment; /* offset and flags, in a fragment header */
};

struct packet {
	struct flow_key key;
	__u32 l3;	 /* offset of what follows the link header */
	__u32 length;	 /* bytes from there, link padding left out */
	__u32 headers;	 /* bytes of network and transport header: each segment has them */
	__u16 tcp_flags;
	__u8 malformed;	 /* enum malformed */
	__u8 match;	 /* enum suspect_match */
	__u8 dropped;
};

static __always_inline bool load(context *ctx, __u32 offset, void *to, const __u32 size)
{
	void *data = (void *)(long)ctx->data;
	void *end = (void *)(long)ctx->data_end;

	offset &= OFFSET_MASK;
	if (data + offset + size <= end) {
		__builtin_memcpy(to, data + offset, size);
		return true;
	}
	return load_far(ctx, offset, to, size) == 0;
}

static __always_inline void map_ipv4(__u8 to[16], __be32 address)
{
	__u32 *words = (__u32 *)to;

	words[0] = 0;
	words[1] = 0;
	words[2] = bpf_htonl(0xffff);
	words[3] = address;
}

/* The length that a header states, or what there is where it lies. A super-packet has no stated length. */
static __always_inline __u32 stated_length(context *ctx, struct packet *p, __u32 stated, __u32 header)
{
	__u32 there = frame_length(ctx) - p->l3;
	bool whole = is_super_packet(ctx, there);

	if (whole || (stated >= header && stated <= there))
		return whole ? there : stated;
	p->malformed = MALFORMED_LENGTH;
	return there;
}

static __always_inline void parse_transport(context *ctx, struct packet *p, __u32 l4)
{
	__u32 end = p->l3 + p->length;
	__u8 tcp[2];

	p->headers = l4 - p->l3;
	switch (p->key.protocol) {
	case IPPROTO_TCP:
		if (l4 + TCP_FLAGS_OFFSET + sizeof(tcp) > end || !load(ctx, l4, &p->key.src_port, 4) ||
		    !load(ctx, l4 + TCP_FLAGS_OFFSET, tcp, sizeof(tcp)))
			goto truncated;
		p->tcp_flags = tcp[1] | (tcp[0] & 1) << 8; /* with NS, as IPFIX IE 6 */
		p->headers += (tcp[0] >> 4) * 4;
		return;
	case IPPROTO_UDP:
	case IPPROTO_UDPLITE:
	case IPPROTO_SCTP:
	case IPPROTO_DCCP:
		if (l4 + 4 > end || !load(ctx, l4, &p->key.src_port, 4))
			goto truncated;
		p->headers += UDP_HEADER;
		return;
	case IPPROTO_ICMP:
	case IPPROTO_ICMPV6:
		if (l4 + 2 > end || !load(ctx, l4, &p->key.dst_port, 2)) /* type, code */
			goto truncated;
		return;
	}
	return;
truncated:
	p->key.src_port = 0;
	p->key.dst_port = 0;
	p->malformed = MALFORMED_TRANSPORT;
}

static __always_inline void parse_ipv4(context *ctx, struct packet *p)
{
	struct iphdr ip;
	__u32 header;

	if (!load(ctx, p->l3, &ip, sizeof(ip))) {
		p->malformed = MALFORMED_IPV4;
		return;
	}
	map_ipv4(p->key.src, ip.saddr);
	map_ipv4(p->key.dst, ip.daddr);
	p->key.protocol = ip.protocol;
	header = ip.ihl * 4;
	if (ip.version != 4 || header < sizeof(ip)) {
		p->malformed = MALFORMED_IPV4;
		return;
	}
	p->length = stated_length(ctx, p, bpf_ntohs(ip.tot_len), header);
	p->headers = header;
	if (ip.frag_off & bpf_htons(IP_OFFSET_MASK))
		return; /* only the first fragment has ports */
	parse_transport(ctx, p, p->l3 + header);
}

static __always_inline void parse_ipv6(context *ctx, struct packet *p)
{
	struct ipv6_extension extension;
	struct ipv6hdr ip;
	__u32 l4 = p->l3 + sizeof(ip);
	__u8 next;

	if (!load(ctx, p->l3, &ip, sizeof(ip)) || ip.version != 6) {
		p->malformed = MALFORMED_IPV6;
		return;
	}
	__builtin_memcpy(p->key.src, &ip.saddr, 16);
	__builtin_memcpy(p->key.dst, &ip.daddr, 16);
	p->length = stated_length(ctx, p, bpf_ntohs(ip.payload_len) + sizeof(ip), sizeof(ip));
	next = ip.nexthdr;
	for (int i = 0; i < IPV6_EXTENSIONS_MAX; i++) {
		p->key.protocol = next;
		switch (next) {
		case IPPROTO_HOPOPTS:
		case IPPROTO_ROUTING:
		case IPPROTO_DSTOPTS:
		case IPPROTO_MH:
		case IPPROTO_FRAGMENT:
		case IPPROTO_AH:
			break;
		default:
			parse_transport(ctx, p, l4);
			return;
		}
		if (!load(ctx, l4, &extension, sizeof(extension))) {
			p->malformed = MALFORMED_IPV6;
			return;
		}
		p->headers = l4 - p->l3;
		if (next == IPPROTO_FRAGMENT) {
			l4 += 8;
			if (extension.fragment & bpf_htons(0xfff8)) {
				p->key.protocol = extension.next;
				return;
			}
		} else if (next == IPPROTO_AH) {
			l4 += (extension.length + 2) * 4; /* RFC 4302, 2.2 */
		} else {
			l4 += (extension.length + 1) * 8;
		}
		next = extension.next;
	}
	p->malformed = MALFORMED_IPV6_EXTENSIONS;
}

static __always_inline void parse_network(context *ctx, struct packet *p, __be16 ethertype)
{
	p->length = frame_length(ctx) - p->l3;
	if (ethertype == bpf_htons(ETH_P_IP))
		parse_ipv4(ctx, p);
	else if (ethertype == bpf_htons(ETH_P_IPV6))
		parse_ipv6(ctx, p);
}

/* A frame with its Ethernet header; a tag in the ctx's metadata is not in the frame. */
static __always_inline void parse_frame(context *ctx, struct packet *p)
{
	struct vlan_tag tag;
	struct ethhdr eth;

	if (!load(ctx, 0, &eth, sizeof(eth))) {
		p->malformed = MALFORMED_ETHERNET;
		p->length = frame_length(ctx);
		return;
	}
	p->l3 = sizeof(eth);
	for (int i = 0; i < VLAN_TAGS_MAX; i++) {
		if (eth.h_proto != bpf_htons(ETH_P_8021Q) && eth.h_proto != bpf_htons(ETH_P_8021AD))
			break;
		if (!load(ctx, p->l3, &tag, sizeof(tag))) {
			p->malformed = MALFORMED_ETHERNET;
			break;
		}
		p->l3 += sizeof(tag);
		eth.h_proto = tag.ethertype;
	}
	if (eth.h_proto != bpf_htons(ETH_P_IP) && eth.h_proto != bpf_htons(ETH_P_IPV6)) {
		__builtin_memcpy(p->key.src + 10, eth.h_source, ETH_ALEN);
		__builtin_memcpy(p->key.dst + 10, eth.h_dest, ETH_ALEN);
	}
	p->key.protocol = bpf_ntohs(eth.h_proto);
	if (p->key.protocol < ETHERTYPE_LOWEST)
		p->key.protocol = PROTOCOL_LLC;
	parse_network(ctx, p, eth.h_proto);
}

/* Packets as on the wire: what a super-packet will be, or was, cut into. */
static __always_inline __u32 segments(context *ctx, const struct packet *p)
{
	__u32 counted = counted_segments(ctx);
	__u32 size = segment_size(ctx, p->length, p->headers);

	if (counted)
		return counted;
	/* A guest's super-packet arrives uncounted (SKB_GSO_DODGY). */
	if (!size || p->length <= p->headers)
		return 1;
	return (p->length - p->headers + size - 1) / size;
}

#endif
