/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Whether a packet is suspect by what was declared, and the evidence of it. */
#ifndef EASTWEST_SUSPECT_H
#define EASTWEST_SUSPECT_H

#include "maps.h"
#include "parse.h"

enum {
	ADDRESS_BITS = 128,
	MAPPED_BITS = 96, /* before the IPv4 address (RFC 4291, 2.5.5.2) */
	IP_PROTOCOLS = 256,
};

static const __u64 NANOSECONDS = 1000000000;

static __always_inline bool is_mapped(const __u8 address[16])
{
	const __u32 *words = (const __u32 *)address;

	return !words[0] && !words[1] && words[2] == bpf_htonl(0xffff);
}

static __always_inline struct suspect_entry *find_prefix(const __u8 address[16])
{
	struct suspect_prefix prefix = {.length = ADDRESS_BITS};
	struct suspect_entry *entry;

	__builtin_memcpy(prefix.address, address, sizeof(prefix.address));
	entry = bpf_map_lookup_elem(&suspect_prefixes, &prefix);
	/* An IPv6 prefix as short as ::/0 is not about IPv4. */
	if (entry && entry->length < MAPPED_BITS && is_mapped(address))
		return NULL;
	return entry;
}

/* The one entry whose hit this packet is: its flow's, else the longest prefix of its source, else of its
 * destination. NULL: nothing declared is about it. */
static __noinline struct suspect_entry *find_suspect(struct packet *p)
{
	struct suspect_flow flow = {};
	struct suspect_entry *entry;

	if (p->key.protocol >= IP_PROTOCOLS)
		return NULL;
	__builtin_memcpy(flow.src, p->key.src, sizeof(flow.src));
	__builtin_memcpy(flow.dst, p->key.dst, sizeof(flow.dst));
	flow.src_port = p->key.src_port;
	flow.dst_port = p->key.dst_port;
	flow.protocol = p->key.protocol;
	p->match = MATCH_FLOW;
	entry = bpf_map_lookup_elem(&suspect_flows, &flow);
	if (entry)
		return entry;
	p->match = MATCH_SRC;
	entry = find_prefix(p->key.src);
	if (entry)
		return entry;
	p->match = MATCH_DST;
	entry = find_prefix(p->key.dst);
	if (entry)
		return entry;
	p->match = MATCH_CLASS;
	return NULL;
}

/* Whether another packet may be shown this second. Two CPUs may meet at its turn: it is a sample. */
static __always_inline bool is_due(struct evidence_rate *rate, __u64 now)
{
	__u32 second = now / NANOSECONDS;

	if (rate->second != second) {
		rate->second = second;
		rate->given = 0;
	}
	return rate->given < EVIDENCE_PER_SECOND && __sync_fetch_and_add(&rate->given, 1) < EVIDENCE_PER_SECOND;
}

/* Hand the packet's head to the probe. entry is NULL where its source's own class is suspect. */
static __noinline int give_evidence(context *ctx, const struct packet *p, struct suspect_entry *entry)
{
	__u32 account = p->key.account, first = 0, there = frame_length(ctx) - p->l3;
	struct evidence_rate *rate = entry ? &entry->rate : bpf_map_lookup_elem(&evidence_rates, &account);
	__u64 now = bpf_ktime_get_coarse_ns(), *lost;
	struct evidence *evidence;

	if (!rate || !is_due(rate, now))
		return 0;
	evidence = bpf_ringbuf_reserve(&evidence_events, sizeof(*evidence), 0);
	if (!evidence) {
		lost = bpf_map_lookup_elem(&evidence_lost, &first);
		if (lost)
			__sync_fetch_and_add(lost, 1);
		return 0;
	}
	evidence->time = now;
	evidence->key = p->key;
	evidence->length = p->length;
	evidence->match = p->match;
	evidence->prefix_length = entry ? entry->length : 0;
	evidence->dropped = p->dropped;
	if (there > EVIDENCE_BYTES)
		there = EVIDENCE_BYTES;
	/* Old verifiers learn from the mask alone that this is 1 to EVIDENCE_BYTES. */
	asm volatile("" : "+r"(there));
	if (!there || load_far(ctx, p->l3, evidence->packet, ((there - 1) & (EVIDENCE_BYTES - 1)) + 1))
		there = 0;
	evidence->captured = there;
	evidence->pad = 0;
	/* The probe looks when it cuts: waking it would cost more than the packet. */
	bpf_ringbuf_submit(evidence, BPF_RB_NO_WAKEUP);
	return 0;
}

#endif
