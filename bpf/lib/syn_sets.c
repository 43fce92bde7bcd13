/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * SYN floods: number of distinct addresses and ports of SYNs. lib/handshakes.c follows the handshakes.
 *
 * Hook:   none, called where a packet arrives
 * Reads:  addresses and ports of TCP packets; the control of each tap and direction, written by user space
 * Writes: the sets of syn_states; the last destination in the CPU's state
 * Needs:  as lib/tables.c. Compiled only with SYN_MEASURES
 *
 * The memory does not grow with the number of spoofed addresses: the sets are HyperLogLog registers (addresses) and
 * bitmaps (ports).
 *
 * All CPUs share the sets and write them without a lock: per-CPU sets would be 128 times as large on a large node.
 * When two CPUs write the same byte at the same moment, one write is lost: a port is not marked until its next SYN, or
 * one register of 4,096 stays too low. The last destination of a CPU is written once per interval, so a lost write
 * lasts until the end of that interval.
 */
#if SYN_MEASURES

struct endpoints {
	u64 source; /* hash of the source address */
	u64 destination;
	u64 from; /* hash of the source address with its port */
	u64 to;
	u16 source_port; /* network order */
	u16 destination_port;
};

#if SYN_STATES_SHARED
static __always_inline struct syn_state *syn_state_of(u32 owner)
{
	return SHARED(struct syn_state, syn_states, owner, SYN_STATES);
}
#else
BPF_F_TABLE("array", u32, struct syn_state, syn_states, TAPS * DIRECTION_COUNT, BPF_F_MMAPABLE);

static __always_inline struct syn_state *syn_state_of(u32 owner)
{
	return syn_states.lookup(&owner);
}
#endif

/* A value that no generation has: they have 32 bits. */
#define NO_GENERATION (1ULL << 32)

#define MIXER 0xd6e8feb86659fd93ULL

/* Finalizer, as in MurmurHash3 and splitmix64: for a seed combined with an address in its lower half. */
static __always_inline u64 mixed(u64 value)
{
	value *= MIXER;
	value ^= value >> 32;
	value *= MIXER;
	value ^= value >> 32;
	return value;
}

/* As mixed(), for values that use the upper half, too. */
static __always_inline u64 mixed_whole(u64 value)
{
	return mixed(value ^ value >> 32);
}

/* Hash of an address (as a hash) and a port. Neighbouring ports give unrelated hashes. */
static __always_inline u64 mixed_endpoint(u64 address, u16 port)
{
	u64 value = (address + port * MIXER) * MIXER;

	return value ^ value >> 32;
}

static __always_inline u64 mixed_ipv6(const u64 *address, u64 seed)
{
	return mixed_whole(address[1] ^ mixed_whole(address[0] ^ seed));
}

/* Addresses and ports of a TCP packet, with headers at any offsets. False: they cannot be read. */
static __always_inline bool find_endpoints(struct frame *frame, struct packet *packet, u64 seed, struct endpoints *ends)
{
	u32 words[2];
	u16 ports[2];
	u64 longs[4];

	if (!load(frame, packet->transport_offset, ports, sizeof(ports)))
		return false;
	if (packet->is_ipv6) {
		if (!load(frame, packet->network_offset + 8, longs, sizeof(longs)))
			return false;
		ends->source = mixed_ipv6(longs, seed);
		ends->destination = mixed_ipv6(longs + 2, seed);
	} else {
		if (!load(frame, packet->network_offset + 12, words, sizeof(words)))
			return false;
		ends->source = mixed(words[0] ^ seed);
		ends->destination = mixed(words[1] ^ seed);
	}
	ends->source_port = ports[0];
	ends->destination_port = ports[1];
	ends->from = mixed_endpoint(ends->source, ports[0]);
	ends->to = mixed_endpoint(ends->destination, ports[1]);
	return true;
}

/*
 * Hashes of the destination. In a flood it is almost always the destination of the previous packet, so the hashes are
 * cached. This CPU's own state.
 */
static __always_inline void cached_destination(struct cpu_state *state, u32 address, u32 owner, u64 seed,
					       struct endpoints *ends)
{
	u64 last_destination = address | (u64)ends->destination_port << 32 | (owner + 1ULL) << 48;

