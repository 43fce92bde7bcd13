/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Fields of an skb and of its device, for tracepoint programs, at the offsets from the running kernel's BTF.
 *
 * Hook:   none, called by the programs
 * Reads:  fields of sk_buff, net_device, net, skb_shared_info and qdisc_skb_cb
 * Writes: nothing
 * Needs:  BTF
 */
/*
 * A field of a kernel struct. Assembly, because bcc would turn the access into a helper call, and the verifier knows
 * the type of `from`.
 */
#define FIELD(size, from, offset)                                                                \
	({                                                                                       \
		u64 field;                                                                       \
		asm volatile("%0 = *(" #size " *)(%1 + %2)" : "=r"(field) : "r"(from), "i"(offset)); \
		field;                                                                           \
	})

/* Tracepoints see packets of all network namespaces. Each namespace numbers its devices from 1. */
static __always_inline bool is_of_other_netns(u64 device)
{
#if NS_COMMON_INUM_OFFSET >= 0
	u64 net = FIELD(u64, device, DEV_NET_OFFSET);

	return FIELD(u32, net, NET_NS_OFFSET + NS_COMMON_INUM_OFFSET) != LOADED(NETNS);
#else
	return false;
#endif
}

static __always_inline bool in_other_netns(u64 skb)
{
	return is_of_other_netns(FIELD(u64, skb, SKB_DEV_OFFSET));
}

#if FOLLOW_INBOUND || TRACEPOINTS
static __always_inline u32 ifindex_of(u64 skb)
{
	return FIELD(u32, FIELD(u64, skb, SKB_DEV), NET_DEVICE_IFINDEX);
}

/* True: the skb has the outer VLAN tag, outside the bytes. One bit before 6.2 (vlan_present), then vlan_all != 0. */
static __always_inline bool is_tagged(u64 skb)
{
	return (SKB_VLAN_BYTES == 1 ? FIELD(u8, skb, SKB_VLAN) : FIELD(u32, skb, SKB_VLAN)) & SKB_VLAN_MASK;
}

/*
 * A pointer of the skb as a plain number. Verifier: up to 6.18, a value computed from a pointer to bytes is still a
 * pointer, and a number to which such a pointer is added keeps its value (kernel/bpf/verifier.c,
 * adjust_ptr_min_max_vals). Then the verifier skips branches that can be taken. verifier_widen() cannot be used: in
 * process context, another program of this CPU could run in between.
 */
static __always_inline u64 address_in(u64 skb, u32 offset)
{
	u64 address = 0;

	bpf_probe_read_kernel(&address, sizeof(address), (void *)(skb + offset));
	return address;
}

static __always_inline struct frame frame_of(u64 skb)
{
	u64 head = address_in(skb, SKB_HEAD), end = FIELD(u32, skb, SKB_END), data_bytes = FIELD(u32, skb, SKB_LEN);
	struct frame frame = { .start = head + FIELD(u16, skb, SKB_MAC_HEADER), .tagged = is_tagged(skb) };
	u16 gso_size = 0;

	/* skb->data is at the L3 header in one tracepoint, at the L2 header in the other. */
	frame.length = data_bytes + (u32)(address_in(skb, SKB_DATA) - frame.start);
	frame.linear_bytes = frame.length - (u32)FIELD(u32, skb, SKB_DATA_LEN);
	/* skb_shinfo(skb), include/linux/skbuff.h */
	bpf_probe_read_kernel(&gso_size, sizeof(gso_size), (void *)(head + end + SHARED_INFO_GSO_SIZE));
	frame.gso_size = gso_size;
#if LAYER_3
	frame.protocol = FIELD(u16, skb, SKB_PROTOCOL_OFFSET);
#endif
#if SAMPLES
	frame.vlan_tci = FIELD(u16, skb, SKB_VLAN_TCI);
	frame.vlan_proto = FIELD(u16, skb, SKB_VLAN_PROTO);
#endif
	return frame;
}
#endif
