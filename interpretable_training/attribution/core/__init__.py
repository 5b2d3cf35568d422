"""Building blocks of attribution methods: prepared models, captured layers, targets, batching, saved state."""
