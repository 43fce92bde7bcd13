# SPDX-License-Identifier: Apache-2.0
"""nla classes that decode what is asked for, and no more: pyroute2's, with bounds.

pyroute2's own decoders make an object of every attribute, read a struct that is cut short out of what follows it,
clip a length that can't be true, and log a traceback where they fail. Those here leave out the attributes that have
no class (`none`), refuse impossible lengths (NetlinkDecodeError), and give None for a value that is cut short.

Source: include/uapi/linux/netlink.h, include/net/netlink.h.
"""

from __future__ import annotations

import struct
from types import FunctionType
from typing import Any

from pyroute2.netlink import nla as pyroute2_nla
from pyroute2.netlink import nla_slot, nlmsg_atoms
from pyroute2.netlink import nlmsg as pyroute2_nlmsg
from pyroute2.netlink.exceptions import NetlinkDataDecodeError, NetlinkNLADecodeError

_ATTRIBUTE = struct.Struct("=HH")
_TYPE_MASK = 0x3FFF  # without NLA_F_NESTED and NLA_F_NET_BYTEORDER
_ATTRIBUTES: dict[type, dict[int, tuple[str, Any]]] = {}
_FORMATS: dict[type, tuple[struct.Struct, tuple[str, ...]]] = {}


class CutShortError(NetlinkDataDecodeError):
    """A value that ends before its struct does."""


class slot(nla_slot):
    """An attribute that is made and decoded when it is asked for; None where its value is cut short."""

    __slots__ = ("_made", "_name", "_place")

    def __init__(self, name: str, made: Any, *place: Any) -> None:
        self._name, self._made, self._place = name, made, place  # data, offset, length, parent

    @property
    def cell(self) -> Any:
        """(name, nla), which is what pyroute2's has from the beginning."""
        data, offset, length, parent = self._place
        return self._name, self._made(data=data, offset=offset, length=length, parent=parent)

    @property
    def name(self) -> str:
        """As in the nla_map."""
        return self._name

    @property
    def raw(self) -> bytes:
        """The attribute's bytes, without its header."""
        data, offset, length, _ = self._place
        return bytes(data[offset + _ATTRIBUTE.size : offset + length])

    def __getitem__(self, key: Any) -> Any:
        return self._name if key == 0 else self.get_value() if key == 1 else super().__getitem__(key)

    def get_value(self) -> Any:
        """Raises NetlinkDecodeError where its own attributes can't be true."""
        try:
            if issubclass(self._made, _direct):
                return self._made.value_at(*self._place[:3])
            found = self.cell[1]
            found.decode()
        except CutShortError:
            return None
        return found.getvalue()


class bounded:
    """Mixin, ahead of a class of pyroute2: decodes within the attribute's own bytes."""

    __slots__ = ()
    #: Name and class of attributes that the nla_map lacks.
    unknown: tuple[str, Any] = ("UNKNOWN", nlmsg_atoms.none)

    def decode(self: Any) -> None:
        """As pyroute2's, but for the errors. `length` of an attribute is set by who made it."""
        begin = self.offset
        if self.is_nla:
            begin += _ATTRIBUTE.size
        else:
            for name, form in self.header:
                self["header"][name] = struct.unpack_from(form, self.data, begin)[0]
                begin += struct.calcsize(form)
            self.length = self["header"]["length"]
        self.ft_decode(begin)
        self.decoded = True

    def get_attr(self: Any, attr: str, default: Any = None) -> Any:
        """Value of the first attribute of this name."""
        for one in dict.get(self, "attrs", ()):
            if one[0] == attr:
                value = one[1]
                return default if value is None else value
        return default

    def ft_decode(self: Any, offset: int) -> None:
        """Fields, then attributes."""
        if self.fields:
            form, names = _fields_of(type(self))
            if offset + form.size > self.offset + self.length:
                raise CutShortError(f"{type(self).__name__}: {self.length} bytes")
            values = form.unpack_from(self.data, offset)
            self.update(zip(names, values, strict=True))
            offset += (form.size + 3) & ~3
        if self.nla_map:
            self.decode_nlas(offset)
        else:
            del self["attrs"]

    def decode_nlas(self: Any, offset: int) -> None:
        """Those that have a class."""
        known, found, data = _attributes_of(type(self)), self["attrs"], self.data
        end = self.offset + self.length
        while offset + _ATTRIBUTE.size <= end:
            length, kind = _ATTRIBUTE.unpack_from(data, offset)
            if length < _ATTRIBUTE.size or offset + length > end:
                raise NetlinkNLADecodeError(f"an attribute says {length} bytes where {end - offset} are left")
            name, made = known.get(kind & _TYPE_MASK, self.unknown)
            if isinstance(made, FunctionType):
                made = made(self, data=data, offset=offset)
            if made is not nlmsg_atoms.none:
                found.append(slot(name, made, data, offset, length, self))
            offset += (length + 3) & ~3


