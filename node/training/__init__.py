"""Training, evaluation and fine-tuning of upscalers; the archive itself never runs this package."""
