"""Evidence with a real network and real photographs, and which metrics can be believed."""
