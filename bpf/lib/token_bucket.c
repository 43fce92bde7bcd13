/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The ideal token bucket: what a policer with the declared rate and burst would decide about this packet now.
 *
 * Hook:   none, called where a packet is counted
 * Reads:  the settings of buckets, written by user space
 * Writes: the fill level of buckets; arrival and cost of the pending packet in the CPU's state
 * Needs:  compare-and-exchange (5.12), because all CPUs that receive packets of a tap share one bucket. Without it,
 *         plain and atomic additions are used: when two CPUs look at the same time, one packet too many can be called
 *         conform. (Tracepoint programs must not use bpf_spin_lock there.)
 *
 * The arithmetic is that of act_police (net/sched/act_police.c, tcf_police_act; psched_l2t_ns): tokens are
 * nanoseconds, and a packet costs (bytes * mult) >> shift of them. act_police keeps the number of tokens and the time
 * when it was computed. Here one word holds their difference, the time at which the bucket would be empty, because one
 * instruction can exchange one word. vifprobe/testing/token_bucket.py does the same in Python; a test compares the
 * two.
 *
 * Where a policer is installed on the tap, its decision is accepted within narrow bounds. Two things cannot be known:
 * how full its bucket was at the start, and its exact time of decision, some hundred nanoseconds later. See
 * settle_bucket().
 */
#define COST_TRIES 32

static __always_inline struct bucket *bucket_of(u64 tap, u64 direction)
{
	return SHARED(struct bucket, buckets, tap * DIRECTION_COUNT + direction, BUCKETS);
}

static __always_inline u64 cost_of(u8 charge, u64 charged_bytes, u64 frame_bytes, u64 wire_bytes)
{
	if (likely(charge == CHARGE_INSTALLED))
		return charged_bytes;
	if (charge == CHARGE_L2)
		return frame_bytes;
	if (charge == CHARGE_L3)
		return frame_bytes - L2_HEADER_LEN;
	if (charge == CHARGE_PACKET)
		return 1;
	return wire_bytes;
}

/* Fill level at `now` if the bucket were never full. */
static __always_inline s64 tokens_at(u64 now, u64 empty_ns)
{
	return now - empty_ns;
}

/*
 * The bucket was full and has lost `overflow`. So the installed bucket has caught up by as much, up to the difference
 * of the clocks.
 */
static __always_inline void reduce_uncertainty(struct bucket *bucket, u64 overflow)
{
	u64 uncertain = bucket->uncertain_ns;
	u64 now = uncertain > overflow + BUCKET_SLACK_NS ? uncertain - overflow : BUCKET_SLACK_NS;

	/*
	 * Not atomic: when two CPUs write at the same time, one reduction is lost and the bucket stays uncertain for
	 * longer.
	 */
	if (now != uncertain)
		bucket->uncertain_ns = now;
}

#if HAS_CMPXCHG
/* Tokens lost by `now` because the bucket was full. */
static __always_inline s64 overflow_at(u64 now, u64 empty_ns, s64 burst)
{
	s64 over = tokens_at(now, empty_ns) - burst;

	return unlikely(over > 0) ? over : 0;
}

/* Another CPU has changed the bucket meanwhile, to `seen`: try again. */
static __always_inline bool retry_take(struct bucket *bucket, u64 now, s64 cost, s64 least, u64 seen)
{
	s64 burst = bucket->burst_ns, over;
	u64 found;

	/* Verifier: a bounded loop. */
#pragma nounroll
	for (u32 i = 1; i < COST_TRIES; i++) {
		over = overflow_at(now, seen, burst);
		if (tokens_at(now, seen) - over < least)
			return false;
		found = __sync_val_compare_and_swap(&bucket->empty_ns, seen, seen + over + cost);
		if (found == seen) {
			if (over)
				reduce_uncertainty(bucket, over);
			return true;
		}
		seen = found;
	}
	return false;
}

/* Take the cost of a packet that arrived at `now` out of the bucket, if the bucket holds at least `least`. */
static __always_inline bool take_tokens(struct bucket *bucket, u64 now, s64 cost, s64 least)
{
	u64 seen = *(volatile u64 *)&bucket->empty_ns, found;
	s64 over;

	/* Most packets of a flood: too few tokens, so nothing was lost either. */
	if (likely(tokens_at(now, seen) < least))
		return false;
	over = overflow_at(now, seen, bucket->burst_ns);
	if (tokens_at(now, seen) - over < least)
		return false;
	found = __sync_val_compare_and_swap(&bucket->empty_ns, seen, seen + over + cost);
	/* Else the compiler would compute a flag from the result and compare that. */
	barrier_var(found);
	if (unlikely(found != seen))
		return retry_take(bucket, now, cost, least, found);
	if (unlikely(over))
		reduce_uncertainty(bucket, over);
	return true;
}

static __always_inline void move(struct bucket *bucket, s64 by)
{
	__sync_fetch_and_add(&bucket->empty_ns, by);
}
#else
static __always_inline void move(struct bucket *bucket, s64 by)
{
	__sync_fetch_and_add(&bucket->empty_ns, by);
}

