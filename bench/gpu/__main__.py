"""`python -m bench.gpu`."""

import sys

from . import main

sys.exit(main())
