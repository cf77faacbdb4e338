"""Metrics of cases and the tables made of them."""
