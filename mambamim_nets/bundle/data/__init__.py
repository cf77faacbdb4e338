"""Data sets: which cases there are, whether they are sound, and which of them train."""
