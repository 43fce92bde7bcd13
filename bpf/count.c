/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Counting: the maps and the few functions that write to them. Joined in front of the hooks by the loader.
 *
 * Hook:   none of its own
 * Reads:  taps
 * Writes: cells, roster, lanes, misses, desks, bin_log
 * Needs:  mmapable arrays (BPF_F_MMAPABLE)
 *
 * Every counter belongs to one CPU, so that a plain += is enough: tc programs and the tracepoints in the same call
 * chain run one after the other on that CPU with bottom halves off. CPU n's part of a table starts at n * its size.
 * User space maps the tables, adds the CPUs up and subtracts; nothing is ever reset.
 */
#include <linux/types.h>
#include "parse.h"

/* The upper bits of a 64-bit hash that are a cell's place. */
#define CELL_HASH_SHIFT (64 - __builtin_ctz(CELLS_PER_CPU))

/* What is counted apart: who, what, and what became of it (layout.py, CELL_KEY_FIELDS). One cache line. */
struct cell {
	u64 what; /* 0: free */
	u64 why;  /* drop reason << 32 | low half of the address that dropped it; 0 for what was not dropped */
	u64 packets;
	u64 frame_bytes;
	u64 charged_bytes;
	u64 wire_bytes;
	u64 spare[2];
};

/* A watched tap, found by ifindex. */
struct tap {
	u32 ifindex; /* 0: free */
	u16 number;
	u16 traits;   /* TRAIT_*: whose drops count as policed, and what is followed */
	u16 mpu;      /* its outbound policer charges no packet less than that ... */
	s16 overhead; /* ... after adding this */
	u32 spare2;
};

#if FOLLOW_INBOUND
/* One inbound packet on its way from the tap's egress hook to the driver. One cache line. */
struct flight {
	u64 skb;    /* its address; 0: no packet */
	u64 what;   /* its key but for the verdict; with one: ended, not yet counted */
	u64 why;
	u64 wire_bytes;
	u32 frame_bytes;
	u32 charged_bytes;
	u32 iif;    /* the device that it was received on, 0: this host's own */
	u32 seal;   /* of the fields before, see seal_of() */
	u64 lost;   /* written by user space: its end went by unseen, it is counted as missed while it is here */
	u64 spare;
};
#endif

/*
 * One CPU's own. First line: the last packet that went through a tap's ingress hook here, while its verdict is not
 * known: either the tracepoint meets the same skb (dropped), or the next packet finds it still here (passed).
 */
struct lane {
	u64 skb;      /* 0: nothing pending */
	u64 what;     /* its key but for the verdict */
	u64 sequence; /* packets this lane has held */
	u32 ifindex;
	u32 epoch;
	u32 frame_bytes;
	u32 charged_bytes;
	u32 wire_bytes;
	u32 now;      /* epoch, counted up by user space twice a reading: the one field it writes */
	u16 traits;
	u16 sampled;  /* its headers wait for its verdict, see sample.c */
	u32 desk;     /* number of its desk */
	u64 scratch;  /* see forget() */
	/* second line: what the ideal bucket saw of that packet, see bucket.c */
	u64 pledged_at_ns;
	u64 pledged_cost_ns;
	u64 spares[6];
	/* third line */
	u64 cells;          /* cells in use: entries of this CPU's roster */
	u64 late_verdicts;  /* dropped after the packet had been settled as passed */
	u64 foreign_skbs;   /* a pending skb's address met again on another device's skb */
	u64 logged_bins;
	u64 samples;        /* written to this CPU's part of the ring, ever */
	u64 policed_sequence; /* the packet that the police action shot last, see police.c */
	u64 unplaced_drops;   /* netfilter drops whose chain could not be told */
	u64 turn;             /* inbound: which way of a full row goes next */
#if FOLLOW_INBOUND
	/* fourth line: the inbound packet that the driver has in its hands, see inbound.c */
	struct flight leaving;
	/* fifth line: the last drop in a queue, and which of two programs told of it, see verdict.c */
	u64 told;
	u64 told_by;
	u64 spare_line[6];
#endif
};

/* Packets of one tap that found no free cell, or went another way than to the driver. */
struct missed {
	u64 packets;
	u64 frame_bytes;
	u64 unannounced; /* counted, but only their end was seen, see inbound.c, look_at() */
	u64 spare;
};

struct bin_counts {
	u64 packets;
	u64 frame_bytes;
	u64 syn_packets;
};

/* One time bin of one tap and direction; counts by verdict (UNKNOWN, PASSED, POLICED, DROPPED). */
struct bin {
	u64 start_ns;
	u64 tap_direction; /* tap number * DIRECTION_COUNT + direction, + 1: 0 is free */
	struct bin_counts counts[VERDICT_QUEUED];
	u64 spare[2];
};

