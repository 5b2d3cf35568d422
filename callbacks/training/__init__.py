"""Machinery of the callbacks that change the training."""
