"""Images, folders and training runs around the blocks of denoise_batch.kernels."""
