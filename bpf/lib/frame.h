/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * A frame: the location of its bytes, reads of them, its length, and its bytes on the wire. No maps.
 */
#ifndef VIFPROBE_FRAME_H
#define VIFPROBE_FRAME_H

#include "layout.h"
#include "compiler.h"

#define ETH_HEADER_LEN 14
#define ETH_TYPE_OFFSET 12

/* Length of the L2 header of the watched devices: either all of them are tuns (LAYER_3), or none is. */
#if LAYER_3
#define L2_HEADER_LEN 0
#else
#define L2_HEADER_LEN ETH_HEADER_LEN
#endif

#define ARP_FIXED_LEN 8
#define IPV4_MIN_LEN 20
#define IPV4_MAX_LEN 60
#define IPV6_LEN 40
#define TCP_MIN_LEN 20
#define UDP_LEN 8
#define ICMP_LEN 8

/* Offset of the transport header without VLAN tag and IP options. */
#define PLAIN_TRANSPORT (L2_HEADER_LEN + IPV4_MIN_LEN)

#define TYPE_IPV4 0x0800
#define TYPE_ARP 0x0806
#define TYPE_VLAN 0x8100
#define TYPE_QINQ 0x88a8
#define TYPE_IPV6 0x86dd

struct packet {
	/* Whole registers: the compiler masks narrower types at each step. */
	u64 ethertype;
	u64 packet_class;
	u64 frame_bytes;  /* skb->len */
	u32 header_bytes; /* all headers that GSO repeats in each segment: from L2 up to and including TCP or UDP */
	/* Offsets in the bytes, of TCP: */
	u32 network_offset;
	u32 transport_offset;
	bool is_ipv6;
	bool is_plain;  /* the offsets are those of TCP over IPv4 without tag and options */
};

/* Length of the first bytes that are read of a frame: without extension headers, and with them. */
#define HEAD_NEAR (L2_HEADER_LEN + VLAN_TAGS_MAX * VLAN_TAG_LEN + IPV4_MAX_LEN + TCP_MIN_LEN)
#define HEAD_FAR (HEAD_NEAR + EXTENSION_REACH)

#if HEAD_FAR >= HEAD_PLACES
#error a header can lie beyond key is copied
#endif

/* A copy of a frame's first bytes. Verifier: a header can be read at each of HEAD_PLACES. */
struct head {
	u8 bytes[HEAD_PLACES];
	u64 beyond[4];
} __attribute__((aligned(8)));

/*
 * Source of the bytes and properties of a frame: the context of a tc program; or, in a tracepoint and in a replay, the
 * known properties and the address of the bytes.
 */
struct frame {
	struct __sk_buff *skb; /* NULL in a tracepoint and in a replay */
	/* Of a tc program: */
	struct head *head;     /* of this CPU */
	u64 copied;            /* number of bytes in `head`, see copy_head() */
	/* Tracepoint and replay: */
	u64 start;             /* kernel address of the first byte */
	u32 linear_bytes;      /* number of bytes at that address; the rest cannot be read */
	/* All: */
	u64 length;
	u64 gso_size;
	u64 tagged;      /* 1: the kernel keeps an outer VLAN tag in the skb, outside the bytes */
	bool unreadable; /* set by load(): a header cannot be read */
	volatile u64 *scratch; /* see verifier_widen() */
#if LAYER_3
	u16 protocol;    /* tracepoint: EtherType of the packet, in network order */
#endif
	/* Tracepoint, for samples only: */
	bool untagged;   /* the tag is still in the bytes, but the lengths are without it */
	u16 vlan_tci;    /* the tag in the skb */
	u16 vlan_proto;  /* its type, in network order */
};

/*
 * Copy the first bytes of a frame in a tc program, at most `most`. The helper call costs 40 ns, or 55 ns when the
 * bytes are outside the linear part of the skb: a third of the work for a packet. A thousand bytes cost little more
 * than two.
 */
static __always_inline bool copy_head(struct frame *frame, u64 most)
{
	u64 bytes = verifier_widen(frame->scratch, frame->length);

	/* Verifier: 1 to HEAD_FAR, see bounded() in staged.c. */
	if (bytes > most)
		bytes = most;
	asm volatile("%0 &= %1" : "+r"(bytes) : "i"(HEAD_PLACES - 1));
	asm volatile("if %0 > 0 goto +1\n\t%0 = 1" : "+r"(bytes));
	asm volatile("if %0 <= %1 goto +1\n\t%0 = %1" : "+r"(bytes) : "i"(HEAD_FAR));
	if (bpf_skb_load_bytes(frame->skb, 0, frame->head, bytes))
		return false;
	frame->copied = verifier_widen(frame->scratch, bytes);
	return true;
}

/* Copy before the first read. When a second copy would be expensive, copy all bytes that can be needed. */
static __always_inline bool copy_near(struct frame *frame)
{
	void *data = (void *)(long)frame->skb->data;

	return copy_head(frame, likely(data + HEAD_NEAR <= (void *)(long)frame->skb->data_end) ? HEAD_NEAR : HEAD_FAR);
}

/* Extension headers follow: copy as far as they can reach. */
static __always_inline bool copy_far(struct frame *frame)
{
	return frame->copied != HEAD_NEAR || copy_head(frame, HEAD_FAR);
}

/* Copy words: memcpy would be split into single bytes, because the alignment is unknown. bytes: 2, 4, 8, 12 or 32. */
static __always_inline void copy_words(void *to, const void *from, const u32 bytes)
{
	if (bytes == sizeof(u16))
		*(u16 *)to = *(u16 *)from;
	for (u32 i = 0; i < bytes / sizeof(u32); i++)
		((u32 *)to)[i] = ((u32 *)from)[i];
}

