/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What a SYN flood does, beyond the number of its packets: how many different addresses and ports, and how many
 * handshakes come to their end.
 *
 * Hook:   none of its own; called where a packet arrives
 * Reads:  addresses and ports of TCP packets; syn_controls, set from user space
 * Writes: syn_sets, flows, syn_counts
 * Needs:  nothing new; compiled out without SYN_MEASURES
 *
 * Memory is bounded whatever is spoofed: sets are HyperLogLog registers (addresses) and bitmaps (ports); the table of
 * handshakes has a fixed number of places, and takes one flow in 2^shift, by a hash of its addresses and ports.
 *
 * Sets and flows are shared by all CPUs and written without a lock: a table each per CPU would be 128 times as large
 * on a large node. Two CPUs that write to the same byte at the same moment lose one of both: a port that is not marked
 * until its next SYN, or one register of 4096 that stays lower than it should. A torn flow is a handshake whose end is
 * not seen, which is counted as such. Counts are per CPU, and exact.
 */
#if SYN_MEASURES
#define FLOW_WAYS 4
#define SHIFT_MAX 20

/* Of a tap and the direction of its SYNs. */
struct syn_control {
	u64 seed;         /* of the hashes: the same for all; a guest that doesn't know it can't choose its hashes */
	u32 generation;   /* user space turns it: SYNs go to the sets of generation & 1 */
	u32 shift;        /* one new flow in 2^shift is followed; raised here when too many come, set by user space */
	u32 lookup_shift; /* the lowest shift of the last FLOW_EXPIRES_NS: what may be in the table */
	u32 spare;
	u64 spares[5];
	/* second line: written with each followed handshake */
	u64 waiting;      /* flows that were answered, and not completed so far */
	u64 crowded;      /* flows that took a living one's place */
	u64 more_spares[6];
};

struct syn_sets {
	u8 sources[HLL_REGISTERS];
	u8 destinations[HLL_REGISTERS];
	u8 source_ports[PORTS / 8];
	u8 destination_ports[PORTS / 8];
};

/* A handshake that was begun and has not ended. */
struct flow {
	u64 key; /* 0: free */
	u64 started_ns;
	u32 owner; /* tap number * DIRECTION_COUNT + direction of the SYN */
	u8 shift;  /* it stands for 2^shift */
	u8 answered;
	u16 spare;
	u64 spares;
};

/* One CPU's own, of one tap and direction of the SYN. `followed` counts flows, the others what these stand for. */
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

struct endpoints {
	u64 source; /* hashes of the addresses */
	u64 destination;
	u16 source_port; /* host order */
	u16 destination_port;
};

BPF_F_TABLE("array", u32, struct syn_control, syn_controls, TAPS * DIRECTION_COUNT, BPF_F_MMAPABLE);
BPF_F_TABLE("array", u32, struct syn_sets, syn_sets, 2 * TAPS * DIRECTION_COUNT, BPF_F_MMAPABLE);
BPF_F_TABLE("array", u32, struct flow, flows, FLOWS, BPF_F_MMAPABLE);
BPF_F_TABLE("array", u32, struct syn_counts, syn_counts, CPUS * TAPS * DIRECTION_COUNT, BPF_F_MMAPABLE);

/* A finalizer in the manner of MurmurHash3 and splitmix64: each bit of the input changes half of the output's. */
static __always_inline u64 mixed(u64 value)
{
	value ^= value >> 32;
	value *= 0xd6e8feb86659fd93ULL;
	value ^= value >> 32;
	value *= 0xd6e8feb86659fd93ULL;
	value ^= value >> 32;
	return value;
}

static __always_inline u64 mixed_ipv6(const u64 *address, u64 seed)
{
	return mixed(address[1] ^ mixed(address[0] ^ seed));
}

/* Addresses and ports of a TCP packet; false where they can't be read. */
static __always_inline bool endpoints_of(struct frame *frame, struct packet *packet, u64 seed, struct endpoints *to)
{
	u32 network = packet->network_offset;
	u32 ports, words[2];
	u64 longs[4];

	if (!load_usual(frame, packet->transport_offset, PLAIN_TRANSPORT, &ports, sizeof(ports)))
		return false;
	ports = bpf_ntohl(ports);
	to->source_port = ports >> 16;
	to->destination_port = ports;
	if (likely(!packet->is_ipv6)) {
		if (!load_usual(frame, network + 12, ETH_HEADER_LEN + 12, words, sizeof(words)))
			return false;
		to->source = mixed(words[0] ^ seed);
		to->destination = mixed(words[1] ^ seed);
		return true;
	}
	if (!load(frame, network + 8, longs, sizeof(longs)))
		return false;
	to->source = mixed_ipv6(longs, seed);
	to->destination = mixed_ipv6(longs + 2, seed);
	return true;
}

