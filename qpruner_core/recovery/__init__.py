"""Recover: adapters of low rank learn back what pruning and low precision took.

The packed weights stay as they are, bit for bit; all that is learned lies in the adapter.
"""
