# SPDX-License-Identifier: Apache-2.0
"""The process itself, as root: which code it imports, which programs it starts, which rights it keeps.

| module | does |
|---|---|
| `startup` | what a command does first: import only from places that nobody else can write |
| `trust` | tells whether somebody else can change a file or directory |
| `caller` | who calls root here, and which settings of the environment are taken from there |
| `children` | programs of trusted directories, and the environment that every child gets |
| `capabilities` | which of root's rights a run keeps once it counts, and giving up the others |
| `isolated` | starts one of this package's modules in an isolated interpreter |
"""
