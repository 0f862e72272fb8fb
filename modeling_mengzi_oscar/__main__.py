"""`python -m modeling_mengzi_oscar` is the command `mengzi-oscar`."""

import sys

from .cli import main

sys.exit(main())
