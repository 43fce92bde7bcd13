/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The tables that every way of watching shares, and what is in them. Joined in front of all others by the loader.
 *
 * Hook:   none of its own
 * Reads:  nothing
 * Writes: nothing
 * Needs:  mmapable arrays (BPF_F_MMAPABLE)
 *
 * Every counter belongs to one CPU, so that a plain += is enough: tc programs and the tracepoints in the same call
 * chain run one after the other on that CPU with bottom halves off. CPU n's part of a table starts at n * its size.
 * User space maps the tables, adds the CPUs up and subtracts; nothing is ever reset.
 */
#include <linux/types.h>
#include "lib/plain.h"

#define STR(text) #text
#define XSTR(text) STR(text)

/* What is counted apart: who, what, and what became of it (layout.py, CELL_KEY_FIELDS). One cache line. */
struct cell {
	u64 key; /* 0: free */
	u64 drop_key;  /* drop reason << 32 | low half of the address that dropped it; 0 for what was not dropped */
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
} __attribute__((aligned(8)));

#if FOLLOW_INBOUND
/* One inbound packet on its way from the tap's egress hook to the driver. One cache line. */
struct inflight {
	u64 skb;    /* its address; 0: no packet */
	u64 key;   /* its key but for the verdict; with one: ended, not yet counted */
	u64 drop_key;
	u64 wire_bytes;
	u32 frame_bytes;
	u32 charged_bytes;
	u32 iif;    /* the device that it was received on, 0: this host's own */
	u32 checksum;   /* of the fields before, see checksum_of() */
	u64 lost;   /* written by user space: its end went by unseen, it is counted as missed while it is here */
	u64 spare;
};
#endif

/*
 * One CPU's own. First line: the last packet that went through a tap's ingress hook here, while its verdict is not
 * known: either the tracepoint meets the same skb (dropped), or the next packet finds it still here (passed).
 */
struct cpu_state {
	u64 skb;      /* 0: nothing pending */
	u64 key;     /* its key but for the verdict */
	u64 sequence; /* packets this lane has held */
	u32 ifindex;  /* of struct tap, with the two that follow */
	u16 number;
	u16 traits;   /* with PENDING_SAMPLED: its headers wait for its verdict, see lib/samples.c */
	u32 epoch;
	u32 now;      /* epoch, counted up by user space twice a reading: the one field it writes meanwhile */
	u32 frame_bytes;
	u32 charged_bytes;
	u32 wire_bytes;
	u32 tap_state_number;     /* number of its state, by tap and direction */
	u32 cpu;      /* whose lane it is; written by user space before anything is attached */
	u32 spare;
	/* second line: what the ideal bucket saw of that packet, see lib/token_bucket.c */
	u64 pending_arrival_ns; /* its arrival; of a plain packet also where there is no bucket, see count_fast_path() */
	u64 pending_cost_ns;
	/* ... and where the last TCP packet went, see lib/syn_sets.c */
	u64 last_destination;
	u64 last_destination_hash;
	u64 last_endpoint_hash;
	u64 last_generation;
	u64 scratch; /* see verifier_widen() */
	u64 spare_word;
	/* third line */
	u64 late_verdicts;  /* dropped after the packet had been settled as passed */
	u64 logged_bins;
	u64 samples;        /* written to this CPU's part of the ring, ever */
	u64 policed_sequence; /* the packet that the police action shot last, see progs/police_exit.c */
	u64 unplaced_drops;   /* netfilter drops whose chain could not be told */
	u64 next_way;             /* inbound: which way of a full row goes next */
	u64 third_spares[2];
	/* fourth line: what tells netfilter chains apart, see lib/chains.c */
	u64 ip_received;      /* packets that the IP stack had received on this CPU when the pending packet came */
	u64 ip_counter_at;    /* addresses of this CPU's counters of them; 0: not asked for so far */
	u64 ipv6_counter_at;
	u64 chained_sequence; /* the packet for which a chain of its device's own was run last */
	u32 hooks_from;       /* low half of where nf_hook_slow lies; written by user space */
	u32 hooks_end;
	u32 protocol;         /* of the pending packet as it arrived, in network order */
	u32 spare_half;
	u64 spare_words[2];
#if FOLLOW_INBOUND
	/* fifth line: the inbound packet that the driver has in its hands, see progs/xmit.c */
	struct inflight in_driver;
#endif
};

/* The ideal bucket of a tap and direction, see lib/token_bucket.c. */
struct bucket {
	u64 empty_ns;  /* when there would be, or was, nothing in it: now - empty_ns is what it holds */
	u64 burst_ns;  /* what it holds at most */
	u64 uncertain_ns; /* how much less the installed policer's bucket may hold */
	u32 mult;
	u8 shift;
	u8 charge; /* CHARGE_* */
	u16 pad;
};

/* Cells of one tap on one CPU that are in use: their places among its own, in the order in which they came into use. */
struct used_cells {
	u64 count;
	u64 overflown; /* packets that found none, see count_overflow() */
	u16 places[CELL_SLOTS];
};

/* Packets that found no cell: see count_overflow(). */
struct overflow {
	u64 packets;
	u64 frame_bytes;
	u64 charged_bytes;
	u64 wire_bytes;
};

