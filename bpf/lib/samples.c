/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Samples: the headers of some packets, with their verdicts: the first ones of each class and verdict, then one in M.
 *
 * Hook:   none, called where a packet arrives and where its verdict is known
 * Reads:  mean of the samplers and samples_taken, written by user space
 * Writes: the samplers (in tap_cpu_states), staged (lib/staged.c), samples
 * Needs:  as lib/tables.c. Compiled only with SAMPLES
 *
 * The headers are staged when the packet arrives, and written to the ring when its verdict is known. The ring is this
 * CPU's part of a mapped array: a BPF ring buffer would take a lock and wake a thread for each record. User space
 * counts the records that are overwritten before they are read.
 *
 * Samples are unbiased. The first SAMPLE_FIRST staged packets of a class and verdict have weight 1. From the sequence
 * of all other packets, each is taken with probability 1/M and has weight M. The intervals are uniform in 1..2M-1:
 * their mean is M, and periodic traffic is not sampled in step. After a change of M, the first interval is drawn as if
 * drawing had always gone on. Whether a packet is one of the first depends only on the packets before it, never on
 * that draw.
 *
 * When traffic rises faster than user space adapts M, the ring would fill before it is read. So M is multiplied by four
 * here each time that half of the remaining room is used.
 */
#if SAMPLES
/* Number of samples of a CPU that user space has read. User space writes it. */
struct samples_taken {
	u64 count;
};

BPF_F_TABLE("array", u32, struct sample, samples, CPUS * SAMPLES, BPF_F_MMAPABLE);
BPF_F_TABLE("array", u32, struct samples_taken, samples_taken, CPUS, BPF_F_MMAPABLE);

/* A random number, uniform in 1..most. */
static __always_inline u32 uniform(u64 most)
{
	return 1 + (u32)(((u64)bpf_get_prandom_u32() * most) >> 32);
}

/* Set the next packet to process: the one before the next sample, for its time, or the next probe. */
static __always_inline void set_alarm(struct sampler *own)
{
	own->wake_at = own->next_at - 1 < own->probe_at ? own->next_at - 1 : own->probe_at;
}

/*
 * Draw the next sample with this mean from packet number `from` on, as if drawing had always gone on: the interval k
 * has the probability (2M - k) / (M (2M - 1)), k = 1..2M-1. That is the smaller one of two uniform numbers.
 */
static __always_inline void redraw(struct sampler *own, u32 mean, u64 from)
{
	u32 one = uniform(2 * mean - 1), other = uniform(2 * mean);

	own->drawn_mean = mean;
	own->next_at = from - 1 + (one < other ? one : other);
}

/*
 * Packet number `at` was drawn, and half of the ring or more is unread: raise the mean. True: the next sample is drawn
 * with the new mean.
 *
 * The mean changes right after a draw, which is not a random moment. On average, the packets so far count for (M - 1)
 * / 3 too many (M less the mean time (2M + 1) / 3 to a first draw). A whole interval up to the next draw corrects
 * that; a draw as if drawing had always gone on does not. With a larger mean N, a whole interval corrects (N - 1) / 3.
 * So a whole interval is used with probability (M - 1) / (N - 1), and sums stay unbiased.
 */
static __always_inline bool raise_interval(struct cpu_state *state, struct sampler *own, u64 at)
{
	struct samples_taken *taken = samples_taken.lookup(&state->cpu);
	u64 waiting = taken ? state->samples + 1 - taken->count : 0, room = waiting < SAMPLES ? SAMPLES - waiting : 0;
	u32 raises = own->raises, mean = own->drawn_mean;

	if (likely(raises >= SAMPLE_RAISES || (room << (raises & 15)) > SAMPLES / 2) || mean != own->mean ||
	    mean > SAMPLE_MEAN_MAX / 4)
		return false;
	own->raises = raises + 1;
	own->mean = 4 * mean;
	redraw(own, 4 * mean, at + 1);
	if (uniform(4 * (u64)mean - 1) < mean)
		own->next_at = at + uniform(8 * (u64)mean - 1);
	return true;
}

/*
 * Stage a packet that may be sampled, or record the arrival time of the packet before one. True: the headers are
 * staged. This CPU's own sampler and staging buffer.
 */
static __always_inline bool stage_sample(struct cpu_state *state, struct tap_cpu_state *tap_state, struct frame *frame,
				 struct packet *packet, u64 key, u64 now, u32 charged_bytes, u64 wire)
{
	struct sampler *own = &tap_state->sampler;
	u32 class = (key >> KEY_PACKET_CLASS_SHIFT) & 0xf, mean = own->mean;
	bool tentative = !(own->calm >> class & 1);
	struct sample *to = staged_of(state, key);
	s64 gap = -1;

