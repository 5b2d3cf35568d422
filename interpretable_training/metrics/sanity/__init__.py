"""Sanity checks of attribution methods: randomized parameters, randomized labels, shifted inputs."""
