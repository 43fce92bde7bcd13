# SPDX-License-Identifier: Apache-2.0
"""The few calls of libbpf.so.1 that bcc 0.26 lacks: tcx links, tc filters, BPF_PROG_TEST_RUN, BTF, object info."""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from collections.abc import Callable
from functools import cache

from vifprobe.errors import KernelError

# include/uapi/linux/bpf.h
BPF_PROG_TYPE_SCHED_CLS = 3
BPF_PROG_TYPE_TRACING = 26
BPF_TRACE_RAW_TP = 23
BPF_TRACE_FENTRY = 24
BPF_TRACE_FEXIT = 25
BPF_TRACE_ITER = 28
BPF_TCX_INGRESS = 46
BPF_TCX_EGRESS = 47
BPF_F_BEFORE = 1 << 3
# tools/lib/bpf/libbpf.h, enum bpf_tc_attach_point
BPF_TC_INGRESS = 1
BPF_TC_EGRESS = 2
BPF_TC_CUSTOM = 4
#: `parent ffff:`, of an `ingress` qdisc (include/uapi/linux/pkt_sched.h, TC_H_INGRESS less its minor number)
_INGRESS_PARENT = 0xFFFF0000


_LOG_BYTES = 1 << 20
_RECURSION_MISSES_AT = 208  # struct bpf_prog_info, since 5.12


class _LinkCreateOpts(ctypes.Structure):
    """struct bpf_link_create_opts up to `flags`: libbpf takes the rest as zero."""

    _fields_ = (("sz", ctypes.c_size_t), ("flags", ctypes.c_uint32), ("pad", ctypes.c_uint32))


class TestRunOpts(ctypes.Structure):
    """struct bpf_test_run_opts."""

    _fields_ = (
        ("sz", ctypes.c_size_t),
        ("data_in", ctypes.c_void_p),
        ("data_out", ctypes.c_void_p),
        ("data_size_in", ctypes.c_uint32),
        ("data_size_out", ctypes.c_uint32),
        ("ctx_in", ctypes.c_void_p),
        ("ctx_out", ctypes.c_void_p),
        ("ctx_size_in", ctypes.c_uint32),
        ("ctx_size_out", ctypes.c_uint32),
        ("retval", ctypes.c_uint32),
        ("repeat", ctypes.c_int),
        ("duration", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
        ("cpu", ctypes.c_uint32),
        ("batch_size", ctypes.c_uint32),
    )


class _MapCreateOpts(ctypes.Structure):
    """struct bpf_map_create_opts up to `map_flags`."""

    _fields_ = (
        ("sz", ctypes.c_size_t),
        ("btf_fd", ctypes.c_uint32),
        ("btf_key_type_id", ctypes.c_uint32),
        ("btf_value_type_id", ctypes.c_uint32),
        ("btf_vmlinux_value_type_id", ctypes.c_uint32),
        ("inner_map_fd", ctypes.c_uint32),
        ("map_flags", ctypes.c_uint32),
    )


class _ProgLoadOpts(ctypes.Structure):
    """struct bpf_prog_load_opts up to the verifier's log: libbpf takes the rest as zero."""

    _fields_ = (
        ("sz", ctypes.c_size_t),
        ("attempts", ctypes.c_int),
        ("expected_attach_type", ctypes.c_uint32),
        ("prog_btf_fd", ctypes.c_uint32),
        ("prog_flags", ctypes.c_uint32),
        ("prog_ifindex", ctypes.c_uint32),
        ("kern_version", ctypes.c_uint32),
        ("attach_btf_id", ctypes.c_uint32),
        ("attach_prog_fd", ctypes.c_uint32),
        ("attach_btf_obj_fd", ctypes.c_uint32),
        ("pad", ctypes.c_uint32),
        ("fd_array", ctypes.c_void_p),
        ("func_info", ctypes.c_void_p),
        ("func_info_cnt", ctypes.c_uint32),
        ("func_info_rec_size", ctypes.c_uint32),
        ("line_info", ctypes.c_void_p),
        ("line_info_cnt", ctypes.c_uint32),
        ("line_info_rec_size", ctypes.c_uint32),
        ("log_level", ctypes.c_uint32),
        ("log_size", ctypes.c_uint32),
        ("log_buf", ctypes.c_char_p),
    )


class _TcHook(ctypes.Structure):
    """struct bpf_tc_hook."""

    _fields_ = (
        ("sz", ctypes.c_size_t),
        ("ifindex", ctypes.c_int),
        ("attach_point", ctypes.c_int),
        ("parent", ctypes.c_uint32),
        ("pad", ctypes.c_uint32),
    )


class _TcOpts(ctypes.Structure):
    """struct bpf_tc_opts."""

    _fields_ = (
        ("sz", ctypes.c_size_t),
        ("prog_fd", ctypes.c_int),
        ("flags", ctypes.c_uint32),
        ("prog_id", ctypes.c_uint32),
        ("handle", ctypes.c_uint32),
        ("priority", ctypes.c_uint32),
        ("pad", ctypes.c_uint32),
    )


@cache
def library() -> ctypes.CDLL:
    """Return libbpf.so.1 with typed pointers. Its own messages are off (errors come back as errno).

    Raises KernelError where it can't be loaded.
    """
    try:
        lib = ctypes.CDLL("libbpf.so.1", use_errno=True)
    except OSError as error:
        raise KernelError(
            f"libbpf.so.1 can't be loaded: {error}.",
            "Install it: package libbpf1 (Debian, Ubuntu) or libbpf (RHEL, Fedora).",
        ) from error
    lib.btf__parse_raw.restype = ctypes.c_void_p
    lib.btf__parse_raw.argtypes = [ctypes.c_char_p]
    lib.btf__free.argtypes = [ctypes.c_void_p]
    lib.btf__find_by_name_kind.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_uint32]
    lib.btf__type_by_id.restype = ctypes.c_void_p
    lib.btf__type_by_id.argtypes = [ctypes.c_void_p, ctypes.c_uint32]
    lib.btf__name_by_offset.restype = ctypes.c_char_p
    lib.btf__name_by_offset.argtypes = [ctypes.c_void_p, ctypes.c_uint32]
    lib.btf__parse_raw_split.restype = ctypes.c_void_p
    lib.btf__parse_raw_split.argtypes = [ctypes.c_char_p, ctypes.c_void_p]
    lib.btf__fd.argtypes = [ctypes.c_void_p]
    lib.libbpf_set_print.argtypes = [ctypes.c_void_p]
    lib.libbpf_set_print(None)
    return lib


