# SPDX-License-Identifier: Apache-2.0
"""Text from outside, made harmless: the one place that all of it passes before a person sees it. Imports nothing.

Names, messages and values come from files, packets, other processes, the kernel and the command line. Terminals act on
control characters, and bidirectional overrides and zero-width characters make a name look like another one.

- An error's message and hints pass `safe` when the error is made (vifprobe.errors).
- A line of a screen or a report passes it when the line is made (render.line), whatever it was made from.
- JSON is written as ASCII, and the cells of CSV files have escapes of their own, which can be undone (capture.codecs).
"""

from __future__ import annotations

#: Longer texts are cut: no line of ours is as long, and a hostile one can be as long as a file.
CHARACTERS_MAX = 4096
QUOTED_CHARACTERS_MAX = 60


def escape(character: str) -> str:
    r"""One character as an escape: ``\x1b``, ``\u202e``, ``\U000e0001``."""
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def safe(text: str, characters_max: int = CHARACTERS_MAX) -> str:
    """Text that can be shown: what is not printable as an escape, and cut where it is very long.

    Control characters (C0, C1, line ends), bidirectional overrides and isolates, zero-width characters, blanks other
    than the space, and lone surrogates are not printable (str.isprintable, by their Unicode category).
    """
    if len(text) > characters_max:
        text = text[: characters_max - 3] + "..."
    return text if text.isprintable() else "".join(c if c.isprintable() else escape(c) for c in text)


def quoted(value: object) -> str:
    """A foreign value for an error text: as Python writes it, in ASCII, cut when long."""
    try:
        text = ascii(value)
    except ValueError:  # a number of more digits than Python writes
        return f"a {type(value).__name__} that is too long to be shown"
    return text if len(text) <= QUOTED_CHARACTERS_MAX else text[:QUOTED_CHARACTERS_MAX] + "…"
