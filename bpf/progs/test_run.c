/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Count the frames of a file (vifprobe replay).
 *
 * Hook:   none: run by BPF_PROG_TEST_RUN, once per frame
 * Reads:  the bytes of the frame; its properties in skb->cb (CB_*); its time in skb->tstamp
 * Writes: cells and bins; in skb->cb, the key under which the frame was counted
 * Needs:  __sk_buff context of BPF_PROG_TEST_RUN with cb and tstamp (5.5). Compiled only with REPLAY
 *
 * TEST_RUN does not take a frame that is shorter than its headers, or much longer than half a page, or that has its tag
 * outside the bytes. So user space passes the true length of the frame and the number of its bytes in skb->cb. The rest
 * of the skb is padding and is never read.
 */
#if REPLAY

/* Words of skb->cb. */
#define CB_CAPTURED 0 /* bytes of the frame that are present */
#define CB_LENGTH 1   /* length of the frame */
#define CB_WINDOW 2   /* not 0: the bytes are in `window`, because the skb is too small */
#define CB_KEY 3     /* result: key of the cell, lower and upper half; 0 when a header could not be read */

struct window {
	u8 bytes[REPLAY_WINDOW];
};

BPF_F_TABLE("array", u32, struct window, window, 1, BPF_F_MMAPABLE);

/* Latest time so far. For a packet with an earlier time than its predecessor, no time passes in the ideal bucket. */
BPF_ARRAY(latest_ns, u64, 1);

static __always_inline u64 *latest(u64 *now)
{
	u32 first = 0;
	u64 *known = latest_ns.lookup(&first);

	/* One thread runs the frames of the file, one after the other. */
	if (known && *known < *now)
		*known = *now;
	else if (known)
		*now = *known;
	return now;
}

static __always_inline struct frame replayed_frame(struct __sk_buff *skb)
{
	struct frame frame = { .start = (u64)(long)skb->data, .linear_bytes = skb->cb[CB_CAPTURED],
			       .length = skb->cb[CB_LENGTH] };
	u32 first = 0;

	if (unlikely(skb->cb[CB_WINDOW]))
		frame.start = (u64)(long)window.lookup(&first);
	return frame;
}

int replay(struct __sk_buff *skb)
{
	u32 charged;
	struct tap *tap = tap_of(skb->ifindex);
	struct cpu_state *state = own_state();
	struct frame frame = replayed_frame(skb);
	u64 direction = LOADED(DIRECTION), now = skb->tstamp, bucket_now = now, key, wire;
	struct packet packet;
	struct tap_cpu_state *tap_state;

	skb->cb[CB_KEY] = 0;
	skb->cb[CB_KEY + 1] = 0;
	if (!tap)
		return GO_ON;
	key = identify(&frame, direction, tap, state, &packet);
	if (is_missed(state, key, &frame))
		return GO_ON;
	/* A frame that ends within its tag reaches no tc hook: count it unchanged. */
	if (!ends_within_tag(&frame, &packet))
		untag(&frame, &packet);
	key |= size_key(state, frame.length);
	wire = wire_bytes(&frame, &packet);
	/* The length that tc charges: at ingress without the L2 header (skb->data is behind it), at egress with it. */
	charged = frame.length;
	if (direction == DIRECTION_OUTBOUND)
		charged -= charged < ETH_HEADER_LEN ? charged : ETH_HEADER_LEN;
	key |= expected(state, tap, direction, latest(&bucket_now), charged, frame.length, wire);
	what_if(state, tap, direction, key, &bucket_now, charged, frame.length, wire);
	key |= (u64)VERDICT_UNKNOWN << KEY_VERDICT_SHIFT;
	tap_state = tap_state_at(state, tap_state_number(state, key));
	if (!tap_state)
		return GO_ON;
	rotate_bin_of(tap_state, state, key, now);
	measure_syn(state, tap, direction, &frame, &packet, key, &now);
	if (is_sample_due(tap_state, key) && stage_sample(state, tap_state, &frame, &packet, key, now, charged, wire))
		commit_sample(state, key, 0);
	count(state, key, 0, frame.length, charged, wire);
	skb->cb[CB_KEY] = key;
	skb->cb[CB_KEY + 1] = key >> 32;
	return GO_ON;
}
#endif
