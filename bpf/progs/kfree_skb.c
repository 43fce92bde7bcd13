/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * A packet is freed: find out whether the tap's policer dropped it, or something else.
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

/* Whether what tc ingress shot was shot by the police action. */
static __always_inline bool by_policer(struct cpu_state *state)
{
	/* Others could have: the police action was watched, see progs/police_exit.c. */
	if (state->traits & TRAIT_TC_MARKED)
		return state->policed_sequence == state->sequence;
	return !(state->traits & TRAIT_TC_FOREIGN);
}

/*
 * Whose drop it is: the tap's own policer's, or somebody else's, there or later in the call chain.
 * location: low half of the address that freed it; a function lies within [_FROM, _END) of it.
 */
static __always_inline u64 verdict_of(u64 skb, u64 reason, u32 location, struct cpu_state *state)
{
#if HAS_REASON
	/* Every shot at tc ingress: the police action, but any other action or program there too. */
	bool at_tc = reason == REASON_TC_INGRESS, by_netfilter = reason == REASON_NETFILTER_DROP;
#else
	/* Before 5.17, inferred. tc ingress is inlined there, and so is the end of what no protocol wants. */
	bool at_tc = within(location, TC_INGRESS_FROM, TC_INGRESS_END) && state->traits & TRAIT_TC_POLICER;
	bool by_netfilter = within(location, NETFILTER_FROM, NETFILTER_END);
#endif

	if (at_tc) {
		if (unlikely(!by_policer(state)))
			return VERDICT_DROPPED;
		return VERDICT_POLICED;
	}
	/* A netfilter drop is the tap's policer's only where an nft netdev chain hangs on the tap. */
	if (unlikely(!by_netfilter) || unlikely(!(state->traits & TRAIT_NFT_POLICER)))
		return VERDICT_DROPPED;
	/* Where other chains than the tap's can have. */
	if (unlikely(state->traits & TRAIT_NFT_SHARED) && !by_own_chain(skb, location, state))
		return VERDICT_DROPPED;
	return VERDICT_POLICED;
}

/*
 * The address of a freed skb is given out again at once: a pending skb's address may be on another skb by now, when
 * the packet passed long ago. What tells it apart is where it was received: not on this tap ...
 */
static __always_inline bool is_foreign(u64 skb, struct cpu_state *state)
{
	/* 0: received nowhere yet. */
	if (FIELD(u32, skb, SKB_IIF_OFFSET) != state->ifindex)
		return true;
	/* ... but on a device of the same number in another network namespace ... */
	if (in_other_netns(skb))
		return true;
	/*
	 * ... or on this tap, but freed before it came to the hook: a tag that the kernel could not take out, because the
	 * frame ends within it (net/core/skbuff.c, skb_vlan_untag). A guest can send such frames between all others.
	 * Here skb->len is without the L2 header; of ours it is that small only where the frame was.
	 */
	if (unlikely(FIELD(u32, skb, SKB_LEN_OFFSET) < VLAN_TAG_LEN + 2)) {
		u16 type = bpf_ntohs((u16)FIELD(u16, skb, SKB_PROTOCOL_OFFSET));

		return (type == TYPE_VLAN || type == TYPE_QINQ) &&
		       state->frame_bytes >= L2_HEADER_LEN + VLAN_TAG_LEN + 2;
	}
	return false;
}

/* The pending outbound packet was freed. True: that was all there is to it. */
static __always_inline bool drop_outbound(struct cpu_state *state, u64 skb, u64 reason, u32 location)
{
	u64 verdict;

	if (unlikely(is_foreign(skb, state)))
		return false;
	/* Settled by the reader: its call chain ended long ago, this is a later fate (or a later skb). */
	if (unlikely((s32)(state->now - state->epoch) >= EPOCHS_IN_FLIGHT)) {
		state->late_verdicts++;
		return false;
	}
	verdict = verdict_of(skb, reason, location, state);
	settle(state, verdict, reason << 32 | location);
	/* What the policer took never came to another tap, or back to this one. */
	return verdict == VERDICT_POLICED;
}

#if FOLLOW_INBOUND
#if HAS_QDISC_REASON
/* The reasons of queueing disciplines, a bit each; given in call chains with bottom halves off only. */
static __always_inline bool is_qdisc_reason(u64 reason)
{
	return reason < 128 && (reason < 64 ? QDISC_REASONS_LOW : QDISC_REASONS_HIGH) >> (reason & 63) & 1;
}
#else
static __always_inline bool is_qdisc_reason(u64 reason)
{
	return false;
}
#endif

/* Who dropped an inbound packet that had not come to the driver yet: the tap's shaper, or a police action before it. */
static __always_inline u64 inbound_verdict_of(u64 reason, u32 location, u32 traits)
{
#if HAS_QDISC_REASON
	bool by_shaper = is_qdisc_reason(reason), at_tc = reason == REASON_TC_EGRESS;
#else
	/* Inferred: the drops of a queueing discipline are freed as a list, and tc egress is inlined. */
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

/*
 * The end of a known inbound packet before it came to the driver: its fate is noted in its place.
 * True: it is to be counted now, `ended` tells what.
 */
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
	/* Received elsewhere: another packet at the address of one that went away unseen. */
	if (!entry || entry->skb != ending->address || entry->iif != iif || entry->checksum != checksum_of(entry) ||
	    has_ended(entry))
		return false;
	*known = true;
	/*
	 * Freed by whom? A queueing discipline that is taken away frees its packets in process context, where a packet of
	 * this CPU could come in between and count in the same cells. Such an end waits in its place, see inflight_add().
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
	tap = tap_of(FIELD(u32, device, NET_DEVICE_IFINDEX)); /* ... or here: NULL */
	if (!tap || !(tap->traits & TRAIT_INBOUND) || is_of_other_netns(device))
		return;
	ending.verdict = inbound_verdict_of(reason, location, tap->traits);
	/*
	 * Verifier: plain numbers, the address too, and one state for what follows. Not by verifier_widen(): in process context
	 * another program of this CPU could come in between.
	 */
	if (bpf_probe_read_kernel(&now, sizeof(now), &ending))
		return;
	if (state->in_driver.skb == now.address) {
		/* The driver did not take it. From here to net_dev_xmit bottom halves are off. */
		state->in_driver.skb = 0;
		ended = state->in_driver;
		now.verdict = VERDICT_DROPPED;
	} else if (!end_in_queue(state, &now, (u32)FIELD(u32, skb, SKB_IIF_OFFSET), drop_key, &ended, &known)) {
		if (known || !is_qdisc_reason(now.reason))
			return;
		/* Unknown, and all the same the tap's: in its queue since before the hook was there, or cut from a GSO frame. */
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
	u64 skb = ctx->args[0], address = skb, reason = 0;

	/* Verifier: else the compiler would use the number in the CPU's state, which is equal here but is not a typed pointer. */
	barrier_var(address);
	/* Almost every skb of the host leaves here ... */
	if (!FOLLOW_INBOUND && state->skb != address)
		return 0;
#if HAS_REASON
	reason = ctx->args[2]; /* an enum of 32 bits, without a sign: trace/bpf_probe.h, CAST_TO_U64 */
#endif
	location = ctx->args[1];
	if (state->skb == address && drop_outbound(state, skb, reason, location))
		return 0;
#if FOLLOW_INBOUND
	drop_inbound(state, skb, reason, location);
#endif
	return 0;
}
