"""The command `sealgate` on a machine that seems to have a GPU: workers are shown two devices that every machine has.

For tests of the sandbox around a GPU's driver with real processes, where there is no GPU.
"""

from __future__ import annotations

import sys

from sealgate.cli import main
from secure_runtime.host import runtime

STAND_INS = ("/dev/zero", "/dev/full")

if __name__ == "__main__":
    runtime.gpu_nodes = lambda _device: STAND_INS
    sys.exit(main())
