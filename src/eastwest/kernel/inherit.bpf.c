// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * Has a cgroup that is made below a tapped one tapped as well, before the first process can enter it. User space
 * learns of it, and decides, a moment later. A cgroup that may be another workload is left to user space.
 */
#include <linux/bpf.h>
#include <stdbool.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>

#include "points.h"

enum {
	NAME_ROOM = 65, /* with its end; a container's name holds its id, 64 digits, and fills it */
};

/* Only the fields read here; the loader finds where this kernel has them. */
struct kernfs_node {
	const char *name;
	__u64 id;
} __attribute__((preserve_access_index));

struct cgroup_root {
	int hierarchy_id;
} __attribute__((preserve_access_index));

struct cgroup;

struct cgroup_subsys_state {
	struct cgroup *cgroup;
	struct cgroup_subsys_state *parent;
} __attribute__((preserve_access_index));

struct cgroup {
	struct cgroup_subsys_state self;
	struct kernfs_node *kn;
	struct cgroup_root *root;
} __attribute__((preserve_access_index));

/* A point is too large for the stack. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct tap_point);
} heirs SEC(".maps");

/* All patterns of workloads' names have a dot; else this program is not loaded (tap/heirs.py). */
static __always_inline bool may_be_workload(struct cgroup *cgroup)
{
	char name[NAME_ROOM];
	long length = bpf_probe_read_kernel_str(name, sizeof(name), cgroup->kn->name);

	if (length <= 0 || length == sizeof(name))
		return true;
	for (int i = 0; i < NAME_ROOM; i++) {
		if (!name[i])
			return false;
		if (name[i] == '.')
			return true;
	}
	return true;
}

SEC("tp_btf/cgroup_mkdir")
int BPF_PROG(inherit, struct cgroup *cgroup)
{
	__u64 id = cgroup->kn->id, parent;
	struct tap_point *point, *heir;

	if (cgroup->root->hierarchy_id) /* not the unified hierarchy */
		return 0;
	parent = cgroup->self.parent->cgroup->kn->id;
	point = bpf_map_lookup_elem(&cgroup_points, &parent);
	heir = bpf_map_lookup_elem(&heirs, &(__u32){0});
	if (!point || !heir || may_be_workload(cgroup))
		return 0;
	__builtin_memcpy(heir, point, sizeof(*heir));
	if (!heir->heir_of)
		heir->heir_of = parent;
	bpf_map_update_elem(&cgroup_points, &id, heir, BPF_NOEXIST);
	return 0;
}

char _license[] SEC("license") = "Dual BSD/GPL";
