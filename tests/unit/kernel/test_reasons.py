# SPDX-License-Identifier: Apache-2.0
"""Names of drop reasons come from the type information: of the kernel, of its subsystems and of its modules."""

from __future__ import annotations

from pathlib import Path

import btf_kit
import pytest

from vifprobe.analysis.drop_evidence import WHO
from vifprobe.kernel.btf import Btf
from vifprobe.kernel.features import Features
from vifprobe.kernel.reasons import read_reasons
from vifprobe.model.reasons import reason_name
from vifprobe.render.context import REASON_WORDS

#: As include/net/dropreason-core.h, with its ends.
CORE = {
    "SKB_NOT_DROPPED_YET": 0,
    "SKB_CONSUMED": 1,
    "SKB_DROP_REASON_NOT_SPECIFIED": 2,
    "SKB_DROP_REASON_QDISC_DROP": 64,
    "SKB_DROP_REASON_MAX": 128,
    "SKB_DROP_REASON_SUBSYS_MASK": -65536,
}
CORE_NAMES = {0: "NOT_DROPPED_YET", 1: "CONSUMED", 2: "NOT_SPECIFIED", 64: "QDISC_DROP"}
OVS = ("__OVS_DROP_REASON", "OVS_DROP_LAST_ACTION", "OVS_DROP_ACTION_ERROR", "OVS_DROP_EXPLICIT")
QDISC = ("__QDISC_DROP_REASON", "QDISC_DROP_GENERIC", "QDISC_DROP_OVERLIMIT", "QDISC_DROP_MAX")


def subsystems(*names: str) -> dict[str, int]:
    """`enum skb_drop_reason_subsys` with these, from 1."""
    all_names = ("CORE", *names, "NUM")
    return {f"SKB_DROP_REASON_SUBSYS_{name}": number for number, name in enumerate(all_names)}


def numbered(names: tuple[str, ...], subsystem: int) -> dict[str, int]:
    """An enum whose first value is the subsystem's."""
    return {name: (subsystem << 16) + number for number, name in enumerate(names)}


def read(folder: Path) -> dict[int, str]:
    """Names from a folder like /sys/kernel/btf."""
    with Btf(folder / "vmlinux") as btf:
        return read_reasons(btf, folder)


@pytest.mark.parametrize("number", [2, 3])
def test_a_module_brings_its_own_reasons(tmp_path: Path, number: int) -> None:
    """The number of Open vSwitch moved from 3 to 2 (6.12, 6.18): it is read."""
    before = ("MAC80211_UNUSABLE", "MAC80211_MONITOR")[: number - 1]
    enums = {"skb_drop_reason": CORE, "skb_drop_reason_subsys": subsystems(*before, "OPENVSWITCH")}
    length = btf_kit.write(tmp_path / "vmlinux", enums, ["tcp_drop_reason"])
    btf_kit.write(tmp_path / "openvswitch", {"ovs_drop_reason": numbered(OVS, number)}, behind=length)
    btf_kit.write(tmp_path / "tun", {"other": {"ONE": 1}}, behind=length)
    (tmp_path / "damaged").write_bytes(b"\0x_drop_reason\0")
    base = number << 16
    assert read(tmp_path) == {
        **CORE_NAMES,
        **({1 << 16: "MAC80211_UNUSABLE"} if number > 1 else {}),
        **({2 << 16: "MAC80211_MONITOR"} if number > 2 else {}),
        base: "OPENVSWITCH",
        base + 1: "OVS_DROP_LAST_ACTION",
        base + 2: "OVS_DROP_ACTION_ERROR",
        base + 3: "OVS_DROP_EXPLICIT",
    }


def test_of_two_enums_with_the_same_values_the_plain_names_are_used(tmp_path: Path) -> None:
    """net/mac80211/drop.h; values below 1 << 16 are those of the core."""
    enums = {"skb_drop_reason": CORE, "skb_drop_reason_subsys": subsystems("MAC80211_UNUSABLE")}
    length = btf_kit.write(tmp_path / "vmlinux", enums)
    both = {
        "___mac80211_drop_reason": {"___RX_CONTINUE": 1, "___RX_DROP_UNUSABLE": 1 << 16, "___RX_DROP_U_REPLAY": 65538},
        "mac80211_drop_reason": {"RX_CONTINUE": 1, "RX_DROP_U_REPLAY": 65538},
    }
    btf_kit.write(tmp_path / "mac80211", both, behind=length)
    assert read(tmp_path) == {**CORE_NAMES, 1 << 16: "MAC80211_UNUSABLE", 65538: "RX_DROP_U_REPLAY"}


def test_the_qdiscs_own_reasons(tmp_path: Path) -> None:
    """include/net/dropreason-qdisc.h of net-next, 2026: in vmlinux, with a subsystem of its own."""
    enums = {
        "skb_drop_reason": CORE,
        "skb_drop_reason_subsys": subsystems("MAC80211_UNUSABLE", "OPENVSWITCH", "QDISC"),
        "qdisc_drop_reason": {"QDISC_DROP_UNSPEC": 0, **numbered(QDISC, 3)},
    }
    btf_kit.write(tmp_path / "vmlinux", enums)
    found = read(tmp_path)
    assert found[3 << 16 | 1] == "QDISC_DROP_GENERIC"
    assert found[3 << 16 | 2] == "QDISC_DROP_OVERLIMIT"
    assert found[0] == "NOT_DROPPED_YET"
    assert 3 << 16 | 3 not in found
    features = Features(1, {}, True, found)
    assert features.qdisc_reasons == {64}
    assert features.qdisc_subsystem == 3
    assert Features(1, {}, True, CORE_NAMES).qdisc_subsystem is None


def test_a_kernel_without_subsystems(tmp_path: Path) -> None:
    """Before 6.4: modules are not asked."""
    btf_kit.write(tmp_path / "vmlinux", {"skb_drop_reason": CORE})
    (tmp_path / "openvswitch").write_bytes(b"no type information")
    assert read(tmp_path) == CORE_NAMES


def test_a_reason_without_a_name_has_its_subsystem() -> None:
    """Its module was loaded after the names were read."""
    reasons = {2: "NOT_SPECIFIED", 2 << 16: "OPENVSWITCH", 2 << 16 | 5: "OVS_DROP_METER"}
    names = [reason_name(code, reasons) for code in (0, 2, 2 << 16 | 5, 2 << 16 | 6, 7 << 16 | 1, 9)]
    assert names == ["", "NOT_SPECIFIED", "OVS_DROP_METER", "OPENVSWITCH 0x6", "0x70001", "0x9"]


def test_reasons_that_a_limit_gives_have_words() -> None:
    """Whoever can have limited is explained where the reason is shown."""
    assert not set(WHO) - set(REASON_WORDS)
