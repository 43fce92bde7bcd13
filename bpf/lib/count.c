/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Count a packet: the functions that write to the tables of lib/tables.c.
 *
 * Hook:   none, called by the programs
 * Reads:  taps
 * Writes: cells, used_cells, overflow, cpu_states, misses, tap_cpu_states, bin_log
 * Needs:  as lib/tables.c
 *
 * A plain += is safe: see the head of lib/tables.c.
 */

/* The upper bits of a 64-bit hash are the place of a cell. */
#define CELL_HASH_SHIFT (64 - __builtin_ctz(CELLS))
#define UNSIZED_HASH_SHIFT (64 - __builtin_ctz(UNSIZED_CELLS))

/* The state of this CPU. */
static __always_inline struct cpu_state *own_state(void)
{
	return SHARED(struct cpu_state, cpu_states, bpf_get_smp_processor_id(), CPU_STATES);
}

/* The first slot for this ifindex. It can hold another tap, or none. */
static __always_inline struct tap *likely_tap_of(u32 ifindex)
{
	return SHARED(struct tap, taps, ifindex, TAP_SLOTS);
}

/* The watched tap with this ifindex, or NULL. This lookup also runs for the packets of all other devices. */
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

/* The length that the outbound policer of the tap charges (net/sched/act_police.c: psched_l2t_ns, sch_generic.h). */
static __always_inline u64 policer_charge(struct tap *tap, u64 length)
{
	/* mpu and overhead in one read. */
	if (likely(!*(u32 *)&tap->mpu))
		return length;
	length = (u32)length + tap->overhead;
	length = (u32)length < tap->mpu ? tap->mpu : (u32)length;
	/* Else the compiler would truncate the length to 32 bits on the common path, too. */
	barrier_var(length);
	return length;
}

/* Index of the tap of this key on this CPU, over all CPUs and taps. */
static __always_inline u32 tap_cpu_of(struct cpu_state *state, u64 key)
{
	return state->cpu * TAPS + (u32)(key >> KEY_TAP_SHIFT) - 1;
}

/* The factor is odd and random in each run: a guest does not know it, so it cannot choose keys with the same hash. */
static __always_inline u64 cell_hash(u64 key, u64 drop_key)
{
	return (key ^ drop_key) * LOADED(CELL_FACTOR);
}

/* Use a free cell of this CPU. NULL does not occur; the check is for the verifier. */
static __always_inline struct cell *use_cell(struct cell *cell, u32 tap_cpu, u32 place, u64 key, u64 drop_key)
{
	struct used_cells *used = used_cells.lookup(&tap_cpu);
	u64 number;

	if (!used)
		return NULL;
	number = used->count;
	if (number >= CELL_SLOTS)
		return NULL;
	used->places[number] = place;
	cell->drop_key = drop_key;
	cell->key = key;
	/* Last: a reader that sees the new count sees the whole entry. */
	used->count = number + 1;
	return cell;
}

/*
 * As cell_of(), when the first place holds another key. The hashes of similar keys (sizes 1, 2, 3 of one class) are at
 * equal distances, so a fixed step could hit one of them each time. The step depends on the key and grows.
 */
static __always_inline struct cell *search_cell(u32 tap_cpu, u64 key, u64 drop_key, u64 hash)
{
	u32 first = 0, mask = CELLS - 1, place = hash >> CELL_HASH_SHIFT, step = hash >> 24;

	/* Verifier: a bounded loop. */
#pragma nounroll
	for (u32 i = 0; i < 2 * CELL_PROBES; i++) {
		struct cell *cell;
		u32 at;

		if (i == CELL_PROBES) {
			/* No cell is free: count the packet without its size. */
			key |= (u64)SIZE_UNKNOWN << KEY_SIZE_SHIFT;
			hash = cell_hash(key, drop_key);
			place = hash >> UNSIZED_HASH_SHIFT;
			step = hash >> 24;
			first = CELLS;
			mask = UNSIZED_CELLS - 1;
		}
		at = tap_cpu * CELL_SLOTS + first + place;
		cell = cells.lookup(&at);
		if (!cell)
			return NULL;
		if (cell->key == key && cell->drop_key == drop_key)
			return cell;
		if (!cell->key)
			return use_cell(cell, tap_cpu, first + place, key, drop_key);
		place = (place + step) & mask;
		step = 5 * step + 2 * i + 1;
	}
	return NULL;
}

