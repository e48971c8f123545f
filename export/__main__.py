"""`python -m export` in a checkout: the same as `florence2 export` anywhere."""

import sys

from florence2_command import main

sys.exit(main(["export", *sys.argv[1:]]))
