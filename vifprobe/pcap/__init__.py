# SPDX-License-Identifier: Apache-2.0
"""Files of recorded packets, read as a stream: pcap and pcapng. No I/O but the given file, and no packet is judged."""
