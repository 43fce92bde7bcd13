/* SPDX-License-Identifier: GPL-2.0-only */
/* Included by bcc; no program here reads registers. */
