/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Parse a frame: bytes in, packet class out. No maps, no side effects.
 *
 * Contract: only bytes that are present are used. Every read is checked against the length of the frame (skb->len).
 * Bytes outside the linear part of the skb are read too, so the class does not depend on the layout of the skb.
 */
#ifndef VIFPROBE_PARSE_H
#define VIFPROBE_PARSE_H

#include "frame.h"

/* IANA protocol numbers; the extension headers are those that the kernel itself walks (net/ipv6/exthdrs_core.c). */
#define PROTO_HOP_BY_HOP 0
#define PROTO_ICMP 1
#define PROTO_TCP 6
#define PROTO_UDP 17
#define PROTO_ROUTING 43
#define PROTO_FRAGMENT 44
#define PROTO_AUTH 51
#define PROTO_ICMPV6 58
#define PROTO_DESTINATION 60

#define TCP_FIN 0x01
#define TCP_SYN 0x02
#define TCP_RST 0x04
#define TCP_ACK 0x10

#define IPV4_MAX_TOTAL 65535

struct cursor {
	struct frame *frame;
	u32 offset; /* of the next header, from the frame's start */
	u32 end;    /* end of the data that headers may use: of the frame, then of the IP payload */
	u32 transport; /* offset of the TCP header */
	u8 proto;   /* IP protocol of the next header */
};

static __always_inline bool room_for(const struct cursor *at, u32 bytes)
{
	return at->offset + bytes <= at->end;
}

/* True: an IP length field of 0 means "to the end", because 16 bits are too few: GSO and BIG TCP frames. */
static __always_inline bool zero_means_to_the_end(const struct cursor *at)
{
	return at->frame->gso_size || at->end - at->offset > IPV4_MAX_TOTAL;
}

static __always_inline u64 tcp_flags_class(u64 flags, bool payload)
{
	if (flags & TCP_SYN) {
		if (flags & (TCP_RST | TCP_FIN))
			return CLASS_TCP_ODD;
		return flags & TCP_ACK ? CLASS_TCP_SYNACK : CLASS_TCP_SYN;
	}
	if (flags & TCP_RST)
		return flags & TCP_FIN ? CLASS_TCP_ODD : CLASS_TCP_RST;
	if (flags & TCP_FIN)
		return flags & TCP_ACK ? CLASS_TCP_FIN : CLASS_TCP_ODD;
	if (flags & TCP_ACK)
		return payload ? CLASS_TCP_DATA : CLASS_TCP_ACK;
	return CLASS_TCP_ODD;
}

/* RFC 9293, 3.1. */
static __always_inline u8 parse_tcp(struct cursor *at)
{
	u16 raw;
	u32 header;

	if (unlikely(!room_for(at, TCP_MIN_LEN) || !load(at->frame, at->offset + 12, &raw, sizeof(raw))))
		return CLASS_MALFORMED;
	raw = bpf_ntohs(raw);
	header = (raw >> 12) * 4;
	if (header < TCP_MIN_LEN || !room_for(at, header))
		return CLASS_MALFORMED;
	at->transport = at->offset;
	at->offset += header;
	return tcp_flags_class(raw & 0xff, at->offset < at->end);
}

/* RFC 768. A length of 0 stands for a jumbogram (RFC 2675) or a GSO frame. */
static __always_inline u8 parse_udp(struct cursor *at)
{
	u16 length;

	if (unlikely(!room_for(at, UDP_LEN) || !load(at->frame, at->offset + 4, &length, sizeof(length))))
		return CLASS_MALFORMED;
	length = bpf_ntohs(length);
	if (length < UDP_LEN && !(length == 0 && zero_means_to_the_end(at)))
		return CLASS_MALFORMED;
	at->offset += UDP_LEN;
	return CLASS_UDP;
}

