# SPDX-License-Identifier: Apache-2.0
"""Running guests of libvirt, from the status files of its QEMU driver.

libvirt itself is not needed: /run/libvirt/qemu/NAME.xml holds the live XML of each running domain and follows `virsh
domiftune --live`. Only root can read it. Its bandwidth is the declared one; `tc` and `nft` have the installed limits.

Source: libvirt, src/conf/domain_conf.c (virDomainObjFormat), docs/formatnetwork.rst ("Quality of service"),
src/util/virnetdevbandwidth.c; Nova, nova/virt/libvirt/config.py (LibvirtConfigGuestMetaNovaInstance).
"""

from __future__ import annotations

import os
import re
import stat
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from vifprobe.model.ports import WITHOUT_TAP

STATUS_DIRECTORY = Path("/run/libvirt/qemu")
#: A guest with dozens of devices takes some 100 kB and 3,000 tags; parsed, a tag takes some µs and 100 bytes.
_FILE_BYTES_MAX = 2 * 1024 * 1024
_TAGS_MAX = 50_000
#: Extra specs of a flavor, in kilobytes a second and kilobytes (Nova, doc/source/configuration/extra-specs.rst).
_QUOTA = "quota:vif_"


@dataclass(frozen=True)
class Bandwidth:
    """One direction of an interface's `<bandwidth>`, in libvirt's units. None where not set.

    Average, peak and floor are in kilobytes a second, burst is in kibibytes.
    """

    average_kbytes_per_second: int | None = None
    peak_kbytes_per_second: int | None = None
    burst_kbytes: int | None = None

    @property
    def rate_bps(self) -> int | None:
        """Return `average` in bits per second: libvirt passes it to tc as `kbps`, which is 1000 byte/s."""
        return None if self.average_kbytes_per_second is None else self.average_kbytes_per_second * 8000

    @property
    def burst_bytes(self) -> int | None:
        """Return the burst in bytes, as libvirt passes it to tc, whose `kb` is 1024 bytes; None where not set."""
        return None if self.burst_kbytes is None else self.burst_kbytes * 1024

    @property
    def policer_burst_bytes(self) -> int | None:
        """Return the burst of an outbound policer in bytes: if not set, libvirt passes the number of the average."""
        return self.burst_bytes or (self.average_kbytes_per_second or 0) * 1024 or None


@dataclass(frozen=True)
class Interface:
    """A guest's interface as libvirt set it up. Absent in the XML = None.

    - target: name of the tap.
    - kind: `bridge`, `ethernet`, `network`, `direct`, ...
    - port_id: Neutron's port, from the Open vSwitch interface id.
    - inbound, outbound: as the guest sees it.
    - instance_name, instance_uuid: OpenStack's, from Nova's metadata.
    - quotas: limits in the flavor's extra specs, from Nova's metadata: (name, kilobytes), such as
      (`vif_outbound_average`, 12500).
    - guest_ips: addresses that an nwfilter permits the guest (docs/formatnwfilter.rst, variables IP and IPV6).
    """

    target: str
    domain: str
    domain_uuid: str | None = None
    pid: int | None = None
    kind: str | None = None
    guest_mac: str | None = None
    source: str | None = None
    virtual_port: str | None = None
    port_id: str | None = None
    inbound: Bandwidth | None = None
    outbound: Bandwidth | None = None
    instance_name: str | None = None
    instance_uuid: str | None = None
    project: str | None = None
    quotas: tuple[tuple[str, int], ...] = ()
    guest_ips: tuple[str, ...] = ()

    def quota(self, direction: str) -> Bandwidth | None:
        """Return the flavor's limit of `outbound` or `inbound`; None without one."""
        values = {name.removeprefix(f"vif_{direction}_"): value for name, value in self.quotas if direction in name}
        if not values.get("average"):
            return None
        return Bandwidth(values["average"], values.get("peak"), values.get("burst"))


@dataclass(frozen=True)
class LiveDomains:
    """Interfaces of running domains.

    - interfaces: by target device.
    - without_tap: interfaces that no tap belongs to, see vifprobe.model.ports; their target is a name of the switch, or
      the guest's MAC address.
    - problems: files that could not be read (path and reason), so that "not declared" and "unknown" differ.
    - present: libvirt's directory exists.
    """

    interfaces: dict[str, Interface] = field(default_factory=dict)
    without_tap: tuple[Interface, ...] = ()
    problems: tuple[str, ...] = ()
    present: bool = False


