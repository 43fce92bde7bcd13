/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The driver takes an inbound packet (passed), or frees it (progs/kfree_skb.c). The path of an inbound packet: egress
 * hook of the tap (progs/tc.c, inflight_add()), qdisc, net_dev_start_xmit, driver, net_dev_xmit.
 *
 * Hook:   BTF-typed raw tracepoints net:net_dev_start_xmit and net:net_dev_xmit, host-wide; fexit of
 *         __skb_gso_segment, or raw tracepoint skb:consume_skb
 * Reads:  packets in flight; fields of the skb (lib/skb.c); the headers of a packet that is not in flight
 * Writes: in_driver of the CPU's state, cells and bins
 * Needs:  BTF. Compiled only with FOLLOW_INBOUND
 *
 * Between the two tracepoints, the packet is kept in the CPU's state: both run on one CPU with bottom halves off
 * (net/core/dev.c, xmit_one), and the driver frees a packet that it does not take in between. The entry in flight is
 * removed before the driver has the packet: afterwards the guest may have read it, another CPU may have freed it, and
 * another packet may have its address.
 */
#if FOLLOW_INBOUND

/* include/linux/netdevice.h, enum netdev_tx */
#define NETDEV_TX_BUSY 0x10
/* include/linux/err.h: pointers from here on are error codes */
#define ERRORS_FROM (-4095ULL)

static __always_inline void count_untracked(struct cpu_state *state, u64 key)
{
	u32 at = tap_state_number(state, key);
	struct missed *missed = misses.lookup(&at);

	if (missed)
		__sync_fetch_and_add(&missed->untracked, 1); /* Atomic: see count_missed(). */
}

/*
 * Fill in an entry for a packet that is not in flight: queued since before the start, or a segment of a GSO frame.
 * False: it cannot be read.
 */
static __always_inline bool parse_unknown(struct cpu_state *state, struct tap *tap, u64 skb, struct inflight *found)
{
	struct frame frame = frame_of(skb);
	struct packet packet;
	u64 key = identify(&frame, DIRECTION_INBOUND, tap, state, &packet);

	if (is_missed(state, key, &frame))
		return false;
	count_untracked(state, key);
	found->key = key | size_key(state, frame.length);
	found->drop_key = 0;
	found->wire_bytes = wire_bytes(&frame, &packet);
	found->frame_bytes = frame.length;
	/* The control block of a segment is that of its frame, with the length of the whole frame. */
	found->charged_bytes = frame.gso_size ? FIELD(u32, skb, SKB_CB + QDISC_CB_PKT_LEN) : frame.length;
	return true;
}

static __always_inline void passed(struct cpu_state *state)
{
	state->in_driver.skb = 0;
	state->in_driver.drop_key = 0;
	state->in_driver.key |= (u64)VERDICT_PASSED << KEY_VERDICT_SHIFT;
	count_ended(state, &state->in_driver);
}

/* net_dev_start_xmit(skb, dev) */
int on_start_xmit(struct bpf_raw_tracepoint_args *ctx)
{
	u64 skb = ctx->args[0], device = ctx->args[1], address;
	struct tap *tap;
	struct cpu_state *state;

	if (unlikely(is_cloned(skb))) {
		address = skb;
		barrier_var(address);
		note_copy(own_state(), skb, address);
	}
	tap = tap_of(FIELD(u32, device, NET_DEVICE_IFINDEX));
	/* For the packets of all other devices, the program ends here. */
	if (!tap || !(tap->traits & TRAIT_INBOUND) || is_of_other_netns(device))
		return 0;
	state = own_state();
	/* Verifier: a number, not a pointer, because it is used in arithmetic. */
	address = verifier_widen(&state->scratch, skb);
	/* The previous packet is that of a device above this one (a bridge), which has forwarded it: it has passed. */
	if (unlikely(state->in_driver.skb))
		passed(state);
	if (likely(inflight_remove(state, address, &state->in_driver)) ||
	    parse_unknown(state, tap, skb, &state->in_driver))
		state->in_driver.skb = address;
	else
		state->in_driver.skb = 0;
	return 0;
}

/* net_dev_xmit(skb, rc, dev, length). The skb may have been freed: its address is used as a number only. */
int on_xmit(struct bpf_raw_tracepoint_args *ctx)
{
	struct cpu_state *state = own_state();
	u64 address = ctx->args[0], device = ctx->args[2];
	struct tap *tap;

	/* Verifier: else the compiler would use the equal number in the CPU's state, which is not a typed pointer. */
	barrier_var(address);
	/* The driver has not freed the copy. */
	if (unlikely(state->copy == address))
		state->copy = 0;
	/* For the packets of all other devices, the program ends here ... */
	if (!state->in_driver.skb || state->in_driver.skb != address)
		return 0;
	/* ... except for those that a watched bridge forwards. */
	tap = tap_of(FIELD(u32, device, NET_DEVICE_IFINDEX));
	if (!tap || !(tap->traits & TRAIT_INBOUND))
		return 0;
	if (unlikely((u32)ctx->args[1] == NETDEV_TX_BUSY))
		state->in_driver.skb = 0; /* requeued: it is seen again when it comes back */
	else
		passed(state);
	return 0;
}

/*
 * __skb_gso_segment(skb, features, tx_path) has returned. A frame that was segmented is not a packet any more (it is
 * consumed, which no drop tracepoint reports). Its segments are packets, and each has its own end.
 */
int on_gso_segmented(struct bpf_raw_tracepoint_args *ctx)
{
	struct cpu_state *state = own_state();
	struct inflight whole;
	u64 segments;

	segments = verifier_widen(&state->scratch, ctx->args[3]);
	/* NULL: not segmented; an error: the caller frees the frame. */
	if (segments && segments < ERRORS_FROM)
		inflight_remove(state, verifier_widen(&state->scratch, ctx->args[0]), &whole);
	return 0;
}

/*
 * consume_skb(skb, ...): as on_gso_segmented(), for kernels without fexit; it runs for each consumed skb. Another
 * packet that is consumed before the driver had it was redirected, or its end was not reported: some kernels run no
 * tracepoint programs in certain tasks.
 */
int on_consume_skb(struct bpf_raw_tracepoint_args *ctx)
{
	u64 skb = ctx->args[0], device = FIELD(u64, skb, SKB_DEV_OFFSET);
	struct cpu_state *state = own_state();
	struct inflight whole;
	struct tap *tap;
	u64 address;

	if (!device)
		return 0;
	tap = tap_of(FIELD(u32, device, NET_DEVICE_IFINDEX));
	if (!tap || !(tap->traits & TRAIT_INBOUND) || is_of_other_netns(device))
		return 0;
	/* Verifier: a number, see drop_inbound(). */
	if (bpf_probe_read_kernel(&address, sizeof(address), &ctx->args[0]))
		return 0;
	if (inflight_remove(state, address, &whole) && !frame_of(skb).gso_size)
		count_missed(state, whole.key, whole.frame_bytes);
	return 0;
}
#endif
