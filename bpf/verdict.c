/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Hook:   BTF-typed raw tracepoint skb:kfree_skb, host-wide
 * Reads:  this CPU's pending packet; skb->skb_iif, at its offset from the running kernel's BTF
 * Writes: cells and bins (the verdict of the pending packet)
 * Needs:  BTF; the drop reason where the tracepoint has one (HAS_REASON)
 */

static __always_inline bool within(u32 location, u32 from, u32 end)
{
	return location - from < end - from;
}

/*
 * Whose drop it is: the tap's own policer's, or somebody's later in the call chain.
 * location: low half of the address that freed it; a function lies within [_FROM, _END) of it.
 */
static __always_inline u64 verdict_of(u32 reason, u32 location, u32 traits)
{
#if HAS_REASON
	/* Every shot at tc ingress: the police action, but any other action or program there too. */
	bool at_tc = reason == REASON_TC_INGRESS, by_netfilter = reason == REASON_NETFILTER_DROP;
#else
	/* Before 5.17, inferred. tc ingress is inlined there, and so is the end of what no protocol wants. */
	bool at_tc = within(location, TC_INGRESS_FROM, TC_INGRESS_END) && traits & TRAIT_TC_POLICER;
	bool by_netfilter = within(location, NETFILTER_FROM, NETFILTER_END);
#endif

	/* A netfilter drop is the tap's policer's only where an nft netdev chain hangs on the tap. */
	if (at_tc || (by_netfilter && traits & TRAIT_NFT_POLICER))
		return VERDICT_POLICED;
	return VERDICT_DROPPED;
}

int drop(struct bpf_raw_tracepoint_args *ctx)
{
	u32 cpu = bpf_get_smp_processor_id(), reason = 0, location;
	struct lane *lane = lanes.lookup(&cpu);
	u64 skb = ctx->args[0], address = skb, ifindex;

	/* Verifier: or the compiler would follow the number in the lane below, equal by then but no typed pointer. */
	asm volatile("" : "+r"(address));
	/* Almost every skb of the host leaves here. */
	if (!lane || lane->skb != address)
		return 0;
	/*
	 * The address of a freed skb is given out again at once: another device's skb may carry the address of a
	 * packet of ours that passed long ago. Its own receiving device tells it apart.
	 * Assembly, because bcc would make a helper call of it; the verifier knows the pointer's type and checks it.
	 */
	asm volatile("%0 = *(u32 *)(%1 + %2)" : "=r"(ifindex) : "r"(skb), "i"(SKB_IIF_OFFSET));
	if (unlikely(ifindex != lane->ifindex)) {
		lane->foreign_skbs++;
		return 0;
	}
	/* Settled by the reader: its call chain ended long ago, this is a later fate (or a later skb). */
	if (unlikely(lane->now - lane->epoch >= EPOCHS_IN_FLIGHT)) {
		lane->late_verdicts++;
		return 0;
	}
#if HAS_REASON
	reason = ctx->args[2];
#endif
	location = ctx->args[1];
	settle(cpu, lane, verdict_of(reason, location, lane->traits), (u64)reason << 32 | location);
	return 0;
}
