/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * A packet arrives: compute its key. An outbound packet becomes the pending packet of this CPU. An inbound packet is
 * added to the packets in flight, or counted.
 *
 * Hook:   none, called by progs/tc.c and progs/netif_receive.c
 * Reads:  the headers of the packet, taps
 * Writes: the pending packet of the CPU, packets in flight, cells and bins, samples
 * Needs:  as the files of lib/ that it calls
 */

/* TC_ACT_UNSPEC of linux/pkt_cls.h, the same value as TCX_NEXT: go on with the next program. */
#define GO_ON (-1)

static __always_inline u64 class_key(const struct packet *packet)
{
	return (u64)packet->ethertype << KEY_ETHERTYPE_SHIFT | (u64)packet->packet_class << KEY_PACKET_CLASS_SHIFT;
}

/* The tap and direction part of the key, in few instructions. */
static __always_inline u64 owner_key(struct tap *tap, u64 direction)
{
	u64 owner_key = (tap->number + 1ULL) << (KEY_TAP_SHIFT - KEY_DIRECTION_SHIFT) | direction;

	/* Else the compiler would shift each part separately, and load a constant for that. */
	barrier_var(owner_key);
	return owner_key << KEY_DIRECTION_SHIFT;
}

/* The key of a packet, without its verdict. */
static __always_inline u64 identify(struct frame *frame, u64 direction, struct tap *tap, struct cpu_state *state,
				    struct packet *packet)
{
	u64 key;

	parse(frame, packet, &state->scratch);
	unpack(verifier_widen(&state->scratch, packed(packet)), packet);
	key = verifier_widen(&state->scratch, class_key(packet));
	return key | owner_key(tap, direction);
}

static __always_inline u64 size_key(struct cpu_state *state, u32 frame_bytes)
{
	return verifier_widen(&state->scratch, size_bucket(frame_bytes)) << KEY_SIZE_SHIFT;
}

/* Count an inbound packet, or add it to the packets in flight. skb: its address; iif: device that received it. */
static __always_inline void inbound(struct cpu_state *state, struct tap *tap, u64 skb, u32 iif, struct frame *frame,
				    struct packet *packet, u64 key, u64 now, u64 charged_bytes, u64 wire)
{
	struct tap_cpu_state *tap_state = tap_state_at(state, tap_state_number(state, key));

	if (!tap_state)
		return;
	key |= (u64)VERDICT_UNKNOWN << KEY_VERDICT_SHIFT;
	key |= expected(state, tap, DIRECTION_INBOUND, &now, charged_bytes, frame->length, wire);
	what_if(state, tap, DIRECTION_INBOUND, key, &now, charged_bytes, frame->length, wire);
	/* At arrival; its verdict is not known yet. */
	if (unlikely(is_sample_due(tap_state, key)) &&
	    stage_sample(state, tap_state, frame, packet, key, now, charged_bytes, wire))
		commit_sample(state, key, 0);
#if FOLLOW_INBOUND
	struct inflight entry = { .skb = verifier_widen(&state->scratch, skb), .key = key, .wire_bytes = wire,
				 .frame_bytes = frame->length, .charged_bytes = charged_bytes, .iif = iif };

	/* The packet is counted when it ends. */
	inflight_add(state, &entry);
#else
	/* Count the packet as offered; its outcome is not followed. */
	rotate_bin_of(tap_state, state, key, now);
	count(state, key, 0, frame->length, charged_bytes, wire);
#endif
}

static __always_inline u32 outbound_state_number(struct cpu_state *state, struct tap *tap)
{
	return (state->cpu * TAPS + tap->number) * DIRECTION_COUNT + DIRECTION_OUTBOUND;
}

/* Make a packet pending; the caller adds its sample and its address. */
static __always_inline void publish_pending(struct cpu_state *state, struct tap *tap)
{
	u64 epoch;

	/* This CPU's own state. */
	state->sequence++;
	/* Number and traits of the tap, in one word. */
	*(u64 *)&state->ifindex = *(u64 *)&tap->ifindex;
	/*
	 * While the reader waits (odd epoch), a packet belongs to the next epoch: the reader waits only for packets
	 * from before.
	 */
	epoch = (u64)state->now + 1;
	/* Assembly: the compiler would load the mask from a constant. */
	asm volatile("%0 &= -2" : "+r"(epoch));
	state->epoch = epoch;
}

/* Store key and lengths of a packet, before publish_pending(). charged_bytes: what the policer charges. */
static __always_inline void store_pending(struct cpu_state *state, u64 key, u64 frame_bytes, u64 charged_bytes,
					  u64 wire)
{
	/* This CPU's own state. */
	state->key = key;
	state->frame_bytes = frame_bytes;
	state->charged_bytes = charged_bytes;
	state->wire_bytes = wire;
}

/* Make an outbound packet pending. settle_previous() has settled the one before it. skb: its address. */
static __always_inline void outbound(struct cpu_state *state, struct tap *tap, u64 skb, struct frame *frame,
				     struct packet *packet, u64 key, u64 now, u64 charged_bytes, u64 wire)
{
	u32 number = outbound_state_number(state, tap);
	struct tap_cpu_state *tap_state = tap_state_at(state, number);

	if (unlikely(!tap_state))
		return;
	charged_bytes = policer_charge(tap, charged_bytes);
	key |= expected(state, tap, DIRECTION_OUTBOUND, &now, charged_bytes, frame->length, wire);
	what_if(state, tap, DIRECTION_OUTBOUND, key, &now, charged_bytes, frame->length, wire);
	rotate_bin_of(tap_state, state, key, now);
	store_pending(state, key, frame->length, charged_bytes, wire);
	state->tap_state_number = number;
	publish_pending(state, tap);
	if (unlikely(state->traits & TRAIT_NFT_SHARED) && frame->skb)
		note_ip_received(state, frame->skb);
	if (unlikely(is_sample_due(tap_state, key)) &&
	    stage_sample(state, tap_state, frame, packet, key, now, charged_bytes, wire))
		state->traits |= PENDING_SAMPLED;
	state->skb = skb;
}

/*
 * The pending packet has passed, because another one arrives. This comes first: the ideal bucket must be corrected
 * before the next packet uses it.
 */
static __always_inline void settle_previous(struct cpu_state *state)
{
	if (state->skb)
		settle(state, VERDICT_PASSED, 0);
}
