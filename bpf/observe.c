/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Hook:   tcx or clsact/ingress filter, ingress (outbound) and egress (inbound) of a tap
 * Reads:  the packet's headers, taps
 * Writes: the lane's pending packet (outbound), cells and bins
 * Needs:  tc programs; always returns TC_ACT_UNSPEC: it never decides a packet's fate
 */

/* TC_ACT_UNSPEC of linux/pkt_cls.h, the same value as TCX_NEXT: "go on". */
#define GO_ON (-1)

#define STR(text) #text
#define XSTR(text) STR(text)

/*
 * Which side of the tap this copy of the program hangs on. The compiler sees an unknown number, the loader writes the
 * direction in its place (one compilation for both, half the start-up time), and the kernel drops the other branch.
 */
static __always_inline u64 own_direction(void)
{
	u64 direction;

	asm volatile("%0 = " XSTR(DIRECTION_PLACEHOLDER) " ll" : "=r"(direction));
	return direction;
}

/* A packet's key but for the verdict. */
static __always_inline u64 identify(struct __sk_buff *skb, u64 direction, struct tap *tap, struct lane *lane,
				    struct packet *packet)
{
	u64 what = forget(&lane->scratch, size_bucket(skb->len)) << KEY_SIZE_SHIFT;

	parse(skb, packet, &lane->scratch);
	what |= forget(&lane->scratch, (u64)packet->ethertype << KEY_ETHERTYPE_SHIFT |
					       (u64)packet->packet_class << KEY_PACKET_CLASS_SHIFT);
	packet->header_bytes = forget(&lane->scratch, packet->header_bytes);
	return what | (tap->number + 1ULL) << KEY_TAP_SHIFT | direction << KEY_DIRECTION_SHIFT;
}

int observe(struct __sk_buff *skb)
{
	u32 cpu = bpf_get_smp_processor_id();
	struct tap *tap = tap_of(skb->ifindex);
	struct lane *lane = lanes.lookup(&cpu);
	u64 direction = own_direction(), what, wire;
	struct packet packet;

	if (!tap || !lane)
		return GO_ON;
	what = identify(skb, direction, tap, lane, &packet);
	wire = wire_bytes(skb, &packet);
	if (direction == DIRECTION_INBOUND) {
		turn_bin(cpu, lane, what);
		count(cpu, lane, what | (u64)VERDICT_UNKNOWN << KEY_VERDICT_SHIFT, 0, packet.frame_bytes, skb->wire_len,
		      wire);
		return GO_ON;
	}
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
	lane->wire_bytes = wire;
	lane->traits = tap->traits;
	lane->skb = (u64)(long)skb;
	return GO_ON;
}
