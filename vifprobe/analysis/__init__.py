# SPDX-License-Identifier: Apache-2.0
"""Pure numpy: rates, the token bucket model, SYN-flood measures, findings. No I/O."""