def _check(result: int) -> int:
    """Return the result of a libbpf call; raise OSError for a negative one (-errno)."""
    if result < 0:
        raise OSError(-result if -result in errno.errorcode else ctypes.get_errno(), os.strerror(-result))
    return result


#: Callback that loads a program under the given name and returns its fd.
Load = Callable[[str], int]


def create_map(name: str, kind: int, key_bytes: int, value_bytes: int, entries: int, flags: int) -> int:
    """Create a map (BPF_MAP_CREATE); return its fd. Raises OSError."""
    options = _MapCreateOpts(sz=ctypes.sizeof(_MapCreateOpts), map_flags=flags)
    sizes = (key_bytes, value_bytes, entries)
    return _check(library().bpf_map_create(kind, name.encode(), *sizes, ctypes.byref(options)))


def update_map(map_fd: int, key: bytes, value: bytes) -> None:
    """Replace a whole value (BPF_MAP_UPDATE_ELEM). Raises OSError."""
    _check(library().bpf_map_update_elem(map_fd, key, value, ctypes.c_uint64(0)))


def load_tc_program(name: str, code: bytes) -> int:
    """Load compiled code as a tc program; return its fd. Raises OSError with the last lines of the verifier's log."""
    return _load(BPF_PROG_TYPE_SCHED_CLS, name, code)


def load_typed_tracepoint(name: str, code: bytes, attach_btf_id: int) -> int:
    """Load compiled code as a BTF-typed raw tracepoint program (5.5 and later); return its fd.

    Its arguments are read directly, where an untyped one needs a helper call for each field. bcc 0.26 can't load it.
    Raises OSError as load_tc_program does.
    """
    return _load(BPF_PROG_TYPE_TRACING, name, code, BPF_TRACE_RAW_TP, attach_btf_id)


