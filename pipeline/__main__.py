"""`python -m denoise_batch.pipeline` is `denoise-batch`."""

import sys

from .cli.batch import main

sys.exit(main())
