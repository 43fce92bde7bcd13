/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * TCP handshakes: number of completed ones, and of the other outcomes.
 *
 * Hook:   none, called where a packet arrives
 * Reads:  addresses and ports of TCP packets; the control of each tap and direction, written by user space
 * Writes: flows, syn_counts; the sets of syn_states, by lib/syn_sets.c
 * Needs:  as lib/tables.c. Compiled only with SYN_MEASURES
 *
 * The table of flows has a fixed size. One flow in 2^shift is followed, chosen by a hash of its addresses and ports.
 * All CPUs share the table and write it without a lock: when two writes mix, the end of that flow is not seen, and the
 * flow counts as evicted. The counts are per CPU and exact.
 */
#if SYN_MEASURES
#define SHIFT_MAX 20
/* Bit of a flow's key where its row number begins. */
#define FLOW_TAP_SHIFT 16

/* A handshake that has begun and not ended. */
struct flow {
	u64 key; /* 0: free */
	u64 started_ns;
	u32 owner; /* tap number * DIRECTION_COUNT + direction of the SYN */
	u8 shift;  /* the flow stands for 2^shift flows */
	u8 answered;
	u16 spare;
	u64 spares;
};

/* The entries where a flow can be: two cache lines. */
struct flow_row {
	struct flow way[FLOW_WAYS];
};

/* Counts of one CPU for one tap and direction of the SYN. `followed` counts flows, the others add their weights. */
struct syn_counts {
	u64 followed;
	u64 started;
	u64 answered;
	u64 completed;
	u64 reset;
	u64 expired;
	u64 spare[2];
	u64 completed_age[AGE_BUCKETS];
};

BPF_F_TABLE("array", u32, struct flow_row, flows, TAPS * FLOW_ROWS, BPF_F_MMAPABLE);
BPF_F_TABLE("array", u32, struct syn_counts, syn_counts, CPUS * TAPS * DIRECTION_COUNT, BPF_F_MMAPABLE);

static __always_inline u32 age_bucket(u64 age_ns)
{
	u64 rest = age_ns / 1000;
	u32 bucket;

	for (u32 by = 1; by < 64; by *= 2)
		rest |= rest >> by;
	bucket = bits_in(rest);
	return bucket < AGE_BUCKETS ? bucket : AGE_BUCKETS - 1;
}

static __always_inline struct syn_counts *counts_of(struct cpu_state *state, u32 owner)
{
	u32 at = state->cpu * TAPS * DIRECTION_COUNT + owner;

	return syn_counts.lookup(&at);
}

/*
 * Key of a flow, never 0. It is the same for both directions, because a sum does not depend on the order. On another
 * tap, the same flow has another key.
 */
static __always_inline u64 flow_key(struct endpoints *ends, u64 tap)
{
	return ends->from + ends->to + (tap << FLOW_TAP_SHIFT) | 1;
}

/* Each tap has separate rows: a guest that fills them does not affect the handshakes of other taps. */
static __always_inline struct flow_row *row_of_flow(u64 key, u64 tap)
{
	u32 at = (u32)tap * FLOW_ROWS + ((u32)key >> FLOW_TAP_SHIFT & (FLOW_ROWS - 1));

	return flows.lookup(&at);
}

/* Verifier: an index. Assembly, because the compiler knows that it is in range and removes the check. */
static __always_inline struct flow *way_in(struct flow_row *row, u64 way)
{
	asm volatile("%0 &= %1" : "+r"(way) : "i"(FLOW_WAYS - 1));
	return &row->way[way];
}

static __always_inline struct flow *find_flow(struct cpu_state *state, struct flow_row *row, u64 key)
{
	u64 found = FLOW_WAYS;

	/* Verifier: constant indexes, and one state afterwards, see verifier_widen(). */
#pragma unroll
	for (u32 way = FLOW_WAYS; way-- > 0;)
		if (row->way[way].key == key)
			found = way;
	found = verifier_widen(&state->scratch, found);
	return found < FLOW_WAYS ? way_in(row, found) : NULL;
}

/* The entry for a new flow: a free one, else the oldest. */
static __always_inline struct flow *room_for_flow(struct cpu_state *state, struct flow_row *row)
{
	u64 oldest_ns = ~0ULL, found = 0;

	/* Verifier: as in find_flow(). */
#pragma unroll
	for (u32 way = 0; way < FLOW_WAYS; way++) {
		u64 since_ns = row->way[way].key ? row->way[way].started_ns : 0;

		if (since_ns < oldest_ns) {
			oldest_ns = since_ns;
			found = way;
		}
	}
	return way_in(row, verifier_widen(&state->scratch, found));
}

/* Count a flow that is replaced before its end was seen. When that is frequent, fewer flows are followed. */
static __always_inline void evict(struct cpu_state *state, struct flow *flow, struct syn_control *control, u64 now)
{
	u32 owner = flow->owner;
	struct syn_state *own = syn_state_of(owner);
	struct syn_counts *counts = counts_of(state, owner);

	if (!own || !counts)
		return;
	if (flow->answered)
		__sync_fetch_and_add(&own->control.waiting, -1ULL);
	if (now - flow->started_ns >= FLOW_EXPIRES_NS) {
		/* Own CPU's counts. */
		counts->expired += 1ULL << (flow->shift & 63);
		return;
	}
	/* Not atomic: the exact moment at which the shift rises does not matter. */
	if (!(++control->evictions & (EVICTIONS_PER_RAISE - 1)) && control->shift < SHIFT_MAX)
		control->shift++;
}

