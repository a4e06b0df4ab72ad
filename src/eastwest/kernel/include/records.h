/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * The records shared by kernel, probe, bus and store. Python reads their layout from the object's BTF
 * (eastwest.kernel.records), so a field is declared here and nowhere else. Padding is explicit.
 */
#ifndef EASTWEST_RECORDS_H
#define EASTWEST_RECORDS_H

#include <linux/types.h>

/* As the workload sees it: egress is sent by it. */
enum direction {
	DIRECTION_INGRESS = 0,
	DIRECTION_EGRESS = 1,
};

enum traffic_class {
	CLASS_NORMAL = 0,
	CLASS_SUSPECT = 1,
};

/*
 * One flow of one workload port or cgroup. IPv4 addresses are mapped into IPv6 (RFC 4291, 2.5.5.2); a
 * frame that is not IP has its MAC addresses in the last six bytes.
 */
struct flow_key {
	__u8 src[16];
	__u8 dst[16];
	__be16 src_port; /* 0 where there is none */
	__be16 dst_port; /* ICMP: type << 8 | code (IPFIX IE 32) */
	__u16 protocol;  /* IPFIX IE 4, or the EtherType (IE 256) of a frame that is not IP */
	__u8 direction;
	__u8 class;
	__u32 account;
};

struct flow_counters {
	__u64 packets; /* IPFIX IE 2: as on the wire */
	__u64 bytes;   /* IPFIX IE 1: IP header included, link header not */
	__u64 first;   /* CLOCK_MONOTONIC, ns, as coarse as the kernel's tick */
	__u64 last;
	__u16 tcp_flags; /* IPFIX IE 6, all packets or-ed */
	__u16 pad[3];
};

/*
 * What one source (a port or a cgroup) counted, on one CPU, in one generation. Never reset while in use.
 */
struct account {
	__u64 ingress_packets;
	__u64 ingress_bytes;
	__u64 egress_packets;
	__u64 egress_bytes;
	__u64 suspect_ingress_packets;
	__u64 suspect_ingress_bytes;
	__u64 suspect_egress_packets;
	__u64 suspect_egress_bytes;
	__u64 flow_map_full_packets; /* counted above, but without flow detail */
	__u64 flow_map_full_bytes;
};

#endif
