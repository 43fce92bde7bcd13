# SPDX-License-Identifier: Apache-2.0
"""`python3 -m vifprobe`."""

from vifprobe.cli import main

if __name__ == "__main__":
    main()
