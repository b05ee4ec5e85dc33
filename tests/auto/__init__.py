"""Applications as they stand, that nobody wrote a tracker into: for test_instrumentor.py."""
