"""The command line: `python -m infinitetalk_client`."""

import sys

from infinitetalk_client import main

sys.exit(main())
