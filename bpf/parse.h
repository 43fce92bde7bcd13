/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Packet parsing: bytes in, packet class out. Pure: no maps, no side effects.
 *
 * Contract: headers are believed only as far as the bytes go. Every read is checked against the frame's length
 * (skb->len), and reaches data outside the skb's linear part, so a class never depends on how an skb is laid out.
 */
#ifndef VIFPROBE_PARSE_H
#define VIFPROBE_PARSE_H

#include "layout.h"

/* They keep the plain packet's path together: what runs between two packets' caches is what costs. */
#define likely(condition) __builtin_expect(!!(condition), 1)
#define unlikely(condition) __builtin_expect(!!(condition), 0)

#define ETH_HEADER_LEN 14
#define ETH_TYPE_OFFSET 12
#define ARP_FIXED_LEN 8
#define IPV4_MIN_LEN 20
#define IPV6_LEN 40
#define TCP_MIN_LEN 20
#define UDP_LEN 8
#define ICMP_LEN 8

/* Where the transport header starts without VLAN tag and IP options. */
#define PLAIN_TRANSPORT (ETH_HEADER_LEN + IPV4_MIN_LEN)

#define TYPE_IPV4 0x0800
#define TYPE_ARP 0x0806
#define TYPE_VLAN 0x8100
#define TYPE_QINQ 0x88a8
#define TYPE_IPV6 0x86dd

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

/* Words of a plain frame in network order, what may differ left out: see parse_plain(). */
#define PLAIN_TYPE_AND_VERSION bpf_htonl(TYPE_IPV4 << 16 | 0x4500)
#define PLAIN_TYPE_AND_VERSION_MASK bpf_htonl(0xffffff00)
#define PLAIN_FRAGMENT_AND_PROTO bpf_htonl(PROTO_TCP)
#define PLAIN_FRAGMENT_AND_PROTO_MASK bpf_htonl(0x1fff00ff)

struct packet {
	u8 ethertype;
	u8 packet_class;
	u32 frame_bytes;  /* skb->len */
	u32 header_bytes; /* all headers that GSO repeats in each segment: L2 up to and including TCP or UDP */
	/* Of TCP, where they lie in the bytes: */
	u32 network_offset;
	u32 transport_offset;
	bool is_ipv6;
	bool is_plain;  /* they lie where those of TCP over IPv4 do without tag and options */
};

/*
 * Where a frame's bytes and properties come from: a tc program's context; or, in a tracepoint and in a replay, what is
 * known of the frame, and where its bytes lie.
 */
struct frame {
	struct __sk_buff *skb; /* NULL in a tracepoint and in a replay */
	u64 start;             /* there: kernel address of the first byte */
	u32 linear_bytes;      /* there: how many lie there; the rest is out of reach */
	u32 length;
	u32 gso_size;
	bool tagged;     /* the kernel keeps an outer VLAN tag beside the bytes */
	bool unreadable; /* set by load(): a header lies out of reach */
	/* Tracepoint, for samples only: */
	bool untagged;   /* the tag is in the bytes still, and counted as taken out */
	u16 vlan_tci;    /* the tag beside the bytes, and its type in network order */
	u16 vlan_proto;
};

struct cursor {
	struct frame *frame;
	u32 offset; /* of the next header, from the frame's start */
	u32 end;    /* first byte that no header may reach: end of the frame, then of the IP payload */
	u32 transport; /* where the TCP header begins */
	u8 proto;   /* IP protocol of the next header */
	volatile u64 *scratch; /* see forget() */
};

/*
 * Verifier: a value that went through memory is any value. What follows is then checked once, and not once for each
 * path that led to a value of its own: a tenth of the instructions to check, 80 ms less at the start of a run.
 */
static __always_inline u64 forget(volatile u64 *scratch, u64 value)
{
	*scratch = value;
	return *scratch;
}

/* Copy `bytes` bytes at `offset`, wherever in the skb they lie. False: the frame ends before, or they can't be read. */
static __always_inline bool load(struct frame *frame, u32 offset, void *to, u32 bytes)
{
	if (frame->skb)
		return bpf_skb_load_bytes(frame->skb, offset, to, bytes) == 0;
	if (offset + bytes > frame->linear_bytes) {
		frame->unreadable = offset + bytes <= frame->length;
		return false;
	}
	return bpf_probe_read_kernel(to, bytes, (void *)(frame->start + offset)) == 0;
}

