"""A pytest-style robustness benchmark for vision models."""
