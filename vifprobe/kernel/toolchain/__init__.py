# SPDX-License-Identifier: Apache-2.0
"""Everything that exists because of bcc: compile, cache, and rewrite instructions before they are loaded.

| module | does |
|---|---|
| `source` | joins `bpf/*.c` into the one text that bcc compiles |
| `compile`, `compiler` | compile it without kernel headers, in a process of its own |
| `compiled`, `cache` | keep the code on disk, and read it back with nothing taken on trust |
| `instructions`, `placement` | write constants into the code; move rare blocks behind common ones |
"""
