/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Counting: the few functions that write to the tables of lib/tables.c.
 *
 * Hook:   none of its own
 * Reads:  taps
 * Writes: cells, used_cells, overflow, lanes, misses, desks, bin_log
 * Needs:  nothing beyond lib/tables.c
 *
 * Why a plain += is enough is told at the head of lib/tables.c.
 */

/* The upper bits of a 64-bit hash that are a cell's place. */
#define CELL_HASH_SHIFT (64 - __builtin_ctz(CELLS))
#define UNSIZED_HASH_SHIFT (64 - __builtin_ctz(UNSIZED_CELLS))

/* This CPU's own. */
static __always_inline struct lane *own_lane(void)
{
	return SHARED(struct lane, lanes, bpf_get_smp_processor_id(), LANES);
}

/* Where almost every packet's tap is; or it is another one's, or free. */
static __always_inline struct tap *likely_tap_of(u32 ifindex)
{
	return SHARED(struct tap, taps, ifindex, TAP_SLOTS);
}

/* The watched tap behind an ifindex, or NULL: this is what every other device's packets pay. */
static __always_inline struct tap *tap_of(u32 ifindex)
{
	struct tap *tap = likely_tap_of(ifindex);

	if (likely(tap->ifindex == ifindex))
		return tap;
	/* Verifier: a bounded loop. */
#pragma nounroll
	for (u32 i = 1; i < TAP_PROBES && tap->ifindex; i++) {
		tap = SHARED(struct tap, taps, ifindex + i, TAP_SLOTS);
		if (tap->ifindex == ifindex)
			return tap;
	}
	return NULL;
}

/* What the tap's outbound policer charges for this length (net/sched/act_police.c: psched_l2t_ns, sch_generic.h). */
static __always_inline u64 policer_charge(struct tap *tap, u64 length)
{
	/* Both at once, as they lie. */
	if (likely(!*(u32 *)&tap->mpu))
		return length;
	length = (u32)length + tap->overhead;
	length = (u32)length < tap->mpu ? tap->mpu : (u32)length;
	/* Or it would be cut to 32 bits for those, too, who don't come this far. */
	asm volatile("" : "+r"(length));
	return length;
}

/* The number of a tap among those of all CPUs. */
static __always_inline u32 tap_cpu_of(struct lane *lane, u64 what)
{
	return lane->cpu * TAPS + (u32)(what >> KEY_TAP_SHIFT) - 1;
}

/* By an odd factor of the run: a guest that does not know it cannot choose keys that come to the same place. */
static __always_inline u64 cell_hash(u64 what, u64 why)
{
	return (what ^ why) * LOADED(CELL_FACTOR);
}

/* Take a free cell. NULL: never, but the verifier does not know. Own CPU's cells. */
static __always_inline struct cell *use_cell(struct cell *cell, u32 tap_cpu, u32 place, u64 what, u64 why)
{
	struct used_cells *used = used_cells.lookup(&tap_cpu);
	u64 number;

	if (!used)
		return NULL;
	number = used->count;
	if (number >= CELL_SLOTS)
		return NULL;
	used->places[number] = place;
	cell->why = why;
	cell->what = what;
	/* Last, so that a reader that sees the entry counted sees it whole. */
	used->count = number + 1;
	return cell;
}

/*
 * As cell_of(), where the first place is another key's. The products of similar keys lie at equal distances (sizes 1, 2, 3
 * of one class, say), so a step of one length could meet one of them each time. Steps differ by key and grow.
 */
static __always_inline struct cell *search_cell(u32 tap_cpu, u64 what, u64 why, u64 hash)
{
	u32 first = 0, mask = CELLS - 1, place = hash >> CELL_HASH_SHIFT, step = hash >> 24;

	/* Verifier: a bounded loop. */
#pragma nounroll
	for (u32 i = 0; i < 2 * CELL_PROBES; i++) {
		struct cell *cell;
		u32 at;

		if (i == CELL_PROBES) {
			/* No room for another size. */
			what |= (u64)SIZE_UNKNOWN << KEY_SIZE_SHIFT;
			hash = cell_hash(what, why);
			place = hash >> UNSIZED_HASH_SHIFT;
			step = hash >> 24;
			first = CELLS;
			mask = UNSIZED_CELLS - 1;
		}
		at = tap_cpu * CELL_SLOTS + first + place;
		cell = cells.lookup(&at);
		if (!cell)
			return NULL;
		if (cell->what == what && cell->why == why)
			return cell;
		if (!cell->what)
			return use_cell(cell, tap_cpu, first + place, what, why);
		place = (place + step) & mask;
		step = 5 * step + 2 * i + 1;
	}
	return NULL;
}

