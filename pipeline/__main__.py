"""`python -m denoise_batch` is `denoise-batch`."""

import sys

from .cli.batch import main

sys.exit(main())
