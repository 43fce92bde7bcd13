/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Netfilter runs chains for a packet: record that when they are chains of the pending packet's device. Attached only
 * while a tap that the tracepoints count has both such chains and later ones; see lib/chains.c.
 *
 * Hook:   fentry of nf_hook_slow, host-wide
 * Reads:  the pending packet of the CPU; the arguments of nf_hook_slow
 * Writes: chained_sequence of the CPU's state
 * Needs:  BPF trampolines
 */

/* include/uapi/linux/netfilter.h */
#define NFPROTO_NETDEV 5
#define NF_NETDEV_INGRESS 0

/* nf_hook_slow(skb, state, entries, first) runs the chains of the device, or others. */
int chain(struct bpf_raw_tracepoint_args *ctx)
{
	struct cpu_state *state = own_state();
	u64 address = ctx->args[0], hook = ctx->args[1];

	/* Verifier: else the compiler would use the equal number in the CPU's state, which is not a typed pointer. */
	barrier_var(address);
	if (state->skb != address)
		return 0;
	/*
	 * This CPU's own state. The sequence number identifies the packet, as in progs/police_exit.c; packets are
	 * numbered from 1.
	 */
	if (FIELD(u8, hook, NF_STATE_PF_OFFSET) == NFPROTO_NETDEV &&
	    FIELD(u8, hook, NF_STATE_HOOK_OFFSET) == NF_NETDEV_INGRESS)
		state->chained_sequence = state->sequence;
	else
		state->chained_sequence = 0;
	return 0;
}
