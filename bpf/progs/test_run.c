/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Hook:   none: run by BPF_PROG_TEST_RUN, once for each frame of a file
 * Reads:  the frame's bytes; in skb->cb what user space knows of the frame (struct replayed); skb->tstamp, its time
 * Writes: cells and bins; into skb->cb the key that the frame was counted under
 * Needs:  __sk_buff context of BPF_PROG_TEST_RUN with cb and tstamp (5.5). Compiled only for a replay (REPLAY).
 *
 * TEST_RUN takes no frame shorter than its headers, none much longer than half a page, and none with a tag beside its
 * bytes. So the frame's true length and how many of its bytes are there come beside it: what follows those bytes in
 * the skb is filling, which is never read.
 */
#if REPLAY

/* Places in skb->cb. */
#define CB_CAPTURED 0 /* bytes of the frame that are there */
#define CB_LENGTH 1   /* bytes that the frame had */
#define CB_WINDOW 2   /* not 0: they are in `window`, because the skb can't hold them */
#define CB_WHAT 3     /* out: the cell's key, lower and upper half; 0 where a header was not there */

struct window {
	u8 bytes[REPLAY_WINDOW];
};

BPF_F_TABLE("array", u32, struct window, window, 1, BPF_F_MMAPABLE);

/* The latest time so far: for a packet that is older than the one before it the ideal bucket sees no time pass. */
BPF_ARRAY(latest_ns, u64, 1);

static __always_inline u64 *latest(u64 *now)
{
	u32 first = 0;
	u64 *known = latest_ns.lookup(&first);

	/* One thread runs the file's frames one after the other. */
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
	struct lane *lane = own_lane();
	struct frame frame = replayed_frame(skb);
	u64 direction = LOADED(DIRECTION), now = skb->tstamp, bucket_now = now, what, wire;
	struct packet packet;
	struct desk *desk;

	skb->cb[CB_WHAT] = 0;
	skb->cb[CB_WHAT + 1] = 0;
	if (!tap)
		return GO_ON;
	what = identify(&frame, direction, tap, lane, &packet);
	if (is_missed(lane, what, &frame))
		return GO_ON;
	/* A frame that ends within its tag gets to no tc hook: counted as it is. */
	if (!ends_within_tag(&frame, &packet))
		untag(&frame, &packet);
	what |= size_key(lane, frame.length);
	wire = wire_bytes(&frame, &packet);
	/* What tc charges: at ingress without the L2 header (skb->data is behind it), at egress with it. */
	charged = frame.length;
	if (direction == DIRECTION_OUTBOUND)
		charged -= charged < ETH_HEADER_LEN ? charged : ETH_HEADER_LEN;
	what |= expected(lane, tap, direction, latest(&bucket_now), charged, frame.length, wire);
	what_if(lane, tap, direction, what, &bucket_now, charged, frame.length, wire);
	what |= (u64)VERDICT_UNKNOWN << KEY_VERDICT_SHIFT;
	desk = desk_at(lane, desk_number(lane, what));
	if (!desk)
		return GO_ON;
	turn_bin_of(desk, lane, what, now);
	measure_syn(lane, tap, direction, &frame, &packet, what, &now);
	if (is_wanted(desk, what) && look(lane, desk, &frame, &packet, what, now, charged, wire))
		commit_sample(lane, what, 0);
	count(lane, what, 0, frame.length, charged, wire);
	skb->cb[CB_WHAT] = what;
	skb->cb[CB_WHAT + 1] = what >> 32;
	return GO_ON;
}
#endif
