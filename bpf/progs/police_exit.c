/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Mark a packet that the police action drops. The drop reason TC_INGRESS shows that tc ingress dropped a packet, but
 * not which action did. Attached only while a watched tap has both a policer and another action that can drop there.
 *
 * Hook:   fexit of tcf_police_act, host-wide
 * Reads:  the pending packet of the CPU; the return value of the police action
 * Writes: policed_sequence of the CPU's state
 * Needs:  BPF trampolines, and the type information of act_police (of a module: since 5.11)
 */

/* TC_ACT_SHOT of linux/pkt_cls.h. */
#define SHOT 2

/* args: those of tcf_police_act (skb, action, result), then its return value. */
int police(struct bpf_raw_tracepoint_args *ctx)
{
	struct cpu_state *state = own_state();
	u64 address = ctx->args[0];

	/* Verifier: else the compiler would use the equal number in the CPU's state, which is not a typed pointer. */
	barrier_var(address);
	if (state->skb != address || (u32)ctx->args[3] != SHOT)
		return 0;
	/*
	 * This CPU's own state. The sequence number identifies the packet, so nothing has to be cleared. A foreign skb
	 * at the same address does no harm: the pending packet has passed then, and progs/kfree_skb.c excludes foreign
	 * skbs first (is_foreign()).
	 */
	state->policed_sequence = state->sequence;
	return 0;
}
