/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Netfilter drops: attribute a drop to a chain of the tap itself, or to a later one (of a bridge, of the IP stack).
 * Used only where both exist (TRAIT_NFT_SHARED). Each decision takes a few reads of memory, for any packet.
 *
 * Hook:   none, called where an outbound packet arrives (lib/arrival.c) and where it is dropped (progs/kfree_skb.c)
 * Reads:  skb->cb; this CPU's counters of packets received by the IP stack
 * Writes: the fourth cache line of the CPU's state
 * Needs:  HAS_IP_COUNTERS: offsets from BTF, and reads of kernel memory in tc programs. Without it, drops that cannot
 *         be attributed are counted in unplaced_drops
 */

/* Upper halves of kernel addresses start here. */
#define POINTERS_FROM 0xff000000U

/* A map that is used only for the address of its value on this CPU. */
BPF_TABLE("percpu_array", u32, u64, per_cpu_place, 1);

#if HAS_IP_COUNTERS
/* include/uapi/linux/snmp.h: InReceives, the second one; of both IP versions. */
#define IPSTATS_MIB_INPKTS 1

/* 0 when it cannot be read: nothing read here is 0 in the kernel. */
static __always_inline u64 word_at(u64 address)
{
	u64 word = 0;

	/*
	 * bpf_probe_read_kernel() by its number: where kallsyms hides addresses, bcc takes the helper for missing and
	 * calls bpf_probe_read() instead, which tc programs may not call (bcc,
	 * src/cc/frontends/clang/b_frontend_action.cc).
	 */
	((long (*)(void *, u32, const void *))113)(&word, sizeof(word), (void *)address);
	return word;
}

/*
 * The offset of this CPU's per-CPU memory: the address of a per-CPU map's value on this CPU, less the address that the
 * map keeps (kernel/bpf/arraymap.c, percpu_array_map_lookup_elem).
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

/* Addresses of the IP counters of the skb's network namespace, that of the taps. */
static __always_inline void find_ip_counters(struct cpu_state *state, u64 skb)
{
	u64 mib, offset = per_cpu_offset(state);

	/* Verifier: a number; in a tc program it is the context. */
	skb = verifier_widen(&state->scratch, skb);
	mib = word_at(word_at(skb + SKB_DEV_OFFSET) + DEV_NET_OFFSET) + NET_MIB_OFFSET;
#if MIB_IPV6_OFFSET >= 0
	state->ipv6_counter_at = word_at(mib + MIB_IPV6_OFFSET) + offset + IPSTATS_MIB_INPKTS * sizeof(u64);
#endif
	state->ip_counter_at = word_at(mib + MIB_IP_OFFSET) + offset + IPSTATS_MIB_INPKTS * sizeof(u64);
}

/* Number of packets that the IP stack has received on this CPU. protocol: IPv4 or IPv6, in network order. */
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
 * An outbound packet arrives. After the chains of the tap, the IP stack writes the device number into skb->cb, where tc
 * has put the length. A guest chooses the length, so a length equal to that number proves nothing. But the IP stack
 * counts each packet before its first chain sees it (ip_rcv_core, ip6_rcv_core), and no other packet is received in
 * between on this CPU. This CPU's own state.
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

/* Count a drop as unplaced, and attribute it to the tap's chain, because such a chain exists. This CPU's own state. */
static __always_inline bool unplaced(struct cpu_state *state)
{
	state->unplaced_drops++;
	return true;
}

/*
 * For a packet whose length is the number of the tap: true when the IP stack has not received it. protocol: at the
 * drop.
 */
static __always_inline bool has_not_come_to_ip(struct cpu_state *state, u32 protocol)
{
	if (!is_ip(protocol))
		return true;
#if HAS_IP_COUNTERS
	/*
	 * When the protocol differs from that at arrival, a tag was removed, before or after the chains of the tap.
	 */
	if (state->ip_counter_at && state->protocol == protocol)
		return ip_received(state, protocol) == state->ip_received;
#endif
	return unplaced(state);
}

/*
 * True: the first word of skb->cb is the address of a device in the tap's namespace, a bridge. Before tc, GRO leaves
 * another address there.
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
 * True: a chain of the tap dropped the packet. skb->cb shows that, because each layer overwrites it. tc ingress, the
 * layer before the chains of the device, writes the length of the skb there: the policer's charge without mpu and
 * overhead. After these chains, a bridge writes 0 and then the address of its device. ARP and br_netfilter write 0, and
 * the IP stack writes the number of the tap.
 */
static __always_inline bool by_own_chain(u64 skb, u32 location, struct cpu_state *state)
{
	u64 device = FIELD(u64, skb, SKB_DEV_OFFSET);
	u32 length = FIELD(u32, skb, SKB_CB_OFFSET + CB_PKT_LEN_OFFSET);

	if ((u32)FIELD(u32, device, DEV_IFINDEX_OFFSET) != state->ifindex)
		return false;
	/*
	 * Without vifprobe's tc hook it is unknown whether tc ingress has run. nf_hook_slow runs all chains except the
	 * first ones of a bridge.
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
