"""`python -m chogori` is `chogori`."""

import sys

from chogori.cli.main import main

sys.exit(main())