/* The header after IPv4, IPv6 and their extension headers. */
static __always_inline u8 parse_transport(struct cursor *at, bool ipv6)
{
	if (likely(at->proto == PROTO_TCP))
		return parse_tcp(at);
	switch (at->proto) {
	case PROTO_UDP:
		return parse_udp(at);
	case PROTO_ICMP:
		if (ipv6)
			return CLASS_IP_OTHER;
		return room_for(at, ICMP_LEN) ? CLASS_ICMP : CLASS_MALFORMED;
	case PROTO_ICMPV6:
		if (!ipv6)
			return CLASS_IP_OTHER;
		return room_for(at, ICMP_LEN) ? CLASS_ICMPV6 : CLASS_MALFORMED;
	default:
		return CLASS_IP_OTHER;
	}
}

static __always_inline bool is_extension(u8 proto, bool ipv6)
{
	if (proto == PROTO_AUTH)
		return true;
	return ipv6 && (proto == PROTO_HOP_BY_HOP || proto == PROTO_ROUTING || proto == PROTO_FRAGMENT ||
			proto == PROTO_DESTINATION);
}

/*
 * Skip extension headers (RFC 8200, 4) and AH (RFC 4302), up to EXTENSION_HEADERS_MAX headers and EXTENSION_REACH bytes
 * in total. Returns a class when the packet ends here, CLASS_COUNT when a transport header follows.
 */
static __always_inline u8 skip_extensions(struct cursor *at, bool ipv6)
{
	u32 farthest = at->offset + EXTENSION_REACH;

	if (likely(!is_extension(at->proto, ipv6)))
		return CLASS_COUNT;
	if (at->frame->skb && !copy_far(at->frame))
		return CLASS_MALFORMED;
	/* Verifier: a bounded loop; rolled, since unrolled it doubles the time to compile. */
#pragma nounroll
	for (int i = 0; i < EXTENSION_HEADERS_MAX; i++) {
		u8 proto = at->proto;
		u32 word, length;

		if (!is_extension(proto, ipv6))
			return CLASS_COUNT;
		if (unlikely(!room_for(at, 8) || !load(at->frame, at->offset, &word, sizeof(word))))
			return CLASS_MALFORMED;
		word = bpf_ntohl(word);
		at->proto = word >> 24;
		if (proto == PROTO_FRAGMENT) {
			/* Offset in the upper 13 bits of the second half; 0: first or atomic fragment. */
			if (word & 0xfff8)
				return CLASS_FRAGMENT;
			length = 8;
		} else if (proto == PROTO_AUTH) {
			length = ((word >> 16 & 0xff) + 2) * 4;
		} else {
			length = ((word >> 16 & 0xff) + 1) * 8;
		}
		if (unlikely(!room_for(at, length)))
			return CLASS_MALFORMED;
		at->offset = verifier_widen(at->frame->scratch, at->offset + length);
		if (unlikely(at->offset > farthest))
			return CLASS_IP_OTHER;
	}
	return is_extension(at->proto, ipv6) ? CLASS_IP_OTHER : CLASS_COUNT;
}

/* RFC 791, 3.1. */
static __always_inline u8 parse_ipv4(struct cursor *at)
{
	u32 words[3], header, total;

	if (unlikely(!room_for(at, IPV4_MIN_LEN) || !load(at->frame, at->offset, words, sizeof(words))))
		return CLASS_MALFORMED;
	words[0] = bpf_ntohl(words[0]);
	header = (words[0] >> 24 & 0xf) * 4;
	if (words[0] >> 28 != 4 || header < IPV4_MIN_LEN || !room_for(at, header))
		return CLASS_MALFORMED;
	total = words[0] & 0xffff;
	if (total || !zero_means_to_the_end(at)) {
		if (total < header)
			return CLASS_MALFORMED;
		/* Bytes after the datagram are padding, not payload. */
		if (room_for(at, total))
			at->end = at->offset + total;
	}
	at->offset += header;
	if (bpf_ntohl(words[1]) & 0x1fff)
		return CLASS_FRAGMENT;
	at->proto = bpf_ntohl(words[2]) >> 16;
	/* The caller parses extensions (AH) and transport, for both IP versions. */
	return CLASS_COUNT;
}

