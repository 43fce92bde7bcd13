/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The tables that all programs share, and their structs. The loader puts this file in front of all others.
 *
 * Hook:   none
 * Reads:  nothing
 * Writes: nothing
 * Needs:  arrays that user space can map (BPF_F_MMAPABLE)
 *
 * Each counter belongs to one CPU, so a plain += is safe: the tc programs and the tracepoints of one call chain run
 * one after the other on that CPU, with bottom halves off. The part of CPU n in a table starts at n times the size of
 * a part. User space maps the tables, adds up the CPUs and subtracts the last reading. Nothing is ever reset.
 */
#include <linux/types.h>
#include "lib/plain.h"

#define STR(text) #text
#define XSTR(text) STR(text)

/* Counters of one key: tap, direction, kind of packet and verdict (layout.py, CELL_KEY_FIELDS). One cache line. */
struct cell {
	u64 key; /* 0: free */
	u64 drop_key;  /* drop reason << 32 | low half of the address that dropped it; 0: not dropped */
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
	u16 traits;   /* TRAIT_*: which drops count as policed, and what is followed */
	u16 mpu;      /* minimum charge of its outbound policer in bytes, after adding the overhead */
	s16 overhead; /* added by its outbound policer to the length of each packet */
	u32 spare2;
} __attribute__((aligned(8)));

#if FOLLOW_INBOUND
/* One inbound packet between the egress hook of the tap and the driver. One cache line. */
struct inflight {
	u64 skb;    /* address of the packet; 0: no packet */
	u64 key;   /* key of the packet; with a verdict when it has ended and is not counted yet */
	u64 drop_key;
	u64 wire_bytes;
	u32 frame_bytes;
	u32 charged_bytes;
	u32 iif;    /* device that received the packet; 0: sent by this host */
	u32 checksum;   /* of the fields above, see checksum_of() */
	u64 lost;   /* written by user space: the end was not seen, the packet counts as missed with this entry */
	u64 spare;
};
#endif

/*
 * The state of one CPU. First line: the pending packet, which is the last one that went through the ingress hook of a
 * tap here. Its verdict is open: when the kfree_skb tracepoint sees the same skb, it was dropped; when the next packet
 * arrives, it has passed.
 */
struct cpu_state {
	u64 skb;      /* 0: nothing pending */
	u64 key;     /* key of the packet, without the verdict */
	u64 sequence; /* number of pending packets so far */
	u32 ifindex;  /* of struct tap, with the two that follow */
	u16 number;
	u16 traits;   /* with PENDING_SAMPLED: its headers are staged, see lib/samples.c */
	u32 epoch;
	u32 now;      /* current epoch; user space increments it twice for each reading, and writes nothing else */
	u32 frame_bytes;
	u32 charged_bytes;
	u32 wire_bytes;
	u32 tap_state_number;     /* number of the tap_cpu_state of the pending packet */
	u32 cpu;      /* number of this CPU; written by user space before anything is attached */
	u32 spare;
	/* second line: the pending packet in the ideal bucket, see lib/token_bucket.c */
	u64 pending_arrival_ns; /* set for a plain packet also without a bucket, see count_fast_path() */
	u64 pending_cost_ns;
	/* destination of the last TCP packet, and hashes of it, see lib/syn_sets.c */
	u64 last_destination;
	u64 last_destination_hash;
	u64 last_endpoint_hash;
	u64 last_generation;
	u64 scratch; /* see verifier_widen() */
	u64 spare_word;
	/* third line */
	u64 late_verdicts;  /* drops that were seen after the packet had been counted as passed */
	u64 logged_bins;
	u64 samples;        /* number of samples ever written to this CPU's part of the ring */
	u64 policed_sequence; /* last packet that the police action dropped, see progs/police_exit.c */
	u64 unplaced_drops;   /* netfilter drops whose chain is not known */
	u64 next_way;             /* inbound: next entry to replace in a full row */
	u64 copied_sequence; /* last pending packet of which a copy was sent, see lib/copies.c */
	u64 copy;            /* the copy that a driver handles now: its address; 0: none */
	/* fourth line: finds the chain of a netfilter drop, see lib/chains.c */
	u64 ip_received;      /* packets received by the IP stack on this CPU when the pending packet arrived */
	u64 ip_counter_at;    /* address of this CPU's counter of IPv4 packets; 0: not looked up yet */
	u64 ipv6_counter_at;  /* the same of IPv6 packets */
	u64 chained_sequence; /* last packet for which a chain of the packet's device was run */
	u32 hooks_from;       /* address range of nf_hook_slow, low halves; written by user space */
	u32 hooks_end;
	u32 protocol;         /* of the pending packet as it arrived, in network order */
	u32 copies;           /* of packet copied_sequence: taken by a driver */
	u64 spare_words[2];
#if FOLLOW_INBOUND
	/* fifth line: the inbound packet that the driver handles now, see progs/xmit.c */
	struct inflight in_driver;
#endif
};

