/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The ideal token bucket: what a policer with the declared rate and burst would have said of this packet, now.
 *
 * Hook:   none of its own; called where packets are counted
 * Reads:  buckets' settings, written from user space
 * Writes: buckets' filling, what is pledged in the CPU's state
 * Needs:  compare-and-exchange (5.12), as one bucket serves all CPUs that a tap's packets come in on. Without, plain and
 *         atomic additions: where two CPUs look at once, one packet too many may be said to conform. (bpf_spin_lock is
 *         not for the tracepoint's program there.)
 *
 * The integers are those of act_police (net/sched/act_police.c, tcf_police_act; psched_l2t_ns): tokens are nanoseconds,
 * a packet costs (bytes * mult) >> shift of them. act_police keeps tokens and the time of their count; their difference,
 * the moment at which the bucket would be empty, says the same in one word, which one instruction can exchange.
 * vifprobe/testing/token_bucket.py is the same in Python; a test holds the two against each other.
 *
 * Where a policer is installed on the tap, its word counts within narrow bounds, because two limits of what is known are
 * no fault of it: it looks at the clock some hundred nanoseconds later than this does, and how full it was when this
 * began can't be read. See settle_bucket().
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

/* What is in it at `now`, were it never full. */
static __always_inline s64 tokens_at(u64 now, u64 empty_ns)
{
	return now - empty_ns;
}

/* The bucket was full: the installed one has caught up by as much as this one let run over, clocks apart. */
static __always_inline void reduce_uncertainty(struct bucket *bucket, u64 overflow)
{
	u64 uncertain = bucket->uncertain_ns, now = uncertain > overflow + BUCKET_SLACK_NS ? uncertain - overflow : BUCKET_SLACK_NS;

	/* Not atomic: where two CPUs take off at once, and one of them in vain, it stays unsure for longer. */
	if (now != uncertain)
		bucket->uncertain_ns = now;
}

#if HAS_CMPXCHG
/* What has run over by `now`. */
static __always_inline s64 overflow_at(u64 now, u64 empty_ns, s64 burst)
{
	s64 over = tokens_at(now, empty_ns) - burst;

	return unlikely(over > 0) ? over : 0;
}

/* Another CPU took from it meanwhile, and left it at `seen`. */
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

/* Take the cost of a packet that came at `now` out of the bucket, if it holds `least`. */
static __always_inline bool take_tokens(struct bucket *bucket, u64 now, s64 cost, s64 least)
{
	u64 seen = *(volatile u64 *)&bucket->empty_ns, found;
	s64 over;

	/* Most of a flood: where it is not there, nothing has run over. */
	if (likely(tokens_at(now, seen) < least))
		return false;
	over = overflow_at(now, seen, bucket->burst_ns);
	if (tokens_at(now, seen) - over < least)
		return false;
	found = __sync_val_compare_and_swap(&bucket->empty_ns, seen, seen + over + cost);
	/* Or the compiler would make a number of whether it went well, and look at that. */
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
		/* What has run over is taken once, even where two CPUs see it: a store, and one of their costs is lost. */
		*(volatile u64 *)&bucket->empty_ns = seen + over + cost;
		reduce_uncertainty(bucket, over);
	} else {
		move(bucket, cost);
	}
	return true;
}
#endif

/* EXPECTED_CONFORM or _EXCEED, in its place in the key; 0 where there is no limit. now: 0 where nobody asked yet. */
static __always_inline u64 expected(struct cpu_state *state, struct tap *tap, u64 direction, u64 *now, u64 charged_bytes,
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
	/* This CPU's own state, which holds no inbound packets; but one can come while an outbound one waits for its verdict. */
	if (direction == DIRECTION_OUTBOUND) {
		state->pending_arrival_ns = *now;
		state->pending_cost_ns = cost;
	}
	return (u64)(take_tokens(bucket, *now, cost, cost) ? EXPECTED_CONFORM : EXPECTED_EXCEED) << KEY_EXPECTED_SHIFT;
}

/*
 * It was said to conform, and policed all the same: the installed bucket holds less than its cost. If that can be, make
 * this one hold as little.
 */
static __always_inline bool refund(struct bucket *bucket, struct cpu_state *state)
{
	/* Its cost is taken already: this is what it left. */
	s64 left = tokens_at(state->pending_arrival_ns, bucket->empty_ns), cost = state->pending_cost_ns;
	s64 uncertain = bucket->uncertain_ns;
	s64 shift = left < 0 ? 0 : left + 1;

	if (shift > uncertain)
		return false;
	move(bucket, shift - cost);
	uncertain -= shift;
	/* Neither bucket holds more than that now, nor less than nothing. Not atomic: as in reduce_uncertainty(). */
	bucket->uncertain_ns = uncertain > cost ? cost : uncertain;
	return true;
}

/* It was said to exceed, and passed all the same: its cost is taken on credit, where the bucket has no debts yet. */
static __always_inline bool charge_on_credit(struct bucket *bucket, struct cpu_state *state)
{
	/* What the bucket can't hold never conforms. */
	return state->pending_cost_ns <= bucket->burst_ns && take_tokens(bucket, state->pending_arrival_ns, state->pending_cost_ns, 0);
}

/*
 * The verdict is known and is not what the ideal bucket said. Where a policer is installed, take its word for what lies
 * within the bounds of what can be known:
 * - of a packet that passed, where less than its own cost was missing. The ideal bucket is in debt by that, and grants
 *   nothing until time has paid it: what passes in excess is never hidden but for one packet in all;
 * - of a packet that was policed, where the installed bucket may be that much emptier: at the start by all that this one
 *   holds, since it is not known how full that one was; less with all that has run over since and with each packet that
 *   was settled so; BUCKET_SLACK_NS each time that this one was full. What is policed without need is never hidden but
 *   for that.
 * An offset that comes about all the same (a hypervisor that stops the CPU between the two) costs one packet's wrong
 * word, not one with each packet for ever: what was taken in vain leaves the bucket no emptier than credit covers.
 */
static __always_inline void settle_bucket(struct cpu_state *state, u64 verdict)
{
	u64 says = state->key >> KEY_EXPECTED_SHIFT & 0xf;
	struct bucket *bucket;

	if (!says)
		return;
	/* The two are the same number: conform and passed, exceed and policed. */
	if (likely(says == verdict))
		return;
	if ((says == EXPECTED_EXCEED) == (verdict == VERDICT_POLICED))
		return;
	if (!(state->traits & (TRAIT_NFT_POLICER | TRAIT_TC_POLICER)))
		return;
	/* The reader has counted it already, as it was. */
	if ((s32)(state->now - state->epoch) >= EPOCHS_IN_FLIGHT)
		return;
	bucket = bucket_of(state->number, DIRECTION_OUTBOUND);
	if (verdict == VERDICT_POLICED ? refund(bucket, state) : charge_on_credit(bucket, state))
		state->key ^= (EXPECTED_CONFORM ^ EXPECTED_EXCEED) << KEY_EXPECTED_SHIFT;
}
