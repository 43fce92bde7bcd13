/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * CPU time and context switches of each task; time in softirqs.
 *
 * Hook:   BTF-typed raw tracepoints sched:sched_switch, irq:softirq_entry, irq:softirq_exit, host-wide
 * Reads:  the counters in task_struct, at the offsets from the running kernel's BTF
 * Writes: host_cpus, task_rows, used_task_rows
 * Needs:  BTF, arrays that user space can map. Compiled and loaded separately from the packet programs
 *
 * When a task leaves a CPU, its counters are read, and the values from its arrival on the CPU are subtracted
 * (kernel/sched/core.c, __schedule(): nvcsw or nivcsw is incremented and se.sum_exec_runtime is updated before this
 * tracepoint).
 *
 * Each CPU has two tables of tasks: one for the current interval, one for the interval before. User space increments
 * `now`. Once user space has read the CPU's state between two switches (begun == ended), the older table does not
 * change any more. A row is valid only in the interval whose number it has. So nothing has to be cleared, and tasks
 * that have ended do not fill the tables.
 *
 * User space writes `now`; every other word is written by its own CPU only. sched_switch runs with interrupts off
 * (lock of the run queue), the softirq programs write to other words, and no program interrupts itself. So plain
 * stores are safe.
 */
#include <linux/types.h>
#include "lib/compiler.h"


/* Counts of one task on one CPU in one interval. One cache line. */
struct task_row {
	u32 interval; /* interval for which the row is valid; 0: never used */
	u32 pid;
	u32 tgid;
	u32 flags; /* PF_* */
	u32 voluntary;
	u32 involuntary;
	u64 cpu_ns;
	u64 comm[2];
	u64 process[2]; /* comm of the group leader */
};

/*
 * Sums of one CPU for one interval, and the task that ran when the interval began. That task is known once it has left
 * the CPU.
 */
struct interval {
	u32 interval;
	u32 rows;          /* entries of its part of used_task_rows */
	u32 idle_switches; /* from the idle task to another */
	u32 unnamed_voluntary; /* switches of tasks that got no row */
	u32 unnamed_involuntary;
	u32 crossed_pid;
	u64 unnamed_cpu_ns;
	u64 crossed_from_ns;
	u64 crossed_to_ns;
	u64 crossed_cpu_ns;
	u32 unseen_switches; /* minimum: a task left the CPU whose arrival was not seen */
	u32 spare;
	u64 unseen_cpu_ns; /* CPU time of these tasks: a part of it can be from before the interval */
};

struct softirq {
	u64 entered_ns; /* 0: not in this softirq */
	u64 ns;
	u64 runs;
	u64 spare;
};

struct host_cpu {
	u32 now;     /* number of the current interval, from 1; written by user space */
	u32 running; /* pid */
	u64 begun;   /* switches; the fields are consistent when begun == ended */
	u64 ended;
	u64 entered_ns; /* time when `running` came to the CPU; its counters at that time follow */
	u64 entered_cpu_ns;
	u64 entered_voluntary;
	u64 spare[2];
	struct interval intervals[2];
	struct softirq softirqs[2]; /* NET_TX, NET_RX */
};

BPF_F_TABLE("array", u32, struct host_cpu, host_cpus, CPUS, BPF_F_MMAPABLE);
BPF_F_TABLE("array", u32, struct task_row, task_rows, CPUS * 2 * TASK_ROWS, BPF_F_MMAPABLE);
BPF_F_TABLE("array", u32, u32, used_task_rows, CPUS * 2 * TASK_ROWS, BPF_F_MMAPABLE);

