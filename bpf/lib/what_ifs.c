/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What-if limits (--what-if): each one is a further ideal bucket, and its passed and stopped packets are counted.
 *
 * Hook:   none, called where a packet arrives
 * Reads:  the settings of what_if_buckets, written by user space
 * Writes: the fill level of what_if_buckets, what_if_counts
 * Needs:  as lib/token_bucket.c. Compiled only with WHAT_IFS
 *
 * Such a limit is not installed, so no verdict corrects the decision of the bucket: a packet is counted when it
 * arrives.
 */
#if WHAT_IFS
/* Passed, stopped. */
struct what_if_count {
	u64 packets[2];
	u64 frame_bytes[2];
};

BPF_ARRAY(what_if_buckets, struct bucket, TAPS * DIRECTION_COUNT * WHAT_IFS);
BPF_F_TABLE("array", u32, struct what_if_count, what_if_counts, CPUS * TAPS * DIRECTION_COUNT * WHAT_IFS * CLASS_COUNT,
	    BPF_F_MMAPABLE);

static __always_inline void what_if(struct cpu_state *state, struct tap *tap, u64 direction, u64 key, u64 *now,
				    u32 charged_bytes,
				    u32 frame_bytes, u64 wire_bytes)
{
	u32 class = (key >> KEY_PACKET_CLASS_SHIFT) & 0xff, first, at, stopped;
	struct what_if_count *count;
	struct bucket *bucket;
	u64 cost;

	if (!*now)
		*now = bpf_ktime_get_ns();
	first = (tap->number * DIRECTION_COUNT + (u32)direction) * WHAT_IFS;
	/* Verifier: a bounded loop. Not unrolled, because each round contains another loop. */
#pragma nounroll
	for (u32 i = 0; i < WHAT_IFS; i++) {
		at = first + i;
		bucket = what_if_buckets.lookup(&at);
		at = (state->cpu * TAPS * DIRECTION_COUNT * WHAT_IFS + first + i) * CLASS_COUNT + class;
		count = what_if_counts.lookup(&at);
		if (!bucket || !count)
			return;
		cost = cost_of(bucket->charge, charged_bytes, frame_bytes,
			       wire_bytes) * bucket->mult >> (bucket->shift & 63);
		stopped = !take_tokens(bucket, *now, cost, cost);
		/* Own CPU's counts. */
		count->packets[stopped & 1]++;
		count->frame_bytes[stopped & 1] += frame_bytes;
	}
}
#else
static __always_inline void what_if(struct cpu_state *state, struct tap *tap, u64 direction, u64 key, u64 *now,
				    u32 charged_bytes,
				    u32 frame_bytes, u64 wire_bytes) {}
#endif
