/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What is seldom. The usual path is kept together by them, because what runs between two packets' caches is what costs.
 * bcc's compiler does not place blocks by what is expected, so a mark stands where a seldom branch begins;
 * vifprobe/kernel/toolchain/placement.py moves what is behind it to the program's end, and takes it out.
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
