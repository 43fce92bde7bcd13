/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Hook:   fexit of tcf_police_act, host-wide
 * Reads:  this CPU's pending packet, and what the police action said of a packet
 * Writes: the pending packet's mark
 * Needs:  BPF trampolines, and the type information of act_police (a module's since 5.11)
 *
 * The reason TC_INGRESS says that tc ingress shot a packet, not who there. Attached only while a watched tap has both a
 * policer and something else that can shoot.
 */

/* TC_ACT_SHOT of linux/pkt_cls.h. */
#define SHOT 2

/* args: those of tcf_police_act (skb, action, result), and what it returned. */
int police(struct bpf_raw_tracepoint_args *ctx)
{
	struct cpu_state *state = own_state();
	u64 address = ctx->args[0];

	/* Verifier: or the compiler would follow the number in the CPU's state, equal by then but no typed pointer. */
	barrier_var(address);
	if (state->skb != address || (u32)ctx->args[3] != SHOT)
		return 0;
	/*
	 * This CPU's own state. It says of which packet: the next one has another number, nothing is to be cleared. Of a foreign
	 * skb at the same address it is never asked: ours has passed then, and foreign drops are told apart before.
	 */
	state->policed_sequence = state->sequence;
	return 0;
}
