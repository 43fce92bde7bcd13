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
struct row {
	u64 skb[FLIGHT_WAYS];
};

BPF_F_TABLE("array", u32, struct row, berths, FLIGHT_ROWS, BPF_F_MMAPABLE);
BPF_F_TABLE("array", u32, struct flight, flights, FLIGHT_ROWS * FLIGHT_WAYS, BPF_F_MMAPABLE);

static __always_inline u32 row_of(u64 skb)
{
	return (u32)(skb * 0x9e3779b97f4a7c15ULL >> 40) & (FLIGHT_ROWS - 1);
}

/* Two CPUs that write one place at once leave a mixture: it is not taken for either's packet. */
static __always_inline u32 seal_of(const struct flight *flight)
{
	u64 mixed = flight->skb ^ flight->what * 0x9e3779b97f4a7c15ULL ^ flight->wire_bytes << 17;

	mixed ^= (u64)flight->charged_bytes << 32 | flight->frame_bytes;
	return (u32)(mixed * 0x9e3779b97f4a7c15ULL >> 32) ^ flight->iif;
}

static __always_inline bool has_ended(const struct flight *flight)
{
	return flight->what >> KEY_VERDICT_SHIFT & 0xf;
}

/* Count a packet whose end is known: its key has the verdict in it. With bottom halves off, see the head of lib/tables.c. */
static __always_inline void conclude(struct lane *lane, const struct flight *flight)
{
	turn_bin(lane, flight->what, arrival_ns(0));
	count(lane, flight->what, flight->why, flight->frame_bytes, flight->charged_bytes, flight->wire_bytes);
}

/* The way of a row that holds this address, FLIGHT_WAYS where none does. */
static __always_inline u32 way_holding(struct lane *lane, const struct row *row, u64 skb)
{
	u32 found = FLIGHT_WAYS;

#pragma unroll
	for (u32 way = FLIGHT_WAYS; way-- > 0;)
		if (row->skb[way] == skb)
			found = way;
	/* Verifier: one state for what follows, not one a way. Whoever may be interrupted in between checks the place. */
	return forget(&lane->scratch, found);
}

/* What is at a place of a row. */
static __always_inline u64 *berth(struct row *row, u32 way)
{
	/* Verifier: an index into the row, told by its bits alone; the compiler must not know that it is one already. */
	asm volatile("" : "+r"(way));
	return &row->skb[way & (FLIGHT_WAYS - 1)];
}

/* Keep a packet. What held its place before has ended: seen, and counted now, or unseen. */
static __always_inline void remember(struct lane *lane, struct flight *new)
{
	u32 number = row_of(new->skb), way, place;
	struct row *row = berths.lookup(&number);
	struct flight *flight;
	bool same;

	if (!row)
		return;
	way = way_holding(lane, row, new->skb);
	same = way < FLIGHT_WAYS;
	if (!same)
		way = way_holding(lane, row, 0);
	if (unlikely(way == FLIGHT_WAYS))
		way = (u32)lane->turn++ & (FLIGHT_WAYS - 1); /* Own CPU's lane. */
	place = number * FLIGHT_WAYS + way;
	flight = flights.lookup(&place);
	if (!flight)
		return;
	if (unlikely(*berth(row, way))) {
		if (has_ended(flight))
			conclude(lane, flight);
		else if (same || flight->lost)
			miss(lane, flight->what, flight->frame_bytes);
	}
	new->seal = seal_of(new);
	*flight = *new;
	*berth(row, way) = new->skb;
}

/* Give a packet's place up and tell what was in it. False: not known here. */
static __always_inline bool recall(struct lane *lane, u64 skb, struct flight *known)
{
	u32 number = row_of(skb), way, place;
	struct row *row = berths.lookup(&number);
	struct flight *flight;

	if (!row)
		return false;
	way = way_holding(lane, row, skb);
	place = number * FLIGHT_WAYS + way;
	flight = flights.lookup(&place);
	if (!flight || way >= FLIGHT_WAYS || flight->skb != skb)
		return false;
	*known = *flight;
	*berth(row, way) = 0;
	return known->seal == seal_of(known) && !has_ended(known);
}

#endif
