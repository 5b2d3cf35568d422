"""Sweeps of W&B on this machine: its files, macros and agent contract, with Optuna as the engine."""