def load_function_entry(name: str, code: bytes, attach_btf_id: int) -> int:
    """Load compiled code that runs at each call of a vmlinux function, with its arguments; return its fd.

    Needs 5.5 or later. Attach it with attach_typed_tracepoint. Raises OSError as load_tc_program does.
    """
    return _load(BPF_PROG_TYPE_TRACING, name, code, BPF_TRACE_FENTRY, attach_btf_id)


def load_function_exit(name: str, code: bytes, attach_btf_id: int, btf_fd: int) -> int:
    """Load compiled code that runs at each return of a kernel function, with its arguments and result; return its fd.

    Needs 5.5 or later. btf_fd: of the BTF of the function's module; 0 for vmlinux. Attach it with
    attach_typed_tracepoint. Raises OSError as load_tc_program does.
    """
    return _load(BPF_PROG_TYPE_TRACING, name, code, BPF_TRACE_FEXIT, attach_btf_id, btf_fd)


def _load(
    kind: int, name: str, code: bytes, attach_type: int = 0, attach_btf_id: int = 0, attach_btf_fd: int = 0
) -> int:
    log = ctypes.create_string_buffer(_LOG_BYTES)
    options = _ProgLoadOpts(
        sz=ctypes.sizeof(_ProgLoadOpts),
        expected_attach_type=attach_type,
        attach_btf_id=attach_btf_id,
        attach_btf_obj_fd=attach_btf_fd,
        log_size=_LOG_BYTES,
        log_buf=ctypes.cast(log, ctypes.c_char_p),
    )
    # BPF_OBJ_NAME_LEN is 16, its last byte 0
    arguments = (name.encode()[:15], b"GPL", code, ctypes.c_size_t(len(code) // 8), ctypes.byref(options))
    try:
        # libbpf requests the log itself when a load fails.
        return _check(library().bpf_prog_load(kind, *arguments))
    except OSError as error:
        raise OSError(error.errno, f"{error.strerror}: {_last_words(log.value.decode(errors='replace'))}") from error


def _last_words(log: str) -> str:
    """Return the last lines of the verifier's log without the statistics: the place where it stopped."""
    lines = [line for line in log.splitlines() if line and not line.startswith(("processed ", "verification time"))]
    return "; ".join(lines[-3:])


def attach_typed_tracepoint(program_fd: int) -> int:
    """Attach the program; return the fd of the link, which is removed with the process. Raises OSError."""
    return _check(library().bpf_raw_tracepoint_open(None, program_fd))


def load_iterator(name: str, code: bytes, attach_btf_id: int) -> int:
    """Load compiled code that is called for each object of a kind; return its fd. Raises OSError as load_tc_program."""
    return _load(BPF_PROG_TYPE_TRACING, name, code, BPF_TRACE_ITER, attach_btf_id)


def attach_iterator(program_fd: int) -> int:
    """Attach an iterator program; return the fd of the link. Raises OSError."""
    return _check(library().bpf_link_create(program_fd, 0, BPF_TRACE_ITER, None))


def open_iterator(link_fd: int) -> int:
    """Return an fd from which the output of the program is read to its end (BPF_ITER_CREATE). Raises OSError."""
    return _check(library().bpf_iter_create(link_fd))


def attach_tcx(program_fd: int, ifindex: int, ingress: bool) -> int:
    """Link a program at the head of a device's tcx programs; return the fd of the link.

    The link is removed with the process. Raises OSError; EINVAL: the kernel has no tcx (before 6.6). Position:
    BPF_F_BEFORE without a reference program means the head.
    """
    options = _LinkCreateOpts(sz=ctypes.sizeof(_LinkCreateOpts), flags=BPF_F_BEFORE)
    hook = BPF_TCX_INGRESS if ingress else BPF_TCX_EGRESS
    return _check(library().bpf_link_create(program_fd, ifindex, hook, ctypes.byref(options)))


def create_clsact(ifindex: int) -> None:
    """Create a qdisc: `tc qdisc add dev X clsact`. Raises OSError; EEXIST: an ingress or clsact qdisc exists."""
    hook = _TcHook(sz=ctypes.sizeof(_TcHook), ifindex=ifindex, attach_point=BPF_TC_INGRESS)
    _check(library().bpf_tc_hook_create(ctypes.byref(hook)))


def destroy_clsact(ifindex: int) -> None:
    """Delete a qdisc with all its filters: `tc qdisc del dev X clsact`. Raises OSError."""
    hook = _TcHook(sz=ctypes.sizeof(_TcHook), ifindex=ifindex, attach_point=BPF_TC_INGRESS | BPF_TC_EGRESS)
    _check(library().bpf_tc_hook_destroy(ctypes.byref(hook)))


def attach_filter(program_fd: int, ifindex: int, ingress: bool, pref: int, handle: int, qdisc: str = "") -> None:
    """Add a filter to the existing qdisc: `tc filter add dev X ingress pref P handle H bpf direct-action`.

    For a qdisc of kind `ingress`, the parent is `ffff:`, as libvirt and Open vSwitch name it: the kernel shows all
    filters of a block with the parent that was named last (net/sched/cls_api.c, block->classid).

    Raises OSError. ENOENT, EINVAL: no ingress or clsact qdisc. EEXIST: pref and handle are in use.
    """
    hook, options = _tc(program_fd, ifindex, ingress, pref, handle)
    if qdisc == "ingress":
        hook.attach_point, hook.parent = BPF_TC_CUSTOM, _INGRESS_PARENT
    _check(library().bpf_tc_attach(ctypes.byref(hook), ctypes.byref(options)))


def detach_filter(ifindex: int, ingress: bool, pref: int, handle: int) -> None:
    """Delete one filter: `tc filter del dev X ingress pref P handle H bpf`. Raises OSError."""
    hook, options = _tc(0, ifindex, ingress, pref, handle)
    _check(library().bpf_tc_detach(ctypes.byref(hook), ctypes.byref(options)))


def _tc(program_fd: int, ifindex: int, ingress: bool, pref: int, handle: int) -> tuple[_TcHook, _TcOpts]:
    point = BPF_TC_INGRESS if ingress else BPF_TC_EGRESS
    hook = _TcHook(sz=ctypes.sizeof(_TcHook), ifindex=ifindex, attach_point=point)
    return hook, _TcOpts(sz=ctypes.sizeof(_TcOpts), prog_fd=program_fd, handle=handle, priority=pref)


def test_run(program_fd: int, frame: bytes, context: bytes = b"", repeat: int = 1) -> tuple[int, int]:
    """Run a tc program on a frame without a device (BPF_PROG_TEST_RUN); return (return value, ns per run).

    Raises OSError; EINVAL: the kernel refuses the frame (under 14 bytes, or truncated IPv4).

    - program_fd: of the tc program.
    - frame: its bytes.
    - context: initial struct __sk_buff; b"" for the kernel's default.
    - repeat: number of runs.
    """
    data = ctypes.cast(ctypes.c_char_p(frame), ctypes.c_void_p)
    options = TestRunOpts(sz=ctypes.sizeof(TestRunOpts), data_in=data, data_size_in=len(frame), repeat=repeat)
    if context:
        buffer = ctypes.create_string_buffer(context, len(context))
        options.ctx_in = ctypes.addressof(buffer)
        options.ctx_size_in = len(context)
    _check(library().bpf_prog_test_run_opts(program_fd, ctypes.byref(options)))
    return ctypes.c_int32(options.retval).value, int(options.duration)


def object_info(fd: int, size_bytes: int = 256) -> bytes:
    """Return struct bpf_prog_info, bpf_map_info or bpf_link_info of an fd, up to the length that the kernel fills."""
    buffer = ctypes.create_string_buffer(size_bytes)
    length = ctypes.c_uint32(size_bytes)
    _check(library().bpf_obj_get_info_by_fd(fd, buffer, ctypes.byref(length)))
    return buffer.raw[: length.value]


def recursion_misses(program_fd: int) -> int:
    """Return how often the kernel skipped the program because it was already running on that CPU (0 before 5.12)."""
    info = object_info(program_fd)
    return struct.unpack_from("=Q", info, _RECURSION_MISSES_AT)[0] if len(info) >= _RECURSION_MISSES_AT + 8 else 0
