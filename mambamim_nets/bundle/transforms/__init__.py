"""Transforms that MONAI does not have: intensities, channels, label maps, heat maps."""