/* The cell of this CPU for a key, or for the key without its size. NULL: no cell is free for either. */
static __always_inline struct cell *cell_of(struct cpu_state *state, u64 key, u64 drop_key)
{
	u64 hash = cell_hash(key, drop_key);
	u32 tap_cpu = tap_cpu_of(state, key), at = tap_cpu * CELL_SLOTS + (u32)(hash >> CELL_HASH_SHIFT);
	struct cell *cell = cells.lookup(&at);

	/* Almost every packet finds its cell in the first place. */
	if (likely(cell != NULL) && likely(cell->key == key) && likely(cell->drop_key == drop_key))
		return cell;
	return search_cell(tap_cpu, key, drop_key, hash);
}

/* The counter for packets that found no cell, by their key without size and reason. One exists for each such key. */
static __always_inline struct overflow *overflow_of(struct cpu_state *state, u64 key)
{
	u32 at = (state->cpu & (OVERFLOW_PARTS - 1)) * TAPS + (u32)(key >> KEY_TAP_SHIFT) - 1;

	at = at * DIRECTION_COUNT + ((key >> KEY_DIRECTION_SHIFT) & 0xf);
	at = at * VERDICT_QUEUED + ((key >> KEY_VERDICT_SHIFT) & 0xf);
	at = at * EXPECTED_COUNT + ((key >> KEY_EXPECTED_SHIFT) & 0xf);
	at = at * ETHERTYPE_COUNT + ((key >> KEY_ETHERTYPE_SHIFT) & 0xf);
	at = at * CLASS_COUNT + ((key >> KEY_PACKET_CLASS_SHIFT) & 0xff);
	return overflow.lookup(&at);
}

static __always_inline void count_overflow(struct cpu_state *state, u64 key, u32 frame_bytes, u32 charged_bytes,
					   u64 wire_bytes)
{
	struct overflow *counts = overflow_of(state, key);
	u32 tap_cpu = tap_cpu_of(state, key);
	struct used_cells *used = used_cells.lookup(&tap_cpu);

	if (!counts || !used)
		return;
	/* This CPU's own list. */
	used->overflown++;
	/* Atomic: other CPUs count here, too. */
	__sync_fetch_and_add(&counts->packets, 1);
	__sync_fetch_and_add(&counts->frame_bytes, frame_bytes);
	__sync_fetch_and_add(&counts->charged_bytes, charged_bytes);
	__sync_fetch_and_add(&counts->wire_bytes, wire_bytes);
}

/* Time of arrival when every packet needs it, else 0: reading the clock costs 40 ns. */
static __always_inline u64 arrival_ns(u64 given)
{
#if CLOCK_IS_TSTAMP
	return given; /* replay: times of the file */
#elif BIN_NS
	return bpf_ktime_get_ns();
#else
	return 0;
#endif
}

static __always_inline u32 tap_state_number(struct cpu_state *state, u64 key)
{
	return (state->cpu * TAPS + (u32)((key >> KEY_TAP_SHIFT) & 0xffff) - 1) * DIRECTION_COUNT +
	       (u32)((key >> KEY_DIRECTION_SHIFT) & 0xf);
}

/* NULL: no such number. When the struct is empty, the state of the CPU is returned instead and no lookup is needed. */
static __always_inline struct tap_cpu_state *tap_state_at(struct cpu_state *state, u32 number)
{
#if TAP_CPU_STATES_SHARED
	return SHARED(struct tap_cpu_state, tap_cpu_states, number, TAP_CPU_STATES);
#elif BIN_NS || SAMPLES
	return tap_cpu_states.lookup(&number);
#else
	return (struct tap_cpu_state *)state;
#endif
}

#if BIN_NS
static __always_inline bool is_bin_over(struct tap_cpu_state *tap_state, u64 now)
{
	return now - tap_state->bin.start_ns >= BIN_NS;
}

/* Start the time bin of `now`: when the current bin of the tap on this CPU is over, append it to the log. */
static __always_inline void rotate_bin_of(struct tap_cpu_state *tap_state, struct cpu_state *state, u64 key, u64 now)
{
	struct bin *bin = &tap_state->bin, *logged;
	u32 at;

	if (likely(!is_bin_over(tap_state, now)))
		return;
	if (bin->tap_direction) {
		at = state->cpu * BIN_LOG + ((u32)state->logged_bins & (BIN_LOG - 1));
		logged = bin_log.lookup(&at);
		if (logged) {
			*logged = *bin;
			/* This CPU's own state. Incremented last: entries that are counted are complete. */
			state->logged_bins++;
		}
		__builtin_memset(bin->counts, 0, sizeof(bin->counts));
	}
	bin->start_ns = now - now % BIN_NS;
	bin->tap_direction = ((key >> KEY_TAP_SHIFT) - 1) * DIRECTION_COUNT + ((key >> KEY_DIRECTION_SHIFT) & 0xf) + 1;
}

