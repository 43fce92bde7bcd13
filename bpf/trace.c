/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Hook:   BTF-typed raw tracepoints net:netif_receive_skb (outbound) and net:net_dev_queue (inbound), host-wide; for
 *         kernels without tcx, where a tap has no qdisc to put a filter into
 * Reads:  the packet's headers as far as they are in the skb's linear part; fields of sk_buff, net_device,
 *         skb_shared_info and qdisc_skb_cb at their offsets from the running kernel's BTF
 * Writes: as observe.c
 * Needs:  BTF. Compiled only where it is needed (TRACEPOINTS).
 */
#if TRACEPOINTS

/*
 * Fields of kernel structs, through a pointer whose type the verifier knows (it checks each access).
 * Assembly, because bcc would make a helper call of a dereference.
 */
static __always_inline u64 field_u64(u64 object, const u32 offset)
{
	u64 value;

	asm volatile("%0 = *(u64 *)(%1 + %2)" : "=r"(value) : "r"(object), "i"(offset));
	return value;
}

static __always_inline u64 field_u32(u64 object, const u32 offset)
{
	u64 value;

	asm volatile("%0 = *(u32 *)(%1 + %2)" : "=r"(value) : "r"(object), "i"(offset));
	return value;
}

static __always_inline u64 field_u16(u64 object, const u32 offset)
{
	u64 value;

	asm volatile("%0 = *(u16 *)(%1 + %2)" : "=r"(value) : "r"(object), "i"(offset));
	return value;
}

static __always_inline u64 field_u8(u64 object, const u32 offset)
{
	u64 value;

	asm volatile("%0 = *(u8 *)(%1 + %2)" : "=r"(value) : "r"(object), "i"(offset));
	return value;
}

static __always_inline u32 ifindex_of(u64 skb)
{
	return field_u32(field_u64(skb, SKB_DEV), NET_DEVICE_IFINDEX);
}

/* Has the kernel put the outer VLAN tag beside the bytes? A bit before 6.2 (vlan_present), then vlan_all != 0. */
static __always_inline bool is_tagged(u64 skb)
{
	return (SKB_VLAN_BYTES == 1 ? field_u8(skb, SKB_VLAN) : field_u32(skb, SKB_VLAN)) & SKB_VLAN_MASK;
}

static __always_inline struct frame frame_of(u64 skb)
{
	u64 head = field_u64(skb, SKB_HEAD), end = field_u32(skb, SKB_END), data_bytes = field_u32(skb, SKB_LEN);
	struct frame frame = { .start = head + field_u16(skb, SKB_MAC_HEADER), .tagged = is_tagged(skb) };
	u16 gso_size = 0;

	/* skb->data is at the L3 header in the one tracepoint, at the L2 header in the other. */
	frame.length = data_bytes + (u32)(field_u64(skb, SKB_DATA) - frame.start);
	frame.linear_bytes = frame.length - (u32)field_u32(skb, SKB_DATA_LEN);
	/* skb_shinfo(skb), include/linux/skbuff.h */
	bpf_probe_read_kernel(&gso_size, sizeof(gso_size), (void *)(head + end + SHARED_INFO_GSO_SIZE));
	frame.gso_size = gso_size;
#if SAMPLES
	frame.vlan_tci = field_u16(skb, SKB_VLAN_TCI);
	frame.vlan_proto = field_u16(skb, SKB_VLAN_PROTO);
#endif
	return frame;
}

int trace_outbound(struct bpf_raw_tracepoint_args *ctx)
{
	u32 cpu = bpf_get_smp_processor_id();
	struct lane *lane = lanes.lookup(&cpu);
	u64 skb = ctx->args[0], now, what;
	struct tap *tap = tap_of(ifindex_of(skb)); /* NULL for every other packet of the host */
	struct packet packet;
	struct frame frame;

	if (!tap || !lane || !(tap->traits & TRAIT_TRACED_OUTBOUND) || in_other_netns(skb))
		return 0;
	now = arrival_ns(0);
	frame = frame_of(skb);
	what = identify(&frame, DIRECTION_OUTBOUND, tap, lane, &packet);
	if (ends_within_tag(&frame, &packet) || is_missed(cpu, what, &frame))
		return 0;
	untag(&frame, &packet);
	what |= size_key(lane, frame.length);
	measure_syn(cpu, lane, &frame, &packet, what, now);
	/* tc at ingress charges what follows the L2 header; here qdisc_skb_cb is not filled yet. */
	outbound(cpu, lane, tap, skb, &frame, &packet, what, now, frame.length - ETH_HEADER_LEN,
		 wire_bytes(&frame, &packet));
	return 0;
}

int trace_inbound(struct bpf_raw_tracepoint_args *ctx)
{
	u32 cpu = bpf_get_smp_processor_id();
	struct lane *lane = lanes.lookup(&cpu);
	u64 skb = ctx->args[0], now, what;
	struct tap *tap = tap_of(ifindex_of(skb)); /* NULL for every other packet of the host */
	struct packet packet;
	struct frame frame;

	if (!tap || !lane || !(tap->traits & TRAIT_TRACED_INBOUND) || in_other_netns(skb))
		return 0;
	now = arrival_ns(0);
	frame = frame_of(skb);
	what = identify(&frame, DIRECTION_INBOUND, tap, lane, &packet);
	if (is_missed(cpu, what, &frame))
		return 0;
	what |= size_key(lane, frame.length);
	measure_syn(cpu, lane, &frame, &packet, what, now);
	inbound(cpu, lane, tap, &frame, &packet, what, now, field_u32(skb, SKB_CB + QDISC_CB_PKT_LEN),
		wire_bytes(&frame, &packet));
	return 0;
}
#endif