/* How many bits are set, without a loop or a branch: a program has no instruction for it (Warren, Hacker's Delight, 5-1). */
static __always_inline u32 bits_in(u64 value)
{
	value -= value >> 1 & 0x5555555555555555ULL;
	value = (value & 0x3333333333333333ULL) + (value >> 2 & 0x3333333333333333ULL);
	value = (value + (value >> 4)) & 0x0f0f0f0f0f0f0f0fULL;
	return value * 0x0101010101010101ULL >> 56;
}

/*
 * HyperLogLog: the lowest bits choose a register, which keeps the longest run of zeros in the others, plus 1. That run
 * is worked out only where it is longer than the register says: seldom.
 */
static __always_inline void note_address(u8 *registers, u64 hash)
{
	u64 rest = hash >> HLL_BITS, at = hash;
	u8 *own;
	u32 run;

	/* Verifier: an index; assembly, because kernels before 6.2 lose sight of what the compiler makes of it. */
	asm volatile("%0 &= %1" : "+r"(at) : "i"(HLL_REGISTERS - 1));
	own = &registers[at];
	run = *own;

	if (likely(rest & ((1ULL << (run & 63)) - 1)))
		return;
	rest |= 1ULL << (64 - HLL_BITS);
	*own = bits_in((rest & -rest) - 1) + 1;
}

static __always_inline void note_port(u8 *bits, u16 port)
{
	u8 *own, bit = 1 << (port & 7);
	u64 at = port >> 3;

	/* Verifier: as above. */
	asm volatile("%0 &= %1" : "+r"(at) : "i"(PORTS / 8 - 1));
	own = &bits[at];
	if (unlikely(!(*own & bit)))
		*own |= bit;
}

static __always_inline u32 age_bucket(u64 age_ns)
{
	u64 rest = age_ns / 1000;
	u32 bucket;

	for (u32 by = 1; by < 64; by *= 2)
		rest |= rest >> by;
	bucket = bits_in(rest);
	return bucket < AGE_BUCKETS ? bucket : AGE_BUCKETS - 1;
}

static __always_inline struct syn_counts *counts_of(u32 cpu, u32 owner)
{
	u32 at = cpu * TAPS * DIRECTION_COUNT + owner;

	return syn_counts.lookup(&at);
}

/* The same for both directions of a flow, never 0. */
static __always_inline u64 flow_key(struct endpoints *ends, u32 tap)
{
	u64 one = mixed(ends->source + ends->source_port), other = mixed(ends->destination + ends->destination_port);

	return mixed(one + other + tap) | 1;
}

static __always_inline struct flow *way_of(u64 key, u32 way)
{
	u32 at = (((u32)(key >> 1) & (FLOWS / FLOW_WAYS - 1)) * FLOW_WAYS) + way;

	return flows.lookup(&at);
}

static __always_inline struct flow *find_flow(struct lane *lane, u64 key)
{
	u64 found = FLOW_WAYS;

	/* Verifier: a bounded loop; one way out of it, see forget(). */
#pragma nounroll
	for (u32 way = 0; way < FLOW_WAYS; way++) {
		struct flow *flow = way_of(key, way);

		if (flow && flow->key == key)
			found = way;
	}
	found = forget(&lane->scratch, found);
	return found < FLOW_WAYS ? way_of(key, found) : NULL;
}

/* Where a new flow goes: a free place, else the oldest one's. */
static __always_inline struct flow *room_for_flow(struct lane *lane, u64 key)
{
	u64 oldest_ns = ~0ULL, found = 0;

	/* Verifier: as above. */
#pragma nounroll
	for (u32 way = 0; way < FLOW_WAYS; way++) {
		struct flow *flow = way_of(key, way);
		u64 since_ns = flow && flow->key ? flow->started_ns : 0;

		if (since_ns < oldest_ns) {
			oldest_ns = since_ns;
			found = way;
		}
	}
	return way_of(key, forget(&lane->scratch, found));
}

