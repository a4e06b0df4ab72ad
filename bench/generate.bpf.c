// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* A traffic generator: what runs over it (BPF_F_TEST_XDP_LIVE_FRAMES) leaves by an interface as many flows. */
#include "vary.h"

SEC("xdp")
int generate(struct xdp_md *xdp)
{
	struct variety *v = bpf_map_lookup_elem(&variety, &(__u32){0});

	if (!v)
		return XDP_ABORTED;
	write_ports((void *)(long)xdp->data, (void *)(long)xdp->data_end, next_flow(v));
	return bpf_redirect(v->redirect, 0);
}

char _license[] SEC("license") = "Dual BSD/GPL";
