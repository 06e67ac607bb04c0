"""`python -m denoise_batch.pipeline` is `denoise-batch`."""

import sys

from .cli import main

sys.exit(main())
