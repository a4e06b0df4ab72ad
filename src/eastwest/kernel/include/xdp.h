/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * What parsing and counting ask of a packet, in an XDP program. Such a program is not told of super-packets.
 * One is longer than the port's MTU, and is taken to be cut so that its segments fill that: so a TCP
 * connection is, unless its other end asked for smaller ones.
 */
#ifndef EASTWEST_CONTEXT
#define EASTWEST_CONTEXT

#include <linux/bpf.h>
#include <stdbool.h>
#include <bpf/bpf_helpers.h>

typedef struct xdp_md context;

static __always_inline long load_far(context *ctx, __u32 offset, void *to, __u32 size)
{
	return bpf_xdp_load_bytes(ctx, offset, to, size);
}

static __always_inline __u32 frame_length(context *ctx)
{
	return bpf_xdp_get_buff_len(ctx);
}

static __always_inline __u32 port_mtu(context *ctx)
{
	__u32 mtu = 0;

	bpf_check_mtu(ctx, 0, &mtu, 0, 0);
	return mtu;
}

static __always_inline bool is_super_packet(context *ctx, __u32 length)
{
	return length > port_mtu(ctx);
}

static __always_inline __u32 counted_segments(context *ctx)
{
	return 0;
}

/* Payload of a segment, 0 where this is no super-packet. */
static __always_inline __u32 segment_size(context *ctx, __u32 length, __u32 headers)
{
	__u32 mtu = port_mtu(ctx);

	return length > mtu && mtu > headers ? mtu - headers : 0;
}

#endif
