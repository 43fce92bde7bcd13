# SPDX-License-Identifier: Apache-2.0
"""Security of the process as root: which code it imports, which programs it starts, which rights it keeps.

| module | does |
|---|---|
| `startup` | first step of each command: import only from directories that nobody else can write |
| `trust` | checks whether another user can change a file or directory |
| `caller` | the user who became root, and the environment variables that are taken from this user |
| `children` | programs in trusted directories, and the environment of every child process |
| `capabilities` | the rights that a run keeps once it counts; gives up all others |
| `isolated` | starts one of this package's modules in an isolated interpreter |
"""
