/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * A packet is freed: attribute the drop to the tap's policer or to something else.
 *
 * Hook:   BTF-typed raw tracepoint skb:kfree_skb, host-wide
 * Reads:  the pending packet of the CPU, inbound packets in flight; fields of the skb (lib/skb.c)
 * Writes: cells and bins (the verdict of the packet)
 * Needs:  BTF; the drop reason where the tracepoint has one (HAS_REASON)
 */

static __always_inline bool within(u32 location, u32 from, u32 end)
{
	return location - from < end - from;
}

/* True: the police action dropped the packet at tc ingress, and nothing else there. */
static __always_inline bool by_policer(struct cpu_state *state)
{
	/* When other actions can drop there, too, the police action is watched: see progs/police_exit.c. */
	if (state->traits & TRAIT_TC_MARKED)
		return state->policed_sequence == state->sequence;
	return !(state->traits & TRAIT_TC_FOREIGN);
}

/*
 * Verdict of a dropped packet: VERDICT_POLICED for a policer of the tap; VERDICT_DROPPED for something else, there or
 * later in the call chain. location: low half of the address of the caller that freed it; a function covers [_FROM,
 * _END).
 */
static __always_inline u64 verdict_of(u64 skb, u64 reason, u32 location, struct cpu_state *state)
{
#if HAS_REASON
	/* All drops at tc ingress: by the police action, or by another action or program. */
	bool at_tc = reason == REASON_TC_INGRESS, by_netfilter = reason == REASON_NETFILTER_DROP;
#else
	/*
	 * Before 5.17: inferred from the location. tc ingress is inlined in that function, and so is the drop of
	 * packets that no protocol handler takes.
	 */
	bool at_tc = within(location, TC_INGRESS_FROM, TC_INGRESS_END) && state->traits & TRAIT_TC_POLICER;
	bool by_netfilter = within(location, NETFILTER_FROM, NETFILTER_END);
#endif

	if (at_tc) {
		if (unlikely(!by_policer(state)))
			return VERDICT_DROPPED;
		return VERDICT_POLICED;
	}
	/* A netfilter drop is by a policer of the tap only when the tap has an nft netdev chain ... */
	if (unlikely(!by_netfilter) || unlikely(!(state->traits & TRAIT_NFT_POLICER)))
		return VERDICT_DROPPED;
	/* ... and, where other chains can drop too, when it was that chain. */
	if (unlikely(state->traits & TRAIT_NFT_SHARED) && !by_own_chain(skb, location, state))
		return VERDICT_DROPPED;
	return VERDICT_POLICED;
}

/* function: low half of its address, length << 32 */
static __always_inline bool is_in(u32 location, u64 function)
{
	return location - (u32)function < (u32)(function >> 32);
}

/*
 * True: generic XDP dropped the packet. It has a reason for a failed redirect only (net/core/dev.c, do_xdp_generic). The
 * tracepoint netif_receive_skb is before it, tc behind it.
 */
static __always_inline bool is_by_xdp(u64 reason, u32 location, struct cpu_state *state)
{
	if (HAS_REASON && likely(reason != REASON_NOT_SPECIFIED) && likely(reason != REASON_XDP))
		return false;
	if (state->traits & TRAIT_TRACED_OUTBOUND)
		return false;
	return is_in(location, LOADED(XDP_RUN)) || is_in(location, LOADED(XDP_DO)) || is_in(location, LOADED(XDP_TX));
}

/*
 * The kernel reuses the address of a freed skb at once. The pending packet may have passed long ago, and its address
 * may belong to another skb. Such an skb was received elsewhere: not on this tap ...
 */
static __always_inline bool is_foreign(u64 skb, u64 reason, u32 location, struct cpu_state *state)
{
	/* 0: not received on any device. */
	if (FIELD(u32, skb, SKB_IIF_OFFSET) != state->ifindex)
		return true;
	/* ... or on a device with the same number in another network namespace ... */
	if (in_other_netns(skb))
		return true;
	/* ... or on this tap, but freed before the hook: by generic XDP ... */
	if (unlikely(is_by_xdp(reason, location, state)))
		return true;
	/*
	 * ... or because the kernel cannot remove a tag that ends with the frame (net/core/skbuff.c, skb_vlan_untag). A
	 * guest can send such frames. skb->len is without the L2 header here; of the pending packet it is that small
	 * only if the frame was.
	 */
	if (unlikely(FIELD(u32, skb, SKB_LEN_OFFSET) < VLAN_TAG_LEN + 2)) {
		u16 type = bpf_ntohs((u16)FIELD(u16, skb, SKB_PROTOCOL_OFFSET));

		return (type == TYPE_VLAN || type == TYPE_QINQ) &&
		       state->frame_bytes >= L2_HEADER_LEN + VLAN_TAG_LEN + 2;
	}
	return false;
}

