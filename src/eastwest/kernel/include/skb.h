/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* What parsing and counting ask of a packet, in a tc or cgroup program. */
#ifndef EASTWEST_CONTEXT
#define EASTWEST_CONTEXT

#include <linux/bpf.h>
#include <stdbool.h>
#include <bpf/bpf_helpers.h>

typedef struct __sk_buff context;

static __always_inline long load_far(context *ctx, __u32 offset, void *to, __u32 size)
{
	return bpf_skb_load_bytes(ctx, offset, to, size);
}

static __always_inline __u32 frame_length(context *ctx)
{
	return ctx->len;
}

static __always_inline bool is_super_packet(context *ctx, __u32 length)
{
	return ctx->gso_size;
}

static __always_inline __u32 counted_segments(context *ctx)
{
	return ctx->gso_segs;
}

static __always_inline __u32 segment_size(context *ctx, __u32 length, __u32 headers)
{
	return ctx->gso_size;
}

#endif
