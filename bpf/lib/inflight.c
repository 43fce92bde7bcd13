/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Inbound packets on their way: what the egress hook found out about a packet, kept until its end is seen.
 *
 * Hook:   none of its own; filled by progs/tc.c and progs/netif_receive.c, emptied by progs/kfree_skb.c and progs/xmit.c
 * Reads:  berths, flights
 * Writes: berths, flights, cells and bins
 * Needs:  nothing beyond lib/count.c
 *
 * A memory, not a ledger: packets are counted at their ends only. Whatever is lost here (two CPUs that write one place
 * at once, a full row) costs a packet its place among those queued and what the ideal bucket said of it; its end is
 * parsed from the packet itself and counted all the same. So nothing needs a lock, and nothing can leak: a place is
 * taken again by the next packet at that address, or by any other when its row is full. What went another way than to
 * the driver is missed: told by the next packet at its address, or by user space (vifprobe/kernel/tables/inflight.py).
 */
#if FOLLOW_INBOUND

/* The addresses of a row's packets, in one cache line: finding one touches this line and the packet's own. */
struct inflight_row {
	u64 skb[INFLIGHT_WAYS];
};

BPF_F_TABLE("array", u32, struct inflight_row, inflight_index, INFLIGHT_ROWS, BPF_F_MMAPABLE);
BPF_F_TABLE("array", u32, struct inflight, inflight, INFLIGHT_ROWS * INFLIGHT_WAYS, BPF_F_MMAPABLE);

static __always_inline u32 inflight_row_of(u64 skb)
{
	return (u32)(skb * 0x9e3779b97f4a7c15ULL >> 40) & (INFLIGHT_ROWS - 1);
}

/* Two CPUs that write one place at once leave a mixture: it is not taken for either's packet. */
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

/* Count a packet whose end is known: its key has the verdict in it. With bottom halves off, see the head of lib/tables.c. */
static __always_inline void count_ended(struct cpu_state *state, const struct inflight *entry)
{
	turn_bin(state, entry->key, arrival_ns(0));
	count(state, entry->key, entry->drop_key, entry->frame_bytes, entry->charged_bytes, entry->wire_bytes);
}

/* The way of a row that holds this address, INFLIGHT_WAYS where none does. */
static __always_inline u32 way_holding(struct cpu_state *state, const struct inflight_row *row, u64 skb)
{
	u32 found = INFLIGHT_WAYS;

#pragma unroll
	for (u32 way = INFLIGHT_WAYS; way-- > 0;)
		if (row->skb[way] == skb)
			found = way;
	/* Verifier: one state for what follows, not one a way. Whoever may be interrupted in between checks the place. */
	return verifier_widen(&state->scratch, found);
}

/* What is at a place of a row. */
static __always_inline u64 *index_entry(struct inflight_row *row, u32 way)
{
	/* Verifier: an index into the row, told by its bits alone; the compiler must not know that it is one already. */
	barrier_var(way);
	return &row->skb[way & (INFLIGHT_WAYS - 1)];
}

/* Keep a packet. What held its place before has ended: seen, and counted now, or unseen. */
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
			miss(state, entry->key, entry->frame_bytes);
	}
	new->checksum = checksum_of(new);
	*entry = *new;
	*index_entry(row, way) = new->skb;
}

/* Give a packet's place up and tell what was in it. False: not known here. */
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
