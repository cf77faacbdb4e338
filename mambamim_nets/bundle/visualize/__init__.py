"""Pictures, as PNG files and as figures for TensorBoard."""
