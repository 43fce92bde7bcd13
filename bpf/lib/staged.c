/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Copy the headers of a packet, and keep them until its verdict is known.
 *
 * Hook:   none, called by lib/samples.c where a packet arrives
 * Reads:  the headers of the packet
 * Writes: staged
 * Needs:  as lib/tables.c. Compiled only with SAMPLES
 */
#if SAMPLES
/* Flags of a sample without a tag. */
#define UNTAGGED_FLAGS (LAYER_3 ? SAMPLE_LAYER_3 : 0)

struct sample {
	u64 key;
	u64 drop_key;
	u64 at_ns;
	s64 gap_ns;
	u64 position; /* packet number in its sampler (`packets`) */
	u32 frame_bytes;
	u32 charged_bytes;
	u32 wire_bytes;
	u32 weight;
	u16 header_bytes;
	u8 flags;
	u8 tentative; /* can be one of the first */
	u16 vlan_tci;
	u16 spare;
	u8 headers[SAMPLE_HEADER_BYTES];
};

BPF_F_TABLE("array", u32, struct sample, staged, CPUS * DIRECTION_COUNT, BPF_F_MMAPABLE);

static __always_inline u32 direction_of(u64 key)
{
	return (key >> KEY_DIRECTION_SHIFT) & 0xf;
}

static __always_inline struct sample *staged_of(struct cpu_state *state, u64 key)
{
	/* One for each direction: inbound packets (the host's answers) arrive while an outbound one is pending. */
	u32 at = state->cpu * DIRECTION_COUNT + direction_of(key);

	return staged.lookup(&at);
}

/* Number of bytes to keep: all headers. Without a known transport header, L2 and IP headers only. */
static __always_inline u32 bytes_to_keep(struct cpu_state *state, struct frame *frame, struct packet *packet, u32 class)
{
	u32 bytes = packet->header_bytes;
	u16 lengths;

	/* As parse_arp(): with the addresses, without the bytes after them. */
	if (class == CLASS_ARP && load(frame, bytes + 4, &lengths, sizeof(lengths)))
		bytes += ARP_FIXED_LEN + 2 * ((lengths & 0xff) + (lengths >> 8));
	if (class == CLASS_ICMP || class == CLASS_ICMPV6)
		bytes += ICMP_LEN;
	if (bytes > frame->length)
		bytes = frame->length;
	return verifier_widen(&state->scratch, bytes);
}

/* Verifier: 1 to `most` (below 256) bytes. Assembly, else the compiler removes a check that it knows to be true. */
static __always_inline u64 bounded(u64 bytes, const u32 most)
{
	if (bytes > most)
		bytes = most;
	asm volatile("%0 &= 0xff" : "+r"(bytes));
	/* Not "!= 0": kernels before 6.8 derive no bound from that. */
	asm volatile("if %0 > 0 goto +1\n\t%0 = 1" : "+r"(bytes));
	asm volatile("if %0 <= %1 goto +1\n\t%0 = %1" : "+r"(bytes) : "i"(most));
	return bytes;
}

#if TRACEPOINTS || REPLAY
static __always_inline void copy_traced(struct frame *frame, volatile u64 *scratch, struct sample *to, u64 bytes)
{
	const u32 before = ETH_TYPE_OFFSET;
	u32 within_reach = frame->linear_bytes - (frame->untagged ? VLAN_TAG_LEN : 0);
	u64 from = frame->start;
	u16 tag[2];

	/* Verifier: the length is a difference of pointers. */
	bytes = verifier_widen(scratch, bytes < within_reach ? bytes : within_reach);
	to->flags = frame->tagged ? UNTAGGED_FLAGS | SAMPLE_TAGGED : UNTAGGED_FLAGS;
#if LAYER_3
	/* Without the tag: no L2 header precedes it. */
	from += frame->untagged ? VLAN_TAG_LEN : 0;
	frame->untagged = false;
#endif
	if (!frame->untagged) {
		to->vlan_tci = frame->vlan_tci;
		if (frame->tagged && frame->vlan_proto == bpf_htons(TYPE_QINQ))
			to->flags |= SAMPLE_SERVICE_TAG;
		bytes = bounded(bytes, SAMPLE_HEADER_BYTES);
		if (bpf_probe_read_kernel(to->headers, bytes, (void *)from) == 0)
			to->header_bytes = bytes;
		return;
	}
	/* As tc sees the frame: the tag is removed from the bytes. */
	if (bpf_probe_read_kernel(tag, sizeof(tag), (void *)(from + before)) ||
	    bpf_probe_read_kernel(to->headers, before, (void *)from))
		return;
	to->vlan_tci = bpf_ntohs(tag[1]);
	if (tag[0] == bpf_htons(TYPE_QINQ))
		to->flags |= SAMPLE_SERVICE_TAG;
	bytes = bounded(bytes - before, SAMPLE_HEADER_BYTES - before);
	if (bpf_probe_read_kernel(to->headers + before, bytes, (void *)(from + before + VLAN_TAG_LEN)) == 0)
		to->header_bytes = before + bytes;
}
#else
static __always_inline void copy_traced(struct frame *frame, volatile u64 *scratch, struct sample *to, u64 bytes) {}
#endif

static __always_inline void copy_headers(struct frame *frame, volatile u64 *scratch, struct sample *to, u64 bytes)
{
	to->header_bytes = 0;
	to->flags = UNTAGGED_FLAGS;
	to->vlan_tci = 0;
	if (!frame->skb) {
		copy_traced(frame, scratch, to, bytes);
		return;
	}
	bytes = bounded(bytes, SAMPLE_HEADER_BYTES);
	if (bpf_skb_load_bytes(frame->skb, 0, to->headers, bytes) == 0)
		to->header_bytes = bytes;
	if (frame->tagged) {
		to->flags = UNTAGGED_FLAGS | SAMPLE_TAGGED;
		if (frame->skb->vlan_proto == bpf_htons(TYPE_QINQ))
			to->flags = UNTAGGED_FLAGS | SAMPLE_TAGGED | SAMPLE_SERVICE_TAG;
		to->vlan_tci = frame->skb->vlan_tci;
	}
}
#endif
