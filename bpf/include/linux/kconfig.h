/* SPDX-License-Identifier: GPL-2.0-only */
/* bcc includes this ahead of everything; its helper declarations hang on the switch. */
#define CONFIG_BPF_SYSCALL 1
