"""Models: registration, loading, taps."""
