/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Whether a packet's socket is in the scope's network namespace. */
#ifndef EASTWEST_SCOPE_H
#define EASTWEST_SCOPE_H

#include <linux/bpf.h>
#include <stdbool.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_helpers.h>

/* Only the fields read here; the loader finds where this kernel has them. */
struct ns_common {
	unsigned int inum;
} __attribute__((preserve_access_index));

struct net {
	struct ns_common ns;
} __attribute__((preserve_access_index));

typedef struct {
	struct net *net;
} __attribute__((preserve_access_index)) possible_net_t;

struct sock_common {
	possible_net_t skc_net;
} __attribute__((preserve_access_index));

enum {
	SOCK_COMMON_SEEN = 128, /* more than lies before skc_net on any kernel */
};

/*
 * Before bpf_get_netns_cookie() was open to cgroup_skb (Linux 6.15), the namespace has to be read from the
 * socket. Its pointer may be handed to a helper but not added to, so the head of the socket is read whole.
 */
static __always_inline __u32 netns_inode(struct __sk_buff *skb)
{
	__u32 offset = bpf_core_field_offset(struct sock_common, skc_net);
	struct bpf_sock *sk = skb->sk;
	__u8 head[SOCK_COMMON_SEEN];
	struct net *net;

	if (!sk || offset > sizeof(head) - sizeof(net) || bpf_probe_read_kernel(head, sizeof(head), sk))
		return 0;
	net = *(struct net **)(head + offset);
	return BPF_CORE_READ(net, ns.inum);
}

static __always_inline bool in_scope(struct __sk_buff *skb, __u64 cookie, __u32 inode)
{
	if (cookie)
		return bpf_get_netns_cookie(skb) == cookie;
	return netns_inode(skb) == inode;
}

#endif
