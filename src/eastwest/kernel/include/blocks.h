/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * A walk over the blocks of a pcapng stream from the network (draft-ietf-opsawg-pcapng): packets are checked and
 * counted here, all other blocks are found. Whoever sent it may be hostile: nothing beyond `end` is read.
 */
#ifndef EASTWEST_BLOCKS_H
#define EASTWEST_BLOCKS_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "pcapng.h"

enum blocks_type {
	BLOCK_INTERFACE = 1,
	BLOCK_PACKET = 2,	 /* obsolete */
	BLOCK_SIMPLE_PACKET = 3, /* without time and interface */
	BLOCK_SECTION = 0x0A0D0D0A,
};

enum blocks_sizes {
	BLOCKS_LEAST = 12,    /* type, length, length */
	BLOCKS_MAGIC = 0x1A2B3C4D,
	BLOCKS_WORDS = 1 << 16, /* of a block that holds no packet */
};

#define BLOCKS_UNTOLD UINT32_MAX /* the number of an interface that has none */

enum blocks_stop {
	BLOCKS_INCOMPLETE, /* what follows is not all there */
	BLOCKS_ENOUGH,	   /* so many packets were asked for */
	BLOCKS_SECTION,	   /* here is one, whole */
	BLOCKS_INTERFACE,
	BLOCKS_OTHER, /* of a kind that a reader passes over */
	BLOCKS_BAD_LENGTH,
	BLOCKS_BAD_TRAILER,
	BLOCKS_BAD_CAPTURED,
	BLOCKS_BAD_INTERFACE,
	BLOCKS_BAD_OPTIONS,
	BLOCKS_BAD_PACKET,
	BLOCKS_BAD_VERSION,
	BLOCKS_FOREIGN_ORDER,
	BLOCKS_NO_SECTION,
};

struct blocks {
	uint32_t in_section; /* of the stream so far: whether it has begun, */
	uint32_t interfaces; /* and how many its section has */
	uint32_t longest;    /* packet block that is taken, in bytes */
	uint64_t packets;    /* of this walk, */
	uint64_t bytes;	     /* and how long they were on the wire */
	uint32_t length;     /* of the block at which it stopped */
};

static uint32_t blocks_word(const unsigned char *at)
{
	uint32_t word;

	memcpy(&word, at, sizeof(word));
	return word;
}

static uint16_t blocks_half(const unsigned char *at)
{
	uint16_t half;

	memcpy(&half, at, sizeof(half));
	return half;
}

/* Options that have one length only; a reader that finds another gives up the file. */
static int blocks_option_fits(uint32_t code, uint32_t length)
{
	switch (code) {
	case EPB_FLAGS:
	case 6: /* epb_queue */
		return length == 4;
	case EPB_DROPCOUNT:
	case 5: /* epb_packetid */
		return length == 8;
	case 3: /* epb_hash, */
	case 7: /* epb_verdict: their kind comes first */
		return length >= 1;
	case 2988:
	case OPT_CUSTOM:
	case 19372:
	case 19373: /* custom: an enterprise number comes first */
		return length >= 4;
	}
	return 1;
}

/* Whether these are options as a tap writes them: of a stream nearly all are, and that is told at once. */
static int blocks_options_of_tap(const unsigned char *at, size_t size)
{
	struct epb_tail tail;

	if (size != offsetof(struct epb_tail, length))
		return 0;
	memcpy(&tail, at, offsetof(struct epb_tail, length));
	return !((tail.flags_code ^ EPB_FLAGS) | (tail.flags_length ^ sizeof(tail.flags)) |
		 (tail.dropcount_code ^ EPB_DROPCOUNT) | (tail.dropcount_length ^ 8) | (tail.custom_code ^ OPT_CUSTOM) |
		 (tail.custom_length ^ (4 + sizeof(tail.custom))) | tail.end_of_options);
}

static int blocks_options_fit(const unsigned char *at, const unsigned char *end)
{
	if (blocks_options_of_tap(at, end - at))
		return 1;
	while (at < end) {
		/* Whole words, so four bytes are there. */
		uint16_t code = blocks_half(at), length = blocks_half(at + 2);
		size_t padded;

		if (!code)
			return !length;
		padded = ((size_t)length + 3) & ~(size_t)3;
		if (padded > (size_t)(end - at) - 4 || !blocks_option_fits(code, length))
			return 0;
		at += 4 + padded;
	}
	return 1;
}

static enum blocks_stop blocks_packet(struct blocks *known, const unsigned char *at)
{
	struct epb_head head;
	size_t room = known->length - sizeof(head) - 4, padded;

	memcpy(&head, at, sizeof(head));
	padded = ((size_t)head.captured + 3) & ~(size_t)3;
	if (padded > room)
		return BLOCKS_BAD_CAPTURED;
	if (head.interface >= known->interfaces)
		return BLOCKS_BAD_INTERFACE;
	at += sizeof(head);
	if (!blocks_options_fit(at + padded, at + room))
		return BLOCKS_BAD_OPTIONS;
	known->packets++;
	known->bytes += head.original;
	return BLOCKS_ENOUGH;
}

