"""
Tools the tests and the benchmarks share; nothing here is shipped.
"""
