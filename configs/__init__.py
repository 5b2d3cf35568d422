"""Configurations of experiments as YAML, which `interpretable-training configs` lists and --config finds by stem."""
