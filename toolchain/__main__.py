"""`python -m toolchain`: hetcc."""

import sys

from toolchain.driver import main

sys.exit(main())