/* Packets of one tap and direction whose headers could not be read, or that went another way than to the driver. */
struct missed {
	u64 packets;
	u64 frame_bytes;
	u64 unannounced; /* counted, but only their end was seen, see progs/xmit.c, parse_unknown() */
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
/* Which packets are sampled, see lib/samples.c. */
struct sampler {
	u64 seen;       /* packets of this tap and direction on this CPU */
	u64 wake_at;    /* up to this one (by `seen`), packets of a calm class need no look */
	u64 next_at;    /* the next one of the draw */
	u64 probe_at;   /* the next look for a verdict that did not come so far */
	u64 last_ns;    /* arrival of packet number last_seen */
	u64 last_seen;
	u32 mean;       /* M; written by user space, and raised by raise_interval(); 0: take none */
	u32 drawn_mean; /* M of the draw that gave next_at */
	u32 calm;       /* bit n: class n had its SAMPLE_EAGER_LOOKS */
	u32 raises;     /* how often it raised M since user space has set it; SAMPLE_RAISES: no more */
	/* second line and on */
	u8 first[16 * 4];   /* taken as one of the first, by class * 4 + verdict */
	u16 in_vain[16];   /* staged but not one of the first, by class */
	u64 spare_words[4];
};
#endif

/* One CPU's own, of one tap and direction: what every packet touches is found by one look. */
struct tap_cpu_state {
#if SAMPLES
	struct sampler sampler;
#endif
#if BIN_NS
	struct bin bin;
#endif
};

#if SYN_MEASURES
/* Of a tap and the direction of its SYNs. */
struct syn_control {
	u64 seed;         /* of the hashes: the same for all; a guest that doesn't know it can't choose its hashes */
	u32 generation;   /* user space turns it: SYNs go to the sets of generation & 1 */
	u32 shift;        /* one new flow in 2^shift is followed; raised here when too many come, set by user space */
	u32 lookup_shift; /* the lowest shift of the last FLOW_EXPIRES_NS: what may be in the table */
	u32 spare;
	u64 spares[5];
	/* second line: written with each followed handshake */
	u64 waiting;      /* flows that were answered, and not completed so far */
	u64 crowded;      /* flows that took a living one's place */
	u64 more_spares[6];
};

struct syn_sets {
	u8 sources[HLL_REGISTERS];
	u8 destinations[HLL_REGISTERS];
	u8 source_ports[PORTS / 8];
	u8 destination_ports[PORTS / 8];
};

/* All that a SYN touches is found by one look. */
struct syn_state {
	struct syn_control control;
	struct syn_sets sets[2];
};
#endif

/*
 * By CPU and tap: a guest that fills its tap's cells leaves those of other taps alone. First CELLS, found by the whole key,
 * then UNSIZED_CELLS for what found no room there, by the key without the size.
 */
BPF_F_TABLE("array", u32, struct cell, cells, CPUS * TAPS * CELL_SLOTS, BPF_F_MMAPABLE);
BPF_F_TABLE("array", u32, struct used_cells, used_cells, CPUS * TAPS, BPF_F_MMAPABLE);
/* A place for every key without size and reason: OVERFLOW_PARTS of them, each shared by some CPUs. */
BPF_F_TABLE("array", u32, struct overflow, overflow, OVERFLOW_PARTS * TAPS * OVERFLOW_KEYS, BPF_F_MMAPABLE);
BPF_F_TABLE("array", u32, struct missed, misses, CPUS * TAPS * DIRECTION_COUNT, BPF_F_MMAPABLE);

/*
 * What every packet touches, in one table of one value: few pages, and its address is in the programs, where the loader
 * writes it. A lookup takes three times as many instructions.
 */
struct shared {
	struct cpu_state cpu_states[CPU_STATES];
	struct tap taps[TAP_SLOTS];
	struct bucket buckets[BUCKETS];
	struct head heads[CPU_STATES]; /* own CPU's, for as long as one tc program runs */
#if TAP_CPU_STATES_SHARED
	struct tap_cpu_state tap_cpu_states[TAP_CPU_STATES];
#endif
#if SYN_STATES_SHARED
	struct syn_state syn_states[SYN_STATES];
#endif
};

BPF_F_TABLE("array", u32, struct shared, shared, 1, BPF_F_MMAPABLE);

/* A constant that vifprobe writes into the compiled program as it loads it: see layout.py, Loaded. */
#define LOADED(constant)                                                                                \
	({                                                                                              \
		u64 loaded;                                                                             \
		asm volatile("%0 = " XSTR(LOADED_##constant) " ll" : "=r"(loaded));                     \
		loaded;                                                                                 \
	})

/*
 * One of an array of struct shared. Verifier: an index below `count`, which is a power of two, so that no branch is
 * needed to bound it.
 */
#define SHARED(type, array, number, count)                                                               \
	({                                                                                              \
		u64 index = (number) & ((count) - 1), address = LOADED(SHARED);                         \
		address += __builtin_offsetof(struct shared, array) + index * sizeof(type);             \
		/* Or the compiler would add it up again at each use. */                                \
		barrier_var(address);                                                                   \
		__builtin_assume(address != 0);                                                         \
		(type *)address;                                                                        \
	})

#if !TAP_CPU_STATES_SHARED && (BIN_NS || SAMPLES)
BPF_F_TABLE("array", u32, struct tap_cpu_state, tap_cpu_states, CPUS * TAPS * DIRECTION_COUNT, BPF_F_MMAPABLE);
#endif
#if BIN_NS
BPF_F_TABLE("array", u32, struct bin, bin_log, CPUS * BIN_LOG, BPF_F_MMAPABLE);
#endif
