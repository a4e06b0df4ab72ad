/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * A pcapng Enhanced Packet Block as a tap writes it (draft-ietf-opsawg-pcapng, 4.3): head, packet padded to 32 bits,
 * options. Numbers are in the host's order, which the section header tells. Fields of 64 bits are two of 32, since
 * a block begins at a multiple of four.
 */
#ifndef EASTWEST_PCAPNG_H
#define EASTWEST_PCAPNG_H

#include <linux/types.h>

enum pcapng {
	EPB_TYPE = 6,
	EPB_FLAGS = 2,
	EPB_DROPCOUNT = 4,
	OPT_CUSTOM = 2989, /* binary, to be kept when the packet is copied */
	TAP_OPTION_FORMAT = 1,
};

enum epb_flags {
	EPB_INBOUND = 1,
	EPB_OUTBOUND = 2,
	EPB_UNICAST = 1 << 2,
	EPB_MULTICAST = 2 << 2,
	EPB_BROADCAST = 3 << 2,
	EPB_CHECKSUM_NOT_READY = 1 << 9,
	EPB_SEGMENTATION_OFFLOADED = 1 << 11,
};

/* The flags of our own option. */
enum tap_flags {
	TAP_SUPER_PACKET = 1,	     /* to be cut into gso_segs packets with gso_size bytes of payload */
	TAP_CHECKSUM_UNFINISHED = 2, /* the transport checksum holds the pseudo-header's sum alone */
	TAP_CUT = 4,		     /* the copy is shorter than the packet */
	TAP_TAG_RESTORED = 8,	     /* the 802.1Q tag was beside the frame, and is put back */
	TAP_MADE = 16,		     /* as on the wire: cut from a super-packet, or its checksum finished, for the copy */
};

struct epb_head {
	__u32 type;
	__u32 length;
	__u32 interface;
	__u32 time_high; /* ns since 1970-01-01 UTC: if_tsresol is 9 */
	__u32 time_low;
	__u32 captured;
	__u32 original;
};

/* Label, service and what the kernel had not finished; `format`: TAP_OPTION_FORMAT. */
struct tap_option {
	__u32 label;
	__u32 service;
	__u16 flags;
	__u16 gso_size;
	__u16 gso_segs;
	__u16 format;
};

struct epb_tail {
	__u16 flags_code;
	__u16 flags_length;
	__u32 flags;
	__u16 dropcount_code;
	__u16 dropcount_length;
	__u32 dropcount_low;
	__u32 dropcount_high;
	__u16 custom_code;
	__u16 custom_length;
	__u32 enterprise;
	struct tap_option custom;
	__u32 end_of_options;
	__u32 length;
};

#endif