/* A field of a kernel struct. Assembly, because bcc would turn the access into a helper call. */
#define FIELD(size, from, offset)                                                                \
	({                                                                                       \
		u64 field;                                                                       \
		asm volatile("%0 = *(" #size " *)(%1 + %2)" : "=r"(field) : "r"(from), "i"(offset)); \
		field;                                                                           \
	})

/* Fill a row at its first use in an interval. */
static __always_inline void fill(struct task_row *row, u64 task, u32 pid, u32 now)
{
	u64 leader = FIELD(u64, task, TASK_GROUP_LEADER);

	row->interval = now;
	row->pid = pid;
	row->tgid = FIELD(u32, task, TASK_TGID);
	row->flags = FIELD(u32, task, TASK_FLAGS);
	row->voluntary = 0;
	row->involuntary = 0;
	row->cpu_ns = 0;
	row->comm[0] = FIELD(u64, task, TASK_COMM);
	row->comm[1] = FIELD(u64, task, TASK_COMM + 8);
	row->process[0] = FIELD(u64, leader, TASK_COMM);
	row->process[1] = FIELD(u64, leader, TASK_COMM + 8);
}

/* Find or make the row of a task. NULL: no row is free, count the task as unnamed. */
static __always_inline struct task_row *row_of(u32 table, struct interval *own, u64 task, u32 pid, u32 now)
{
	u32 home = pid * 0x9e3779b1U >> 16;

	/* Verifier: a bounded loop. Not unrolled: almost every task is in the first place. */
#pragma nounroll
	for (u32 i = 0; i < TASK_PROBES; i++) {
		u32 at = table + ((home + i) & (TASK_ROWS - 1)), entry = table + own->rows;
		struct task_row *row = task_rows.lookup(&at);
		u32 *listed;

		if (!row)
			return NULL;
		if (likely(row->interval == now)) {
			if (likely(row->pid == pid))
				return row;
			continue;
		}
		listed = used_task_rows.lookup(&entry);
		if (!listed)
			return NULL;
		*listed = at;
		fill(row, task, pid, now);
		own->rows++;
		return row;
	}
	return NULL;
}

static __always_inline void begin_interval(struct interval *own, u32 now)
{
	__builtin_memset(own, 0, sizeof(*own));
	own->interval = now;
}

/*
 * Run time of a task whose arrival was not seen: the fair class stores the sum at the time when the task was picked
 * (kernel/sched/fair.c, set_next_entity()). Other classes do not; an impossible value counts as unknown, 0.
 */
static __always_inline u64 unseen_ns(struct host_cpu *host, u64 task, u64 cpu_ns, u64 at_ns)
{
	u64 ns = cpu_ns - FIELD(u64, task, TASK_PICKED_CPU_NS);

	return ns < at_ns - host->entered_ns ? ns : 0;
}

/* A task leaves the CPU. */
static __always_inline void count(u32 cpu, struct host_cpu *host, struct interval *own, u64 task, u32 pid, u32 now,
				  u64 at_ns, bool preempted)
{
	u64 cpu_ns = FIELD(u64, task, TASK_CPU_NS), voluntary = FIELD(u64, task, TASK_VOLUNTARY);
	struct task_row *row = row_of((cpu * 2 + (now & 1)) * TASK_ROWS, own, task, pid, now);

	if (unlikely(host->running != pid)) {
		u64 ns = unseen_ns(host, task, cpu_ns, at_ns);

		host->entered_cpu_ns = cpu_ns - ns;
		own->unseen_cpu_ns += ns;
		host->entered_voluntary = voluntary - !preempted;
	}
	cpu_ns -= host->entered_cpu_ns;
	/* Now 1 or 0: each time a task leaves its CPU, one of its two counters is incremented by one. */
	voluntary -= host->entered_voluntary;
	if (likely(row)) {
		row->cpu_ns += cpu_ns;
		row->voluntary += voluntary;
		row->involuntary += 1 - voluntary;
	} else {
		own->unnamed_cpu_ns += cpu_ns;
		own->unnamed_voluntary += voluntary;
		own->unnamed_involuntary += 1 - voluntary;
	}
}

int sched_switch(struct bpf_raw_tracepoint_args *ctx)
{
	u32 cpu = bpf_get_smp_processor_id(), now, pid;
	struct host_cpu *host = host_cpus.lookup(&cpu);
	u64 prev = ctx->args[PREV_ARGUMENT], next = ctx->args[NEXT_ARGUMENT], at_ns;
	struct interval *own;

	if (!host)
		return 0;
	host->begun++;
	/* `begun` is written before `now` is read: the reader sees that the older table can still be written. */
	barrier();
	now = *(volatile u32 *)&host->now;
	own = &host->intervals[now & 1];
	pid = FIELD(u32, prev, TASK_PID);
	at_ns = bpf_ktime_get_ns();
	if (unlikely(own->interval != now)) {
		begin_interval(own, now);
		if (pid && host->running == pid) {
			own->crossed_pid = pid;
			own->crossed_from_ns = host->entered_ns;
			own->crossed_to_ns = at_ns;
			own->crossed_cpu_ns = FIELD(u64, prev, TASK_CPU_NS) - host->entered_cpu_ns;
		}
	}
	/* Before the first switch on this CPU, the running task is unknown. */
	if (unlikely(host->running != pid && host->entered_ns))
		own->unseen_switches++;
	if (pid)
		count(cpu, host, own, prev, pid, now, at_ns, ctx->args[0]);
	else
		own->idle_switches++;
	host->running = FIELD(u32, next, TASK_PID);
	host->entered_cpu_ns = FIELD(u64, next, TASK_CPU_NS);
	host->entered_voluntary = FIELD(u64, next, TASK_VOLUNTARY);
	host->entered_ns = at_ns;
	barrier();
	host->ended++;
	return 0;
}

/* Of the vectors of include/linux/interrupt.h, NET_TX (2) and NET_RX (3). */
static __always_inline struct softirq *softirq_of(struct host_cpu *host, u32 vector)
{
	return &host->softirqs[vector & 1];
}

int softirq_entry(struct bpf_raw_tracepoint_args *ctx)
{
	u32 cpu = bpf_get_smp_processor_id(), vector = ctx->args[0];
	struct host_cpu *host;

	if (vector >> 1 != 1)
		return 0;
	host = host_cpus.lookup(&cpu);
	if (host)
		softirq_of(host, vector)->entered_ns = bpf_ktime_get_ns();
	return 0;
}

int softirq_exit(struct bpf_raw_tracepoint_args *ctx)
{
	u32 cpu = bpf_get_smp_processor_id(), vector = ctx->args[0];
	struct host_cpu *host;
	struct softirq *own;
	u64 ns;

	if (vector >> 1 != 1)
		return 0;
	host = host_cpus.lookup(&cpu);
	if (!host)
		return 0;
	own = softirq_of(host, vector);
	/* The softirq began before the program was attached. */
	if (!own->entered_ns)
		return 0;
	ns = bpf_ktime_get_ns() - own->entered_ns;
	own->entered_ns = 0;
	own->ns += ns;
	own->runs++;
	return 0;
}