static __always_inline void count_bin(struct cpu_state *state, u32 number, u64 key, u64 frame_bytes)
{
	struct tap_cpu_state *tap_state = tap_state_at(state, number);
	/* Verifier: an index into counts, which has no entry for QUEUED. No packet ends as QUEUED. */
	u32 place = (key >> KEY_VERDICT_SHIFT) & (VERDICT_QUEUED - 1);
	struct bin_counts *counts;

	if (unlikely(!tap_state))
		return;
	counts = &tap_state->bin.counts[place];
	/* This CPU's own bin: no packet of this tap arrives here between the arrival of a packet and its verdict. */
	counts->packets++;
	counts->frame_bytes += frame_bytes;
	if (((key >> KEY_PACKET_CLASS_SHIFT) & 0xff) == CLASS_TCP_SYN)
		counts->syn_packets++;
}
#else
static __always_inline bool is_bin_over(struct tap_cpu_state *tap_state, u64 now)
{
	return false;
}
static __always_inline void rotate_bin_of(struct tap_cpu_state *tap_state, struct cpu_state *state, u64 key, u64 now) {}
static __always_inline void count_bin(struct cpu_state *state, u32 number, u64 key, u64 frame_bytes) {}
#endif

static __always_inline void rotate_bin(struct cpu_state *state, u64 key, u64 now)
{
	struct tap_cpu_state *tap_state = tap_state_at(state, tap_state_number(state, key));

	if (tap_state)
		rotate_bin_of(tap_state, state, key, now);
}

/* Count a packet as missed: its header could not be read, or its end was not seen. */
static __always_inline void count_missed(struct cpu_state *state, u64 key, u32 frame_bytes)
{
	u32 at = tap_state_number(state, key);
	struct missed *missed = misses.lookup(&at);

	if (!missed)
		return;
	/* Atomic: a program in process context can be interrupted by one that counts here, too. */
	__sync_fetch_and_add(&missed->packets, 1);
	__sync_fetch_and_add(&missed->frame_bytes, frame_bytes);
}

/* Count a packet in a cell of this CPU, see the head of lib/tables.c. */
static __always_inline void add(struct cell *cell, u32 frame_bytes, u32 charged_bytes, u64 wire_bytes)
{
	cell->packets++;
	cell->frame_bytes += frame_bytes;
	cell->charged_bytes += charged_bytes;
	cell->wire_bytes += wire_bytes;
}

/* Count a packet whose verdict is known, or will never be known. */
static __always_inline void count(struct cpu_state *state, u64 key, u64 drop_key, u32 frame_bytes, u32 charged_bytes,
				  u64 wire_bytes)
{
	struct cell *cell = cell_of(state, key, drop_key);

	if (likely(cell != NULL))
		add(cell, frame_bytes, charged_bytes, wire_bytes);
	else
		count_overflow(state, key, frame_bytes, charged_bytes, wire_bytes);
	count_bin(state, tap_state_number(state, key), key, frame_bytes);
}

static __always_inline void settle_sample(struct cpu_state *state, u64 key, u64 drop_key);
static __always_inline void settle_bucket(struct cpu_state *state, u64 verdict);

/* Count the pending packet. Its fields are read where they are needed, because registers are few. */
static __always_inline void settle(struct cpu_state *state, u64 verdict, u64 drop_key)
{
	struct cell *cell;
	u64 key;

	settle_bucket(state, verdict);
	key = state->key | verdict << KEY_VERDICT_SHIFT;
	state->skb = 0;
	settle_sample(state, key, drop_key);
	cell = cell_of(state, key, drop_key);
	if (likely(cell != NULL))
		add(cell, state->frame_bytes, state->charged_bytes, state->wire_bytes);
	else
		count_overflow(state, key, state->frame_bytes, state->charged_bytes, state->wire_bytes);
	count_bin(state, state->tap_state_number, key, state->frame_bytes);
}

/* A packet with a header that cannot be read is counted as missed. Its class is not guessed. */
static __always_inline bool is_missed(struct cpu_state *state, u64 key, struct frame *frame)
{
	if (likely(!frame->unreadable))
		return false;
	count_missed(state, key, frame->length);
	return true;
}
