"""
Products, stock and orders.
"""
