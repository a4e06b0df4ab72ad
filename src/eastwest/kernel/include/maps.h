/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* The meter's maps; every program that counts shares them. The probe sets the sizes before it loads. */
#ifndef EASTWEST_MAPS_H
#define EASTWEST_MAPS_H

#include "records.h"

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

/* Prefixes and flows declared suspect. Elements come and go; one that stays is never written by the probe. */
struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(max_entries, 131072);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct suspect_prefix);
	__type(value, struct suspect_entry);
} suspect_prefixes SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16384);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct suspect_flow);
	__type(value, struct suspect_entry);
} suspect_flows SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 20);
} evidence_events SEC(".maps");

/* By account: of sources that are suspect themselves. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 4096);
	__type(key, __u32);
	__type(value, struct evidence_rate);
} evidence_rates SEC(".maps");

/* Evidence that found no room. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} evidence_lost SEC(".maps");

#endif
