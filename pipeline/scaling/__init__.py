"""Beyond one device: a worker for each GPU, Ray clusters, object storage. Loaded when asked for."""