#if FOLLOW_INBOUND
#if HAS_QDISC_REASON
/*
 * Drop reasons of qdiscs, one bit each, and of their subsystem, where the kernel has one. They occur only in call chains
 * with bottom halves off.
 */
static __always_inline bool is_qdisc_reason(u64 reason)
{
	if (QDISC_SUBSYSTEM > 0 && unlikely(reason >> 16 == QDISC_SUBSYSTEM))
		return true;
	return reason < 128 && (reason < 64 ? QDISC_REASONS_LOW : QDISC_REASONS_HIGH) >> (reason & 63) & 1;
}
#else
static __always_inline bool is_qdisc_reason(u64 reason)
{
	return false;
}
#endif
#endif

#if FOLLOW_INBOUND
/* The device behind the tap lost it: its ring or its qdisc was full. Bottom halves are off. */
static __always_inline bool is_loss_at_device(u64 reason)
{
	return HAS_REASON && (reason == REASON_FULL_RING || is_qdisc_reason(reason));
}

/*
 * Verdict of the pending packet, which was dropped behind tc ingress: it has passed if a copy of it was sent. Count it
 * with the device that lost it.
 */
static __always_inline u64 verdict_behind(struct cpu_state *state, u64 skb, u64 reason, u32 location)
{
	bool at_tc = HAS_REASON ? reason == REASON_TC_INGRESS : within(location, TC_INGRESS_FROM, TC_INGRESS_END);
	bool has_passed = !at_tc && unlikely(has_copy(state, skb));

	if (has_passed || is_loss_at_device(reason))
		count_at_device(state, state->number, reason, ifindex_of(skb), has_passed);
	return has_passed ? VERDICT_PASSED : VERDICT_DROPPED;
}

/* A packet of a tap, but not the pending one, was lost at a device: a copy, or a packet that waited in a queue. */
static __always_inline void lose_copy(struct cpu_state *state, u64 skb, u64 address, u64 reason)
{
	struct tap *tap;

	/* Rules out a qdisc's drop, which can have the address of a copy that was sent and consumed. */
	if (state->copy == address && !is_qdisc_reason(reason))
		forget_copy(state);
	if (likely(!is_loss_at_device(reason)) || !FIELD(u64, skb, SKB_DEV_OFFSET) || in_other_netns(skb))
		return;
	tap = tap_of(FIELD(u32, skb, SKB_IIF_OFFSET));
	if (tap)
		count_at_device(state, tap->number, reason, ifindex_of(skb), true);
}
#else
static __always_inline u64 verdict_behind(struct cpu_state *state, u64 skb, u64 reason, u32 location)
{
	return VERDICT_DROPPED;
}

static __always_inline void lose_copy(struct cpu_state *state, u64 skb, u64 address, u64 reason) {}
#endif

/* The pending outbound packet was freed. The verdict, or VERDICT_UNKNOWN: it was another skb, or too late. */
static __always_inline u64 drop_outbound(struct cpu_state *state, u64 skb, u64 reason, u32 location)
{
	u64 verdict;

	if (unlikely(is_foreign(skb, reason, location, state)))
		return VERDICT_UNKNOWN;
	/* The reader has already counted the packet: its call chain ended long ago. This is a later drop or skb. */
	if (unlikely((s32)(state->now - state->epoch) >= EPOCHS_IN_FLIGHT)) {
		state->late_verdicts++;
		return VERDICT_UNKNOWN;
	}
	verdict = verdict_of(skb, reason, location, state);
	if (verdict == VERDICT_DROPPED)
		verdict = verdict_behind(state, skb, reason, location);
	settle(state, verdict, verdict == VERDICT_PASSED ? 0 : reason << 32 | location);
	return verdict;
}

#if FOLLOW_INBOUND
/*
 * Verdict of an inbound packet that was dropped before the driver: policed when the shaper of the tap, or a police
 * action before it, dropped it.
 */
static __always_inline u64 inbound_verdict_of(u64 reason, u32 location, u32 traits)
{
#if HAS_QDISC_REASON
	bool by_shaper = is_qdisc_reason(reason), at_tc = reason == REASON_TC_EGRESS;
#else
	/* Inferred from the location: drops of a qdisc are freed as a list, and tc egress is inlined. */
	bool by_shaper = within(location, FREE_LIST_FROM, FREE_LIST_END);
	bool at_tc = within(location, TC_EGRESS_FROM, TC_EGRESS_END);
#endif

	return by_shaper || (at_tc && traits & TRAIT_EGRESS_POLICER) ? VERDICT_POLICED : VERDICT_DROPPED;
}

