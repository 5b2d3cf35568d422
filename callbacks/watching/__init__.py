"""Base, session and schedule of the watching callbacks."""