/* The ideal bucket of a tap and direction, see lib/token_bucket.c. */
struct bucket {
	u64 empty_ns;  /* time at which the bucket is or was empty; now - empty_ns is its fill level */
	u64 burst_ns;  /* fill level when full */
	u64 uncertain_ns; /* maximum by which the bucket of the installed policer can be emptier */
	u32 mult;
	u8 shift;
	u8 charge; /* CHARGE_* */
	u16 pad;
};

/* The used cells of one tap on one CPU: their numbers, in the order in which they came into use. */
struct used_cells {
	u64 count;
	u64 overflown; /* packets for which no cell was free, see count_overflow() */
	u16 places[CELL_SLOTS];
};

/* Packets for which no cell was free, see count_overflow(). */
struct overflow {
	u64 packets;
	u64 frame_bytes;
	u64 charged_bytes;
	u64 wire_bytes;
};

/* Packets of one tap and direction whose headers could not be read, or that left without passing the driver. */
struct missed {
	u64 packets;
	u64 frame_bytes;
	u64 untracked; /* counted, although only their end was seen, see parse_unknown() in progs/xmit.c */
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
	u64 tap_direction; /* tap number * DIRECTION_COUNT + direction + 1; 0: free */
	struct bin_counts counts[VERDICT_QUEUED];
	u64 spare[2];
};

#if SAMPLES
/* Selects the packets to sample, see lib/samples.c. Packets are numbered by `packets`. */
struct sampler {
	u64 packets;    /* packets of this tap and direction on this CPU */
	u64 wake_at;    /* before this packet, packets of a calm class are skipped */
	u64 next_at;    /* next packet to take */
	u64 probe_at;   /* next packet to stage in order to find a verdict that has not occurred yet */
	u64 last_ns;    /* arrival of packet number last_packet */
	u64 last_packet;
	u32 mean;       /* M; written by user space, raised by raise_interval(); 0: take none */
	u32 drawn_mean; /* M of the draw that gave next_at */
	u32 calm;       /* bit n: class n has used its SAMPLE_EAGER_LOOKS */
	u32 raises;     /* number of raises of M by raise_interval() since user space set M; at most SAMPLE_RAISES */
	/* second line and on */
	u8 first[16 * 4];   /* packets taken as one of the first, by class * 4 + verdict */
	u16 in_vain[16];   /* packets staged that were not one of the first, by class */
	u64 spare_words[4];
};
#endif

/* The state of one CPU for one tap and direction. One struct, so that a packet needs one lookup only. */
struct tap_cpu_state {
#if SAMPLES
	struct sampler sampler;
#endif
#if BIN_NS
	struct bin bin;
#endif
};

