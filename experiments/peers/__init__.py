"""The same work done by other libraries, for benchmarks. Each is imported only where it is installed."""
