"""Payload to full-matrix pixels: the engine, the upscalers, and the worker pool that owns torch."""
