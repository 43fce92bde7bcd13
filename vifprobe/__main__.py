# SPDX-License-Identifier: Apache-2.0
"""`vifprobe` and `python3 -m vifprobe`. Imports next to nothing itself, so that Ctrl-C ends the imports, too."""

import sys


def main() -> None:
    """Run the command line."""
    try:
        from vifprobe.process.startup import command_line

        command_line()()
    except KeyboardInterrupt:
        try:  # noqa: SIM105 - contextlib may not be there yet
            print("Stopped.", file=sys.stderr, flush=True)  # on none where standard error is closed
        except OSError:
            pass
        sys.exit(1)  # errors.EXIT_FAILED, which may not be there yet
    finally:
        import signal

        # The process ends now: Python's own last steps would print a traceback for it.
        signal.signal(signal.SIGINT, signal.SIG_IGN)


if __name__ == "__main__":
    main()
