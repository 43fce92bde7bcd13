/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Parse a plain frame (TCP or UDP over IPv4) in a tc program: one check of bounds for all headers. No maps.
 */
#ifndef VIFPROBE_PLAIN_H
#define VIFPROBE_PLAIN_H

#include "parse.h"

/* Words of a plain frame in network order, without the bits that can differ: see parse_plain(). */
#define PLAIN_VERSION 0x45
#define PLAIN_TYPE_AND_VERSION bpf_htonl(TYPE_IPV4 << 16 | 0x4500)
#define PLAIN_TYPE_AND_VERSION_MASK bpf_htonl(0xffffff00)
#define PLAIN_FRAGMENT_AND_PROTO_MASK bpf_htonl(0x1fff00ff)

/* data: at least as many bytes as the shortest plain frame has. */
static __always_inline bool has_plain_version(void *data, struct frame *frame)
{
#if LAYER_3
	return *(u8 *)data == PLAIN_VERSION && frame->skb->protocol == bpf_htons(TYPE_IPV4);
#else
	return (*(u32 *)(data + ETH_TYPE_OFFSET) & PLAIN_TYPE_AND_VERSION_MASK) == PLAIN_TYPE_AND_VERSION;
#endif
}

/*
 * Parse a plain frame, as almost all frames are: TCP or UDP over IPv4 without options, no tag in the bytes, all headers
 * complete and in the linear part of the skb. Bounds are checked once and each word is read once. True: the result is
 * the same as that of parse(). data: first byte of the frame.
 */
static __always_inline bool parse_plain(void *data, struct frame *frame, struct packet *packet)
{
	u64 total, header, flags, proto; /* whole registers, see struct packet */

	if (unlikely(data + PLAIN_TRANSPORT + TCP_MIN_LEN > (void *)(long)frame->skb->data_end))
		return false;
	if (unlikely(!has_plain_version(data, frame)))
		return false;
	proto = *(u32 *)(data + L2_HEADER_LEN + 6) & PLAIN_FRAGMENT_AND_PROTO_MASK;
	total = bpf_ntohs(*(u16 *)(data + L2_HEADER_LEN + 2));
	/* Lengths that exceed the frame, or that have another meaning. */
	if (unlikely(L2_HEADER_LEN + total > frame->length))
		return false;
	if (proto == bpf_htonl(PROTO_TCP)) {
		header = *(u8 *)(data + PLAIN_TRANSPORT + 12) >> 2 & 0x3c;
		flags = *(u8 *)(data + PLAIN_TRANSPORT + 13);
		if (unlikely(header < TCP_MIN_LEN) || unlikely(total < IPV4_MIN_LEN + header))
			return false;
		packet->packet_class = tcp_flags_class(flags, total > IPV4_MIN_LEN + header);
	} else {
		header = UDP_LEN;
		if (unlikely(proto != bpf_htonl(PROTO_UDP)) || unlikely(total < IPV4_MIN_LEN + UDP_LEN) ||
		    unlikely(bpf_ntohs(*(u16 *)(data + PLAIN_TRANSPORT + 4)) < UDP_LEN))
			return false;
		packet->packet_class = CLASS_UDP;
	}
	packet->frame_bytes = frame->length;
	packet->header_bytes = PLAIN_TRANSPORT + header;
	packet->network_offset = L2_HEADER_LEN;
	packet->transport_offset = PLAIN_TRANSPORT;
	packet->is_ipv6 = false;
	/* Computed without a branch. */
	packet->ethertype = ETHERTYPE_IPV4 + frame->tagged * (ETHERTYPE_VLAN - ETHERTYPE_IPV4);
	return true;
}

#endif
