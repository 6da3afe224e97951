"""`python -m jaxevo`: the command line."""

import sys

from jaxevo.cli.main import main

sys.exit(main())
