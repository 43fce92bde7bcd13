# SPDX-License-Identifier: Apache-2.0
"""`vifprobe` and `python3 -m vifprobe`. Imports next to nothing itself, so that Ctrl-C ends the imports, too."""

import sys


def main() -> None:
    """Run the command line."""
    try:
        from vifprobe.process.startup import command_line

        command_line()()
    except KeyboardInterrupt:
        sys.stderr.write("Stopped.\n")
        sys.exit(1)  # errors.EXIT_FAILED, which may not be there yet


if __name__ == "__main__":
    main()
