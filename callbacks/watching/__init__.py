"""The machinery of watching callbacks."""