#if SAMPLES
/* Which packets are sampled, see sample.c. */
struct sampler {
	u64 seen;       /* packets of this tap and direction on this CPU */
	u64 wake_at;    /* up to this one (by `seen`), packets of a calm class need no look */
	u64 next_at;    /* the next one of the draw */
	u64 probe_at;   /* the next look for a verdict that did not come so far */
	u64 last_ns;    /* arrival of packet number last_seen */
	u64 last_seen;
	u32 mean;       /* M; written by user space, and raised by brake(); 0: take none */
	u32 drawn_mean; /* M of the draw that gave next_at */
	u32 calm;       /* bit n: class n had its SAMPLE_EAGER_LOOKS */
	u32 brakes;     /* how often it raised M since user space has set it; SAMPLE_BRAKES: no more */
	/* second line and on */
	u8 first[16 * 4];   /* taken as one of the first, by class * 4 + verdict */
	u16 in_vain[16];   /* staged but not one of the first, by class */
	u64 spare_words[4];
};
#endif

/* One CPU's own, of one tap and direction: what every packet touches is found by one look. */
struct desk {
#if SAMPLES
	struct sampler sampler;
#endif
#if BIN_NS
	struct bin bin;
#endif
};

BPF_F_TABLE("array", u32, struct cell, cells, CPUS * CELLS_PER_CPU, BPF_F_MMAPABLE);
BPF_F_TABLE("array", u32, u32, roster, CPUS * CELLS_PER_CPU, BPF_F_MMAPABLE);
BPF_F_TABLE("array", u32, struct lane, lanes, CPUS, BPF_F_MMAPABLE);
BPF_F_TABLE("array", u32, struct missed, misses, CPUS * TAPS, BPF_F_MMAPABLE);
BPF_F_TABLE("array", u32, struct tap, taps, TAP_SLOTS, BPF_F_MMAPABLE);
#if BIN_NS || SAMPLES
BPF_F_TABLE("array", u32, struct desk, desks, CPUS * TAPS * DIRECTION_COUNT, BPF_F_MMAPABLE);
#endif
#if BIN_NS
BPF_F_TABLE("array", u32, struct bin, bin_log, CPUS * BIN_LOG, BPF_F_MMAPABLE);
#endif

/* The watched tap behind an ifindex, or NULL: this is what every other device's packets pay. */
static __always_inline struct tap *tap_of(u32 ifindex)
{
	u32 at = ifindex & (TAP_SLOTS - 1);
	struct tap *tap = taps.lookup(&at);

	/* Almost every packet's tap is in the first slot. */
	if (likely(tap != NULL) && likely(tap->ifindex == ifindex))
		return tap;
	/* Verifier: a bounded loop. */
#pragma nounroll
	for (u32 i = 1; i < TAP_PROBES && tap && tap->ifindex; i++) {
		at = (ifindex + i) & (TAP_SLOTS - 1);
		tap = taps.lookup(&at);
		if (tap && tap->ifindex == ifindex)
			return tap;
	}
	return NULL;
}

/* What the tap's outbound policer charges for this length (net/sched/act_police.c: psched_l2t_ns, sch_generic.h). */
static __always_inline u32 policer_charge(struct tap *tap, u32 length)
{
	/* Both at once, as they lie. */
	if (likely(!*(u32 *)&tap->mpu))
		return length;
	length += tap->overhead;
	return length < tap->mpu ? tap->mpu : length;
}

/* Find or make this CPU's cell of a key. NULL: the table is full, the packet is counted as missed by the caller. */
static __always_inline struct cell *cell_of(u32 cpu, struct lane *lane, u64 what, u64 why)
{
	u64 home = (what ^ why) * 0x9e3779b97f4a7c15ULL >> CELL_HASH_SHIFT;
	u32 at = cpu * CELLS_PER_CPU + (u32)home;
	struct cell *cell = cells.lookup(&at);

	/* Almost every packet finds its cell in the first slot. */
	if (likely(cell != NULL) && likely(cell->what == what) && likely(cell->why == why))
		return cell;
	/* Verifier: a bounded loop. */
#pragma nounroll
	for (u32 i = 0; i < CELL_PROBES; i++) {
		at = cpu * CELLS_PER_CPU + (((u32)home + i) & (CELLS_PER_CPU - 1));
		cell = cells.lookup(&at);
		if (!cell)
			return NULL;
		if (cell->what == what && cell->why == why)
			return cell;
		if (!cell->what) {
			u32 entry = cpu * CELLS_PER_CPU + (u32)lane->cells;
			u32 *listed = roster.lookup(&entry);

			if (!listed)
				return NULL;
			*listed = at;
			cell->why = why;
			cell->what = what;
			/* Own CPU's lane; last, so that a reader that sees the entry counted sees it whole. */
			lane->cells++;
			return cell;
		}
	}
	return NULL;
}

/* The time of a packet's arrival, where every packet needs it: reading the clock costs some 40 ns. Else 0. */
static __always_inline u64 arrival_ns(u64 given)
{
#if CLOCK_IS_TSTAMP
	return given; /* replay: the file's own times */
#elif BIN_NS
	return bpf_ktime_get_ns();
#else
	return 0;
#endif
}

static __always_inline u32 desk_number(u32 cpu, u64 what)
{
	return (cpu * TAPS + (u32)((what >> KEY_TAP_SHIFT) & 0xffff) - 1) * DIRECTION_COUNT +
	       (u32)((what >> KEY_DIRECTION_SHIFT) & 0xf);
}

