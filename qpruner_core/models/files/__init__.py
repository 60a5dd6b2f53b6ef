"""Files that travel with an export; they import nothing of this package, so that they run without
it.
"""