static __always_inline bool take_tokens(struct bucket *bucket, u64 now, s64 cost, s64 least)
{
	u64 seen = *(volatile u64 *)&bucket->empty_ns;
	s64 over = tokens_at(now, seen) - (s64)bucket->burst_ns;

	if (tokens_at(now, seen) - (over > 0 ? over : 0) < least)
		return false;
	if (over > 0) {
		/*
		 * The overflow is subtracted once, even when two CPUs see it: this is a store, and one of the two
		 * costs is lost.
		 */
		*(volatile u64 *)&bucket->empty_ns = seen + over + cost;
		reduce_uncertainty(bucket, over);
	} else {
		move(bucket, cost);
	}
	return true;
}
#endif

/* EXPECTED_CONFORM or _EXCEED at its place in the key; 0 without a limit. now: 0 when the clock was not read yet. */
static __always_inline u64 expected(struct cpu_state *state, struct tap *tap, u64 direction, u64 *now,
				    u64 charged_bytes,
				    u64 frame_bytes, u64 wire_bytes)
{
	struct bucket *bucket;
	u64 cost;

	if (!(tap->traits & TRAIT_LIMIT_OUTBOUND << direction))
		return 0;
	bucket = bucket_of(tap->number, direction);
	if (unlikely(!*now))
		*now = bpf_ktime_get_ns();
	cost = cost_of(bucket->charge, charged_bytes, frame_bytes, wire_bytes) * bucket->mult >> bucket->shift;
	/*
	 * This CPU's own state, for outbound packets only. An inbound packet can arrive while an outbound one is
	 * pending.
	 */
	if (direction == DIRECTION_OUTBOUND) {
		state->pending_arrival_ns = *now;
		state->pending_cost_ns = cost;
	}
	return (u64)(take_tokens(bucket, *now, cost, cost) ? EXPECTED_CONFORM : EXPECTED_EXCEED) << KEY_EXPECTED_SHIFT;
}

/*
 * The packet was expected to conform, but it was policed: the installed bucket held less than its cost. When that is
 * possible, lower this bucket to the same level.
 */
static __always_inline bool refund(struct bucket *bucket, struct cpu_state *state)
{
	/* Its cost is taken already: this is the rest. */
	s64 left = tokens_at(state->pending_arrival_ns, bucket->empty_ns), cost = state->pending_cost_ns;
	s64 uncertain = bucket->uncertain_ns;
	s64 shift = left < 0 ? 0 : left + 1;

	if (shift > uncertain)
		return false;
	move(bucket, shift - cost);
	uncertain -= shift;
	/* Neither bucket holds more than that now, nor less than nothing. Not atomic, as in reduce_uncertainty(). */
	bucket->uncertain_ns = uncertain > cost ? cost : uncertain;
	return true;
}

/* The packet was expected to exceed, but it passed: charge it on credit when the bucket has no debt yet. */
static __always_inline bool charge_on_credit(struct bucket *bucket, struct cpu_state *state)
{
	/* A packet that costs more than a full bucket never conforms. */
	return state->pending_cost_ns <= bucket->burst_ns &&
	       take_tokens(bucket, state->pending_arrival_ns, state->pending_cost_ns, 0);
}

/*
 * The verdict is known and differs from what the ideal bucket expected. Where a policer is installed, its decision is
 * accepted within these bounds. A packet that passed: when less than its own cost was missing. The ideal bucket goes
 * into debt by that, and grants nothing until time has paid the debt. So at most one packet of excess is hidden in
 * all. A packet that was policed: when the installed bucket can be that much emptier. At the start that is the whole
 * fill level of this bucket, because the other one is not known. It gets less with each overflow and with each packet
 * settled so, and BUCKET_SLACK_NS is allowed each time that this bucket was full. Nothing else that is policed without
 * need is hidden. An offset that arises all the same (a hypervisor stops the CPU between the two decisions) costs one
 * wrong decision, not one for each packet: the bucket is never left emptier than credit covers.
 */
static __always_inline void settle_bucket(struct cpu_state *state, u64 verdict)
{
	u64 says = state->key >> KEY_EXPECTED_SHIFT & 0xf;
	struct bucket *bucket;

	if (!says)
		return;
	/* The same numbers: conform and passed, exceed and policed. */
	if (likely(says == verdict))
		return;
	if ((says == EXPECTED_EXCEED) == (verdict == VERDICT_POLICED))
		return;
	if (!(state->traits & (TRAIT_NFT_POLICER | TRAIT_TC_POLICER)))
		return;
	/* Already counted by the reader, as it was. */
	if ((s32)(state->now - state->epoch) >= EPOCHS_IN_FLIGHT)
		return;
	bucket = bucket_of(state->number, DIRECTION_OUTBOUND);
	if (verdict == VERDICT_POLICED ? refund(bucket, state) : charge_on_credit(bucket, state))
		state->key ^= (EXPECTED_CONFORM ^ EXPECTED_EXCEED) << KEY_EXPECTED_SHIFT;
}
