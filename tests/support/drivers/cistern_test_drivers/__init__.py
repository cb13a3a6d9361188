"""Storage drivers for tests and benchmarks: fault injection, delays, and an operation journal."""