/*
 * The same, quicker for a header at its usual place (a constant, as is `bytes`): read where it lies, unless that is
 * outside the skb's linear part (vhost, TSO).
 * Verifier: packet bytes at constant offsets only, or it would tell the offsets of all header chains apart.
 */
static __always_inline bool load_usual(struct frame *frame, u32 offset, const u32 usual, void *to, const u32 bytes)
{
	void *from;

	if (!frame->skb)
		return load(frame, offset, to, bytes);
	from = (void *)(long)frame->skb->data + usual;
	if (unlikely(offset != usual || from + bytes > (void *)(long)frame->skb->data_end))
		return load(frame, offset, to, bytes);
	/* In words: a memcpy would be split into single bytes for alignment's sake. */
	if (bytes == sizeof(u16))
		*(u16 *)to = *(u16 *)from;
	if (bytes >= sizeof(u32))
		((u32 *)to)[0] = ((u32 *)from)[0];
	if (bytes >= 2 * sizeof(u32))
		((u32 *)to)[1] = ((u32 *)from)[1];
	if (bytes >= 3 * sizeof(u32))
		((u32 *)to)[2] = ((u32 *)from)[2];
	return true;
}

static __always_inline bool room_for(const struct cursor *at, u32 bytes)
{
	return at->offset + bytes <= at->end;
}

/* An IP length field of 0 means "to the end" in what no 16-bit field can hold: GSO and BIG TCP frames. */
static __always_inline bool zero_means_to_the_end(const struct cursor *at)
{
	return at->frame->gso_size || at->end - at->offset > IPV4_MAX_TOTAL;
}

static __always_inline u8 tcp_flags_class(u8 flags, bool payload)
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

	if (unlikely(!room_for(at, TCP_MIN_LEN) || !load_usual(at->frame, at->offset + 12, PLAIN_TRANSPORT + 12, &raw, sizeof(raw))))
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

	if (unlikely(!room_for(at, UDP_LEN) || !load_usual(at->frame, at->offset + 4, PLAIN_TRANSPORT + 4, &length, sizeof(length))))
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
 * Step over extension headers (RFC 8200, 4) and AH (RFC 4302).
 * Returns a class where the walk ends the matter, CLASS_COUNT where a transport header follows.
 */
static __always_inline u8 skip_extensions(struct cursor *at, bool ipv6)
{
	/* Verifier: a bounded loop; rolled, since unrolled it doubles the time to compile. */
#pragma nounroll
	for (int i = 0; i < EXTENSION_HEADERS_MAX; i++) {
		u8 proto = at->proto;
		u32 word, length;

		if (likely(!is_extension(proto, ipv6)))
			return CLASS_COUNT;
		if (unlikely(!room_for(at, 8) || !load(at->frame, at->offset, &word, sizeof(word))))
			return CLASS_MALFORMED;
		word = bpf_ntohl(word);
		at->proto = word >> 24;
		if (proto == PROTO_FRAGMENT) {
			/* Offset in the upper 13 bits of the second half; 0: first or atomic fragment. */
			if (word & 0xfff8)
				return CLASS_FRAGMENT;
			at->offset = forget(at->scratch, at->offset + 8);
			continue;
		}
		length = (word >> 16) & 0xff;
		length = proto == PROTO_AUTH ? (length + 2) * 4 : (length + 1) * 8;
		if (unlikely(!room_for(at, length)))
			return CLASS_MALFORMED;
		at->offset = forget(at->scratch, at->offset + length);
	}
	return is_extension(at->proto, ipv6) ? CLASS_IP_OTHER : CLASS_COUNT;
}

