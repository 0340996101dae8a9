"""Training, evaluation and fine-tuning of upscalers; nothing here runs in the archive's own work."""
