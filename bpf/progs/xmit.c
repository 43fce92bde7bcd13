/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The end of an inbound packet's way: the driver takes it (passed), or frees it (progs/kfree_skb.c). The way is: the tap's egress
 * hook (progs/tc.c, remember), the queueing discipline, net_dev_start_xmit, the driver, net_dev_xmit.
 *
 * Hook:   BTF-typed raw tracepoints net:net_dev_start_xmit and net:net_dev_xmit, host-wide; the end of
 *         __skb_gso_segment, or raw tracepoint skb:consume_skb
 * Reads:  packets on their way; fields of the skb (lib/skb.c), its headers where it is not known
 * Writes: the lane's packet in the driver's hands, cells and bins
 * Needs:  BTF. Compiled only where inbound packets are followed (FOLLOW_INBOUND).
 *
 * Between the two tracepoints the packet is the lane's: both run on one CPU with bottom halves off (net/core/dev.c,
 * xmit_one), and the driver frees what it does not take in between. The memory of it is given up before the driver has
 * it: afterwards the guest may have read and freed it on another CPU, and its address be another packet's.
 */
#if FOLLOW_INBOUND

/* include/linux/netdevice.h, enum netdev_tx */
#define NETDEV_TX_BUSY 0x10
/* include/linux/err.h: pointers from here on are error codes */
#define ERRORS_FROM (-4095ULL)

static __always_inline void unannounced(struct lane *lane, u64 what)
{
	u32 at = desk_number(lane, what);
	struct missed *missed = misses.lookup(&at);

	if (missed)
		__sync_fetch_and_add(&missed->unannounced, 1); /* Atomic: see miss(). */
}

/* A packet that comes to its end unknown: queued since before the hook was there, or a segment of a GSO frame. */
static __always_inline bool look_at(struct lane *lane, struct tap *tap, u64 skb, struct flight *found)
{
	struct frame frame = frame_of(skb);
	struct packet packet;
	u64 what = identify(&frame, DIRECTION_INBOUND, tap, lane, &packet);

	if (is_missed(lane, what, &frame))
		return false;
	unannounced(lane, what);
	found->what = what | size_key(lane, frame.length);
	found->why = 0;
	found->wire_bytes = wire_bytes(&frame, &packet);
	found->frame_bytes = frame.length;
	/* A segment has its frame's control block, and with it the whole frame's length. */
	found->charged_bytes = frame.gso_size ? FIELD(u32, skb, SKB_CB + QDISC_CB_PKT_LEN) : frame.length;
	return true;
}

static __always_inline void passed(struct lane *lane)
{
	lane->leaving.skb = 0;
	lane->leaving.why = 0;
	lane->leaving.what |= (u64)VERDICT_PASSED << KEY_VERDICT_SHIFT;
	conclude(lane, &lane->leaving);
}

/* net_dev_start_xmit(skb, dev) */
int depart(struct bpf_raw_tracepoint_args *ctx)
{
	u64 skb = ctx->args[0], device = ctx->args[1], address;
	struct tap *tap = tap_of(FIELD(u32, device, NET_DEVICE_IFINDEX));
	struct lane *lane;

	/* Every other device's packets leave here. */
	if (!tap || !(tap->traits & TRAIT_INBOUND) || is_of_other_netns(device))
		return 0;
	lane = own_lane();
	/* Verifier: a number, no pointer: sums are done with it. */
	address = forget(&lane->scratch, skb);
	/* A device above this one (a bridge) has it in its hands: it has handed it on. */
	if (unlikely(lane->leaving.skb))
		passed(lane);
	if (likely(recall(lane, address, &lane->leaving)) || look_at(lane, tap, skb, &lane->leaving))
		lane->leaving.skb = address;
	else
		lane->leaving.skb = 0;
	return 0;
}

/* net_dev_xmit(skb, rc, dev, length). The skb may be gone: its address is a number only. */
int departed(struct bpf_raw_tracepoint_args *ctx)
{
	struct lane *lane = own_lane();
	u64 address = ctx->args[0], device = ctx->args[2];
	struct tap *tap;

	/* Verifier: or the compiler would follow the number in the lane, equal by then but no typed pointer, see drop(). */
	asm volatile("" : "+r"(address));
	/* Every other device's packets leave here ... */
	if (!lane->leaving.skb || lane->leaving.skb != address)
		return 0;
	/* ... but for those that a watched bridge hands on. */
	tap = tap_of(FIELD(u32, device, NET_DEVICE_IFINDEX));
	if (!tap || !(tap->traits & TRAIT_INBOUND))
		return 0;
	if (unlikely((u32)ctx->args[1] == NETDEV_TX_BUSY))
		lane->leaving.skb = 0; /* Back to the queue with it: looked at anew when it comes again. */
	else
		passed(lane);
	return 0;
}

/*
 * __skb_gso_segment(skb, features, tx_path) has returned. A frame that the kernel cut up is no packet any more (it is
 * consumed, which no drop tracepoint tells); its segments are packets, and come to their ends one by one.
 */
int cut(struct bpf_raw_tracepoint_args *ctx)
{
	struct lane *lane = own_lane();
	struct flight whole;
	u64 segments;

	segments = forget(&lane->scratch, ctx->args[3]);
	/* NULL: left whole; an error: the caller frees it. */
	if (segments && segments < ERRORS_FROM)
		recall(lane, forget(&lane->scratch, ctx->args[0]), &whole);
	return 0;
}

/*
 * consume_skb(skb, ...): the same where the kernel lets nobody look at its functions; every consumed skb pays for it.
 * Any other packet that is consumed before it was seen with the driver went another way (redirected), or its end was
 * hidden: some kernels run no tracepoint programs in certain tasks.
 */
int consume(struct bpf_raw_tracepoint_args *ctx)
{
	u64 skb = ctx->args[0], device = FIELD(u64, skb, SKB_DEV_OFFSET);
	struct lane *lane = own_lane();
	struct flight whole;
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
	if (recall(lane, address, &whole) && !frame_of(skb).gso_size)
		miss(lane, whole.what, whole.frame_bytes);
	return 0;
}
#endif
