/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* The meter's maps, and how a cgroup finds its source. The probe sets the sizes before it loads. */
#ifndef EASTWEST_MAPS_H
#define EASTWEST_MAPS_H

#include "parse.h"

enum {
	CGROUP_DEPTH_MAX = 32,
};

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

/* cgroup id: of a workload, of a cgroup below one (a copy of its source), or of one nobody knows yet */
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
 * First packet of a cgroup: copy the source of its nearest labelled ancestor, or open an account under its
 * own id, to be booked once the probe knows whose it is. Returns NULL where there is no account left.
 */
static __noinline struct source *adopt_cgroup(struct __sk_buff *skb, __u64 id)
{
	struct meter_state *s = bpf_map_lookup_elem(&state, &(__u32){0});
	struct source found = {};
	__u32 bindings;
	bool opened = false;

	if (!s)
		return NULL;
	bindings = *(volatile __u32 *)&s->bindings;
	for (int level = 0; level < CGROUP_DEPTH_MAX; level++) {
		__u64 ancestor = bpf_skb_ancestor_cgroup_id(skb, level);
		struct source *source;

		if (!ancestor || ancestor == id)
			break;
		source = bpf_map_lookup_elem(&cgroup_sources, &ancestor);
		if (source && source->label)
			found = *source;
	}
	if (!found.label) {
		if (bpf_map_pop_elem(&free_accounts, &found.account))
			return NULL;
		opened = true;
	}
	if (bpf_map_update_elem(&cgroup_sources, &id, &found, BPF_NOEXIST) && opened)
		bpf_map_push_elem(&free_accounts, &found.account, 0);
	/* A label bound on an ancestor since we looked: the copy may be stale, look again next time. */
	if (!opened && *(volatile __u32 *)&s->bindings != bindings)
		bpf_map_delete_elem(&cgroup_sources, &id);
	return bpf_map_lookup_elem(&cgroup_sources, &id);
}

static __always_inline struct source *cgroup_source(struct __sk_buff *skb)
{
	__u64 id = bpf_skb_cgroup_id(skb);
	struct source *source = bpf_map_lookup_elem(&cgroup_sources, &id);

	return source ? source : adopt_cgroup(skb, id);
}

#endif
