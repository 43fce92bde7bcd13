/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Hook:   tcx or clsact/ingress filter, ingress (outbound) and egress (inbound) of a tap
 * Reads:  the packet's headers, taps
 * Writes: the lane's pending packet (outbound), cells and bins
 * Needs:  tc programs; always returns TC_ACT_UNSPEC: it never decides a packet's fate
 */

/* TC_ACT_UNSPEC of linux/pkt_cls.h, the same value as TCX_NEXT: "go on". */
#define GO_ON (-1)

/* A packet's key but for the verdict. */
static __always_inline u64 identify(struct __sk_buff *skb, u64 direction, struct tap *tap, struct lane *lane,
				    struct packet *packet)
{
	volatile u64 *what = &lane->scratch;

	parse(skb, packet);
	/*
	 * Verifier: through memory, so that it forgets which class each path through the parser found: what follows
	 * is checked once and not once a path.
	 */
	*what = (tap->number + 1ULL) << KEY_TAP_SHIFT | direction << KEY_DIRECTION_SHIFT |
		(u64)packet->ethertype << KEY_ETHERTYPE_SHIFT | (u64)packet->packet_class << KEY_PACKET_CLASS_SHIFT |
		size_bucket(packet->frame_bytes) << KEY_SIZE_SHIFT;
	return *what;
}

int outbound(struct __sk_buff *skb)
{
	u32 cpu = bpf_get_smp_processor_id();
	struct tap *tap = tap_of(skb->ifindex);
	struct lane *lane = lanes.lookup(&cpu);
	struct packet packet;
	u64 what;

	if (!tap || !lane)
		return GO_ON;
	what = identify(skb, DIRECTION_OUTBOUND, tap, lane, &packet);
	if (lane->skb)
		settle(cpu, lane, VERDICT_PASSED, 0);
	turn_bin(cpu, lane, what);
	/* Own CPU's lane. The context pointer of a tc program is the skb's address: the tracepoint gets the same. */
	lane->what = what;
	lane->sequence++;
	lane->ifindex = tap->ifindex;
	lane->epoch = lane->now;
	lane->frame_bytes = packet.frame_bytes;
	/* Length that the policer charges: qdisc_skb_cb(skb)->pkt_len, set before tc runs. */
	lane->charged_bytes = skb->wire_len;
	lane->wire_bytes = wire_bytes(skb, &packet);
	lane->traits = tap->traits;
	lane->skb = (u64)(long)skb;
	return GO_ON;
}

int inbound(struct __sk_buff *skb)
{
	u32 cpu = bpf_get_smp_processor_id();
	struct tap *tap = tap_of(skb->ifindex);
	struct lane *lane = lanes.lookup(&cpu);
	struct packet packet;
	u64 what;

	if (!tap || !lane)
		return GO_ON;
	what = identify(skb, DIRECTION_INBOUND, tap, lane, &packet);
	turn_bin(cpu, lane, what);
	count(cpu, lane, what | (u64)VERDICT_UNKNOWN << KEY_VERDICT_SHIFT, 0, packet.frame_bytes, skb->wire_len,
	      wire_bytes(skb, &packet));
	return GO_ON;
}
