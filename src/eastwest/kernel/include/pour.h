/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Packets of a stream from a socket to a file, as long as there is nothing else to be done with them. Whatever is not
 * a packet that can be read is left in the buffer, and so is what the file may not take.
 */
#ifndef EASTWEST_POUR_H
#define EASTWEST_POUR_H

#include <errno.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "blocks.h"

struct pour {
	int from; /* a socket */
	int to;
	uint64_t most;	     /* bytes that `to` may take */
	uint64_t until;	     /* ns of CLOCK_MONOTONIC */
	const int *stop;     /* once it is not 0, nothing that came later is written */
	unsigned char *room; /* what came is here, from the beginning on */
	size_t size;
};

struct poured {
	size_t held;	    /* bytes in the room that are not dealt with */
	uint64_t received;  /* bytes */
	uint64_t written;   /* bytes */
	uint64_t packets;   /* that left the room, */
	uint64_t bytes;	    /* and how long they were on the wire */
	uint64_t unwritten; /* of the packets, those that the file refused */
	_Bool empty;	    /* nothing more is there to be received, */
	int read_error;	    /* or ever will be */
	int write_error;    /* after which the file may have a part of what it refused */
};

static int pour_write(int to, const unsigned char *from, size_t size)
{
	while (size) {
		ssize_t took = write(to, from, size);

		if (took < 0 && errno != EINTR)
			return errno;
		if (took > 0) {
			from += took;
			size -= took;
		}
	}
	return 0;
}

/* Write the packets that are whole. Says whether what is held then waits for more of its kind. */
static int pour_packets(struct blocks *known, const struct pour *pour, struct poured *done)
{
	int stop;
	size_t end = east_blocks_walk(known, pour->room, 0, done->held, UINT64_MAX, &stop);

	if (end) {
		if (end > pour->most - done->written || __atomic_load_n(pour->stop, __ATOMIC_ACQUIRE))
			return 0;
		done->packets += known->packets;
		done->bytes += known->bytes;
		done->write_error = pour_write(pour->to, pour->room, end);
		if (done->write_error)
			done->unwritten = known->packets;
		else
			done->written += end;
		done->held -= end;
		memmove(pour->room, pour->room + end, done->held);
	}
	return stop == BLOCKS_INCOMPLETE && !done->write_error;
}

static int pour_receive(const struct pour *pour, struct poured *done)
{
	ssize_t came;

	do
		came = recv(pour->from, pour->room + done->held, pour->size - done->held, MSG_DONTWAIT);
	while (came < 0 && errno == EINTR);
	if (came <= 0) {
		done->empty = 1;
		done->read_error = came && errno != EAGAIN && errno != EWOULDBLOCK ? errno : 0;
		return 0;
	}
	done->held += came;
	done->received += came;
	return 1;
}

static int pour_is_over(const struct pour *pour)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000000000 + now.tv_nsec >= pour->until;
}

/* Goes on until nothing more is there, or something else is to be done. `done->held`: what is there at first. */
static void east_pour(struct blocks *known, const struct pour *pour, struct poured *done)
{
	while (pour_packets(known, pour, done) && !pour_is_over(pour) && pour_receive(pour, done))
		;
}

#endif
