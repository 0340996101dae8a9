"""Worker processes, which own torch and the device: their pool, the requests, and the code that answers them."""
