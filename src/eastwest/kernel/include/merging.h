/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * All of a destination's rings as one row of blocks in the order of their times. Blocks are not moved for that: the
 * row is a list of runs, each of blocks that lie one behind the other in one ring.
 */
#ifndef EASTWEST_MERGING_H
#define EASTWEST_MERGING_H

#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>

#include "pcapng.h"
#include "reading.h"

enum merge_sizes {
	MERGE_RUNS = 1024, /* what one sendmsg() takes (UIO_MAXIOV) */
};

/* How far a ring is merged. */
struct merge_cursor {
	struct ring *ring;
	__u64 lap; /* where the lap began that `at` is in */
	__u64 at;
	__u64 end; /* of the blocks that lie one behind the other from `at` on */
	__u64 time;
	__u32 length; /* of the block at `at`; 0: nothing is to be merged */
};

struct merge_run {
	struct ring *ring;
	__u64 start; /* a block's: what lies before it is handed over */
	__u64 end;
	__u64 next; /* where the program goes on */
	__u64 blocks;
};

/* Of each run, `pieces` is what is not handed over; of all of them, `left` bytes. */
struct merge {
	__u64 mask;
	__u64 left;
	__u32 first;
	__u32 count;
	struct merge_run runs[MERGE_RUNS];
	struct iovec pieces[MERGE_RUNS];
};

/* What is to be merged: no block with a time after `old`, up to `until`: beyond that is what a clock gave that was set. */
struct merge_limits {
	__u64 old;
	__u64 until;
	__u64 bytes;
};

static unsigned char *east_merge_place(const struct merge *merge, struct ring *ring, __u64 lap, __u64 at)
{
	return (unsigned char *)ring + RING_PAGE + (at - lap);
}

/* Look at the block at the cursor. Says whether there is one that is too young. */
static int east_merge_front(const struct merge *merge, const struct merge_limits *limits, struct merge_cursor *cursor)
{
	const struct epb_head *block;

	cursor->length = 0;
	if (cursor->at == cursor->end) {
		cursor->at = east_ring_next(cursor->lap, cursor->end, merge->mask);
		if ((cursor->at & ~merge->mask) == cursor->lap)
			return 0;
		cursor->lap = cursor->at;
		cursor->end = east_ring_end(cursor->ring, cursor->at, merge->mask);
		if (cursor->at == cursor->end)
			return 0;
	}
	block = (const void *)east_merge_place(merge, cursor->ring, cursor->lap, cursor->at);
	if (block->length < sizeof(*block) || block->length > cursor->end - cursor->at)
		return 0;
	cursor->time = (__u64)block->time_high << 32 | block->time_low;
	if (cursor->time > limits->old && cursor->time <= limits->until)
		return 1;
	cursor->length = block->length;
	return 0;
}

/* The cursor with the earliest block, and the time up to which no other has one; NULL: there is no block. */
static struct merge_cursor *east_merge_earliest(struct merge_cursor *cursors, __u32 count, __u64 *until)
{
	struct merge_cursor *first = NULL;

	*until = ~0ULL;
	for (struct merge_cursor *one = cursors; one < cursors + count; one++) {
		if (!one->length)
			continue;
		if (!first || one->time < first->time) {
			if (first)
				*until = first->time;
			first = one;
		} else if (one->time < *until) {
			*until = one->time;
		}
	}
	return first;
}

/* A run from the cursor on, as far as no other ring has an earlier block. Says whether a block is too young. */
static int east_merge_run(struct merge *merge, const struct merge_limits *limits, struct merge_cursor *cursor,
			  __u64 until)
{
	__u64 lap = cursor->lap, end = cursor->end;
	struct merge_run *run = &merge->runs[merge->count];
	int young;

	*run = (struct merge_run){.ring = cursor->ring, .start = cursor->at};
	do {
		run->blocks++;
		merge->left += cursor->length;
		cursor->at += cursor->length;
		run->end = cursor->at;
		young = east_merge_front(merge, limits, cursor);
	} while (cursor->length && cursor->lap == lap && cursor->time <= until && merge->left < limits->bytes);
	run->next = run->end == end ? east_ring_next(lap, end, merge->mask) : run->end;
	merge->pieces[merge->count++] = (struct iovec){
		.iov_base = east_merge_place(merge, run->ring, lap, run->start),
		.iov_len = run->end - run->start,
	};
	return young;
}

/* Finds the runs of what is there from each ring's tail on. Says whether blocks are left since they are too young. */
static int east_merge_look(struct merge *merge, struct merge_cursor *cursors, __u32 count,
			   const struct merge_limits *limits)
{
	struct merge_cursor *cursor;
	__u64 until;
	int young = 0;

	merge->first = merge->count = merge->left = 0;
	for (cursor = cursors; cursor < cursors + count; cursor++) {
		cursor->at = east_ring_tail(cursor->ring);
		cursor->lap = cursor->at & ~merge->mask;
		cursor->end = east_ring_end(cursor->ring, cursor->at, merge->mask);
		young |= east_merge_front(merge, limits, cursor);
	}
	while (merge->count < MERGE_RUNS && merge->left < limits->bytes) {
		cursor = east_merge_earliest(cursors, count, &until);
		if (!cursor)
			break;
		young |= east_merge_run(merge, limits, cursor, until);
	}
	return young;
}

/* Hands the runs to a socket from where they lie; how much it took, or an error's number below zero. */
static long east_merge_send(struct merge *merge, int socket)
{
	struct msghdr message = {
		.msg_iov = merge->pieces + merge->first,
		.msg_iovlen = merge->count - merge->first,
	};
	ssize_t sent = sendmsg(socket, &message, MSG_DONTWAIT | MSG_NOSIGNAL);

	return sent < 0 ? -errno : sent;
}

/* Copies the runs, as far as there is room; how much that was. */
static size_t east_merge_gather(const struct merge *merge, unsigned char *to, size_t room)
{
	size_t copied = 0;

	for (__u32 i = merge->first; i < merge->count && copied < room; i++) {
		size_t length = merge->pieces[i].iov_len;

		if (length > room - copied)
			length = room - copied;
		memcpy(to + copied, merge->pieces[i].iov_base, length);
		copied += length;
	}
	return copied;
}

/* So many bytes of the runs are handed over: gives memory back, and says how many whole blocks that was. */
static __u64 east_merge_sent(struct merge *merge, size_t bytes)
{
	__u64 blocks = 0;

	merge->left -= bytes;
	while (bytes) {
		struct merge_run *run = &merge->runs[merge->first];
		struct iovec *piece = &merge->pieces[merge->first];
		__u64 some = 0;

		if (bytes >= piece->iov_len) {
			bytes -= piece->iov_len;
			blocks += run->blocks;
			east_ring_free(run->ring, run->next);
			merge->first++;
			continue;
		}
		piece->iov_base = (unsigned char *)piece->iov_base + bytes;
		piece->iov_len -= bytes;
		run->start = east_ring_boundary(run->ring, run->start, run->end - piece->iov_len, merge->mask, &some);
		run->blocks -= some;
		blocks += some;
		east_ring_free(run->ring, run->start);
		break;
	}
	return blocks;
}

#endif
