/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The ideal token bucket: what a policer with the declared rate and burst would have said of this packet, now.
 *
 * Hook:   none of its own; called by observe.c
 * Reads:  buckets' rate, burst and charge, set from user space
 * Writes: buckets' tokens
 * Needs:  bpf_spin_lock (5.1): one bucket serves all CPUs that a tap's packets come in on
 *
 * Integers as in act_police (net/sched/act_police.c, tcf_police_act): tokens grow with time up to the burst, a packet
 * conforms when there are enough for all of it, and only then takes them. vifprobe/analysis/bucket.py is the same in
 * Python; a test holds the two against each other.
 */
#define NSEC_PER_SEC 1000000000ULL

/* Tokens and costs are in bytes * 1e9, so that rate * nanoseconds needs no division. */
struct bucket {
	struct bpf_spin_lock lock;
	u32 charge; /* CHARGE_* */
	u64 tokens;
	u64 updated_ns;
	u64 bytes_per_second; /* 0: no limit to hold packets against */
	u64 capacity;         /* burst */
	u64 fill_ns;          /* how long an empty bucket takes to be full, rounded up */
};

BPF_ARRAY(buckets, struct bucket, TAPS * DIRECTION_COUNT);

static __always_inline u64 cost_of(u32 charge, u32 charged_bytes, u32 frame_bytes, u64 wire_bytes)
{
	if (charge == CHARGE_L2)
		return frame_bytes;
	if (charge == CHARGE_L3)
		return frame_bytes - ETH_HEADER_LEN;
	return charge == CHARGE_WIRE ? wire_bytes : charged_bytes;
}

/* EXPECTED_CONFORM or _EXCEED, in its place in the key; 0 where there is no limit. now: 0 where nobody asked yet. */
static __always_inline u64 expected(u64 what, u64 now, u32 charged_bytes, u32 frame_bytes, u64 wire_bytes)
{
	u32 at = ((u32)(what >> KEY_TAP_SHIFT) - 1) * DIRECTION_COUNT + ((u32)(what >> KEY_DIRECTION_SHIFT) & 0xf);
	struct bucket *bucket = buckets.lookup(&at);
	u64 cost, tokens, elapsed = 0, says = EXPECTED_EXCEED;

	if (!bucket || !bucket->bytes_per_second)
		return 0;
	if (!now)
		now = bpf_ktime_get_ns();
	cost = cost_of(bucket->charge, charged_bytes, frame_bytes, wire_bytes) * NSEC_PER_SEC;
	bpf_spin_lock(&bucket->lock);
	tokens = bucket->tokens;
	/* Two CPUs can take the time in one order and the lock in the other. */
	if (now > bucket->updated_ns) {
		elapsed = now - bucket->updated_ns;
		bucket->updated_ns = now;
	}
	if (elapsed >= bucket->fill_ns)
		tokens = bucket->capacity;
	else
		tokens += elapsed * bucket->bytes_per_second;
	if (tokens > bucket->capacity)
		tokens = bucket->capacity;
	if (cost <= tokens) {
		tokens -= cost;
		says = EXPECTED_CONFORM;
	}
	bucket->tokens = tokens;
	bpf_spin_unlock(&bucket->lock);
	return says << KEY_EXPECTED_SHIFT;
}