#if SYN_MEASURES
/* SYN measures of a tap and a direction of SYNs: settings and state. */
struct syn_control {
	u64 seed;         /* of all hashes; a guest does not know it, so it cannot choose its hashes */
	u32 generation;   /* incremented by user space; SYNs are added to the sets of generation & 1 */
	u32 shift;        /* one new flow in 2^shift is followed; raised here, lowered by user space */
	u32 lookup_shift; /* lowest shift of the last FLOW_EXPIRES_NS: all flows in the table have at least this one */
	u32 spare;
	u64 spares[5];
	/* second line: written with each followed handshake */
	u64 waiting;      /* flows that were answered and not completed yet */
	u64 evictions;    /* flows that replaced one that had not ended */
	u64 more_spares[6];
};

struct syn_sets {
	u8 sources[HLL_REGISTERS];
	u8 destinations[HLL_REGISTERS];
	u8 source_ports[PORTS / 8];
	u8 destination_ports[PORTS / 8];
};

/* One struct, so that a SYN needs one lookup only. */
struct syn_state {
	struct syn_control control;
	struct syn_sets sets[2];
};
#endif

/*
 * By CPU and tap: a guest that fills the cells of its tap takes none from other taps. The first CELLS are found by the
 * whole key. The UNSIZED_CELLS after them are found by the key without the size, when the first ones are full.
 */
BPF_F_TABLE("array", u32, struct cell, cells, CPUS * TAPS * CELL_SLOTS, BPF_F_MMAPABLE);
BPF_F_TABLE("array", u32, struct used_cells, used_cells, CPUS * TAPS, BPF_F_MMAPABLE);
/* A counter for each key without size and reason. There are OVERFLOW_PARTS sets of them; some CPUs share one set. */
BPF_F_TABLE("array", u32, struct overflow, overflow, OVERFLOW_PARTS * TAPS * OVERFLOW_KEYS, BPF_F_MMAPABLE);
BPF_F_TABLE("array", u32, struct missed, misses, CPUS * TAPS * DIRECTION_COUNT, BPF_F_MMAPABLE);

#if FOLLOW_INBOUND
/* Packets of one tap that were lost at one device, for one reason. */
struct device_loss {
	u64 key;     /* drop reason << 32 | ifindex; 0: free */
	u64 dropped; /* the packet itself: it counts as dropped */
	u64 copies;  /* a copy of a packet that counts as passed, or such a packet later, in a queue */
};

struct device_losses {
	struct device_loss at[DEVICE_LOSSES];
	u64 others; /* with another key, for which there was no room */
};

/* By CPU and tap. */
BPF_F_TABLE("array", u32, struct device_losses, device_losses, CPUS * TAPS, BPF_F_MMAPABLE);
#endif

/*
 * Everything that each packet needs, in one table with one value. It covers few pages, and the loader writes its
 * address into the programs: a lookup takes three times as many instructions.
 */
struct shared {
	struct cpu_state cpu_states[CPU_STATES];
	struct tap taps[TAP_SLOTS];
	struct bucket buckets[BUCKETS];
	struct head heads[CPU_STATES]; /* of this CPU, while one tc program runs */
#if TAP_CPU_STATES_SHARED
	struct tap_cpu_state tap_cpu_states[TAP_CPU_STATES];
#endif
#if SYN_STATES_SHARED
	struct syn_state syn_states[SYN_STATES];
#endif
};

BPF_F_TABLE("array", u32, struct shared, shared, 1, BPF_F_MMAPABLE);

/* A constant that the loader writes into the compiled program: see Loaded in vifprobe/model/layout.py. */
#define LOADED(constant)                                                                                \
	({                                                                                              \
		u64 loaded;                                                                             \
		asm volatile("%0 = " XSTR(LOADED_##constant) " ll" : "=r"(loaded));                     \
		loaded;                                                                                 \
	})

/*
 * An element of an array of struct shared. Verifier: the index is below `count`, a power of two, so no branch has to
 * check it.
 */
#define SHARED(type, array, number, count)                                                               \
	({                                                                                              \
		u64 index = (number) & ((count) - 1), address = LOADED(SHARED);                         \
		address += __builtin_offsetof(struct shared, array) + index * sizeof(type);             \
		/* Else the compiler would compute the sum again at each use. */                        \
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
