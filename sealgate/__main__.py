"""`python -m sealgate` is the command `sealgate`."""

import sys

from sealgate.cli import main

sys.exit(main())
