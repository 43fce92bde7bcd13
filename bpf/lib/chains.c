/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Whether a netfilter chain of the tap itself dropped a packet, or one behind it: of a bridge, of the IP stack. Asked
 * only where both are there (TRAIT_NFT_SHARED). Each answer takes a few reads of memory, whatever the packet is.
 *
 * Hook:   fentry of nf_hook_slow, host-wide; attached only while a tap that the tracepoints count has such chains. Else
 *         none of its own: called where an outbound packet arrives (progs/tc.c) and where it is dropped (progs/kfree_skb.c)
 * Reads:  skb->cb; this CPU's counters of packets that the IP stack has received; what nf_hook_slow is called for
 * Writes: the fourth line of the CPU's state
 * Needs:  HAS_IP_COUNTERS: offsets from BTF, and reading kernel memory from tc programs. For the tracepoint way BPF
 *         trampolines. Without, what cannot be told is counted in unplaced_drops.
 */

/* include/uapi/linux/netfilter.h */
#define NFPROTO_NETDEV 5
#define NF_NETDEV_INGRESS 0
/* Upper halves of kernel addresses. */
#define POINTERS_FROM 0xff000000U

/* Its only use is where a CPU's value lies. */
BPF_TABLE("percpu_array", u32, u64, per_cpu_place, 1);

#if HAS_IP_COUNTERS
/* include/uapi/linux/snmp.h: InReceives, the second one; of both IP versions. */
#define IPSTATS_MIB_INPKTS 1

/* 0 where it cannot be read: no kernel address that is asked for here is 0. */
static __always_inline u64 word_at(u64 address)
{
	u64 word = 0;

	/*
	 * By its number: where kallsyms hides addresses, bcc takes it for missing and calls bpf_probe_read() instead, which tc
	 * programs may not (bcc, src/cc/frontends/clang/b_frontend_action.cc).
	 */
	((long (*)(void *, u32, const void *))113)(&word, sizeof(word), (void *)address);
	return word;
}

/*
 * What this CPU adds to the address that the kernel keeps of per-CPU memory: the difference between where a value of a
 * per-CPU map lies here and the address that the map keeps (kernel/bpf/arraymap.c, percpu_array_map_lookup_elem).
 */
static __always_inline u64 per_cpu_offset(struct cpu_state *state)
{
	u32 first = 0;
	u64 *here = per_cpu_place.lookup(&first), map;

	if (!here)
		return 0;
	/* Verifier: plain numbers, not pointers. */
	map = verifier_widen(&state->scratch, LOADED(PER_CPU_PLACE));
	return verifier_widen(&state->scratch, (u64)(long)here) - word_at(map + BPF_ARRAY_PPTRS_OFFSET);
}

/* Of an skb's network namespace, the taps' own. */
static __always_inline void find_ip_counters(struct cpu_state *state, u64 skb)
{
	u64 mib, offset = per_cpu_offset(state);

	/* Verifier: a number, where it is a tc program's context. */
	skb = verifier_widen(&state->scratch, skb);
	mib = word_at(word_at(skb + SKB_DEV_OFFSET) + DEV_NET_OFFSET) + NET_MIB_OFFSET;
#if MIB_IPV6_OFFSET >= 0
	state->ipv6_counter_at = word_at(mib + MIB_IPV6_OFFSET) + offset + IPSTATS_MIB_INPKTS * sizeof(u64);
#endif
	state->ip_counter_at = word_at(mib + MIB_IP_OFFSET) + offset + IPSTATS_MIB_INPKTS * sizeof(u64);
}

/* Packets that the IP stack has received on this CPU, ever. protocol: of the two that it knows, in network order. */
static __always_inline u64 ip_received(struct cpu_state *state, u32 protocol)
{
#if MIB_IPV6_OFFSET >= 0
	if (protocol == bpf_htons(TYPE_IPV6))
		return word_at(state->ipv6_counter_at);
#endif
	return word_at(state->ip_counter_at);
}
#endif

static __always_inline bool is_ip(u32 protocol)
{
	return protocol == bpf_htons(TYPE_IPV4) || protocol == bpf_htons(TYPE_IPV6);
}

/*
 * An outbound packet arrives. Behind the tap's own chains the IP stack writes the device's number into skb->cb where tc
 * has put the length: the guest chooses the length, so that a length which is that number tells nothing. But the IP stack
 * counts each packet before its first chain sees it (ip_rcv_core, ip6_rcv_core), and no other packet comes between on this
 * CPU. This CPU's own state.
 */