/* RFC 8200, 3. */
static __always_inline u8 parse_ipv6(struct cursor *at)
{
	u32 words[2], payload;

	if (unlikely(!room_for(at, IPV6_LEN) || !load(at->frame, at->offset, words, sizeof(words))))
		return CLASS_MALFORMED;
	if (bpf_ntohl(words[0]) >> 28 != 6)
		return CLASS_MALFORMED;
	words[1] = bpf_ntohl(words[1]);
	payload = words[1] >> 16;
	at->proto = words[1] >> 8;
	/* zero_means_to_the_end() needs the offset of this header: call it before the offset is advanced. */
	if ((payload || !zero_means_to_the_end(at)) && room_for(at, IPV6_LEN + payload))
		at->end = at->offset + IPV6_LEN + payload;
	at->offset += IPV6_LEN;
	return CLASS_COUNT;
}

static __always_inline u8 parse_ip(struct cursor *at, bool ipv6)
{
	u8 class = ipv6 ? parse_ipv6(at) : parse_ipv4(at);

	if (class == CLASS_COUNT)
		class = skip_extensions(at, ipv6);
	if (class == CLASS_COUNT)
		class = parse_transport(at, ipv6);
	return class;
}

/* RFC 826: the fixed part holds the lengths of the addresses. */
static __always_inline u8 parse_arp(struct cursor *at)
{
	u16 lengths;

	if (unlikely(!room_for(at, ARP_FIXED_LEN) || !load(at->frame, at->offset + 4, &lengths, sizeof(lengths))))
		return CLASS_MALFORMED;
	if (unlikely(!room_for(at, ARP_FIXED_LEN + 2 * ((lengths & 0xff) + (lengths >> 8)))))
		return CLASS_MALFORMED;
	return CLASS_ARP;
}

static __always_inline u8 ethertype_of(u16 type)
{
	switch (type) {
	case TYPE_IPV4:
		return ETHERTYPE_IPV4;
	case TYPE_IPV6:
		return ETHERTYPE_IPV6;
	case TYPE_ARP:
		return ETHERTYPE_ARP;
	case TYPE_VLAN:
	case TYPE_QINQ:
		return ETHERTYPE_VLAN;
	default:
		return ETHERTYPE_OTHER;
	}
}

/* Parse the whole frame. The kernel has removed an outer VLAN tag from the bytes before tc runs (frame->tagged). */
static __always_inline void parse(struct frame *frame, struct packet *packet, volatile u64 *scratch)
{
	struct cursor at = { .frame = frame, .offset = L2_HEADER_LEN, .end = frame->length };
	u32 tags = frame->tagged;
	u16 type;

	packet->frame_bytes = frame->length;
	packet->header_bytes = L2_HEADER_LEN;
	packet->network_offset = 0;
	packet->transport_offset = 0;
	packet->is_ipv6 = false;
	packet->ethertype = ETHERTYPE_OTHER;
	packet->packet_class = CLASS_MALFORMED;
	frame->scratch = scratch;
	if ((frame->skb && !copy_near(frame)) || !load_type(frame, &type))
		return;
	type = bpf_ntohs(type);
	packet->ethertype = tags ? ETHERTYPE_VLAN : ethertype_of(type);
#pragma unroll
	for (int i = 0; i < VLAN_TAGS_MAX; i++) {
		if ((type != TYPE_VLAN && type != TYPE_QINQ) || tags == VLAN_TAGS_MAX)
			break;
		if (!load(frame, at.offset + 2, &type, sizeof(type)))
			return;
		type = bpf_ntohs(type);
		at.offset += VLAN_TAG_LEN;
		tags++;
	}
	packet->network_offset = at.offset;
	packet->is_ipv6 = type == TYPE_IPV6;
	if (likely(type == TYPE_IPV4 || type == TYPE_IPV6))
		packet->packet_class = parse_ip(&at, type == TYPE_IPV6);
	else if (type == TYPE_ARP)
		packet->packet_class = parse_arp(&at);
	else
		packet->packet_class = CLASS_OTHER;
	packet->header_bytes = at.offset;
	packet->transport_offset = at.transport;
}

#endif
