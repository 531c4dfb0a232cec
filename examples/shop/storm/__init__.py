"""
The machinery of the demo: processes, clients, the proof and the report.
"""
