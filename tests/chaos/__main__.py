"""`python -m tests.chaos`: the attack of `run`."""

import sys

from tests.chaos.run import main

sys.exit(main())
