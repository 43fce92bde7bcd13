/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Copies of the pending packet (a bridge or Open vSwitch sends it to several ports), and what is lost at other devices.
 *
 * Hook:   none, called by progs/xmit.c and progs/kfree_skb.c
 * Reads:  the pending packet of the CPU, taps; fields of the skb (lib/skb.c)
 * Writes: the copies in the CPU's state, device_losses
 * Needs:  BTF. Compiled only with FOLLOW_INBOUND
 *
 * All ports but the last one get a clone, and the last one gets the skb itself (net/bridge/br_forward.c, br_flood;
 * net/openvswitch/actions.c, do_execute_actions). So when the skb is dropped, all copies have been sent, queued or
 * dropped before, in the same call chain. All share one buffer (skb->head).
 */
#if FOLLOW_INBOUND

static __always_inline bool is_cloned(u64 skb)
{
	return FIELD(u8, skb, SKB_CLONED) & SKB_CLONED_MASK;
}

/* A driver gets a packet that shares its buffer with another one. Remember it if that is the pending packet. */
static __always_inline void note_copy(struct cpu_state *state, u64 skb, u64 address)
{
	u64 pending = state->skb, head = 0;

	if (!pending || pending == address || state->ifindex != FIELD(u32, skb, SKB_IIF_OFFSET))
		return;
	/* A copy of an older packet, out of a queue, has another buffer. */
	if (bpf_probe_read_kernel(&head, sizeof(head), (void *)(pending + SKB_HEAD)) ||
	    head != address_in(skb, SKB_HEAD))
		return;
	/* This CPU's own state; bottom halves are off. */
	if (state->copied_sequence != state->sequence) {
		state->copied_sequence = state->sequence;
		state->copies = 0;
	} else if (state->copy == address) {
		return; /* on its way through a device on top of another */
	}
	state->copies++;
	state->copy = address;
}

/* The driver of the copy has freed it. */
static __always_inline void forget_copy(struct cpu_state *state)
{
	state->copy = 0;
	if (state->copied_sequence == state->sequence && state->copies)
		state->copies--;
}

/* True: a copy of the pending packet was sent, or is in a queue. */
static __always_inline bool has_copy(struct cpu_state *state, u64 skb)
{
	u32 references = 0;

	if (likely(!is_cloned(skb)))
		return false;
	if (state->copied_sequence == state->sequence && state->copies)
		return true;
	/* include/linux/skbuff.h, SKB_DATAREF_SHIFT: the lower half counts the skbs that share the buffer. */
	bpf_probe_read_kernel(&references, sizeof(references),
			      (void *)(address_in(skb, SKB_HEAD) + FIELD(u32, skb, SKB_END) + SHARED_INFO_DATAREF));
	return (references & 0xffff) > 1;
}

/* Count a packet of a tap that was lost at a device. */
static __always_inline void count_at_device(struct cpu_state *state, u32 number, u64 reason, u32 ifindex, bool is_copy)
{
	u32 at = state->cpu * TAPS + number;
	struct device_losses *losses = device_losses.lookup(&at);
	u64 key = reason << 32 | ifindex;

	if (!losses)
		return;
	/* This CPU's own counters; the reasons counted here occur with bottom halves off. */
#pragma unroll
	for (int i = 0; i < DEVICE_LOSSES; i++) {
		struct device_loss *loss = &losses->at[i];

		if (!loss->key)
			loss->key = key;
		if (loss->key != key)
			continue;
		if (is_copy)
			loss->copies++;
		else
			loss->dropped++;
		return;
	}
	losses->others++;
}
#endif
