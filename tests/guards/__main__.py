"""`python -m tests.guards`: take every guard out once."""

import sys

from tests.guards.run import main

sys.exit(main())
