/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Hook:   tcx or clsact/ingress filter, ingress (outbound) and egress (inbound) of a tap
 * Reads:  the packet's headers, taps
 * Writes: the lane's pending packet (outbound), cells and bins, samples
 * Needs:  tc programs; always returns TC_ACT_UNSPEC: it never decides a packet's fate
 */

/* TC_ACT_UNSPEC of linux/pkt_cls.h, the same value as TCX_NEXT: "go on". */
#define GO_ON (-1)

static __always_inline u64 kind_of(const struct packet *packet)
{
	return (u64)packet->ethertype << KEY_ETHERTYPE_SHIFT | (u64)packet->packet_class << KEY_PACKET_CLASS_SHIFT;
}

/* The part of the key that says whose it is; in few instructions. */
static __always_inline u64 whose(struct tap *tap, u64 direction)
{
	u64 whose = (tap->number + 1ULL) << (KEY_TAP_SHIFT - KEY_DIRECTION_SHIFT) | direction;

	/* Or the compiler would shift each on its own, and load a constant for it. */
	asm volatile("" : "+r"(whose));
	return whose << KEY_DIRECTION_SHIFT;
}

/* A packet's key but for the verdict. */
static __always_inline u64 identify(struct frame *frame, u64 direction, struct tap *tap, struct lane *lane,
				    struct packet *packet)
{
	u64 what;

	parse(frame, packet, &lane->scratch);
	unpack(forget(&lane->scratch, packed(packet)), packet);
	what = forget(&lane->scratch, kind_of(packet));
	return what | whose(tap, direction);
}

static __always_inline u64 size_key(struct lane *lane, u32 frame_bytes)
{
	return forget(&lane->scratch, size_bucket(frame_bytes)) << KEY_SIZE_SHIFT;
}

/* The size part of the key: the same as the last packet's, where it was as long. */
static __always_inline u64 size_key_quickly(struct lane *lane, u32 frame_bytes)
{
	/* Own CPU's lane; both belong to one packet, whatever became of it. */
	if (likely(lane->frame_bytes == frame_bytes))
		return lane->what & ((1ULL << KEY_PACKET_CLASS_SHIFT) - 1) << KEY_SIZE_SHIFT;
	return (u64)size_bucket(frame_bytes) << KEY_SIZE_SHIFT;
}

/* The key of a tc program's packet but for its verdict. As identify(), with a short way for the plain frame. */
static __always_inline u64 identify_quickly(struct frame *frame, u64 direction, struct tap *tap, struct lane *lane,
					    struct packet *packet)
{
	u64 found, kind, size = size_key_quickly(lane, frame->length);

	if (likely(parse_plain((void *)(long)frame->skb->data, frame, packet))) {
		found = packed(packet);
		kind = kind_of(packet);
	} else {
		parse(frame, packet, &lane->scratch);
		found = packed(packet);
		kind = kind_of(packet);
	}
	found = forget(&lane->scratch, found | frame->copied << PACKED_BITS);
	unpack(found, packet);
	frame->copied = found >> PACKED_BITS;
	return forget(&lane->scratch, size | kind) | whose(tap, direction);
}

/* An inbound packet. skb: its address; iif: where it was received. */
static __always_inline void inbound(struct lane *lane, struct tap *tap, u64 skb, u32 iif, struct frame *frame,
				    struct packet *packet, u64 what, u64 now, u64 charged_bytes, u64 wire)
{
	struct desk *desk = desk_at(lane, desk_number(lane, what));

	if (!desk)
		return;
	what |= (u64)VERDICT_UNKNOWN << KEY_VERDICT_SHIFT;
	what |= expected(lane, tap, DIRECTION_INBOUND, &now, charged_bytes, frame->length, wire);
	what_if(lane, tap, DIRECTION_INBOUND, what, &now, charged_bytes, frame->length, wire);
	/* At its arrival, its verdict not known yet. */
	if (unlikely(is_wanted(desk, what)) && look(lane, desk, frame, packet, what, now, charged_bytes, wire))
		commit_sample(lane, what, 0);
#if FOLLOW_INBOUND
	struct flight flight = { .skb = forget(&lane->scratch, skb), .what = what, .wire_bytes = wire,
				 .frame_bytes = frame->length, .charged_bytes = charged_bytes, .iif = iif };