/* Find or make this CPU's cell of a key, or of the key without its size. NULL: there is no room for either. */
static __always_inline struct cell *cell_of(struct lane *lane, u64 what, u64 why)
{
	u64 hash = cell_hash(what, why);
	u32 tap_cpu = tap_cpu_of(lane, what), at = tap_cpu * CELL_SLOTS + (u32)(hash >> CELL_HASH_SHIFT);
	struct cell *cell = cells.lookup(&at);

	/* Almost every packet finds its cell in the first slot. */
	if (likely(cell != NULL) && likely(cell->what == what) && likely(cell->why == why))
		return cell;
	return search_cell(tap_cpu, what, why, hash);
}

/* Where a packet is counted that found no cell: by all of its key but size and reason. There is a place for each. */
static __always_inline struct overflow *overflow_of(struct lane *lane, u64 what)
{
	u32 at = (lane->cpu & (OVERFLOW_PARTS - 1)) * TAPS + (u32)(what >> KEY_TAP_SHIFT) - 1;

	at = at * DIRECTION_COUNT + ((what >> KEY_DIRECTION_SHIFT) & 0xf);
	at = at * VERDICT_QUEUED + ((what >> KEY_VERDICT_SHIFT) & 0xf);
	at = at * EXPECTED_COUNT + ((what >> KEY_EXPECTED_SHIFT) & 0xf);
	at = at * ETHERTYPE_COUNT + ((what >> KEY_ETHERTYPE_SHIFT) & 0xf);
	at = at * CLASS_COUNT + ((what >> KEY_PACKET_CLASS_SHIFT) & 0xff);
	return overflow.lookup(&at);
}

static __always_inline void count_overflow(struct lane *lane, u64 what, u32 frame_bytes, u32 charged_bytes, u64 wire_bytes)
{
	struct overflow *counts = overflow_of(lane, what);
	u32 tap_cpu = tap_cpu_of(lane, what);
	struct used_cells *used = used_cells.lookup(&tap_cpu);

	if (!counts || !used)
		return;
	/* Own CPU's. */
	used->overflown++;
	/* Atomic: other CPUs count here, too. */
	__sync_fetch_and_add(&counts->packets, 1);
	__sync_fetch_and_add(&counts->frame_bytes, frame_bytes);
	__sync_fetch_and_add(&counts->charged_bytes, charged_bytes);
	__sync_fetch_and_add(&counts->wire_bytes, wire_bytes);
}

/* The time of a packet's arrival, where every packet needs it: reading the clock costs some 40 ns. Else 0. */
static __always_inline u64 arrival_ns(u64 given)
{
#if CLOCK_IS_TSTAMP
	return given; /* replay: the file's own times */
#elif BIN_NS
	return bpf_ktime_get_ns();
#else
	return 0;
#endif
}

static __always_inline u32 desk_number(struct lane *lane, u64 what)
{
	return (lane->cpu * TAPS + (u32)((what >> KEY_TAP_SHIFT) & 0xffff) - 1) * DIRECTION_COUNT +
	       (u32)((what >> KEY_DIRECTION_SHIFT) & 0xf);
}

/* NULL: there is none of that number. Where nothing lies on it, it is no place either, and no look is needed. */
static __always_inline struct desk *desk_at(struct lane *lane, u32 number)
{
#if DESKS_SHARED
	return SHARED(struct desk, desks, number, DESKS);
#elif BIN_NS || SAMPLES
	return desks.lookup(&number);
#else
	return (struct desk *)lane;
#endif
}

#if BIN_NS
static __always_inline bool is_bin_over(struct desk *desk, u64 now)
{
	return now - desk->bin.start_ns >= BIN_NS;
}

