"""Load: from a folder or hub id to a model in memory. Importing this package loads no torch; its
modules do.

`architectures` stays torch-free all the way down, so that the browser side can ask it for layouts.
"""
