"""Metrics of talking-face videos, and the reports made of them."""
