"""Journal of a run, and the HTML report that is made of it."""
