/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * As progs/tc.c, for taps to which no tc program can be attached: on kernels without tcx, without a qdisc for a filter.
 *
 * Hook:   BTF-typed raw tracepoints net:netif_receive_skb (outbound) and net:net_dev_queue (inbound), host-wide
 * Reads:  the headers of the packet in the linear part of the skb; fields of sk_buff, net_device, skb_shared_info and
 *         qdisc_skb_cb at the offsets from the running kernel's BTF
 * Writes: as progs/tc.c
 * Needs:  BTF. Compiled only with TRACEPOINTS
 */
#if TRACEPOINTS

int trace_outbound(struct bpf_raw_tracepoint_args *ctx)
{
	struct cpu_state *state = own_state();
	u64 skb = ctx->args[0], now, key;
	struct tap *tap = tap_of(ifindex_of(skb)); /* NULL for all other packets of the host */
	struct packet packet;
	struct frame frame;

	if (!tap || !(tap->traits & TRAIT_TRACED_OUTBOUND) || in_other_netns(skb))
		return 0;
	now = arrival_ns(0);
	frame = frame_of(skb);
	key = identify(&frame, DIRECTION_OUTBOUND, tap, state, &packet);
	if (ends_within_tag(&frame, &packet) || is_missed(state, key, &frame))
		return 0;
	untag(&frame, &packet);
	key |= size_key(state, frame.length);
	settle_previous(state);
	measure_syn(state, tap, DIRECTION_OUTBOUND, &frame, &packet, key, &now);
	/* tc ingress charges the length without the L2 header; qdisc_skb_cb is not filled yet here. */
	outbound(state, tap, skb, &frame, &packet, key, now, frame.length - L2_HEADER_LEN,
		 wire_bytes(&frame, &packet));
	return 0;
}

int trace_inbound(struct bpf_raw_tracepoint_args *ctx)
{
	struct cpu_state *state = own_state();
	u64 skb = ctx->args[0], now, key;
	struct tap *tap = tap_of(ifindex_of(skb)); /* NULL for all other packets of the host */
	struct packet packet;
	struct frame frame;

	if (!tap || !(tap->traits & TRAIT_TRACED_INBOUND) || in_other_netns(skb))
		return 0;
	now = arrival_ns(0);
	frame = frame_of(skb);
	key = identify(&frame, DIRECTION_INBOUND, tap, state, &packet);
	if (is_missed(state, key, &frame))
		return 0;
	key |= size_key(state, frame.length);
	measure_syn(state, tap, DIRECTION_INBOUND, &frame, &packet, key, &now);
	inbound(state, tap, skb, (u32)FIELD(u32, skb, SKB_IIF_OFFSET), &frame, &packet, key, now,
		FIELD(u32, skb, SKB_CB + QDISC_CB_PKT_LEN), wire_bytes(&frame, &packet));
	return 0;
}
#endif