static __always_inline void flow_started(struct cpu_state *state, struct syn_control *control, struct flow_row *row,
					 u64 key, u32 owner, u64 *now)
{
	struct flow *flow = find_flow(state, row, key);
	u32 shift = control->shift & 31;
	struct syn_counts *counts;

	/* A retransmitted SYN: the age of the flow counts from its first SYN. */
	if (flow && flow->owner == owner)
		return;
	counts = counts_of(state, owner);
	if (!counts)
		return;
	flow = room_for_flow(state, row);
	if (!*now)
		*now = bpf_ktime_get_ns();
	if (flow->key)
		evict(state, flow, control, *now);
	flow->started_ns = *now;
	flow->owner = owner;
	flow->shift = shift;
	flow->answered = 0;
	flow->key = key;
	/* Own CPU's counts. */
	counts->followed++;
	counts->started += 1ULL << shift;
}

/* Next step of a followed flow: SYN-ACK, RST, or the packet that completes the handshake. */
static __always_inline void advance_flow(struct cpu_state *state, u32 class, struct flow *flow, u32 owner, u64 *now)
{
	u32 flow_owner = flow->owner;
	struct syn_state *own = syn_state_of(flow_owner);
	struct syn_counts *counts = counts_of(state, flow_owner);
	u64 stands_for = 1ULL << (flow->shift & 63);

	if (!own || !counts)
		return;
	if (class == CLASS_TCP_SYNACK) {
		if (flow_owner == owner || flow->answered)
			return;
		flow->answered = 1;
		__sync_fetch_and_add(&own->control.waiting, 1);
		counts->answered += stands_for;
		return;
	}
	if (class == CLASS_TCP_RST) {
		counts->reset += stands_for;
	} else {
		if (flow_owner != owner || !flow->answered)
			return;
		if (!*now)
			*now = bpf_ktime_get_ns();
		counts->completed += stands_for;
		counts->completed_age[age_bucket(*now - flow->started_ns)] += stands_for;
	}
	if (flow->answered)
		__sync_fetch_and_add(&own->control.waiting, -1ULL);
	flow->key = 0;
}

/*
 * True for the flows that are followed: one in 2^shift, the same for both directions. This is computed for each SYN, so
 * it takes fewer steps than flow_key().
 */
static __always_inline bool is_chosen(struct endpoints *ends, u32 shift)
{
	u64 ports = (u64)ends->source_port + ends->destination_port;
	u64 choice = (ends->source + ends->destination + ports * MIXER) * MIXER;

	/* True when the `shift` highest bits are 0; shift may be 0. */
	return !(choice >> 1 >> (63 - (u64)shift));
}

/*
 * measure_syn() for most packets: a plain frame whose handshake is not followed. False: call measure_syn(). data: see
 * plain_endpoints().
 */
static __always_inline bool measure_plain_syn(struct cpu_state *state, struct tap *tap, u64 direction, void *data,
					      u64 class)
{
	u32 owner = tap->number * DIRECTION_COUNT + direction;
	struct endpoints ends;
	struct syn_state *syn;

	if (class > CLASS_TCP_ACK)
		return true;
	syn = syn_state_of(owner);
	if (unlikely(!syn))
		return true;
	if (class != CLASS_TCP_SYN)
		return class > CLASS_TCP_RST && likely(!syn->control.waiting);
	plain_endpoints(state, data, owner, syn->control.seed, &ends);
	if (unlikely(is_chosen(&ends, syn->control.shift)))
		return false;
	note_syn(state, syn, &ends);
	return true;
}

/* Called when a packet arrives. now: 0 when the clock was not read yet. */
static __always_inline void measure_syn(struct cpu_state *state, struct tap *tap, u64 direction, struct frame *frame,
					struct packet *packet, u64 key, u64 *now)
{
	u64 class = (key >> KEY_PACKET_CLASS_SHIFT) & 0xff;
	u32 owner = tap->number * DIRECTION_COUNT + direction;
	struct syn_control *control;
	struct endpoints ends = {};
	struct syn_state *syn;
	struct flow_row *row;
	struct flow *flow;
	u64 flow_id;

	if (class > CLASS_TCP_ACK)
		return;
	syn = syn_state_of(owner);
	if (unlikely(!syn))
		return;
	control = &syn->control;
	/* Packets that can only complete a handshake matter only while a flow waits for one. */
	if (unlikely(class > CLASS_TCP_RST) && likely(!control->waiting))
		return;
	if (!endpoints_of(state, frame, packet, owner, control->seed, &ends))
		return;
	if (class == CLASS_TCP_SYN)
		note_syn(state, syn, &ends);
	if (likely(!is_chosen(&ends, class == CLASS_TCP_SYN ? control->shift : control->lookup_shift)))
		return;
	flow_id = flow_key(&ends, tap->number);
	row = row_of_flow(flow_id, tap->number);
	if (!row)
		return;
	if (class == CLASS_TCP_SYN) {
		flow_started(state, control, row, flow_id, owner, now);
		return;
	}
	flow = find_flow(state, row, flow_id);
	if (flow)
		advance_flow(state, class, flow, owner, now);
}
#else
static __always_inline bool measure_plain_syn(struct cpu_state *state, struct tap *tap, u64 direction, void *data,
					      u64 class)
{
	return true;
}
static __always_inline void measure_syn(struct cpu_state *state, struct tap *tap, u64 direction, struct frame *frame,
					struct packet *packet, u64 key, u64 *now) {}
#endif
