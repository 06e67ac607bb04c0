"""`python -m denoise_batch.training` is `denoise-train`; torchrun runs it with `-m`."""

import sys

from ..cli.train import main

sys.exit(main())
