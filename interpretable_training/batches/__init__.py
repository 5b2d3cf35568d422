"""Batches: the one reader of what loaders return, and numbered batches from any source of images."""