/* Which blocks' lengths are possible; `least` keeps what is read of each within it. */
static int blocks_length_fits(const struct blocks *known, uint32_t type)
{
	uint32_t least = BLOCKS_LEAST, most = BLOCKS_WORDS;

	if (type == EPB_TYPE) {
		least = sizeof(struct epb_head) + 4;
		most = known->longest;
	} else if (type == BLOCK_SECTION) {
		least = 28;
	} else if (type == BLOCK_INTERFACE) {
		least = 20;
	}
	return known->length >= least && known->length <= most && !(known->length & 3);
}

/* What kind of block is at `at`, where `left` bytes are; says BLOCKS_ENOUGH for a packet, which is counted. */
static enum blocks_stop blocks_one(struct blocks *known, const unsigned char *at, size_t left)
{
	uint32_t type;

	if (left < BLOCKS_LEAST)
		return BLOCKS_INCOMPLETE;
	type = blocks_word(at);
	known->length = blocks_word(at + 4);
	if (type == BLOCK_SECTION && blocks_word(at + 8) != BLOCKS_MAGIC)
		return blocks_word(at + 8) == 0x4D3C2B1A ? BLOCKS_FOREIGN_ORDER : BLOCKS_BAD_VERSION;
	if (type != BLOCK_SECTION && !known->in_section)
		return BLOCKS_NO_SECTION;
	if (!blocks_length_fits(known, type))
		return BLOCKS_BAD_LENGTH;
	if (known->length > left)
		return BLOCKS_INCOMPLETE;
	if (blocks_word(at + known->length - 4) != known->length)
		return BLOCKS_BAD_TRAILER;
	switch (type) {
	case EPB_TYPE:
		return blocks_packet(known, at);
	case BLOCK_SECTION:
		return blocks_half(at + 12) == 1 ? BLOCKS_SECTION : BLOCKS_BAD_VERSION; /* the major one */
	case BLOCK_INTERFACE:
		return BLOCKS_INTERFACE;
	case BLOCK_PACKET:
	case BLOCK_SIMPLE_PACKET:
		return BLOCKS_BAD_PACKET;
	}
	return BLOCKS_OTHER;
}

/* How far whole packets lie one behind the other from `start` on, at most `most` of them; why not further. */
static size_t east_blocks_walk(struct blocks *known, const void *buffer, size_t start, size_t end, uint64_t most,
			       int *stop)
{
	known->packets = known->bytes = 0;
	known->length = 0;
	*stop = BLOCKS_ENOUGH;
	while (known->packets < most) {
		*stop = blocks_one(known, (const unsigned char *)buffer + start, end - start);
		if (*stop != BLOCKS_ENOUGH)
			break;
		start += known->length;
	}
	return start;
}

/* Whether a packet's own option (pcapng.h), under this enterprise's number, says this service. */
static int blocks_of_service(const unsigned char *at, uint32_t enterprise, uint32_t service)
{
	const unsigned char *end = at + blocks_word(at + 4) - 4;
	struct epb_head head;
	struct tap_option own;

	memcpy(&head, at, sizeof(head));
	at += sizeof(head) + (((size_t)head.captured + 3) & ~(size_t)3);
	while (at < end && blocks_half(at)) {
		if (blocks_half(at) == OPT_CUSTOM && blocks_half(at + 2) == 4 + sizeof(own) &&
		    blocks_word(at + 4) == enterprise) {
			memcpy(&own, at + 8, sizeof(own));
			return own.format == TAP_OPTION_FORMAT && own.service == service;
		}
		at += 4 + (((size_t)blocks_half(at + 2) + 3) & ~(size_t)3);
	}
	return 0;
}

/*
 * Copy to `to` those packets, which a walk has passed, that are of a service, with the interface numbers that they
 * have among themselves: numbers[old], BLOCKS_UNTOLD until the first packet, when it is the next of `told`. Returns
 * their bytes.
 */
static size_t east_blocks_choose(const void *buffer, size_t start, size_t end, uint32_t enterprise, uint32_t service,
				 void *to, uint64_t *packets, uint32_t *numbers, uint32_t *told)
{
	const unsigned char *at = (const unsigned char *)buffer + start;
	const unsigned char *last = (const unsigned char *)buffer + end;
	unsigned char *next = to;

	for (*packets = 0; at < last; at += blocks_word(at + 4)) {
		uint32_t *number = &numbers[blocks_word(at + 8)];

		if (!blocks_of_service(at, enterprise, service))
			continue;
		if (*number == BLOCKS_UNTOLD)
			*number = (*told)++;
		memcpy(next, at, blocks_word(at + 4));
		memcpy(next + 8, number, sizeof(*number));
		next += blocks_word(at + 4);
		++*packets;
	}
	return next - (unsigned char *)to;
}

/* Give packets, which a walk has passed, other interface numbers: numbers[old]. */
static void east_blocks_renumber(void *buffer, size_t start, size_t end, const uint32_t *numbers)
{
	unsigned char *at = (unsigned char *)buffer + start;
	unsigned char *last = (unsigned char *)buffer + end;

	while (at < last) {
		uint32_t number = numbers[blocks_word(at + 8)];

		memcpy(at + 8, &number, sizeof(number));
		at += blocks_word(at + 4);
	}
}

#endif