def _attributes_of(made: Any) -> dict[int, tuple[str, Any]]:
    """An nla_map in either of its forms, with the class of each attribute, or the function that gives it."""
    known = _ATTRIBUTES.get(made)
    if known is None:
        rows = ((row if isinstance(row[0], int) else (number, *row)) for number, row in enumerate(made.nla_map))
        known = _ATTRIBUTES[made] = {number: (name, getattr(made, kind)) for number, name, kind in rows}
    return known


def _fields_of(made: Any) -> tuple[struct.Struct, tuple[str, ...]]:
    """One struct of all fields, and the names of those that are no padding. In host order, but for a lone field."""
    known = _FORMATS.get(made)
    if known is None:
        formats = [form for _, form in made.fields]
        whole = formats[0] if len(formats) == 1 and formats[0][0] in "=<>" else "=" + "".join(formats)
        names = tuple(name for name, form in made.fields if form[-1] != "x")
        known = _FORMATS[made] = struct.Struct(whole), names
    return known


class _direct(bounded):
    """Mixin of what is one value: read without an object of its own."""

    __slots__ = ()

    def decode(self: Any) -> None:
        self.value = self.value_at(self.data, self.offset, self.length)
        self.decoded = True

    @classmethod
    def value_at(cls, data: bytes, offset: int, length: int) -> Any:
        """The value of an attribute that begins here. Raises CutShortError."""
        raise NotImplementedError


class _number(_direct):
    """In the byte order of `fields`."""

    __slots__ = ()

    @classmethod
    def value_at(cls, data: bytes, offset: int, length: int) -> int:
        form, _ = _fields_of(cls)
        if length < _ATTRIBUTE.size + form.size:
            raise CutShortError(f"{cls.__name__}: {length} bytes")
        return int(form.unpack_from(data, offset + _ATTRIBUTE.size)[0])


class _bytes(_direct):
    """All bytes of an attribute."""

    __slots__ = ()

    @classmethod
    def value_at(cls, data: bytes, offset: int, length: int) -> Any:
        return bytes(data[offset + _ATTRIBUTE.size : offset + length])


class _text(_bytes):
    """Up to the first NUL. Bytes that are no UTF-8 are kept as surrogates, and come out as they were."""

    __slots__ = ()

    @classmethod
    def value_at(cls, data: bytes, offset: int, length: int) -> str:
        value: bytes = data[offset + _ATTRIBUTE.size : offset + length]
        return bytes(value).split(b"\0", 1)[0].decode("utf-8", "surrogateescape")

    def encode(self: Any) -> None:
        if isinstance(self["value"], str):
            self["value"] = self["value"].encode("utf-8", "surrogateescape")
        super().encode()  # type: ignore[misc] # pyroute2's, which comes behind this mixin


class atoms:
    """pyroute2's atoms, with bounds; under the same names, which is how an nla_map finds them."""

    __slots__ = ()

    class uint8(_number, nlmsg_atoms.uint8):
        __slots__ = ()

    class uint16(_number, nlmsg_atoms.uint16):
        __slots__ = ()

    class uint32(_number, nlmsg_atoms.uint32):
        __slots__ = ()

    class uint64(_number, nlmsg_atoms.uint64):
        __slots__ = ()

    class int32(_number, nlmsg_atoms.int32):
        __slots__ = ()

    class be16(_number, nlmsg_atoms.be16):
        __slots__ = ()

    class be32(_number, nlmsg_atoms.be32):
        __slots__ = ()

    class be64(_number, nlmsg_atoms.be64):
        __slots__ = ()

    class sbe32(_number, nlmsg_atoms.sbe32):
        __slots__ = ()

    class cdata(_bytes, nlmsg_atoms.cdata):
        __slots__ = ()

    class asciiz(_text, nlmsg_atoms.asciiz):
        __slots__ = ()


class nla(bounded, atoms, pyroute2_nla):
    """Base of attributes that hold a struct, or attributes."""

    __slots__ = ()


class nlmsg(bounded, atoms, pyroute2_nlmsg):
    """Base of messages."""

    __slots__ = ()
