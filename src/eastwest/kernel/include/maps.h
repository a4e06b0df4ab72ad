/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* The meter's maps, and how a cgroup finds its source. The probe sets the sizes before it loads. */
#ifndef EASTWEST_MAPS_H
#define EASTWEST_MAPS_H

#include "parse.h"

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct meter_state);
} state SEC(".maps");

/* Never read: updating an outer map makes the kernel wait for a grace period (maybe_wait_bpf_programs). */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, 1);
	__type(key, __u32);
	__array(values, struct {
		__uint(type, BPF_MAP_TYPE_ARRAY);
		__uint(max_entries, 1);
		__type(key, __u32);
		__type(value, struct meter_state);
	});
} grace SEC(".maps");

/* ifindex, in the scope's network namespace */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 4096);
	__type(key, __u32);
	__type(value, struct source);
} port_sources SEC(".maps");

/* cgroup id, of the very cgroup a socket is in */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 4096);
	__type(key, __u64);
	__type(value, struct source);
} cgroup_sources SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_STACK);
	__uint(max_entries, 4096);
	__type(value, __u32);
} free_accounts SEC(".maps");

/* account * 2 + half; account 0 takes what found no account of its own */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 8192);
	__type(key, __u32);
	__type(value, struct account);
} accounts SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 131072);
	__type(key, struct flow_key);
	__type(value, struct flow_counters);
} flows_even SEC(".maps"), flows_odd SEC(".maps");

/* hook * 2 + half */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, HOOKS * 2);
	__type(key, __u32);
	__type(value, struct hook_count);
} hooks SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, MALFORMED_REASONS);
	__type(key, __u32);
	__type(value, __u64);
} malformed SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_HASH);
	__uint(max_entries, 64);
	__type(key, __u32);
	__type(value, struct interface_count);
} interfaces SEC(".maps");

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

#endif
