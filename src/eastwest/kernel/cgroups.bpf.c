// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* Tells the probe of cgroups as they come and go, before the first process can enter them. */
#include <linux/bpf.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>

#include "records.h"

/* Only the fields read here; the loader finds where this kernel has them. */
struct kernfs_node {
	__u64 id;
} __attribute__((preserve_access_index));

struct cgroup_root {
	int hierarchy_id;
} __attribute__((preserve_access_index));

struct cgroup {
	struct kernfs_node *kn;
	struct cgroup_root *root;
} __attribute__((preserve_access_index));

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 20);
} cgroup_events SEC(".maps");

static __always_inline int tell(struct cgroup *cgroup, const char *path, __u32 removed)
{
	struct cgroup_event *event;
	long length;

	if (cgroup->root->hierarchy_id) /* not the unified hierarchy */
		return 0;
	event = bpf_ringbuf_reserve(&cgroup_events, sizeof(*event), 0);
	if (!event)
		return 0; /* the probe's next scan finds it */
	event->id = cgroup->kn->id;
	event->removed = removed;
	length = bpf_probe_read_kernel_str(event->path, sizeof(event->path), path);
	event->length = length > 0 ? length : 0;
	bpf_ringbuf_submit(event, 0);
	return 0;
}

SEC("tp_btf/cgroup_mkdir")
int BPF_PROG(cgroup_made, struct cgroup *cgroup, const char *path)
{
	return tell(cgroup, path, 0);
}

SEC("tp_btf/cgroup_rmdir")
int BPF_PROG(cgroup_removed, struct cgroup *cgroup, const char *path)
{
	return tell(cgroup, path, 1);
}

char _license[] SEC("license") = "Dual BSD/GPL";
