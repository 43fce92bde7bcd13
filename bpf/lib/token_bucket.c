/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The ideal token bucket: the decision about this packet of a policer with the declared rate and burst.
 *
 * Hook:   none, called where a packet is counted
 * Reads:  the settings of buckets, written by user space
 * Writes: the fill level of buckets; arrival and cost of the pending packet in the CPU's state
 * Needs:  compare-and-exchange (5.12), because all CPUs that receive packets of a tap share one bucket. Without it,
 *         plain and atomic additions are used: when two CPUs read the bucket at the same time, one packet too many
 *         can count as conform. (Tracepoint programs must not use bpf_spin_lock on those kernels.)
 *
 * The arithmetic is that of act_police (net/sched/act_police.c, tcf_police_act; psched_l2t_ns): tokens are
 * nanoseconds, and a packet costs (bytes * mult) >> shift of them. act_police keeps the number of tokens and the time
 * when it was computed. Here one word holds their difference, the time at which the bucket would be empty, because one
 * instruction can exchange one word. vifprobe/testing/token_bucket.py does the same in Python; a test compares the
 * two.
 *
 * Where a policer is installed on the tap, its decision is accepted within narrow bounds, because two things are
 * unknown: the fill level of its bucket at the start, and the exact time of its decision, some hundred nanoseconds
 * later. See settle_bucket().
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

/* Fill level at `now`, without the limit of a full bucket. */
static __always_inline s64 tokens_at(u64 now, u64 empty_ns)
{
	return now - empty_ns;
}

/*
 * The bucket was full and has lost `overflow` tokens. So the installed bucket has gained as much on this one, up to the
 * difference of the clocks.
 */
static __always_inline void reduce_uncertainty(struct bucket *bucket, u64 overflow)
{
	u64 uncertain = bucket->uncertain_ns;
	u64 now = uncertain > overflow + BUCKET_SLACK_NS ? uncertain - overflow : BUCKET_SLACK_NS;

	/*
	 * Not atomic: when two CPUs write at the same time, one reduction is lost, and the bucket stays uncertain
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

/* Another CPU has changed empty_ns in between, to `old`: try again. */
static __always_inline bool retry_take(struct bucket *bucket, u64 now, s64 cost, s64 least, u64 old)
{
	s64 burst = bucket->burst_ns, over;
	u64 found;

	/* Verifier: a bounded loop. */
#pragma nounroll
	for (u32 i = 1; i < COST_TRIES; i++) {
		over = overflow_at(now, old, burst);
		if (tokens_at(now, old) - over < least)
			return false;
		found = __sync_val_compare_and_swap(&bucket->empty_ns, old, old + over + cost);
		if (found == old) {
			if (over)
				reduce_uncertainty(bucket, over);
			return true;
		}
		old = found;
	}
	return false;
}

/* Take the cost of a packet that arrived at `now` out of the bucket, if the bucket holds at least `least`. */
static __always_inline bool take_tokens(struct bucket *bucket, u64 now, s64 cost, s64 least)
{
	u64 old = *(volatile u64 *)&bucket->empty_ns, found;
	s64 over;

	/* Most packets of a flood: too few tokens, so the bucket was not full and no token was lost. */
	if (likely(tokens_at(now, old) < least))
		return false;
	over = overflow_at(now, old, bucket->burst_ns);
	if (tokens_at(now, old) - over < least)
		return false;
	found = __sync_val_compare_and_swap(&bucket->empty_ns, old, old + over + cost);
	/* Else the compiler would compute a flag from the result and compare the flag. */
	barrier_var(found);
	if (unlikely(found != old))
		return retry_take(bucket, now, cost, least, found);
	if (unlikely(over))
		reduce_uncertainty(bucket, over);
	return true;
}

static __always_inline void advance_empty(struct bucket *bucket, s64 by)
{
	__sync_fetch_and_add(&bucket->empty_ns, by);
}
#else
static __always_inline void advance_empty(struct bucket *bucket, s64 by)
{
	__sync_fetch_and_add(&bucket->empty_ns, by);
}

static __always_inline bool take_tokens(struct bucket *bucket, u64 now, s64 cost, s64 least)
{
	u64 old = *(volatile u64 *)&bucket->empty_ns;
	s64 over = tokens_at(now, old) - (s64)bucket->burst_ns;

	if (tokens_at(now, old) - (over > 0 ? over : 0) < least)
		return false;
	if (over > 0) {
		/*
		 * A store, so the overflow is subtracted once, even when two CPUs see it. Then the cost of one of the
		 * two packets is lost.
		 */
		*(volatile u64 *)&bucket->empty_ns = old + over + cost;
		reduce_uncertainty(bucket, over);
	} else {
		advance_empty(bucket, cost);
	}
	return true;
}
#endif

/* EXPECTED_CONFORM or _EXCEED, shifted for the key; 0 without a limit. now: 0 when the clock was not read yet. */
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
	/* What is left: the cost of the packet is already taken. */
	s64 left = tokens_at(state->pending_arrival_ns, bucket->empty_ns), cost = state->pending_cost_ns;
	s64 uncertain = bucket->uncertain_ns;
	s64 shift = left < 0 ? 0 : left + 1;

	if (shift > uncertain)
		return false;
	advance_empty(bucket, shift - cost);
	uncertain -= shift;
	/* Both buckets now hold between 0 and `cost`. Not atomic, as in reduce_uncertainty(). */
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
 * The verdict is known and can differ from the decision of the ideal bucket. Where a policer is installed, its decision
 * is accepted within these bounds:
 *
 * - A packet that passed: when less than its own cost was missing. The ideal bucket goes into debt by that amount, and
 *   lets no packet conform until time has paid the debt. So at most one packet of excess is hidden in total.
 * - A packet that was policed: when the installed bucket can be that much emptier. At the start, the bound is the whole
 *   fill level of this bucket, because that of the other one is unknown. The bound falls with each overflow and with
 *   each packet settled in this way. BUCKET_SLACK_NS is allowed each time that this bucket was full. No other wrongly
 *   policed packet is hidden.
 *
 * If an offset arises nevertheless (a hypervisor stops the CPU between the two decisions), it causes one wrong
 * decision, not one for each packet: the bucket is never left emptier than credit covers.
 */
static __always_inline void settle_bucket(struct cpu_state *state, u64 verdict)
{
	u64 says = state->key >> KEY_EXPECTED_SHIFT & 0xf;
	struct bucket *bucket;

	if (!says)
		return;
	/* Conform and passed are the same number, and so are exceed and policed. */
	if (likely(says == verdict))
		return;
	if ((says == EXPECTED_EXCEED) == (verdict == VERDICT_POLICED))
		return;
	if (!(state->traits & (TRAIT_NFT_POLICER | TRAIT_TC_POLICER)))
		return;
	/* The reader has already counted the packet with the first decision. */
	if ((s32)(state->now - state->epoch) >= EPOCHS_IN_FLIGHT)
		return;
	bucket = bucket_of(state->number, DIRECTION_OUTBOUND);
	if (verdict == VERDICT_POLICED ? refund(bucket, state) : charge_on_credit(bucket, state))
		state->key ^= (EXPECTED_CONFORM ^ EXPECTED_EXCEED) << KEY_EXPECTED_SHIFT;
}
