/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * A packet arrives: classify it and count it, or keep it as this CPU's pending packet.
 *
 * Hook:   tcx, or a filter at clsact/ingress: ingress (outbound) and egress (inbound) of a tap
 * Reads:  the headers of the packet, taps
 * Writes: the pending packet of the CPU (outbound), packets in flight (inbound), cells and bins, samples
 * Needs:  tc programs. Returns TC_ACT_UNSPEC on every path: the program never decides about a packet
 */

/* The size part of the key. That of the last packet is reused when the length is the same. */
static __always_inline u64 size_key_cached(struct cpu_state *state, u32 frame_bytes)
{
	/* This CPU's own state. Both fields belong to one packet, with any verdict. */
	if (likely(state->frame_bytes == frame_bytes))
		return state->key & ((1ULL << KEY_PACKET_CLASS_SHIFT) - 1) << KEY_SIZE_SHIFT;
	return (u64)size_bucket(frame_bytes) << KEY_SIZE_SHIFT;
}

/* The key of a packet in a tc program, without its verdict: as identify(), but fast for a plain frame. */
static __always_inline u64 identify_fast(struct frame *frame, u64 direction, struct tap *tap,
					 struct cpu_state *state, struct packet *packet)
{
	u64 found, kind, size = size_key_cached(state, frame->length);

	if (likely(parse_plain((void *)(long)frame->skb->data, frame, packet))) {
		found = packed(packet);
		kind = class_key(packet);
	} else {
		parse(frame, packet, &state->scratch);
		found = packed(packet);
		kind = class_key(packet);
	}
	found = verifier_widen(&state->scratch, found | frame->copied << PACKED_BITS);
	unpack(found, packet);
	frame->copied = found >> PACKED_BITS;
	return verifier_widen(&state->scratch, size | kind) | owner_key(tap, direction);
}

/*
 * Count most outbound packets: TCP or UDP over IPv4 (see parse_plain()), without tag and GSO, in the current time bin.
 * Rare cases leave the fast path and never rejoin it: where paths join, the compiler keeps everything on the stack,
 * which took a fifth of all instructions. False: call count_slow_path(), which starts again, except for the clock and
 * settle_previous(). All steps up to then may be done twice.
 */
static __always_inline bool count_fast_path(struct __sk_buff *skb)
{
	struct cpu_state *state = own_state();
	struct frame frame = { .skb = skb };
	u64 key, now, charged_bytes;
	struct packet packet;
	struct tap_cpu_state *tap_state;
	struct tap *tap;
	void *data;

	settle_previous(state);
	now = arrival_ns(skb->tstamp);
	/* Stored in the state, like all fields of the packet, instead of on the stack. This CPU's own state. */
	state->pending_arrival_ns = now;
	tap = likely_tap_of(skb->ifindex);
	if (unlikely(tap->ifindex != skb->ifindex) || unlikely(skb->gso_size) || unlikely(skb->vlan_present))
		return false;
	state->tap_state_number = outbound_state_number(state, tap);
	tap_state = tap_state_at(state, state->tap_state_number);
	if (unlikely(!tap_state) || unlikely(is_bin_over(tap_state, now)))
		return false;
	data = (void *)(long)skb->data;
	frame.length = skb->len;
	if (unlikely(!parse_plain(data, &frame, &packet)))
		return false;
	key = size_key_cached(state, frame.length) | packet.packet_class << KEY_PACKET_CLASS_SHIFT;
	store_pending(state, key | owner_key(tap, DIRECTION_OUTBOUND), frame.length, policer_charge(tap, skb->wire_len),
		 on_wire(frame.length));
	if (unlikely(!measure_plain_syn(state, tap, DIRECTION_OUTBOUND, data, packet.packet_class)))
		return false;
	barrier();
	now = state->pending_arrival_ns;
	charged_bytes = state->charged_bytes;
	key = state->key | expected(state, tap, DIRECTION_OUTBOUND, &now, charged_bytes, state->frame_bytes,
				    state->wire_bytes);
	what_if(state, tap, DIRECTION_OUTBOUND, key, &now, charged_bytes, state->frame_bytes, state->wire_bytes);
	state->key = key;
	publish_pending(state, tap);
	barrier();
	if (unlikely(state->traits & TRAIT_NFT_SHARED))
		note_ip_received(state, skb);
	if (unlikely(is_sample_due(tap_state, state->key))) {
		frame.length = state->frame_bytes;
		/* Parse again, for the length of the headers. */
		if (parse_plain((void *)(long)skb->data, &frame, &packet) &&
		    stage_sample(state, tap_state, &frame, &packet, state->key, state->pending_arrival_ns,
				 state->charged_bytes, state->wire_bytes))
			state->traits |= PENDING_SAMPLED;
	}
	state->skb = (u64)(long)skb;
	return true;
}

/* Count any packet. For an outbound one, count_fast_path() has settled the previous packet and read the clock. */
static __always_inline void count_slow_path(struct __sk_buff *skb)
{
	struct tap *tap = tap_of(skb->ifindex);
	struct cpu_state *state = own_state();
	struct frame frame = { .skb = skb, .length = skb->len, .gso_size = skb->gso_size, .tagged = skb->vlan_present };
	u64 direction = LOADED(DIRECTION), now, key, wire;
	struct packet packet;

	frame.scratch = &state->scratch;
	frame.head = SHARED(struct head, heads, state->cpu, CPU_STATES);
	/* The assumption removes the code for tracepoints from this path. */
	__builtin_assume(skb != NULL);
	if (unlikely(!tap))
		return;
	key = identify_fast(&frame, direction, tap, state, &packet);
	wire = wire_bytes(&frame, &packet);
	now = direction == DIRECTION_OUTBOUND ? state->pending_arrival_ns : arrival_ns(skb->tstamp);
	measure_syn(state, tap, direction, &frame, &packet, key, &now);
	/* wire_len is the length that the policer charges: qdisc_skb_cb(skb)->pkt_len, set before tc runs. */
	if (unlikely(direction == DIRECTION_INBOUND))
		inbound(state, tap, (u64)(long)skb, skb->ingress_ifindex, &frame, &packet, key, now, skb->wire_len,
			wire);
	else
		/* The context pointer of a tc program is the address of the skb, which the tracepoint gets, too. */
		outbound(state, tap, (u64)(long)skb, &frame, &packet, key, now, skb->wire_len, wire);
}

int observe(struct __sk_buff *skb)
{
	if (LOADED(DIRECTION) == DIRECTION_INBOUND || unlikely(!count_fast_path(skb)))
		count_slow_path(skb);
	return GO_ON;
}
