/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Marks of rare branches. bcc's compiler does not order blocks by their probability. So a mark (a jump to the next
 * instruction) is placed where a rare branch begins. vifprobe/kernel/toolchain/placement.py moves the rare branches to
 * the end of the program, so that the common path is contiguous, and removes the marks.
 */
#ifndef VIFPROBE_LIKELY_H
#define VIFPROBE_LIKELY_H

#define unlikely(condition)                      \
	({                                       \
		bool is_so = !!(condition);      \
		if (is_so)                       \
			asm volatile("goto +0"); \
		is_so;                           \
	})
#define likely(condition) (!unlikely(!(condition)))

#endif