/* NULL: there is none of that number. Where nothing lies on it, it is no place either, and no look is needed. */
static __always_inline struct desk *desk_at(struct lane *lane, u32 number)
{
#if BIN_NS || SAMPLES
	return desks.lookup(&number);
#else
	return (struct desk *)lane;
#endif
}

#if BIN_NS
/* Enter the time bin of now: if the tap's current one on this CPU is over, it goes to the log. */
static __always_inline void turn_bin_of(struct desk *desk, u32 cpu, struct lane *lane, u64 what, u64 now)
{
	struct bin *bin = &desk->bin, *logged;
	u32 at;

	if (likely(now - bin->start_ns < BIN_NS))
		return;
	if (bin->tap_direction) {
		at = cpu * BIN_LOG + ((u32)lane->logged_bins & (BIN_LOG - 1));
		logged = bin_log.lookup(&at);
		if (logged) {
			*logged = *bin;
			/* Own CPU's lane; after the entry, so that a counted entry is a whole one. */
			lane->logged_bins++;
		}
		__builtin_memset(bin->counts, 0, sizeof(bin->counts));
	}
	bin->start_ns = now - now % BIN_NS;
	bin->tap_direction = ((what >> KEY_TAP_SHIFT) - 1) * DIRECTION_COUNT + ((what >> KEY_DIRECTION_SHIFT) & 0xf) + 1;
}

static __always_inline void count_bin(struct lane *lane, u32 number, u64 what, u64 frame_bytes)
{
	struct desk *desk = desk_at(lane, number);
	u32 verdict = (what >> KEY_VERDICT_SHIFT) & 0xf;
	struct bin_counts *counts;

	/* Verifier: an index into the bin's array. */
	if (unlikely(!desk) || unlikely(verdict >= VERDICT_QUEUED))
		return;
	counts = &desk->bin.counts[verdict];
	/* Own CPU's bin: no packet of this tap comes between a packet's arrival and its verdict. */
	counts->packets++;
	counts->frame_bytes += frame_bytes;
	if (((what >> KEY_PACKET_CLASS_SHIFT) & 0xff) == CLASS_TCP_SYN)
		counts->syn_packets++;
}
#else
static __always_inline void turn_bin_of(struct desk *desk, u32 cpu, struct lane *lane, u64 what, u64 now) {}
static __always_inline void count_bin(struct lane *lane, u32 number, u64 what, u64 frame_bytes) {}
#endif

static __always_inline void turn_bin(u32 cpu, struct lane *lane, u64 what, u64 now)
{
	struct desk *desk = desk_at(lane, desk_number(cpu, what));

	if (desk)
		turn_bin_of(desk, cpu, lane, what, now);
}

static __always_inline void miss(u32 cpu, u64 what, u32 frame_bytes)
{
	u32 at = cpu * TAPS + (u32)((what >> KEY_TAP_SHIFT) & 0xffff) - 1;
	struct missed *missed = misses.lookup(&at);

	if (!missed)
		return;
	/* Atomic: a program in process context can be interrupted by one that counts here, too. */
	__sync_fetch_and_add(&missed->packets, 1);
	__sync_fetch_and_add(&missed->frame_bytes, frame_bytes);
}

/* Count one packet, its verdict known (or never to be known). desk: its number. */
static __always_inline void count_at(u32 cpu, struct lane *lane, u32 desk, u64 what, u64 why, u32 frame_bytes,
				     u32 charged_bytes, u64 wire_bytes)
{
	struct cell *cell = cell_of(cpu, lane, what, why);

	/* Own CPU's cells, see the head of this file. */
	if (unlikely(!cell)) {
		miss(cpu, what, frame_bytes);
		return;
	}
	cell->packets++;
	cell->frame_bytes += frame_bytes;
	cell->charged_bytes += charged_bytes;
	cell->wire_bytes += wire_bytes;
	count_bin(lane, desk, what, frame_bytes);
}

static __always_inline void count(u32 cpu, struct lane *lane, u64 what, u64 why, u32 frame_bytes, u32 charged_bytes,
				  u64 wire_bytes)
{
	count_at(cpu, lane, desk_number(cpu, what), what, why, frame_bytes, charged_bytes, wire_bytes);
}

static __always_inline void settle_sample(u32 cpu, struct lane *lane, u64 what, u64 why);
static __always_inline u64 settle_bucket(struct lane *lane, u64 what, u64 verdict);

/* Close the books on the pending packet. */
static __always_inline void settle(u32 cpu, struct lane *lane, u64 verdict, u64 why)
{
	u64 what = settle_bucket(lane, lane->what, verdict) | verdict << KEY_VERDICT_SHIFT;

	lane->skb = 0;
	settle_sample(cpu, lane, what, why);
	count_at(cpu, lane, lane->desk, what, why, lane->frame_bytes, lane->charged_bytes, lane->wire_bytes);
}

/* A header that can't be read has no class: said to be missed, not guessed. */
static __always_inline bool is_missed(u32 cpu, u64 what, struct frame *frame)
{
	if (likely(!frame->unreadable))
		return false;
	miss(cpu, what, frame->length);
	return true;
}