/* Enter the time bin of now: if the tap's current one on this CPU is over, it goes to the log. */
static __always_inline void turn_bin_of(struct desk *desk, struct lane *lane, u64 what, u64 now)
{
	struct bin *bin = &desk->bin, *logged;
	u32 at;

	if (likely(!is_bin_over(desk, now)))
		return;
	if (bin->tap_direction) {
		at = lane->cpu * BIN_LOG + ((u32)lane->logged_bins & (BIN_LOG - 1));
		logged = bin_log.lookup(&at);
		if (logged) {
			*logged = *bin;
			/* Own CPU's lane; after the entry, so that a counted entry is a whole one. */
			lane->logged_bins++;
		}
		__builtin_memset(bin->counts, 0, sizeof(bin->counts));
	}
	bin->start_ns = now - now % BIN_NS;
	bin->tap_direction = ((what >> KEY_TAP_SHIFT) - 1) * DIRECTION_COUNT + ((what >> KEY_DIRECTION_SHIFT) & 0xf) + 1;
}

static __always_inline void count_bin(struct lane *lane, u32 number, u64 what, u64 frame_bytes)
{
	struct desk *desk = desk_at(lane, number);
	/* Verifier: an index into the bin's array, which has no place for QUEUED: no packet ends as that. */
	u32 place = (what >> KEY_VERDICT_SHIFT) & (VERDICT_QUEUED - 1);
	struct bin_counts *counts;

	if (unlikely(!desk))
		return;
	counts = &desk->bin.counts[place];
	/* Own CPU's bin: no packet of this tap comes between a packet's arrival and its verdict. */
	counts->packets++;
	counts->frame_bytes += frame_bytes;
	if (((what >> KEY_PACKET_CLASS_SHIFT) & 0xff) == CLASS_TCP_SYN)
		counts->syn_packets++;
}
#else
static __always_inline bool is_bin_over(struct desk *desk, u64 now)
{
	return false;
}
static __always_inline void turn_bin_of(struct desk *desk, struct lane *lane, u64 what, u64 now) {}
static __always_inline void count_bin(struct lane *lane, u32 number, u64 what, u64 frame_bytes) {}
#endif

static __always_inline void turn_bin(struct lane *lane, u64 what, u64 now)
{
	struct desk *desk = desk_at(lane, desk_number(lane, what));

	if (desk)
		turn_bin_of(desk, lane, what, now);
}

static __always_inline void miss(struct lane *lane, u64 what, u32 frame_bytes)
{
	u32 at = desk_number(lane, what);
	struct missed *missed = misses.lookup(&at);

	if (!missed)
		return;
	/* Atomic: a program in process context can be interrupted by one that counts here, too. */
	__sync_fetch_and_add(&missed->packets, 1);
	__sync_fetch_and_add(&missed->frame_bytes, frame_bytes);
}

/* One packet more. Own CPU's cell, see the head of lib/tables.c. */
static __always_inline void add(struct cell *cell, u32 frame_bytes, u32 charged_bytes, u64 wire_bytes)
{
	cell->packets++;
	cell->frame_bytes += frame_bytes;
	cell->charged_bytes += charged_bytes;
	cell->wire_bytes += wire_bytes;
}

/* Count one packet, its verdict known (or never to be known). */
static __always_inline void count(struct lane *lane, u64 what, u64 why, u32 frame_bytes, u32 charged_bytes,
				  u64 wire_bytes)
{
	struct cell *cell = cell_of(lane, what, why);

	if (likely(cell != NULL))
		add(cell, frame_bytes, charged_bytes, wire_bytes);
	else
		count_overflow(lane, what, frame_bytes, charged_bytes, wire_bytes);
	count_bin(lane, desk_number(lane, what), what, frame_bytes);
}

static __always_inline void settle_sample(struct lane *lane, u64 what, u64 why);
static __always_inline void settle_bucket(struct lane *lane, u64 verdict);

/* Close the books on the pending packet. What the lane knows of it is read where it is needed: registers are few. */
static __always_inline void settle(struct lane *lane, u64 verdict, u64 why)
{
	struct cell *cell;
	u64 what;

	settle_bucket(lane, verdict);
	what = lane->what | verdict << KEY_VERDICT_SHIFT;
	lane->skb = 0;
	settle_sample(lane, what, why);
	cell = cell_of(lane, what, why);
	if (likely(cell != NULL))
		add(cell, lane->frame_bytes, lane->charged_bytes, lane->wire_bytes);
	else
		count_overflow(lane, what, lane->frame_bytes, lane->charged_bytes, lane->wire_bytes);
	count_bin(lane, lane->desk, what, lane->frame_bytes);
}

/* A header that can't be read has no class: said to be missed, not guessed. */
static __always_inline bool is_missed(struct lane *lane, u64 what, struct frame *frame)
{
	if (likely(!frame->unreadable))
		return false;
	miss(lane, what, frame->length);
	return true;
}
