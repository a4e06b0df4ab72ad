// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * Drops what a workload sends where that is suspect and enforced, before anybody has it: a switch that reads
 * the port by AF_PACKET gets its packets before TC, but after XDP. Attached to enforced ports only.
 *
 * What is dropped here no other hook sees, so it is counted here, as the meter would have. All else passes,
 * and is the meter's to count.
 */
#include "xdp.h"
#include "count.h"

/* Not "xdp.frags": for such a program the kernel (6.9) makes another skb of each that was cloned, without its
 * mac_len, and then every TC program at the port takes the IP header for the Ethernet header. */
SEC("xdp")
int port_enforce(struct xdp_md *xdp)
{
	struct packet p = {.key.direction = DIRECTION_EGRESS};
	__u32 ifindex = xdp->ingress_ifindex;
	struct source *found = bpf_map_lookup_elem(&port_sources, &ifindex), source;

	if (!found || found->enforcement != ENFORCE_PORT)
		return XDP_PASS;
	source = *found; /* an element that the probe replaces is another port's at once */
	parse_frame(xdp, &p);
	return count(xdp, HOOK_PORT, &source, &p, true, true) ? XDP_DROP : XDP_PASS;
}

char _license[] SEC("license") = "Dual BSD/GPL";
