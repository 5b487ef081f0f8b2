"""Worked applications of matrix square roots, built on the public functions of ``matroot`` only."""
