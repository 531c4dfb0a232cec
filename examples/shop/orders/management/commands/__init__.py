"""
A package that Django looks into.
"""