/* RFC 791, 3.1. */
static __always_inline u8 parse_ipv4(struct cursor *at)
{
	u32 words[3], header, total;

	if (unlikely(!room_for(at, IPV4_MIN_LEN) || !load_usual(at->frame, at->offset, ETH_HEADER_LEN, words, sizeof(words))))
		return CLASS_MALFORMED;
	words[0] = bpf_ntohl(words[0]);
	header = (words[0] >> 24 & 0xf) * 4;
	if (words[0] >> 28 != 4 || header < IPV4_MIN_LEN || !room_for(at, header))
		return CLASS_MALFORMED;
	total = words[0] & 0xffff;
	if (total || !zero_means_to_the_end(at)) {
		if (total < header)
			return CLASS_MALFORMED;
		/* Past the datagram is padding, no payload. */
		if (room_for(at, total))
			at->end = at->offset + total;
	}
	at->offset += header;
	if (bpf_ntohl(words[1]) & 0x1fff)
		return CLASS_FRAGMENT;
	at->proto = bpf_ntohl(words[2]) >> 16;
	/* Left to the caller's common tail: extensions (AH) and transport. */
	return CLASS_COUNT;
}

/* RFC 8200, 3. */
static __always_inline u8 parse_ipv6(struct cursor *at)
{
	u32 words[2], payload;

	if (unlikely(!room_for(at, IPV6_LEN) || !load_usual(at->frame, at->offset, ETH_HEADER_LEN, words, sizeof(words))))
		return CLASS_MALFORMED;
	if (bpf_ntohl(words[0]) >> 28 != 6)
		return CLASS_MALFORMED;
	words[1] = bpf_ntohl(words[1]);
	payload = words[1] >> 16;
	at->proto = words[1] >> 8;
	/* zero_means_to_the_end() looks at the header's own place: before stepping over it. */
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

/* RFC 826: the fixed part says how long the addresses are. */
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

/* The whole frame. The kernel has taken an outer VLAN tag out of the bytes before tc runs (frame->tagged). */
static __always_inline void parse(struct frame *frame, struct packet *packet, volatile u64 *scratch)
{
	struct cursor at = { .frame = frame, .offset = ETH_HEADER_LEN, .end = frame->length, .scratch = scratch };
	u32 tags = frame->tagged;
	u16 type;

	packet->frame_bytes = frame->length;
	packet->header_bytes = ETH_HEADER_LEN;
	packet->network_offset = 0;
	packet->transport_offset = 0;
	packet->is_ipv6 = false;
	packet->ethertype = ETHERTYPE_OTHER;
	packet->packet_class = CLASS_MALFORMED;
	if (!load_usual(frame, ETH_TYPE_OFFSET, ETH_TYPE_OFFSET, &type, sizeof(type)))
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

/* Where the headers lie, in one word, so that it can go through forget() at once; and back. */
static __always_inline u64 packed(const struct packet *packet)
{
	return packet->header_bytes | (u64)packet->transport_offset << 16 | (u64)packet->network_offset << 32 |
	       (u64)packet->is_ipv6 << 48;
}

static __always_inline void unpack(u64 all, struct packet *packet)
{
	packet->is_plain = all >> 16 == (PLAIN_TRANSPORT | ETH_HEADER_LEN << 16);
	packet->header_bytes = (u16)all;
	packet->transport_offset = (u16)(all >> 16);
	packet->network_offset = (u16)(all >> 32);
	packet->is_ipv6 = all >> 48;
}

/*
 * What almost all frames are: TCP over IPv4, no options in between, no tag in the bytes, all headers whole and in the skb's
 * linear part. Bounds are checked once and each word is read once; where this says true, it says what parse() would.
 */
static __always_inline bool parse_plain(struct frame *frame, struct packet *packet)
{
	void *data = (void *)(long)frame->skb->data;
	u32 total, header;
	u16 flags;

	if (unlikely(data + PLAIN_TRANSPORT + TCP_MIN_LEN > (void *)(long)frame->skb->data_end))
		return false;
	if (unlikely((*(u32 *)(data + ETH_TYPE_OFFSET) & PLAIN_TYPE_AND_VERSION_MASK) != PLAIN_TYPE_AND_VERSION))
		return false;
	if (unlikely((*(u32 *)(data + ETH_HEADER_LEN + 6) & PLAIN_FRAGMENT_AND_PROTO_MASK) != PLAIN_FRAGMENT_AND_PROTO))
		return false;
	total = bpf_ntohs(*(u16 *)(data + ETH_HEADER_LEN + 2));
	flags = bpf_ntohs(*(u16 *)(data + PLAIN_TRANSPORT + 12));
	header = flags >> 10 & 0x3c;
	/* Lengths that don't fit, or that stand for others. */
	if (unlikely(header < TCP_MIN_LEN) || unlikely(total < IPV4_MIN_LEN + header) ||
	    unlikely(ETH_HEADER_LEN + total > frame->length))
		return false;
	packet->frame_bytes = frame->length;
	packet->header_bytes = PLAIN_TRANSPORT + header;
	packet->network_offset = ETH_HEADER_LEN;
	packet->transport_offset = PLAIN_TRANSPORT;
	packet->is_ipv6 = false;
	packet->ethertype = frame->tagged ? ETHERTYPE_VLAN : ETHERTYPE_IPV4;
	packet->packet_class = tcp_flags_class(flags & 0xff, total > IPV4_MIN_LEN + header);
	return true;
}

/*
 * Where a frame was parsed with all its tags: the kernel takes the outer one out of the bytes before tc runs
 * (__netif_receive_skb_core calls skb_vlan_untag), and what is counted is the frame as tc sees it.
 */
static __always_inline void untag(struct frame *frame, struct packet *packet)
{
	if (frame->tagged || packet->ethertype != ETHERTYPE_VLAN)
		return;
	frame->tagged = true;
	frame->untagged = true;
	frame->length -= VLAN_TAG_LEN;
	packet->frame_bytes -= VLAN_TAG_LEN;
	if (packet->header_bytes >= ETH_HEADER_LEN + VLAN_TAG_LEN)
		packet->header_bytes -= VLAN_TAG_LEN;
}

/* Too short for its tag and the type behind it: freed before tc (net/core/skbuff.c, skb_vlan_untag), so not offered. */
static __always_inline bool ends_within_tag(struct frame *frame, struct packet *packet)
{
	return !frame->tagged && packet->ethertype == ETHERTYPE_VLAN &&
	       frame->length < ETH_HEADER_LEN + VLAN_TAG_LEN + 2;
}

/* Log-linear bucket of a frame length: vifprobe.layout.size_bucket() in integers. */
static __always_inline u32 size_bucket(u32 bytes)
{
	u32 octave = 0, rest = bytes >> SIZE_FIRST_EDGE_LOG2;

	if (!rest)
		return 0;
	if (bytes >= SIZE_LAST_EDGE)
		return SIZE_BUCKETS - 1;
	if (rest >= 1 << 8) {
		octave += 8;
		rest >>= 8;
	}
	if (rest >= 1 << 4) {
		octave += 4;
		rest >>= 4;
	}
	if (rest >= 1 << 2) {
		octave += 2;
		rest >>= 2;
	}
	if (rest >= 1 << 1)
		octave += 1;
	/* The bits below the leading one say which step of the octave. */
	rest = bytes >> (octave + SIZE_FIRST_EDGE_LOG2 - SIZE_STEPS_LOG2);
	return 1 + octave * SIZE_STEPS_PER_OCTAVE + (rest & (SIZE_STEPS_PER_OCTAVE - 1));
}

static __always_inline u32 on_wire(u32 frame_bytes)
{
	return (frame_bytes < ETHERNET_PAD ? ETHERNET_PAD : frame_bytes) + ETHERNET_OVERHEAD;
}

/*
 * Bytes that Ethernet carries for this frame, all segments of a GSO frame included. gso_segs is 0 for frames that a
 * guest wrote to the tap (measured on 5.10 to 6.18), so the segments are worked out from gso_size.
 */
static __always_inline u64 wire_bytes(const struct frame *frame, const struct packet *packet)
{
	u32 tag = frame->tagged ? VLAN_TAG_LEN : 0;
	u32 size = frame->gso_size, headers = packet->header_bytes + tag, payload, whole, rest;
	u64 bytes;

	if (likely(!size || packet->frame_bytes + tag <= headers))
		return on_wire(packet->frame_bytes + tag);
	payload = packet->frame_bytes + tag - headers;
	whole = payload / size;
	rest = payload - whole * size;
	bytes = (u64)whole * on_wire(headers + size);
	return rest ? bytes + on_wire(headers + rest) : bytes;
}

#endif
