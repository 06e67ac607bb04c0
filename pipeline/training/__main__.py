"""`python -m denoise_batch.pipeline.training` is `denoise-train`; torchrun takes it with `-m`."""

import sys

from ..cli.train import main

sys.exit(main())
