/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Hook:   BTF-typed raw tracepoints net:netif_receive_skb (outbound) and net:net_dev_queue (inbound), host-wide; for
 *         kernels without tcx, where a tap has no qdisc to put a filter into
 * Reads:  the packet's headers as far as they are in the skb's linear part; fields of sk_buff, net_device,
 *         skb_shared_info and qdisc_skb_cb at their offsets from the running kernel's BTF
 * Writes: as progs/tc.c
 * Needs:  BTF. Compiled only where it is needed (TRACEPOINTS).
 */
#if TRACEPOINTS

int trace_outbound(struct bpf_raw_tracepoint_args *ctx)
{
	struct lane *lane = own_lane();
	u64 skb = ctx->args[0], now, what;
	struct tap *tap = tap_of(ifindex_of(skb)); /* NULL for every other packet of the host */
	struct packet packet;
	struct frame frame;

	if (!tap || !(tap->traits & TRAIT_TRACED_OUTBOUND) || in_other_netns(skb))
		return 0;
	now = arrival_ns(0);
	frame = frame_of(skb);
	what = identify(&frame, DIRECTION_OUTBOUND, tap, lane, &packet);
	if (ends_within_tag(&frame, &packet) || is_missed(lane, what, &frame))
		return 0;
	untag(&frame, &packet);
	what |= size_key(lane, frame.length);
	make_way(lane);
	measure_syn(lane, tap, DIRECTION_OUTBOUND, &frame, &packet, what, &now);
	/* tc at ingress charges what follows the L2 header; here qdisc_skb_cb is not filled yet. */
	outbound(lane, tap, skb, &frame, &packet, what, now, frame.length - L2_HEADER_LEN,
		 wire_bytes(&frame, &packet));
	return 0;
}

int trace_inbound(struct bpf_raw_tracepoint_args *ctx)
{
	struct lane *lane = own_lane();
	u64 skb = ctx->args[0], now, what;
	struct tap *tap = tap_of(ifindex_of(skb)); /* NULL for every other packet of the host */
	struct packet packet;
	struct frame frame;

	if (!tap || !(tap->traits & TRAIT_TRACED_INBOUND) || in_other_netns(skb))
		return 0;
	now = arrival_ns(0);
	frame = frame_of(skb);
	what = identify(&frame, DIRECTION_INBOUND, tap, lane, &packet);
	if (is_missed(lane, what, &frame))
		return 0;
	what |= size_key(lane, frame.length);
	measure_syn(lane, tap, DIRECTION_INBOUND, &frame, &packet, what, &now);
	inbound(lane, tap, skb, (u32)FIELD(u32, skb, SKB_IIF_OFFSET), &frame, &packet, what, now,
		FIELD(u32, skb, SKB_CB + QDISC_CB_PKT_LEN), wire_bytes(&frame, &packet));
	return 0;
}
#endif