	if (unlikely(state->last_destination != last_destination)) {
		state->last_destination = last_destination;
		state->last_destination_hash = mixed(address ^ seed);
		state->last_endpoint_hash = mixed_endpoint(state->last_destination_hash, ends->destination_port);
		state->last_generation = NO_GENERATION;
	}
	ends->destination = state->last_destination_hash;
	ends->to = state->last_endpoint_hash;
}

/* Endpoints of a plain frame. data: at least its first PLAIN_TRANSPORT + 4 bytes. */
static __always_inline void plain_endpoints(struct cpu_state *state, void *data, u32 owner, u64 seed,
					    struct endpoints *ends)
{
	ends->source_port = *(u16 *)(data + PLAIN_TRANSPORT);
	ends->destination_port = *(u16 *)(data + PLAIN_TRANSPORT + 2);
	ends->source = mixed(*(u32 *)(data + L2_HEADER_LEN + 12) ^ seed);
	ends->from = mixed_endpoint(ends->source, ends->source_port);
	cached_destination(state, *(u32 *)(data + L2_HEADER_LEN + 16), owner, seed, ends);
}

/* Addresses and ports; fast for a plain frame, see parse_plain(). */
static __always_inline bool endpoints_of(struct cpu_state *state, struct frame *frame, struct packet *packet,
					 u32 owner, u64 seed,
					 struct endpoints *ends)
{
	void *data = NULL;

	if (frame->skb)
		data = (void *)(long)frame->skb->data;
	if (!frame->skb || unlikely(!packet->is_plain) ||
	    unlikely(data + PLAIN_TRANSPORT + 4 > (void *)(long)frame->skb->data_end)) {
		state->last_destination = 0;
		state->last_generation = NO_GENERATION;
		return find_endpoints(frame, packet, seed, ends);
	}
	plain_endpoints(state, data, owner, seed, ends);
	return true;
}

/* Number of bits set, without a loop or a branch: BPF has no instruction for it (Warren, Hacker's Delight, 5-1). */
static __always_inline u32 bits_in(u64 value)
{
	value -= value >> 1 & 0x5555555555555555ULL;
	value = (value & 0x3333333333333333ULL) + (value >> 2 & 0x3333333333333333ULL);
	value = (value + (value >> 4)) & 0x0f0f0f0f0f0f0f0fULL;
	return value * 0x0101010101010101ULL >> 56;
}

/*
 * HyperLogLog: the lowest bits select a register, which keeps the longest run of zeros in the other bits, plus 1. The
 * run is computed only when it is longer than the value of the register, which is rare.
 */
static __always_inline void note_address(u8 *registers, u64 hash)
{
	u64 rest = hash >> HLL_BITS, at = hash, run;
	u8 *own;

	/* Verifier: an index. Assembly, because kernels before 6.2 lose the bounds of the compiler's code. */
	asm volatile("%0 &= %1" : "+r"(at) : "i"(HLL_REGISTERS - 1));
	own = &registers[at];
	run = *own;

	if (likely(rest >> run << run != rest))
		return;
	rest |= 1ULL << (64 - HLL_BITS);
	*own = bits_in((rest & -rest) - 1) + 1;
}

static __always_inline void note_port(u8 *bits, u16 port)
{
	u64 host = bpf_ntohs(port), at;
	u8 *own;

	/* Else the compiler would swap the bytes twice. */
	barrier_var(host);
	at = host >> 3;

	/* Verifier: as above. */
	asm volatile("%0 &= %1" : "+r"(at) : "i"(PORTS / 8 - 1));
	own = &bits[at];
	if (unlikely(!(*own >> (host & 7) & 1)))
		*own |= 1 << (host & 7);
}

static __always_inline void note_syn(struct cpu_state *state, struct syn_state *syn, struct endpoints *ends)
{
	u64 generation = syn->control.generation;
	struct syn_sets *sets = &syn->sets[generation & 1];

	note_address(sets->sources, ends->source);
	note_port(sets->source_ports, ends->source_port);
	/* The destination is the last one, which was already added in this generation. */
	if (likely(state->last_generation == generation))
		return;
	note_address(sets->destinations, ends->destination);
	note_port(sets->destination_ports, ends->destination_port);
	state->last_generation = generation;
}
#endif