def live_domains(directory: Path = STATUS_DIRECTORY) -> LiveDomains:
    """Return the interfaces of all running domains. Never raises: `problems` has what could not be read."""
    interfaces: dict[str, Interface] = {}
    without_tap: list[Interface] = []
    problems: list[str] = []
    try:
        paths = sorted(path for path in directory.iterdir() if path.suffix == ".xml")
    except FileNotFoundError:
        return LiveDomains()
    except OSError as error:
        return LiveDomains(problems=(f"{directory}: {error.strerror}",), present=True)
    for path in paths:
        try:
            for interface in _interfaces(_tree(path)):
                if interface.kind in WITHOUT_TAP:
                    without_tap.append(interface)
                else:
                    interfaces[interface.target] = interface
        except FileNotFoundError:  # the guest has ended since
            continue
        except OSError as error:
            problems.append(f"{path}: {error.strerror}")
        except (ET.ParseError, ValueError, LookupError) as error:
            problems.append(f"{path}: {error}")
    return LiveDomains(interfaces, tuple(without_tap), tuple(problems), present=True)


def _tree(path: Path) -> ET.Element:
    # A pipe of that name must not be waited for.
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise ValueError("is not a file: not read")
        content = file.read(_FILE_BYTES_MAX + 1)
    if len(content) > _FILE_BYTES_MAX:
        raise ValueError(f"longer than {_FILE_BYTES_MAX} bytes: not read")
    if b"\0" in content:  # UTF-16 or UTF-32, in which the next line would find nothing; libvirt writes UTF-8
        raise ValueError("is not UTF-8: not read")
    if content.count(b"<") > _TAGS_MAX:
        raise ValueError(f"holds more than {_TAGS_MAX} tags: not read")
    if b"<!DOCTYPE" in content:  # libvirt writes none, and without one there are no entities to expand
        raise ValueError("holds a DOCTYPE: not read")
    return ET.fromstring(content)  # noqa: S314 - bounded, written by root, and no entities: see above


def _interfaces(root: ET.Element) -> Iterator[Interface]:
    domain = root if root.tag == "domain" else root.find("domain")
    if domain is None:
        raise ValueError("no <domain> in it")
    instance = next((node for node in domain.iterfind("metadata/*") if _local(node) == "instance"), None)
    uuid = _text(domain.find("uuid"))
    for node in domain.iterfind("devices/interface"):
        target = _attribute(node, "target", "dev")
        actual = node.find("actual")  # of `<interface type='network'>`: what the network's definition came out as
        where = node if actual is None else actual
        if target is None and where.get("type") in WITHOUT_TAP:
            target = _attribute(node, "mac", "address")
        if target is None:
            continue
        bandwidth = where if where.find("bandwidth") is not None else node
        yield Interface(
            target=target,
            domain=_text(domain.find("name")) or "",
            domain_uuid=uuid,
            pid=_number(root.get("pid")),
            kind=where.get("type"),
            guest_mac=_attribute(node, "mac", "address"),
            source=_source(where),
            virtual_port=_attribute(where, "virtualport", "type"),
            port_id=_attribute(where, "virtualport/parameters", "interfaceid"),
            inbound=_bandwidth(bandwidth.find("bandwidth/inbound")),
            outbound=_bandwidth(bandwidth.find("bandwidth/outbound")),
            instance_name=_nova(instance, "name"),
            instance_uuid=uuid if instance is not None else None,
            project=_nova(instance, "project"),
            quotas=tuple(_quotas(instance)),
            guest_ips=tuple(
                node.get("value", "")
                for node in where.iterfind("filterref/parameter")
                if node.get("name") in ("IP", "IPV6") and node.get("value")
            ),
        )


def _source(interface: ET.Element) -> str | None:
    values = (_attribute(interface, "source", name) for name in ("bridge", "network", "dev", "path"))
    return next((value for value in values if value), None)


def _bandwidth(found: ET.Element | None) -> Bandwidth | None:
    if found is None:
        return None
    return Bandwidth(_number(found.get("average")), _number(found.get("peak")), _number(found.get("burst")))


def _nova(instance: ET.Element | None, wanted: str) -> str | None:
    if instance is None:
        return None
    return next((_text(node) for node in instance.iter() if _local(node) == wanted), None)


def _quotas(instance: ET.Element | None) -> Iterator[tuple[str, int]]:
    """Yield the limits among the flavor's extra specs, under whatever tag: only newer releases of Nova write them."""
    for node in instance.iter() if instance is not None else ():
        name, value = node.get("name", ""), _number(node.text)
        if name.startswith(_QUOTA) and value is not None:
            yield name.removeprefix("quota:"), value


def _local(node: ET.Element) -> str:
    """Tag without its namespace: Nova's has changed its version over the releases."""
    return node.tag.rpartition("}")[2]


def _text(node: ET.Element | None) -> str | None:
    return None if node is None or node.text is None else node.text.strip() or None


def _attribute(node: ET.Element, path: str, name: str) -> str | None:
    found = node.find(path)
    return None if found is None else found.get(name) or None


def _number(value: str | None) -> int | None:
    return int(value) if value is not None and re.fullmatch(r"[0-9]{1,19}", value.strip()) else None