static __always_inline void note_ip_received(struct cpu_state *state, struct __sk_buff *skb)
{
#if HAS_IP_COUNTERS
	if (state->charged_bytes != state->ifindex && state->frame_bytes - L2_HEADER_LEN != state->ifindex)
		return;
	state->protocol = skb->protocol;
	if (!is_ip(state->protocol))
		return;
	if (!state->ip_counter_at)
		find_ip_counters(state, (u64)(long)skb);
	state->ip_received = ip_received(state, state->protocol);
#endif
}

/* This CPU's own state. Said, and counted as the policer's: a chain of the tap is known to be there. */
static __always_inline bool unplaced(struct cpu_state *state)
{
	state->unplaced_drops++;
	return true;
}

/* Of a packet whose length is the tap's number. protocol: as it was dropped. */
static __always_inline bool has_not_come_to_ip(struct cpu_state *state, u32 protocol)
{
	if (!is_ip(protocol))
		return true;
#if HAS_IP_COUNTERS
	/* Another one than at its arrival: somebody took a tag away, before or behind the tap's chains. */
	if (state->ip_counter_at && state->protocol == protocol)
		return ip_received(state, protocol) == state->ip_received;
#endif
	return unplaced(state);
}

/*
 * Is skb->cb's first word the address of a device in the tap's namespace, a bridge's? Before tc, GRO leaves an address
 * of something else there.
 */
static __always_inline bool is_bridge_of(u64 word, u64 device)
{
#if HAS_IP_COUNTERS
	return word_at(word + DEV_NET_OFFSET) == FIELD(u64, device, DEV_NET_OFFSET);
#else
	return false;
#endif
}

/*
 * By what is in skb->cb, which every layer uses anew. tc ingress, the layer before the device's own chains, has put the
 * skb's length there, as the policer charges it but for what that adds. Behind them a bridge has 0 there, then its own
 * device's address, and ARP and br_netfilter 0; the IP stack the number of the tap.
 */
static __always_inline bool by_own_chain(u64 skb, u32 location, struct cpu_state *state)
{
	u64 device = FIELD(u64, skb, SKB_DEV_OFFSET);
	u32 length = FIELD(u32, skb, SKB_CB_OFFSET + CB_PKT_LEN_OFFSET);

	if ((u32)FIELD(u32, device, DEV_IFINDEX_OFFSET) != state->ifindex)
		return false;
	/*
	 * Without a tc hook of ours it is not known whether tc ingress has run. nf_hook_slow runs all chains but the bridge's
	 * first ones.
	 */
	if (state->traits & TRAIT_TRACED_OUTBOUND)
		return location - state->hooks_from < state->hooks_end - state->hooks_from &&
		       state->chained_sequence == state->sequence;
	if (length != state->charged_bytes && length != state->frame_bytes - L2_HEADER_LEN)
		return false;
	if (unlikely(!length))
		return unplaced(state);
	if (unlikely((u32)FIELD(u32, skb, SKB_CB_OFFSET + 4) >= POINTERS_FROM) &&
	    is_bridge_of(FIELD(u64, skb, SKB_CB_OFFSET), device))
		return false;
	if (unlikely(length == state->ifindex))
		return has_not_come_to_ip(state, FIELD(u16, skb, SKB_PROTOCOL_OFFSET));
	return true;
}

/* nf_hook_slow(skb, state, entries, first): chains are run, the device's own or others'. */
int chain(struct bpf_raw_tracepoint_args *ctx)
{
	struct cpu_state *state = own_state();
	u64 address = ctx->args[0], hook = ctx->args[1];

	/* Verifier: or the compiler would follow the number in the CPU's state, equal by then but no typed pointer. */
	barrier_var(address);
	if (state->skb != address)
		return 0;
	/* This CPU's own state. It says of which packet, as in progs/police_exit.c; packets are counted from 1. */
	if (FIELD(u8, hook, NF_STATE_PF_OFFSET) == NFPROTO_NETDEV && FIELD(u8, hook, NF_STATE_HOOK_OFFSET) == NF_NETDEV_INGRESS)
		state->chained_sequence = state->sequence;
	else
		state->chained_sequence = 0;
	return 0;
}