struct ending {
	u64 address;
	u64 verdict;
	u64 reason;
};

/* A packet in flight ends before the driver: write the verdict into its entry. True: count `ended` now. */
static __always_inline bool end_in_queue(struct cpu_state *state, const struct ending *ending, u32 iif, u64 drop_key,
					 struct inflight *ended, bool *known)
{
	u32 number = inflight_row_of(ending->address), way, place;
	struct inflight_row *row = inflight_index.lookup(&number);
	struct inflight *entry;

	*known = false;
	if (!row)
		return false;
	way = way_holding(state, row, ending->address);
	place = number * INFLIGHT_WAYS + way;
	entry = inflight.lookup(&place);
	/* Received on another device: a different packet at the address of one whose end was not seen. */
	if (!entry || entry->skb != ending->address || entry->iif != iif || entry->checksum != checksum_of(entry) ||
	    has_ended(entry))
		return false;
	*known = true;
	/*
	 * A qdisc that is removed frees its packets in process context. A packet of this CPU could interrupt and count
	 * in the same cells. So only the verdict is written here, and inflight_add() counts the packet.
	 */
	if (!is_qdisc_reason(ending->reason)) {
		entry->drop_key = drop_key;
		entry->key |= ending->verdict << KEY_VERDICT_SHIFT;
		return false;
	}
	*ended = *entry;
	*index_entry(row, way) = 0;
	return true;
}

static __always_inline void drop_inbound(struct cpu_state *state, u64 skb, u64 reason, u32 location)
{
	u64 device = FIELD(u64, skb, SKB_DEV_OFFSET), drop_key = reason << 32 | location;
	struct ending ending = { .address = skb, .reason = reason }, now;
	struct inflight ended;
	struct tap *tap;
	bool known;

	if (!device)
		return;
	tap = tap_of(FIELD(u32, device, NET_DEVICE_IFINDEX)); /* NULL for most packets of other devices */
	if (!tap || !(tap->traits & TRAIT_INBOUND) || is_of_other_netns(device))
		return;
	ending.verdict = inbound_verdict_of(reason, location, tap->traits);
	/*
	 * Verifier: plain numbers, also for the address, and one state afterwards. verifier_widen() cannot be used: in
	 * process context another program of this CPU could run in between.
	 */
	if (bpf_probe_read_kernel(&now, sizeof(now), &ending))
		return;
	if (state->in_driver.skb == now.address) {
		/* The driver dropped it. Bottom halves are off from here to net_dev_xmit. */
		state->in_driver.skb = 0;
		ended = state->in_driver;
		now.verdict = VERDICT_DROPPED;
	} else if (!end_in_queue(state, &now, (u32)FIELD(u32, skb, SKB_IIF_OFFSET), drop_key, &ended, &known)) {
		if (known || !is_qdisc_reason(now.reason))
			return;
		/* Not in flight, but of this tap: queued since before the start, or a segment of a GSO frame. */
		if (!parse_unknown(state, tap, skb, &ended))
			return;
	}
	ended.drop_key = drop_key;
	ended.key |= now.verdict << KEY_VERDICT_SHIFT;
	count_ended(state, &ended);
}
#endif

int drop(struct bpf_raw_tracepoint_args *ctx)
{
	u32 location;
	struct cpu_state *state = own_state();
	u64 skb = ctx->args[0], address = skb, reason = 0, verdict = VERDICT_UNKNOWN;

	/* Verifier: else the compiler would use the equal number in the CPU's state, which is not a typed pointer. */
	barrier_var(address);
	/* For almost every skb of the host, the program ends here. */
	if (!FOLLOW_INBOUND && state->skb != address)
		return 0;
#if HAS_REASON
	reason = ctx->args[2]; /* an enum of 32 bits, without a sign: trace/bpf_probe.h, CAST_TO_U64 */
#endif
	location = ctx->args[1];
	if (state->skb == address)
		verdict = drop_outbound(state, skb, reason, location);
	/* A packet that the policer dropped was never in flight to another tap, or to this one. */
	if (verdict == VERDICT_POLICED)
		return 0;
#if FOLLOW_INBOUND
	if (verdict == VERDICT_UNKNOWN)
		lose_copy(state, skb, address, reason);
	drop_inbound(state, skb, reason, location);
#endif
	return 0;
}
