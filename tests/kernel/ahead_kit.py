# SPDX-License-Identifier: Apache-2.0
"""Programs of others that decide packets before vifprobe's own see them."""

from __future__ import annotations

import ctypes
import os
import struct
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from vifprobe.kernel import libbpf
from vifprobe.kernel.tcx import tcx_program_ids

_BPF_PROG_TYPE_XDP, _BPF_XDP = 6, 37
#: XDP_FLAGS_SKB_MODE, XDP_FLAGS_DRV_MODE (include/uapi/linux/if_link.h)
_XDP_DROP, _XDP_PASS = 1, 2
XDP_MODES = {"generic": 2, "native": 4}


def returning(code: int) -> bytes:
    """r0 = code; exit. TCX_PASS 0, TCX_DROP 2; XDP_DROP 1, XDP_PASS 2."""
    return bytes((0xB7, 0, 0, 0, code, 0, 0, 0, 0x95, 0, 0, 0, 0, 0, 0, 0))


def dropping(last_of_mac: int) -> bytes:
    """An XDP program that drops the frames whose destination MAC ends so."""
    code = [
        struct.pack("=BBhi", 0x61, 0x12, 0, 0),  # r2 = data (struct xdp_md)
        struct.pack("=BBhi", 0x61, 0x13, 4, 0),  # r3 = data_end
        struct.pack("=BBhi", 0xB7, 0, 0, _XDP_PASS),
        struct.pack("=BBhi", 0xBF, 0x24, 0, 0),  # r4 = r2 + 14
        struct.pack("=BBhi", 0x07, 4, 0, 14),
        struct.pack("=BBhi", 0x2D, 0x34, 3, 0),  # if r4 > r3: end
        struct.pack("=BBhi", 0x71, 0x25, 5, 0),  # r5 = byte 5
        struct.pack("=BBhi", 0x55, 5, 1, last_of_mac),  # if r5 != ...: end
        struct.pack("=BBhi", 0xB7, 0, 0, _XDP_DROP),
        struct.pack("=BBhi", 0x95, 0, 0, 0),
    ]
    return b"".join(code)


@contextmanager
def tcx_ahead(name: str, code: int, ifindex: int, ingress: bool = True) -> Iterator[int]:
    """A tcx program at the head; its fd."""
    with ExitStack() as stack:
        program = libbpf.load_tc_program(name, returning(code))
        stack.callback(os.close, program)
        stack.callback(os.close, libbpf.attach_tcx(program, ifindex, ingress))
        yield program


@contextmanager
def fighting(name: str, code: int, ifindex: int) -> Iterator[None]:
    """A tcx program that is at the head of the ingress again within 20 ms, whoever is put before it."""
    stop = threading.Event()
    program = libbpf.load_tc_program(name, returning(code))

    def fight() -> None:
        link = libbpf.attach_tcx(program, ifindex, ingress=True)
        own = tcx_program_ids(ifindex, ingress=True)[0]
        while not stop.wait(0.02):
            if tcx_program_ids(ifindex, ingress=True)[:1] != (own,):
                os.close(link)
                link = libbpf.attach_tcx(program, ifindex, ingress=True)
        os.close(link)

    thread = threading.Thread(target=fight)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        os.close(program)


@contextmanager
def xdp(name: str, code: int | bytes, ifindex: int, mode: str) -> Iterator[None]:
    """An XDP program, as `ip link set dev X xdp` sets it; mode `link`: by a BPF link, in the driver.

    code: what it returns, or all of it.
    """
    text = returning(code) if isinstance(code, int) else code
    program = libbpf.library().bpf_prog_load(
        _BPF_PROG_TYPE_XDP, name.encode(), b"GPL", text, ctypes.c_size_t(len(text) // 8), None
    )
    assert program >= 0, os.strerror(-program)
    try:
        if mode == "link":
            link = libbpf.library().bpf_link_create(program, ifindex, _BPF_XDP, None)
            assert link >= 0, os.strerror(-link)
            try:
                yield
            finally:
                os.close(link)
            return
        failed = libbpf.library().bpf_xdp_attach(ifindex, program, XDP_MODES[mode], None)
        assert not failed, os.strerror(-failed)
        try:
            yield
        finally:
            libbpf.library().bpf_xdp_detach(ifindex, XDP_MODES[mode], None)
    finally:
        os.close(program)
