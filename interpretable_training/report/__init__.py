"""The journal of a run, and the page made of it."""
