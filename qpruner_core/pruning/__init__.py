"""Prune: `selection` turns scores into a plan (NumPy only), `surgery` carries it out."""
