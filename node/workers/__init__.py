"""The processes that own torch and the device: pool, requests, and what each request does."""
