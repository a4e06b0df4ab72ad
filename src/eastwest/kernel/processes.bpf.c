// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* Tells the probe of emulators as they start, so that nobody has to read all of /proc for them. */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#include "records.h"

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 16);
} process_events SEC(".maps");

/* Events that found no room: the probe reads all of /proc once where this grows. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} processes_missed SEC(".maps");

static __always_inline int may_emulate(const char *comm)
{
	if (comm[0] == 'q')
		return comm[1] == 'e' && comm[2] == 'm' && comm[3] == 'u';
	return comm[0] == 'k' && comm[1] == 'v' && comm[2] == 'm' && !comm[3];
}

SEC("tp_btf/sched_process_exec")
int process_started(void *ctx)
{
	struct process_event *event;
	__u32 first = 0;
	char comm[16];

	if (bpf_get_current_comm(comm, sizeof(comm)) || !may_emulate(comm))
		return 0;
	event = bpf_ringbuf_reserve(&process_events, sizeof(*event), 0);
	if (!event) {
		__u64 *missed = bpf_map_lookup_elem(&processes_missed, &first);

		if (missed)
			__sync_fetch_and_add(missed, 1);
		return 0;
	}
	event->pid = bpf_get_current_pid_tgid() >> 32;
	bpf_ringbuf_submit(event, 0);
	return 0;
}

char _license[] SEC("license") = "Dual BSD/GPL";
