"""Storage drivers for tests and benchmarks: fault injection, delays, and a journal of operations."""
