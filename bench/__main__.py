"""`python -m bench`: the command line, as `earthbench`."""

import sys

from bench.cli.main import main

sys.exit(main())