/* A flow loses its place: its end was not seen. Too many of those, and fewer are followed. */
static __always_inline void give_up(u32 cpu, struct flow *flow, struct syn_control *control, u64 now)
{
	u32 owner = flow->owner;
	struct syn_control *own = syn_controls.lookup(&owner);
	struct syn_counts *counts = counts_of(cpu, owner);

	if (!own || !counts)
		return;
	if (flow->answered)
		__sync_fetch_and_add(&own->waiting, -1ULL);
	if (now - flow->started_ns >= FLOW_EXPIRES_NS) {
		/* Own CPU's counts. */
		counts->expired += 1ULL << (flow->shift & 63);
		return;
	}
	/* Unlocked: how soon the shift rises need not be exact. */
	if (!(++control->crowded & (FLOW_CROWD - 1)) && control->shift < SHIFT_MAX)
		control->shift++;
}

static __always_inline void flow_started(u32 cpu, struct lane *lane, struct syn_control *control, u64 key, u32 owner,
					 u64 *now)
{
	struct flow *flow = find_flow(lane, key);
	struct syn_counts *counts = counts_of(cpu, owner);
	u32 shift = control->shift & 31;

	/* Sent again: it is as old as its first SYN. */
	if (!counts || (flow && flow->owner == owner))
		return;
	flow = room_for_flow(lane, key);
	if (!flow)
		return;
	if (!*now)
		*now = bpf_ktime_get_ns();
	if (flow->key)
		give_up(cpu, flow, control, *now);
	flow->started_ns = *now;
	flow->owner = owner;
	flow->shift = shift;
	flow->answered = 0;
	flow->key = key;
	/* Own CPU's counts. */
	counts->followed++;
	counts->started += 1ULL << shift;
}

/* SYN-ACK, RST, or what completes a handshake: the next step of the flow, if it is followed. */
static __always_inline void flow_goes_on(u32 cpu, u32 class, struct flow *flow, u32 owner, u64 *now)
{
	u32 flow_owner = flow->owner;
	struct syn_control *own = syn_controls.lookup(&flow_owner);
	struct syn_counts *counts = counts_of(cpu, flow_owner);
	u64 stands_for = 1ULL << (flow->shift & 63);

	if (!own || !counts)
		return;
	if (class == CLASS_TCP_SYNACK) {
		if (flow_owner == owner || flow->answered)
			return;
		flow->answered = 1;
		__sync_fetch_and_add(&own->waiting, 1);
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
		__sync_fetch_and_add(&own->waiting, -1ULL);
	flow->key = 0;
}

static __always_inline void note_syn(u32 owner, struct syn_control *control, struct endpoints *ends)
{
	u32 at = (control->generation & 1) * TAPS * DIRECTION_COUNT + owner;
	struct syn_sets *sets = syn_sets.lookup(&at);

	if (!sets)
		return;
	note_address(sets->sources, ends->source);
	note_address(sets->destinations, ends->destination);
	note_port(sets->source_ports, ends->source_port);
	note_port(sets->destination_ports, ends->destination_port);
}

/* At arrival of any packet. now: 0 where nobody asked yet. */
static __always_inline void measure_syn(u32 cpu, struct lane *lane, struct frame *frame, struct packet *packet,
					u64 what, u64 *now)
{
	u32 class = (what >> KEY_PACKET_CLASS_SHIFT) & 0xff, tap = ((what >> KEY_TAP_SHIFT) & 0xffff) - 1;
	u32 owner = tap * DIRECTION_COUNT + ((what >> KEY_DIRECTION_SHIFT) & 0xf);
	struct syn_control *control;
	struct endpoints ends = {};
	struct flow *flow;
	u64 key;

	if (class > CLASS_TCP_ACK)
		return;
	control = syn_controls.lookup(&owner);
	/* What only completes handshakes is looked at only while one waits for it. */
	if (!control || (class > CLASS_TCP_RST && likely(!control->waiting)))
		return;
	if (!endpoints_of(frame, packet, control->seed, &ends))
		return;
	key = flow_key(&ends, tap);
	if (class == CLASS_TCP_SYN) {
		note_syn(owner, control, &ends);
		if (!(key >> 44 & ((1U << (control->shift & 31)) - 1)))
			flow_started(cpu, lane, control, key, owner, now);
		return;
	}
	if (key >> 44 & ((1U << (control->lookup_shift & 31)) - 1))
		return;
	flow = find_flow(lane, key);
	if (flow)
		flow_goes_on(cpu, class, flow, owner, now);
}
#else
static __always_inline void measure_syn(u32 cpu, struct lane *lane, struct frame *frame, struct packet *packet,
					u64 what, u64 *now) {}
#endif
