"""`python -m jaxevo`: the command line."""

import sys

from jaxevo.cli import main

sys.exit(main())
