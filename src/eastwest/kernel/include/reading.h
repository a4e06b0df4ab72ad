/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * The reader's side of a ring. Another CPU's program writes it at the same time, so each of the four shared
 * words is loaded and stored here, with the order it needs, and nowhere else.
 */
#ifndef EASTWEST_READING_H
#define EASTWEST_READING_H

#include <stdint.h>
#include <linux/types.h>

#include "ring.h"

/* An end of whole blocks that lie one behind the other from `from` on; `from` itself where there are none. */
static __u64 east_ring_end(struct ring *ring, __u64 from, __u64 mask)
{
	__u64 head = __atomic_load_n(&ring->head, __ATOMIC_ACQUIRE);

	if ((head & ~mask) == (from & ~mask))
		return head;
	/* Written before that head, and not again before tail leaves the lap that `from` is in. */
	return __atomic_load_n(&ring->lap_end, __ATOMIC_RELAXED);
}

static __u64 east_ring_tail(struct ring *ring)
{
	return __atomic_load_n(&ring->tail, __ATOMIC_RELAXED);
}

/* What lies before `tail` has been read. */
static void east_ring_free(struct ring *ring, __u64 tail)
{
	__atomic_store_n(&ring->tail, tail, __ATOMIC_RELEASE);
}

/* Bytes that wait to be read, gaps at the ends of laps among them. */
static __u64 east_ring_waiting(struct ring *ring)
{
	return __atomic_load_n(&ring->head, __ATOMIC_RELAXED) - east_ring_tail(ring);
}

/* Have the program wake the reader once more than `backlog` bytes wait; says whether they do already. */
static int east_ring_arm(struct ring *ring, __u64 backlog)
{
	__u64 at = east_ring_tail(ring) + backlog;

	__atomic_store_n(&ring->wake_at, at, __ATOMIC_RELAXED);
	/* Either we see the new head here, or the program, whose exchange is a full barrier, sees wake_at. */
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	return __atomic_load_n(&ring->head, __ATOMIC_RELAXED) > at;
}

/* The last start or end of a block up to `limit`, counted from the block at `from`; adds the blocks between. */
static __u64 east_ring_boundary(struct ring *ring, __u64 from, __u64 limit, __u64 mask, __u64 *blocks)
{
	const unsigned char *place = (const unsigned char *)ring + RING_PAGE + (from & mask);

	while (from + 12 <= limit) {
		__u32 length = *(const __u32 *)(place + 4);

		if (length < 12 || length > limit - from)
			break;
		from += length;
		place += length;
		++*blocks;
	}
	return from;
}

/* Where the program goes on behind blocks that end at `end`: after what ended beyond the ring, at the next lap. */
static __u64 east_ring_next(__u64 lap, __u64 end, __u64 mask)
{
	return end - lap > mask ? lap + mask + 1 : end;
}

/* Blocks that are written and not freed, counted one by one. */
static __u64 east_ring_pending(struct ring *ring, __u64 mask)
{
	__u64 from = east_ring_tail(ring), end, blocks = 0;

	while ((end = east_ring_end(ring, from, mask)) > from) {
		east_ring_boundary(ring, from, end, mask, &blocks);
		from = east_ring_next(from & ~mask, end, mask);
	}
	return blocks;
}

#endif
