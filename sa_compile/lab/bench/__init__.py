"""Benchmarks that print what the project claims."""