	/* Counted at its end. */
	remember(lane, &flight);
#else
	/* Offered, its outcome not followed. */
	turn_bin_of(desk, lane, what, now);
	count(lane, what, 0, frame->length, charged_bytes, wire);
#endif
}

static __always_inline u32 outbound_desk(struct lane *lane, struct tap *tap)
{
	return (lane->cpu * TAPS + tap->number) * DIRECTION_COUNT + DIRECTION_OUTBOUND;
}

/* The compiler is to read from memory again, rather than to keep what it has read or written on the stack. */
static __always_inline void read_again(void)
{
	asm volatile("" : : : "memory");
}

/* What the lane knows of a packet that is pending from now on; its headers and its address come last. */
static __always_inline void hold(struct lane *lane, struct tap *tap)
{
	u64 epoch;

	/* Own CPU's lane. */
	lane->sequence++;
	/* Which tap, all in one word. */
	*(u64 *)&lane->ifindex = *(u64 *)&tap->ifindex;
	/* While the reader waits (odd), a packet belongs to the next epoch: only what began before is waited for. */
	epoch = (u64)lane->now + 1;
	/* Assembly: in 32 bits, the compiler would load the mask. */
	asm volatile("%0 &= -2" : "+r"(epoch));
	lane->epoch = epoch;
}

/* What it is and how long, in the lane as well; before hold(). charged_bytes: what its policer charges. */
static __always_inline void describe(struct lane *lane, u64 what, u64 frame_bytes, u64 charged_bytes, u64 wire)
{
	/* Own CPU's lane. */
	lane->what = what;
	lane->frame_bytes = frame_bytes;
	lane->charged_bytes = charged_bytes;
	lane->wire_bytes = wire;
}

/* An outbound packet: it is pending now; the one before it is settled, see make_way(). skb: its address. */
static __always_inline void outbound(struct lane *lane, struct tap *tap, u64 skb, struct frame *frame,
				     struct packet *packet, u64 what, u64 now, u64 charged_bytes, u64 wire)
{
	u32 number = outbound_desk(lane, tap);
	struct desk *desk = desk_at(lane, number);

	if (unlikely(!desk))
		return;
	charged_bytes = policer_charge(tap, charged_bytes);
	what |= expected(lane, tap, DIRECTION_OUTBOUND, &now, charged_bytes, frame->length, wire);
	what_if(lane, tap, DIRECTION_OUTBOUND, what, &now, charged_bytes, frame->length, wire);
	turn_bin_of(desk, lane, what, now);
	describe(lane, what, frame->length, charged_bytes, wire);
	lane->desk = number;
	hold(lane, tap);
	if (unlikely(lane->traits & TRAIT_NFT_SHARED) && frame->skb)
		note_ip_received(lane, frame->skb);
	if (unlikely(is_wanted(desk, what)) && look(lane, desk, frame, packet, what, now, charged_bytes, wire))
		lane->traits |= LANE_SAMPLED;
	lane->skb = skb;
}

/* The packet before an outbound one has passed. First of all: the bucket settles with one before it looks at the next. */
static __always_inline void make_way(struct lane *lane)
{
	if (lane->skb)
		settle(lane, VERDICT_PASSED, 0);
}

/*
 * Most outbound packets: TCP or UDP over IPv4, see parse_plain(), without tag and GSO, in the time bin that runs. What is
 * seldom ends this way and comes back to no place on it: a compiler that has to keep everything for such a place keeps it
 * on the stack, which was a fifth of all instructions. False: the packet is for observe_any(), which begins anew but for
 * the clock and the packet before; what has been done until then does no harm when done twice.
 */
