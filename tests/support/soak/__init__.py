"""
Some minutes of mixed traffic through every outage, and an audit of what came of it.
"""
