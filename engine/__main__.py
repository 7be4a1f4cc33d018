"""`python -m polarax` is the console script `polarax`."""

import sys

from polarax.cli import main

sys.exit(main())