static __always_inline bool observe_plain(struct __sk_buff *skb)
{
	struct lane *lane = own_lane();
	struct frame frame = { .skb = skb };
	u64 what, now, charged_bytes;
	struct packet packet;
	struct desk *desk;
	struct tap *tap;
	void *data;

	make_way(lane);
	now = arrival_ns(skb->tstamp);
	/* Kept there, as all that describes the packet, rather than on the stack. Own CPU's lane. */
	lane->pledged_at_ns = now;
	tap = likely_tap_of(skb->ifindex);
	if (unlikely(tap->ifindex != skb->ifindex) || unlikely(skb->gso_size) || unlikely(skb->vlan_present))
		return false;
	lane->desk = outbound_desk(lane, tap);
	desk = desk_at(lane, lane->desk);
	if (unlikely(!desk) || unlikely(is_bin_over(desk, now)))
		return false;
	data = (void *)(long)skb->data;
	frame.length = skb->len;
	if (unlikely(!parse_plain(data, &frame, &packet)))
		return false;
	what = size_key_quickly(lane, frame.length) | packet.packet_class << KEY_PACKET_CLASS_SHIFT;
	describe(lane, what | whose(tap, DIRECTION_OUTBOUND), frame.length, policer_charge(tap, skb->wire_len),
		 on_wire(frame.length));
	if (unlikely(!measure_plain_syn(lane, tap, DIRECTION_OUTBOUND, data, packet.packet_class)))
		return false;
	read_again();
	now = lane->pledged_at_ns;
	charged_bytes = lane->charged_bytes;
	what = lane->what | expected(lane, tap, DIRECTION_OUTBOUND, &now, charged_bytes, lane->frame_bytes, lane->wire_bytes);
	what_if(lane, tap, DIRECTION_OUTBOUND, what, &now, charged_bytes, lane->frame_bytes, lane->wire_bytes);
	lane->what = what;
	hold(lane, tap);
	read_again();
	if (unlikely(lane->traits & TRAIT_NFT_SHARED))
		note_ip_received(lane, skb);
	if (unlikely(is_wanted(desk, lane->what))) {
		frame.length = lane->frame_bytes;
		/* For the length of its headers. */
		if (parse_plain((void *)(long)skb->data, &frame, &packet) &&
		    look(lane, desk, &frame, &packet, lane->what, lane->pledged_at_ns, lane->charged_bytes, lane->wire_bytes))
			lane->traits |= LANE_SAMPLED;
	}
	lane->skb = (u64)(long)skb;
	return true;
}

/* Any packet. Of an outbound one, observe_plain() has settled the packet before it and read the clock. */
static __always_inline void observe_any(struct __sk_buff *skb)
{
	struct tap *tap = tap_of(skb->ifindex);
	struct lane *lane = own_lane();
	struct frame frame = { .skb = skb, .length = skb->len, .gso_size = skb->gso_size, .tagged = skb->vlan_present };
	u64 direction = LOADED(DIRECTION), now, what, wire;
	struct packet packet;

	frame.scratch = &lane->scratch;
	frame.head = SHARED(struct head, heads, lane->cpu, LANES);
	/* There is one: what a tracepoint does without is not compiled into this. */
	__builtin_assume(skb != NULL);
	if (unlikely(!tap))
		return;
	what = identify_quickly(&frame, direction, tap, lane, &packet);
	wire = wire_bytes(&frame, &packet);
	now = direction == DIRECTION_OUTBOUND ? lane->pledged_at_ns : arrival_ns(skb->tstamp);
	measure_syn(lane, tap, direction, &frame, &packet, what, &now);
	/* wire_len is the length that the policer charges: qdisc_skb_cb(skb)->pkt_len, set before tc runs. */
	if (unlikely(direction == DIRECTION_INBOUND))
		inbound(lane, tap, (u64)(long)skb, skb->ingress_ifindex, &frame, &packet, what, now, skb->wire_len, wire);
	else
		/* The context pointer of a tc program is the skb's address: the tracepoint gets the same. */
		outbound(lane, tap, (u64)(long)skb, &frame, &packet, what, now, skb->wire_len, wire);
}

int observe(struct __sk_buff *skb)
{
	if (LOADED(DIRECTION) == DIRECTION_INBOUND || unlikely(!observe_plain(skb)))
		observe_any(skb);
	return GO_ON;
}
