/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Inbound packets in flight: the egress hook's data of a packet, kept until the end of the packet is seen.
 *
 * Hook:   none; progs/tc.c and progs/netif_receive.c add packets, progs/kfree_skb.c and progs/xmit.c remove them
 * Reads:  inflight_index, inflight
 * Writes: inflight_index, inflight, cells and bins
 * Needs:  as lib/count.c. Compiled only with FOLLOW_INBOUND
 *
 * Packets are counted only when they end. So the loss of an entry (two CPUs write the same entry, or the row is full)
 * has two effects: the packet is not shown as queued, and the decision of the ideal bucket is lost. The packet is still
 * counted at its end, from its own bytes. So no lock is needed.
 *
 * No entry stays for ever: the next packet at the same address reuses it, or any packet when the row is full. A packet
 * that left without passing the driver counts as missed. The next packet at its address shows that, or user space
 * finds it (vifprobe/kernel/tables/inflight.py).
 */
#if FOLLOW_INBOUND

/* The addresses of the packets of a row, in one cache line: a lookup reads this line and the entry's own. */
struct inflight_row {
	u64 skb[INFLIGHT_WAYS];
};

BPF_F_TABLE("array", u32, struct inflight_row, inflight_index, INFLIGHT_ROWS, BPF_F_MMAPABLE);
BPF_F_TABLE("array", u32, struct inflight, inflight, INFLIGHT_ROWS * INFLIGHT_WAYS, BPF_F_MMAPABLE);

static __always_inline u32 inflight_row_of(u64 skb)
{
	return (u32)(skb * 0x9e3779b97f4a7c15ULL >> 40) & (INFLIGHT_ROWS - 1);
}

/*
 * Checksum of an entry. When two CPUs write one entry at the same time, the result is a mixture of both. The checksum
 * then differs, and the entry is used for neither packet.
 */
static __always_inline u32 checksum_of(const struct inflight *entry)
{
	u64 mixed = entry->skb ^ entry->key * 0x9e3779b97f4a7c15ULL ^ entry->wire_bytes << 17;

	mixed ^= (u64)entry->charged_bytes << 32 | entry->frame_bytes;
	return (u32)(mixed * 0x9e3779b97f4a7c15ULL >> 32) ^ entry->iif;
}

static __always_inline bool has_ended(const struct inflight *entry)
{
	return entry->key >> KEY_VERDICT_SHIFT & 0xf;
}

/* Count a packet that has ended; its key has the verdict. With bottom halves off, see the head of lib/tables.c. */
static __always_inline void count_ended(struct cpu_state *state, const struct inflight *entry)
{
	rotate_bin(state, entry->key, arrival_ns(0));
	count(state, entry->key, entry->drop_key, entry->frame_bytes, entry->charged_bytes, entry->wire_bytes);
}

/* The entry of a row that holds this address; INFLIGHT_WAYS: none. */
static __always_inline u32 way_holding(struct cpu_state *state, const struct inflight_row *row, u64 skb)
{
	u32 found = INFLIGHT_WAYS;

#pragma unroll
	for (u32 way = INFLIGHT_WAYS; way-- > 0;)
		if (row->skb[way] == skb)
			found = way;
	/* Verifier: one state afterwards, not one per entry. Callers that can be interrupted check the entry again. */
	return verifier_widen(&state->scratch, found);
}

/* The address at an entry of a row. */
static __always_inline u64 *index_entry(struct inflight_row *row, u32 way)
{
	/*
	 * Verifier: an index into the row, bounded by its bits. The compiler must not know that it is already in
	 * range.
	 */
	barrier_var(way);
	return &row->skb[way & (INFLIGHT_WAYS - 1)];
}

/* Add a packet. The previous packet of its entry has ended: count it now if its end was seen, else as missed. */
static __always_inline void inflight_add(struct cpu_state *state, struct inflight *new)
{
	u32 number = inflight_row_of(new->skb), way, place;
	struct inflight_row *row = inflight_index.lookup(&number);
	struct inflight *entry;
	bool same;

	if (!row)
		return;
	way = way_holding(state, row, new->skb);
	same = way < INFLIGHT_WAYS;
	if (!same)
		way = way_holding(state, row, 0);
	if (unlikely(way == INFLIGHT_WAYS))
		way = (u32)state->next_way++ & (INFLIGHT_WAYS - 1); /* This CPU's own state. */
	place = number * INFLIGHT_WAYS + way;
	entry = inflight.lookup(&place);
	if (!entry)
		return;
	if (unlikely(*index_entry(row, way))) {
		if (has_ended(entry))
			count_ended(state, entry);
		else if (same || entry->lost)
			count_missed(state, entry->key, entry->frame_bytes);
	}
	new->checksum = checksum_of(new);
	*entry = *new;
	*index_entry(row, way) = new->skb;
}

/* Remove a packet, and return its entry. False: the table has no valid entry for the packet. */
static __always_inline bool inflight_remove(struct cpu_state *state, u64 skb, struct inflight *known)
{
	u32 number = inflight_row_of(skb), way, place;
	struct inflight_row *row = inflight_index.lookup(&number);
	struct inflight *entry;

	if (!row)
		return false;
	way = way_holding(state, row, skb);
	place = number * INFLIGHT_WAYS + way;
	entry = inflight.lookup(&place);
	if (!entry || way >= INFLIGHT_WAYS || entry->skb != skb)
		return false;
	*known = *entry;
	*index_entry(row, way) = 0;
	return known->checksum == checksum_of(known) && !has_ended(known);
}

#endif
