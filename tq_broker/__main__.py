"""``python -m tq_broker`` is ``tq-broker``."""

import sys

from tq_broker.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
