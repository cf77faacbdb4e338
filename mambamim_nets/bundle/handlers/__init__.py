"""Ignite handlers: training, checkpoints, and the reports of evaluation and inference."""