/* Read from the copy. False: the copy ends before that, as does the frame or the part of it that is read. */
static __always_inline bool load_copied(struct frame *frame, u32 offset, void *to, const u32 bytes)
{
	const void *from;
	u64 place;

	if (unlikely(offset + bytes > frame->copied))
		return false;
	/* Verifier: any value, else it would distinguish the offsets of all chains of headers. Then an index. */
	place = verifier_widen(frame->scratch, offset);
	asm volatile("%0 &= %1" : "+r"(place) : "i"(HEAD_PLACES - 1));
	from = (void *)frame->head + place;
	/* Verifier: else the compiler would add this up in another order, which gives no valid pointer. */
	barrier_var(from);
	copy_words(to, from, bytes);
	return true;
}

/* Read `bytes` (a constant, see copy_words()) at `offset`. False: the frame ends before, or they cannot be read. */
static __always_inline bool load(struct frame *frame, u32 offset, void *to, const u32 bytes)
{
	if (frame->skb)
		return load_copied(frame, offset, to, bytes);
	if (offset + bytes > frame->linear_bytes) {
		frame->unreadable = offset + bytes <= frame->length;
		return false;
	}
	return bpf_probe_read_kernel(to, bytes, (void *)(frame->start + offset)) == 0;
}

/* EtherType in the L2 header, in network order. For a layer 3 packet, it is skb->protocol. */
static __always_inline bool load_type(struct frame *frame, u16 *type)
{
#if LAYER_3
	*type = frame->skb ? frame->skb->protocol : frame->protocol;
	return true;
#else
	return load(frame, ETH_TYPE_OFFSET, type, sizeof(*type));
#endif
}

/* Pack the offsets of the headers into one word, for one verifier_widen(). */
static __always_inline u64 packed(const struct packet *packet)
{
	return packet->header_bytes | (u64)packet->transport_offset << 16 | (u64)packet->network_offset << 32 |
	       (u64)packet->is_ipv6 << 48;
}

/* Number of bits that packed() uses. */
#define PACKED_BITS 49

static __always_inline void unpack(u64 all, struct packet *packet)
{
	packet->is_plain = all >> 16 == (PLAIN_TRANSPORT | L2_HEADER_LEN << 16);
	packet->header_bytes = (u16)all;
	packet->transport_offset = (u16)(all >> 16);
	packet->network_offset = (u16)(all >> 32);
	packet->is_ipv6 = all >> 48 & 1;
}

/*
 * For a frame that was parsed with all its tags: the kernel removes the outer tag from the bytes before tc runs
 * (__netif_receive_skb_core calls skb_vlan_untag), and the frame is counted as tc sees it.
 */
static __always_inline void untag(struct frame *frame, struct packet *packet)
{
	if (frame->tagged || packet->ethertype != ETHERTYPE_VLAN)
		return;
	frame->tagged = true;
	frame->untagged = true;
	frame->length -= VLAN_TAG_LEN;
	packet->frame_bytes -= VLAN_TAG_LEN;
	if (packet->header_bytes >= L2_HEADER_LEN + VLAN_TAG_LEN)
		packet->header_bytes -= VLAN_TAG_LEN;
}

/*
 * True: the frame is too short for its tag and the type after it. The kernel frees it before tc (net/core/skbuff.c,
 * skb_vlan_untag), so it does not count as offered.
 */
static __always_inline bool ends_within_tag(struct frame *frame, struct packet *packet)
{
	return !frame->tagged && packet->ethertype == ETHERTYPE_VLAN &&
	       frame->length < L2_HEADER_LEN + VLAN_TAG_LEN + 2;
}

/* Log-linear bucket of a frame length: vifprobe.model.layout.size_bucket() in integers. */
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
	/* The bits below the leading one are the step within the octave. */
	rest = bytes >> (octave + SIZE_FIRST_EDGE_LOG2 - SIZE_STEPS_LOG2);
	return 1 + octave * SIZE_STEPS_PER_OCTAVE + (rest & (SIZE_STEPS_PER_OCTAVE - 1));
}

/* Bytes on the wire. frame_bytes: with the L2 header of the device. A packet of a tun would get one on Ethernet. */
static __always_inline u64 on_wire(u64 frame_bytes)
{
	frame_bytes += ETH_HEADER_LEN - L2_HEADER_LEN;
	return (frame_bytes < ETHERNET_PAD ? ETHERNET_PAD : frame_bytes) + ETHERNET_OVERHEAD;
}

/*
 * Bytes that Ethernet carries for this frame, with all segments of a GSO frame. gso_segs is 0 for frames that a guest
 * wrote to the tap (measured on 5.10 to 6.18), so the segments are computed from gso_size.
 */
static __always_inline u64 wire_bytes(const struct frame *frame, const struct packet *packet)
{
	u64 tag = frame->tagged * VLAN_TAG_LEN, bytes;
	u32 size = frame->gso_size, headers = packet->header_bytes + tag, payload, whole, rest;

	if (likely(!frame->gso_size) || packet->frame_bytes + tag <= headers)
		return on_wire(packet->frame_bytes + tag);
	payload = packet->frame_bytes + tag - headers;
	whole = payload / size;
	rest = payload - whole * size;
	bytes = (u64)whole * on_wire(headers + size);
	return rest ? bytes + on_wire(headers + rest) : bytes;
}

#endif
