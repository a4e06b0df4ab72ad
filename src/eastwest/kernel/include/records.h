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

/* What becomes of a source's suspect packets. */
enum enforcement {
	ENFORCE_NOT = 0,
	ENFORCE_CGROUP, /* the cgroup programs drop them, both ways */
	ENFORCE_PORT,	/* XDP drops those that the workload sends, the port's egress those sent to it */
};

/* By what a packet was found suspect. */
enum suspect_match {
	MATCH_CLASS = 0, /* its source's own class, and no entry */
	MATCH_FLOW,
	MATCH_SRC,
	MATCH_DST,
};

enum {
	EVIDENCE_BYTES = 128,	 /* of a packet, kept as evidence */
	EVIDENCE_PER_SECOND = 4, /* packets of one entry, or of one suspect source */
};

/* Why a packet was not read to its end. It is counted all the same. */
enum malformed {
	MALFORMED_NOT = 0,
	MALFORMED_ETHERNET,	   /* shorter than its link header and tags */
	MALFORMED_IPV4,		   /* shorter than its header, or a header that cannot be */
	MALFORMED_IPV6,
	MALFORMED_IPV6_EXTENSIONS, /* more extension headers than are followed */
	MALFORMED_TRANSPORT,	   /* shorter than its transport header */
	MALFORMED_LENGTH,	   /* states a length that cannot be */
	MALFORMED_REASONS,
};

enum hook {
	HOOK_PORT = 0,
	HOOK_CGROUP,
	HOOKS,
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
	__u64 enforced_packets; /* counted above, and dropped */
	__u64 enforced_bytes;
	__u64 flow_map_full_packets; /* counted above, but without flow detail */
	__u64 flow_map_full_bytes;
};

/*
 * What a port or a cgroup is to the hooks. Counting goes by account; the label, 0 where it is not known (yet),
 * is there for whoever acts on a packet.
 */
struct source {
	__u32 label;
	__u32 account;
	__u8 class;
	__u8 enforcement;
	__u8 pad[2];
};

/* Whatever a hook saw, whoever it belonged to. */
struct hook_count {
	__u64 ingress_packets;
	__u64 ingress_bytes;
	__u64 egress_packets;
	__u64 egress_bytes;
};

/* An interface of the host's own: what it carried, and how much of that a cgroup hook saw. */
struct interface_count {
	__u64 ingress_packets;
	__u64 egress_packets;
	__u64 cgroup_ingress_packets;
	__u64 cgroup_egress_packets;
};

/* Shared by all programs and kept over the probe's restarts. */
struct meter_state {
	__u64 boot;	  /* when these maps were made, unix ns: names this life of all counters */
	__u64 generation; /* its lowest bit says which half of accounts and flows is written */
	__u64 suspects;	  /* 0: nothing is declared suspect, so nobody looks */
};

/* A prefix declared suspect: the key of a longest-prefix match. IPv4 is mapped, its length 96 more. */
struct suspect_prefix {
	__u32 length; /* bits */
	__u8 address[16];
};

/* One direction of a flow declared suspect. */
struct suspect_flow {
	__u8 src[16];
	__u8 dst[16];
	__be16 src_port;
	__be16 dst_port;
	__u16 protocol;
	__u16 pad;
};

/* How much evidence was given in a second. */
struct evidence_rate {
	__u32 second; /* CLOCK_MONOTONIC */
	__u32 given;
};

/* What an entry, a prefix or a flow, met. Never reset: an entry goes, and comes as a new one. */
struct suspect_entry {
	__u64 packets; /* as on the wire */
	__u64 bytes;
	__u64 last;    /* CLOCK_MONOTONIC, ns, coarse; 0: never */
	struct evidence_rate rate;
	__u32 length;  /* of the prefix */
	__u32 pad;
};

/* A suspect packet as a hook saw it: a sample. */
struct evidence {
	__u64 time; /* CLOCK_MONOTONIC, ns, coarse */
	struct flow_key key;
	__u32 length;	    /* IP header included */
	__u8 match;	    /* enum suspect_match */
	__u8 prefix_length; /* of the matching prefix, in bits of the mapped address */
	__u8 dropped;
	__u8 captured;	    /* bytes of `packet` */
	__u8 packet[EVIDENCE_BYTES];
	__u32 pad;
};

struct cgroup_event {
	__u64 id;
	__u32 removed;
	__u32 length; /* of the path, with its NUL; all of it where the path was cut */
	char path[512];
};

/* A program was started that may be an emulator, by its name. */
struct process_event {
	__u32 pid; /* as the host's first pid namespace has it */
};

#endif
