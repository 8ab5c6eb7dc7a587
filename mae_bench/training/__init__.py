"""Recipes of the bundled models: what was trained, on what, for how long, from which seed."""
