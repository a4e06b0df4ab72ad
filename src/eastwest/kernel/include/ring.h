/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* A CPU's ring as it lies in mapped memory: shared by the program that writes it and the binding that reads it. */
#ifndef EASTWEST_RING_H
#define EASTWEST_RING_H

#include <linux/types.h>

enum ring_sizes {
	RING_PAGE = 4096,     /* struct ring, and nothing else, so that the blocks begin with a page */
	RING_BEYOND = 131072, /* what an element has beyond the ring: that page, and room for one block */
};

/*
 * Positions only grow; their lowest bits are the place in the ring. The first half is the program's, the second the
 * reader's: two cache lines each.
 */
struct ring {
	__u64 head;    /* end of what is written */
	__u64 lap_end; /* where the last lap's blocks ended, beyond the ring maybe */
	__u64 busy;    /* the program is writing */
	__u64 pad[13];
	__u64 tail;    /* a block's start: up to here, memory may be used again */
	__u64 wake_at; /* a head beyond it wakes the reader; all ones: nobody sleeps */
	__u64 pad2[14];
};

#endif