	if (!to || !mean)
		return false;
	if (mean != own->drawn_mean)
		redraw(own, mean, own->packets);
	if (own->packets >= own->probe_at) {
		tentative = true;
		own->probe_at = own->packets + 1 + (bpf_get_prandom_u32() & SAMPLE_PROBE_MASK);
	}
	set_alarm(own);
	if (!now)
		now = bpf_ktime_get_ns();
	if (own->last_ns && own->last_packet + 1 == own->packets)
		gap = now - own->last_ns;
	own->last_ns = now;
	own->last_packet = own->packets;
	if (!tentative && own->packets < own->next_at)
		return false;
	to->at_ns = now;
	to->gap_ns = gap;
	to->position = own->packets;
	to->tentative = tentative;
	to->frame_bytes = frame->length;
	to->charged_bytes = charged_bytes;
	to->wire_bytes = wire;
	copy_headers(frame, &state->scratch, to, bytes_to_keep(state, frame, packet, class));
	return true;
}

/* True: call stage_sample() for this packet. Called at arrival, after the packet before it has its verdict. */
static __always_inline bool is_sample_due(struct tap_cpu_state *tap_state, u64 key)
{
	struct sampler *own = &tap_state->sampler;
	u32 class = (key >> KEY_PACKET_CLASS_SHIFT) & 0xf;

	own->packets++;
	/* Three conditions, so that each branch has its mark (lib/likely.h). */
	if (unlikely(own->packets >= own->wake_at) || unlikely(!(own->calm >> class & 1)) ||
	    unlikely(own->mean != own->drawn_mean))
		return true;
	return false;
}

/* Weight of the staged packet: the number of packets that it represents; 0: not taken. key: with its verdict. */
static __always_inline u32 weight_of(struct cpu_state *state, struct sampler *own, struct sample *staged, u64 key)
{
	u64 class = (key >> KEY_PACKET_CLASS_SHIFT) & 0xf, verdict = (key >> KEY_VERDICT_SHIFT) & 3;
	u64 kind = class * 4 + verdict;
	u32 weight = 0;

	/*
	 * Verifier: indexes. Assembly, because kernels before 6.2 lose the bounds in the compiler's code for the
	 * masks above.
	 */
	asm volatile("%0 &= 63" : "+r"(kind));
	asm volatile("%0 &= 15" : "+r"(class));
	if (staged->tentative) {
		if (own->first[kind] < SAMPLE_FIRST) {
			own->first[kind]++;
			/* The packet does not belong to the sequence that samples are drawn from. */
			own->next_at++;
			set_alarm(own);
			return 1;
		}
		if (own->in_vain[class] < SAMPLE_EAGER_LOOKS)
			own->in_vain[class]++;
		else
			own->calm |= 1U << (u32)class;
	}
	if (staged->position >= own->next_at) {
		weight = own->drawn_mean;
		if (!raise_interval(state, own, staged->position))
			own->next_at = staged->position + uniform(2 * (u64)weight - 1);
		set_alarm(own);
	}
	return weight;
}

/* The verdict of the staged packet is known: write it to the ring if it is taken. */
static __always_inline void commit_sample(struct cpu_state *state, u64 key, u64 drop_key)
{
	u32 at = state->cpu * SAMPLES + ((u32)state->samples & (SAMPLES - 1)), weight;
	struct sample *staged = staged_of(state, key), *to = samples.lookup(&at);
	struct tap_cpu_state *tap_state = tap_state_at(state, tap_state_number(state, key));

	if (!staged || !to || !tap_state)
		return;
	weight = weight_of(state, &tap_state->sampler, staged, key);
	if (!weight)
		return;
	staged->key = key;
	staged->drop_key = drop_key;
	staged->weight = weight;
	*to = *staged;
	/* This CPU's own state. Incremented last: records that are counted are complete. */
	state->samples++;
}

static __always_inline void settle_sample(struct cpu_state *state, u64 key, u64 drop_key)
{
	if (unlikely(state->traits & PENDING_SAMPLED))
		commit_sample(state, key, drop_key);
}
#else
static __always_inline bool is_sample_due(struct tap_cpu_state *tap_state, u64 key)
{
	return false;
}
static __always_inline bool stage_sample(struct cpu_state *state, struct tap_cpu_state *tap_state, struct frame *frame,
				 struct packet *packet, u64 key, u64 now, u32 charged_bytes, u64 wire)
{
	return false;
}
static __always_inline void commit_sample(struct cpu_state *state, u64 key, u64 drop_key) {}
static __always_inline void settle_sample(struct cpu_state *state, u64 key, u64 drop_key) {}
#endif
